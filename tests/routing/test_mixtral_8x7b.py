"""Mixtral-8x7B's true architecture: found without its weights, and run with its true sizes and few layers."""

import gc

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from tests.tiny import channel_states
from wdmoe_opencompass.routing.attachment import Attachment, find_moe_layers
from wdmoe_opencompass.selection import build_policy

TRUE_SIZES = dict(  # as mistralai/Mixtral-8x7B-Instruct-v0.1 publishes them
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=14336,
    num_attention_heads=32,
    num_key_value_heads=8,
    num_local_experts=8,
    num_experts_per_tok=2,
    max_position_embeddings=32768,
    rope_theta=1e6,
)


def test_the_patch_finds_32_layers_of_8_experts_without_any_weights():
    with torch.device("meta"):
        model = MixtralForCausalLM(MixtralConfig(**TRUE_SIZES, num_hidden_layers=32))
    layers = find_moe_layers(model)
    assert [layer.name for layer in layers] == [f"model.layers.{n}.mlp" for n in range(32)]
    assert {(layer.num_experts, layer.top_k) for layer in layers} == {(8, 2)}
    assert {(layer.shape.hidden_size, layer.shape.ffn_size) for layer in layers} == {(4096, 14336)}
    assert model.num_parameters() == pytest.approx(46.7e9, rel=0.001)


@pytest.mark.slow
def test_true_sizes_run_forward_with_both_policies():
    """Two layers in bfloat16 (6 GB of random weights): vanilla is untouched, WDMoE drops and stays finite."""
    torch.manual_seed(0)
    config = MixtralConfig(**TRUE_SIZES, num_hidden_layers=2, dtype="bfloat16")
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = MixtralForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    ids = torch.randint(3, 32000, (2, 24))
    with torch.no_grad():
        plain = model(ids).logits
        for name in ("top_k", "wlr"):
            with Attachment(model, build_policy(name), channel_states(model)) as attached:
                attached.recorder.reset()
                logits = model(ids).logits
                counted = attached.recorder.finish_batch(0, 2)
            assert torch.isfinite(logits).all()
            assert counted["assignments_before"].tolist() == [[96, 96]]
            if name == "top_k":
                assert torch.equal(logits, plain)
                assert (counted["assignments"] == 96).all()
            else:
                assert (counted["assignments"] >= 48).all()
                assert (counted["assignments"] < 96).any()
    del model
    gc.collect()
