import inspect
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracles
from tests.builders.random_routing import random_case
from tests.conftest import ROOT
from tests.tiny import example_parameters, example_policy
from wdmoe_opencompass.errors import PolicyError
from wdmoe_opencompass.selection import POLICIES, ChannelState, Routing, build_policy

ALL_POLICIES = sorted(POLICIES)
# Algorithm 1's last threshold jumps back where its loop ends a round earlier, so a higher theta may drop less.
TURNING = {"wlr"}
TUNED = [name for name in ALL_POLICIES if POLICIES[name].tuned is not None and name not in TURNING]


def parameters_of(name):
    return inspect.signature(POLICIES[name]).parameters


cases = st.builds(
    random_case,
    seed=st.integers(0, 2**31),
    tokens=st.integers(1, 40),
    experts=st.integers(4, 12),
    k=st.integers(1, 4),
    devices=st.integers(1, 4),
    spread=st.sampled_from([0.1, 1.0, 3.0]),
)


def example(name, routing):
    return example_policy(name, 1, routing.probabilities.shape[1], routing.top_k_index.shape[1])


@pytest.mark.parametrize("name", ALL_POLICIES)
@settings(deadline=None, max_examples=40)
@given(case=cases)
def test_every_token_keeps_its_top_expert_and_none_gains_one(name, case):
    """Except where the policy says that a token may lose all, or may be given others; none is held twice."""
    routing, channel = case
    policy = example(name, routing)
    index, keep, weights = policy.select(routing, channel)
    top = routing.top_k_weights.argmax(dim=1, keepdim=True)
    assert policy.may_lose_all or policy.may_add or keep.gather(1, top).all()
    assert policy.may_lose_all or keep.any(dim=1).all()
    assert policy.may_add or (torch.equal(index, routing.top_k_index) and weights is None)
    assert ((index >= 0) & (index < routing.probabilities.shape[1])).all()
    held = torch.zeros_like(routing.probabilities).scatter_add(1, index, keep.float())
    assert (held <= 1).all()
    if name == "sift_moe":  # an expert takes the weight of the slot that it fills
        assert (torch.where(keep, weights, 0).sum(1) <= routing.top_k_weights.sum(1) * (1 + 1e-5)).all()
    elif weights is not None:
        assert torch.allclose(weights[keep], routing.weights_of(index)[keep], rtol=1e-5)


@pytest.mark.parametrize("name", ALL_POLICIES)
@settings(deadline=None, max_examples=40)
@given(case=cases)
def test_padding_does_not_change_what_real_tokens_keep(name, case):
    routing, channel = case
    real = routing.is_real_token
    alone = Routing(
        routing.probabilities[real], routing.top_k_index[real], routing.top_k_weights[real], real[real], 0, "prefill"
    )
    policy = example(name, routing)
    padded, unpadded = policy.select(routing, channel), policy.select(alone, channel)
    assert torch.equal(padded.keep[real], unpadded.keep)
    assert torch.equal(padded.expert_index[real][unpadded.keep], unpadded.expert_index[unpadded.keep])


def kept(selection):
    return [set(index[keep].tolist()) for index, keep in zip(selection.expert_index, selection.keep)]


def chosen_together_and_alone(name, routing, channel):
    """What each token keeps in one pass of all, and in a pass of its own."""
    policy = example(name, routing)
    alone = []
    for token in range(len(routing.is_real_token)):
        row = slice(token, token + 1)
        parts = [part[row] for part in (routing.probabilities, routing.top_k_index, routing.top_k_weights)]
        alone += kept(policy.select(Routing(*parts, routing.is_real_token[row], routing.layer, routing.phase), channel))
    return kept(policy.select(routing, channel)), alone


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("name", ALL_POLICIES)
@settings(deadline=None, max_examples=10)
@given(case=cases)
def test_only_policies_that_say_so_couple_the_tokens_of_a_pass(name, phase, case):
    routing, channel = case
    if not example(name, routing).couples_tokens:
        together, alone = chosen_together_and_alone(name, replace(routing, phase=phase), channel)
        assert together == alone


@pytest.mark.parametrize("name", ALL_POLICIES)
def test_policies_that_say_so_do_couple_the_tokens_of_a_pass(name):
    for seed in range(60):
        routing, channel = random_case(seed, tokens=12, experts=8, k=2, devices=3)
        if not example(name, routing).couples_tokens:
            return
        for phase in ("prefill", "decode"):
            together, alone = chosen_together_and_alone(name, replace(routing, phase=phase), channel)
            if together != alone:
                return
    raise AssertionError(f"{name} claims to couple tokens, and did in no case")


