"""Every policy on random MoE models: sizes, shared experts, dense layers, padding and placements are drawn."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracles
from tests.routing.families import Watching, example_for, find_moe_layers, tiny_model
from tests.tiny import ONLY_IN_DECODE, prompts
from wdmoe_opencompass import load_profile
from wdmoe_opencompass.errors import ModelError
from wdmoe_opencompass.routing.attachment import Attachment
from wdmoe_opencompass.routing.channel_state import ChannelStates
from wdmoe_opencompass.selection import POLICIES

DEVICES = 8


def run(model, policy, placement=None, ids_and_mask=None):
    """-> the block of one forward pass, its logits, the mask, and what the policy answered in each layer."""
    ids, mask = ids_and_mask or prompts(rows=5)
    layers = find_moe_layers(model)
    states = ChannelStates(load_profile("paper_8_devices"), layers[0].shape, layers[0].num_experts)
    states._device_of_expert = placement or states._device_of_expert
    with Attachment(model, example_for(layers, policy), states) as attachment, torch.no_grad():
        if policy != "top_k":  # a watched top_k would not be vanilla any more
            attachment.policy = Watching(attachment.policy)
        logits = model(input_ids=ids, attention_mask=mask).logits
        answers = getattr(attachment.policy, "answers", [])
        return attachment.recorder.finish_batch(0, len(ids)), logits, mask, answers


def refused(model, policy):
    """Whether a policy may add experts that the model's router gives no weight; then it says so."""
    if not POLICIES[policy].may_add or find_moe_layers(model)[0].router_kind == "softmax":
        return False
    with pytest.raises(ModelError, match="outside its top-k"):
        run(model, policy)
    return True


NORMALISED_OR_NOT = st.fixed_dictionaries(dict(norm_topk_prob=st.booleans()))
EXTRAS = {
    "mixtral": st.just({}),
    "gpt_oss": st.just({}),
    "olmoe": NORMALISED_OR_NOT,
    "qwen2_moe": NORMALISED_OR_NOT,
    "deepseek_v3": st.fixed_dictionaries(
        dict(
            norm_topk_prob=st.booleans(), n_group=st.just(1), topk_group=st.just(1), n_shared_experts=st.integers(1, 2)
        )
    ),
}


@st.composite
def models(draw):
    family = draw(st.sampled_from(sorted(EXTRAS)))
    experts = draw(st.integers(2, 24))
    return tiny_model(
        family,
        seed=draw(st.integers(0, 2**31)),
        experts=experts,
        top_k=draw(st.integers(1, min(8, experts))),
        num_hidden_layers=draw(st.integers(2, 3)),
        **draw(EXTRAS[family]),
    )


@pytest.mark.parametrize("policy", sorted(POLICIES))
@settings(deadline=None, max_examples=12)
@given(
    model=models(),
    side=st.sampled_from(["left", "right"]),
    rows=st.integers(1, 5),
    at_base_station=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_invariants_of_every_policy(policy, model, side, rows, at_base_station, seed):
    layers = find_moe_layers(model)
    experts, top_k = layers[0].num_experts, layers[0].top_k
    if refused(model, policy):
        return
    ids, mask = prompts(rows=rows, seed=seed, side=side)
    tokens, real = mask.sum().item(), mask.flatten().tolist()
    placement = [-1 if expert < at_base_station else expert % DEVICES for expert in range(experts)]
    with torch.no_grad():
        plain = model(input_ids=ids, attention_mask=mask).logits

    block, logits, _, answers = run(model, policy, placement, (ids, mask))

    assert logits.isfinite().all()
    assert (policy != "top_k") or torch.equal(logits, plain)
    assert block["tokens"].tolist() == [tokens]
    assert (block["assignments_before"] == top_k * tokens).all()
    assert POLICIES[policy].may_lose_all or (block["assignments"] >= tokens).all()
    assert (block["assignments"] <= block["assignments_before"]).all()
    assert (block["device_load"] <= block["expert_evaluations"]).all()
    assert (block["co_selection"].sum(axis=-1) == top_k * (top_k - 1) // 2 * tokens).all()
    if not POLICIES[policy].may_add:
        assert (block["device_load"] <= block["device_load_before"]).all()
        assert (block["weight_sum"] <= block["weight_sum_before"] + 1e-6).all()
    for number, (index, keep, _) in enumerate(answers):
        kept = [row[flags].tolist() for row, flags in zip(index, keep, strict=True)]
        device_load, computed = oracles.loads(kept, real, placement, DEVICES)
        assert block["device_load"][0, number].tolist() == device_load
        assert block["expert_evaluations"][0, number].tolist() == computed
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, plain)


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize(("experts", "top_k"), [(64, 8), pytest.param(128, 4, marks=pytest.mark.slow), (60, 1)])
def test_more_experts_than_devices_and_layers(policy, experts, top_k):
    model = tiny_model("qwen2_moe", experts=experts, top_k=top_k)
    if refused(model, policy):
        return
    block, logits, mask, _ = run(model, policy)
    tokens = mask.sum().item()
    assert logits.isfinite().all()
    assert (block["assignments_before"] == top_k * tokens).all()
    assert (block["device_load_before"] <= tokens).all()  # a device that holds several experts gets a token once
    assert block["co_selection"].shape[-1] == experts * (experts - 1) // 2


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "family",
    ["mixtral", "gpt_oss", *(pytest.param(f, marks=pytest.mark.slow) for f in ("deepseek_v3", "dbrx", "llama4_text"))],
)
def test_short_floating_point(family, dtype, policy):
    """What a router does (its kind, whether it normalises) is seen through the rounding of its weights."""
    model = tiny_model(family).to(dtype)
    for short, full in zip(find_moe_layers(model), find_moe_layers(tiny_model(family)), strict=True):
        assert (short.router_kind, short.normalises) == (full.router_kind, full.normalises)
    if refused(model, policy):
        return
    ids, mask = prompts(rows=5)
    with torch.no_grad():
        plain = model(input_ids=ids, attention_mask=mask).logits
    block, logits, _, _ = run(model, policy)
    assert logits.dtype == dtype
    assert logits.isfinite().all()
    untouched = policy == "top_k" or (family == "llama4_text" and not POLICIES[policy].may_lose_all)
    assert policy in ONLY_IN_DECODE or torch.equal(logits, plain) == untouched
    assert (block["assignments_before"] == find_moe_layers(model)[0].top_k * mask.sum().item()).all()
