"""Payload of few bits: what experts read and answer is rounded, and nothing else."""

import pytest
import torch

from tests.routing.families import find_moe_layers, logits, tiny_model
from tests.tiny import channel_states, prompts, tiny_mixtral
from wdmoe_opencompass import load_profile
from wdmoe_opencompass.errors import ModelError
from wdmoe_opencompass.routing import dropping_experts
from wdmoe_opencompass.routing.attachment import Attachment
from wdmoe_opencompass.routing.channel_state import ChannelStates
from wdmoe_opencompass.routing.payload import Payload
from wdmoe_opencompass.selection import build_policy

DEVICES = 8


def rounded(vector, bits):
    """Plain loop: the nearest of the 2^bits - 1 numbers that are symmetric around 0."""
    levels = 2 ** (bits - 1) - 1
    scale = max(abs(value) for value in vector) / levels
    return [round(value / scale) * scale if scale else 0.0 for value in vector]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_vector_arrives_rounded_to_its_own_scale(bits):
    vectors = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [[1e-3], [1], [1e3], [1], [0]]
    )
    arrived = Payload(bits, torch.arange(8)).round(vectors)
    for sent, got in zip(vectors.tolist(), arrived.tolist()):
        assert got == pytest.approx(rounded(sent, bits), rel=1e-5, abs=1e-12)
    assert all(len(set(row)) <= 2**bits - 1 for row in arrived.tolist())


def test_values_of_no_more_bits_than_the_payload_travel_as_they_are():
    vectors = torch.randn(3, 5)
    assert torch.equal(Payload(16, torch.arange(8)).round(vectors.bfloat16()), vectors.bfloat16())
    assert torch.equal(Payload(32, torch.arange(8)).round(vectors), vectors)


def layer_by_hand(experts, hidden_states, index, weights, placement, bits):
    """One MoE layer token by token, expert by expert: each device answers a token once."""
    total = torch.zeros_like(hidden_states)
    for token, (experts_of, weights_of) in enumerate(zip(index.tolist(), weights)):
        at = {}
        for expert, weight in zip(experts_of, weights_of):
            if expert == experts.num_experts:
                continue
            device = placement[expert]
            read = hidden_states[token] if device < 0 else torch.tensor(rounded(hidden_states[token].tolist(), bits))
            answer = experts(read[None], torch.tensor([[expert]]), torch.ones(1, 1))[0] * weight
            at.setdefault(device, []).append(answer)
        for device, answers in at.items():
            answer = sum(answers)
            total[token] += answer if device < 0 else torch.tensor(rounded(answer.tolist(), bits))
    return total


@pytest.mark.parametrize("gpu_like", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("placement", [[0, 1, 2, 3, 4, 5, 6, 7], [0, 0, 0, 1, 1, -1, -1, 2], [-1] * 8])
def test_a_layer_equals_tokens_sent_one_by_one(placement, bits, gpu_like, monkeypatch):
    if gpu_like:
        monkeypatch.setattr(dropping_experts, "can_leave_rows_out", lambda hidden_states: False)
    generator = torch.Generator().manual_seed(1)
    model = tiny_model("olmoe", top_k=3)
    experts = find_moe_layers(model)[0].experts
    hidden_states = torch.randn(6, 32, generator=generator)
    index = torch.stack([torch.randperm(8, generator=generator)[:3] for _ in range(6)])
    index[1, 2], index[4, 0] = 8, 8  # dropped
    weights = torch.rand(6, 3, generator=generator) * (index < 8)
    with torch.no_grad():
        expected = layer_by_hand(experts, hidden_states, index, weights, placement, bits)
        handle = dropping_experts.DroppingExperts(experts, Payload(bits, torch.tensor(placement)))
        assert torch.allclose(experts(hidden_states, index, weights), expected, atol=1e-4)
        handle.remove()
        assert (
            not torch.allclose(experts(hidden_states, index.clamp(max=7), weights), expected, atol=1e-4)
            or placement[0] < 0
        )


@pytest.mark.parametrize("policy", ["top_k", "wlr"])
@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_fewer_bits_move_the_logits_further(family, policy):
    model = tiny_model(family)
    layer = find_moe_layers(model)[0]
    states = ChannelStates(load_profile("paper_8_devices"), layer.shape, layer.num_experts)

    def with_bits(bits):
        with Attachment(model, build_policy(policy), states, payload_bits=bits):
            return logits(model)

    plain = logits(model)
    exact = with_bits(None)
    error = {bits: (with_bits(bits) - exact).norm().item() for bits in (4, 8, 16, 32)}
    assert error[4] > 4 * error[8] > 0
    assert error[8] > 50 * error[16] > 0
    assert error[32] <= 1e-4 * exact.norm()
    assert torch.equal(logits(model), plain)


def test_loads_are_counted_as_without_quantisation():
    model = tiny_mixtral(layers=1)  # in later layers routing itself moves
    ids, mask = prompts()

    def loads(bits):
        with Attachment(model, build_policy("top_k"), channel_states(model), payload_bits=bits) as attached:
            model(input_ids=ids, attention_mask=mask)
            return attached.recorder.finish_batch(0, 4)["device_load"]

    with torch.no_grad():
        assert (loads(4) == loads(None)).all()


@pytest.mark.parametrize(
    ("family", "bits", "sentence"),
    [
        ("llama4_text", 8, "Llama4TextExperts does not let what its experts get and answer be quantised"),
        ("mixtral", 1, "quantise_payload needs payload_bits of at least 2, got 1"),
    ],
)
def test_what_cannot_be_quantised_is_refused_and_leaves_nothing_behind(family, bits, sentence):
    model = tiny_model(family)
    layer = find_moe_layers(model)[0]
    states = ChannelStates(load_profile("paper_8_devices"), layer.shape, layer.num_experts)
    plain = logits(model)
    with pytest.raises(ModelError, match=sentence):
        Attachment(model, build_policy("top_k"), states, payload_bits=bits)
    assert torch.equal(logits(model), plain)
    assert "generate" not in vars(model)
