"""The two other models of the shipped configs: their routers and their placement on eight devices."""

import pytest
import torch
from transformers import OlmoeConfig, OlmoeForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from wdmoe_opencompass import ExpertShape, load_profile
from wdmoe_opencompass.routing.attachment import Attachment
from wdmoe_opencompass.routing.channel_state import ChannelStates
from wdmoe_opencompass.selection import build_policy

SIZES = dict(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)


def olmoe():
    return OlmoeForCausalLM(OlmoeConfig(**SIZES, intermediate_size=16, num_experts=64, num_experts_per_tok=8))


def qwen3_moe():
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **SIZES, moe_intermediate_size=16, num_experts=128, num_experts_per_tok=8, norm_topk_prob=True, head_dim=8
        )
    )


@pytest.mark.parametrize("build", [olmoe, qwen3_moe])
def test_top_k_is_untouched_and_wlr_equals_zeroed_weights(build):
    torch.manual_seed(0)
    model = build().eval()
    ids = torch.randint(3, 97, (3, 9))
    states = ChannelStates(load_profile("paper_8_devices"), ExpertShape(32, 16), model.config.num_experts)
    with torch.no_grad():
        plain = model(ids).logits
        with Attachment(model, build_policy("top_k"), states) as attached:
            assert torch.equal(model(ids).logits, plain)
            block = attached.recorder.finish_batch(0, 3)
        assert (block["assignments"] == 27 * 8).all()
        assert (block["device_load"].sum(axis=2) < 27 * 8).all()  # several experts of a token share a device
        assert (block["expert_evaluations"].sum(axis=2) == 27 * 8).all()
        with Attachment(model, build_policy("wlr", dict(theta=0.9)), states) as attached:
            dropped = model(ids).logits
            block = attached.recorder.finish_batch(0, 3)
            zeroed = _with_zeroed_weights(model, attached, ids)
        assert (block["assignments"] < 27 * 8).any()
        assert dropped == pytest.approx(zeroed, abs=1e-4)
        assert torch.equal(model(ids).logits, plain)


def _with_zeroed_weights(model, attached, ids):
    """Sentinels replaced by expert 0: its weight is 0 there."""
    handles = [
        layer.experts.register_forward_pre_hook(
            lambda module, args: (args[0], args[1] * (args[1] < module.num_experts), args[2])
        )
        for layer in attached.layers
    ]
    logits = model(ids).logits
    attached.recorder.reset()
    for handle in handles:
        handle.remove()
    return logits
