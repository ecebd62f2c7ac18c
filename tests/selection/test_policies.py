import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracles
from wdmoe_opencompass.errors import PolicyError
from wdmoe_opencompass.selection import POLICIES, ChannelState, Routing, build_policy
from wdmoe_opencompass.selection.base import BandwidthCurve

ALL_POLICIES = sorted(POLICIES)


def random_case(seed, tokens, experts, k, devices=None, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.softmax(spread * torch.randn(tokens, experts, generator=generator), dim=-1)
    weights, index = probabilities.topk(k, dim=-1)
    shuffle = torch.rand(tokens, k, generator=generator).argsort(dim=1)  # some routers do not sort
    routing = Routing(
        probabilities,
        index.gather(1, shuffle),
        weights.gather(1, shuffle),
        torch.rand(tokens, generator=generator) < 0.8,
        layer=0,
        phase="prefill",
    )
    devices = devices or experts
    communication_s = torch.rand(devices, generator=generator) + 0.1
    share = torch.logspace(-4, 0, 60)
    curve = BandwidthCurve(share, communication_s[:, None] * (devices * share) ** -0.9)
    channel = ChannelState(
        communication_s,
        torch.rand(devices, generator=generator),
        torch.arange(experts) % devices,
        token_energy_j=torch.rand(devices, generator=generator),
        curve=curve,
    )
    return routing, channel


cases = st.builds(
    random_case,
    seed=st.integers(0, 2**31),
    tokens=st.integers(1, 40),
    experts=st.integers(4, 12),
    k=st.integers(1, 4),
    devices=st.integers(1, 4),
    spread=st.sampled_from([0.1, 1.0, 3.0]),
)


@pytest.mark.parametrize("name", ALL_POLICIES)
@settings(deadline=None, max_examples=60)
@given(case=cases)
def test_every_token_keeps_its_top_expert_and_none_gains_one(name, case):
    routing, channel = case
    policy = build_policy(name)
    selection = policy.select(routing, channel)
    top = routing.top_k_weights.argmax(dim=1, keepdim=True)
    assert policy.may_lose_all or policy.may_add or selection.keep.gather(1, top).all()
    assert policy.may_lose_all or selection.keep.any(dim=1).all()
    assert policy.may_add or torch.equal(selection.expert_index, routing.top_k_index)


@pytest.mark.parametrize("name", ALL_POLICIES)
@settings(deadline=None, max_examples=60)
@given(case=cases)
def test_padding_does_not_change_what_real_tokens_keep(name, case):
    routing, channel = case
    real = routing.is_load
    alone = Routing(
        routing.probabilities[real], routing.top_k_index[real], routing.top_k_weights[real], real[real], 0, "prefill"
    )
    policy = build_policy(name)
    assert torch.equal(policy.select(routing, channel).keep[real], policy.select(alone, channel).keep)


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
    at_base_station=st.integers(0, 2),
)
def test_wlr_equals_algorithm_1_step_by_step(
    seed, tokens, experts, k, theta, gain, extra_pass, devices, at_base_station
):
    """Devices may hold several experts, or none, and some experts stay at the base station."""
    routing, channel = random_case(seed, tokens, experts, k, devices, spread=1.5)
    channel.device_of_expert[:at_base_station] = -1
    policy = build_policy("wlr", dict(theta=theta, gain=gain, extra_pass=extra_pass))
    keep = policy.select(routing, channel).keep
    real = routing.is_load.nonzero().flatten().tolist()
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
#   theta .6:  the extra pass: token 2 (S = .5724) loses expert 2.
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
        ({}, [0, 1]),
        (dict(extra_pass=False), [0]),
        (dict(theta=0.2, extra_pass=False), [0]),
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