@pytest.mark.parametrize("name", ALL_POLICIES)
@settings(deadline=None, max_examples=30)
@given(case=cases)
def test_a_policy_without_padding_keeps_the_same_again(name, case):
    routing, channel = case
    routing = replace(routing, is_real_token=torch.ones_like(routing.is_real_token))
    first, second = (example(name, routing).select(routing, channel) for _ in range(2))
    assert torch.equal(first.keep, second.keep)
    assert torch.equal(first.expert_index, second.expert_index)


@pytest.mark.parametrize("name", ALL_POLICIES)
@settings(deadline=None, max_examples=30)
@given(case=cases)
def test_at_its_neutral_parameters_a_policy_is_top_k(name, case):
    routing, channel = case
    k, experts = routing.top_k_index.shape[1], routing.probabilities.shape[1]
    for parameters in ({}, example_parameters(name, 1, experts, k)):
        index, keep, _ = build_policy(name, parameters | POLICIES[name].neutral).select(routing, channel)
        assert keep[routing.is_real_token].all()
        assert torch.equal(index, routing.top_k_index)


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("name", TUNED)
def test_the_kept_share_follows_the_tuned_parameter(name, k):
    """Over a wide range, and without a turn."""
    routing, channel = random_case(seed=1, tokens=400, experts=8, k=k, devices=4, spread=1.0)
    parameter, low, high = POLICIES[name].tuned
    values = sorted({low, high, *(high * 0.5**n for n in range(24) if high * 0.5**n > low)})
    parameters = example_parameters(name, 1, 8, k)
    policies = [build_policy(name, parameters | {parameter: value}) for value in values]
    shares = [policy.select(routing, channel).keep[routing.is_real_token].float().mean().item() for policy in policies]
    assert shares == sorted(shares, reverse=shares[0] > shares[-1])
    assert abs(shares[0] - shares[-1]) > 0.2


@pytest.mark.parametrize("name", sorted(name for name in ALL_POLICIES if "may_lose_all" in parameters_of(name)))
@settings(deadline=None, max_examples=30)
@given(case=cases)
def test_a_policy_that_is_told_so_spares_the_top_expert(name, case):
    routing, channel = case
    parameters = example_parameters(name, 1, routing.probabilities.shape[1], routing.top_k_index.shape[1])
    policy = build_policy(name, parameters | dict(may_lose_all=False))
    assert policy.select(routing, channel).keep[routing.rank == 0].all()


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 2**31),
    tokens=st.integers(1, 30),
    experts=st.integers(4, 10),
    k=st.integers(1, 4),
    theta=st.sampled_from([0.0, 0.5, 0.73]),
    gain=st.sampled_from([1.0, 1.01, 1.2, 50.0]),
    extra_pass=st.booleans(),
    devices=st.integers(2, 10),
    at_base_station=st.integers(0, 10),
)
def test_wlr_equals_algorithm_1_step_by_step(
    seed, tokens, experts, k, theta, gain, extra_pass, devices, at_base_station
):
    """Devices may hold several experts, or none, and some experts stay at the base station."""
    routing, channel = random_case(seed, tokens, experts, k, devices, spread=1.5)
    channel.device_of_expert[:at_base_station] = -1
    policy = build_policy("wlr", dict(theta=theta, gain=gain, extra_pass=extra_pass))
    keep = policy.select(routing, channel).keep
    real = routing.is_real_token.nonzero().flatten().tolist()
    expected = oracles.algorithm_1(
        routing.probabilities[real].tolist(),
        routing.top_k_index[real].tolist(),
        channel.communication_s.tolist(),
        channel.computation_s.tolist(),
        channel.device_of_expert.tolist(),
        theta,
        0.1,
        gain,
        extra_pass,
    )
    assert [set(routing.top_k_index[j][keep[j]].tolist()) for j in real] == expected


@pytest.mark.parametrize("why", ["all experts at the base station", "no real token"])
def test_wlr_drops_nothing_where_nothing_is_sent(why):
    routing, channel = random_case(seed=0, tokens=20, experts=8, k=3, devices=8, spread=1.5)
    if why == "no real token":
        routing.is_real_token[:] = False
    else:
        channel.device_of_expert[:] = -1
    assert build_policy("wlr").select(routing, channel).keep.all()


def test_the_example_of_the_docs_runs():
    code = (ROOT / "docs" / "extending.md").read_text().split("```python\n")[1].split("```")[0]
    names = {}
    exec(compile(code, "docs/extending.md", "exec"), names)
    routing, channel = random_case(seed=0, tokens=20, experts=8, k=3)
    keep = names["LowestWeight"](least=0.3).select(routing, channel).keep
    assert torch.equal(keep, (routing.top_k_weights >= 0.3) | (routing.rank == 0))


# Algorithm 1 by hand: 4 tokens, 3 devices, one expert each, latencies 1, 2, 4 s (norm 4.5826), top-2.
#
#   token  weights          S                                     top-2   lowest
#   1      .90 .09 .01      (.90+.18+.04)/(.9045 * 4.5826)=.2702   1, 2    2
#   2      .50 .40 .10      (.50+.80+.40)/(.6481 * 4.5826)=.5724   1, 2    2
#   3      .10 .20 .70      (.10+.40+2.8)/(.7348 * 4.5826)=.9800   3, 2    2
#   4      .40 .10 .50      (.40+.20+2.0)/(.6481 * 4.5826)=.8755   3, 1    1
#
#   before:    WLR = (.90+.50+.40)/3 + (.09+.40+.20)/6 + (.70+.50)/8      = .6000 + .1150 + .1500 = .8650
#   theta .5:  token 1 loses expert 2: (.40+.20)/4 = .1500, sum .9000 > 1.01 * .8650 = .8737: the loop ends.
#   theta .6:  an extra pass, where one is asked for: token 2 (S = .5724) loses expert 2.
HAND_WEIGHTS = [[0.90, 0.09, 0.01], [0.50, 0.40, 0.10], [0.10, 0.20, 0.70], [0.40, 0.10, 0.50]]
HAND_SIMILARITY = [0.2702, 0.5724, 0.9800, 0.8755]


def hand_case():
    probabilities = torch.tensor(HAND_WEIGHTS)
    weights, index = probabilities.topk(2, dim=-1)
    routing = Routing(probabilities, index, weights, torch.ones(4, dtype=torch.bool), 0, "prefill")
    return routing, ChannelState(torch.tensor([0.5, 1.5, 3.0]), torch.tensor([0.5, 0.5, 1.0]), torch.arange(3))


@pytest.mark.parametrize(
    ("parameters", "dropped_tokens"),
    [
        ({}, [0]),
        (dict(extra_pass=True), [0, 1]),
        (dict(theta=0.2), [0]),
        (dict(gain=9.0), [0, 1, 2, 3]),
    ],
)
def test_wlr_on_the_case_worked_by_hand(parameters, dropped_tokens):
    routing, channel = hand_case()
    policy = build_policy("wlr", parameters)
    assert policy.similarity(routing, channel).tolist() == pytest.approx(HAND_SIMILARITY, abs=1e-4)
    keep = policy.select(routing, channel).keep
    assert (~keep).any(dim=1).nonzero().flatten().tolist() == dropped_tokens
    assert keep[:, 0].all()


def test_weights_outside_the_top_k_can_be_left_out_of_the_similarity():
    routing, channel = hand_case()
    similarity = build_policy("wlr", dict(similarity_weights="top_k")).similarity(routing, channel)
    assert similarity[0].item() == pytest.approx((0.90 + 2 * 0.09) / (0.81 + 0.0081) ** 0.5 / 21**0.5, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "parameters", "sentence"),
    [
        ("wrl", {}, "selection policy 'wrl' is unknown; did you mean 'wlr'"),
        ("wlr", dict(tetha=0.5), "takes no parameter tetha; did you mean theta"),
        ("wlr", dict(theta=1.5), "theta must be >= 0 and <= 1, got 1.5"),
        ("wlr", dict(similarity_weights="all"), "must be softmax or top_k, got 'all'"),
        ("top_k", dict(k=1), "takes no parameter k; it takes: no parameters"),
    ],
)
def test_bad_policy_gets_one_sentence(name, parameters, sentence):
    with pytest.raises(PolicyError) as caught:
        build_policy(name, parameters)
    assert sentence in str(caught.value)
