"""Rival policies against plain loops, against each other, and on cases worked by hand."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders.rival_cases import cases, kept, plain
from tests.selection import oracles_rivals as oracles
from wdmoe_opencompass.errors import PolicyError
from wdmoe_opencompass.selection import ChannelState, Routing, build_policy
from wdmoe_opencompass.selection.calibration import Calibration
from wdmoe_opencompass.selection.loads import device_time_s, routed_loads
from wdmoe_opencompass.selection.policies.adapmoe import MIXTRAL_8X7B_SENSITIVITY
from wdmoe_opencompass.selection.policies.random_drop import uniform

# Weights are a few 32nds, so that ties abound; thresholds are none of their ratios, so that rounding decides nothing.
THRESHOLDS = [0.0, 0.0713, 0.1937, 0.3141, 0.4567, 0.6183, 0.8119, 1.0]


examples = settings(deadline=None, max_examples=100)


@examples
@given(case=cases(), k=st.integers(1, 4), threshold=st.sampled_from(THRESHOLDS), h=st.sampled_from([0.3, 1.0, 46.69]))
def test_rules_of_one_token_equal_plain_loops(case, k, threshold, h):
    routing, channel = case
    weights, chosen = plain(routing)
    everywhere = [threshold] * routing.probabilities.shape[1]
    for name, parameters, expected in (
        ("fixed_k", dict(k=k), oracles.fixed_k(weights, chosen, k)),
        ("naee", dict(beta=[threshold]), oracles.naee(weights, chosen, threshold)),
        ("naee", dict(beta=0.3, scale=threshold), oracles.naee(weights, chosen, 0.3 * threshold)),
        ("one_t", dict(threshold=threshold), oracles.one_t(weights, chosen, everywhere, may_lose_all=False)),
        ("one_t", dict(threshold=threshold, may_lose_all=True), oracles.one_t(weights, chosen, everywhere, True)),
        ("adapmoe", dict(threshold=threshold**2, h=[h]), oracles.adapmoe(weights, chosen, threshold**2, h)),
        ("top_p", dict(p=threshold), oracles.top_p(weights, chosen, threshold)),
    ):
        if threshold == 1.0 and name in ("naee", "one_t"):
            continue  # ties of equal weights, and a share of 1, lie on the threshold itself: see the cases by hand
        assert kept(routing, build_policy(name, parameters).select(routing, channel)) == expected, (name, parameters)


@examples
@given(
    case=cases(),
    threshold=st.sampled_from(THRESHOLDS[1:-1]),
    max_threshold=st.sampled_from([None, *THRESHOLDS[1:-1]]),
    by=st.sampled_from(["tokens", "time"]),
)
def test_load_aware_thresholds_equal_plain_loops(case, threshold, max_threshold, by):
    routing, channel = case
    weights, chosen = plain(routing)
    parameters = dict(threshold=threshold, load_aware=by, max_threshold=max_threshold)
    times, places = (
        (channel.communication_s.tolist(), channel.computation_s.tolist()),
        channel.device_of_expert.tolist(),
    )
    loads = oracles.device_loads(chosen, by, *times, places)
    load, pairs = routed_loads(routing, channel)
    ours = device_time_s(channel, load, pairs) if by == "time" else pairs
    assert ours.tolist() == pytest.approx(loads)
    highest = threshold if max_threshold is None else max_threshold
    thresholds = oracles.load_aware_thresholds(loads, threshold, highest, places)
    expected = oracles.one_t(weights, chosen, thresholds, may_lose_all=False)
    assert kept(routing, build_policy("one_t", parameters).select(routing, channel)) == expected


@examples
@given(
    case=cases(),
    gamma=st.sampled_from([0.05, 0.3, 0.5, 1.0, 1.5, 2.0, 7.3]),
    by=st.sampled_from(["tokens", "device", "time"]),
    may_lose_all=st.booleans(),
    candidates=st.sampled_from(["local", "all"]),
)
def test_capped_rules_equal_plain_loops(case, gamma, by, may_lose_all, candidates):
    routing, channel = case
    weights, chosen = plain(routing)
    places = channel.device_of_expert.tolist()
    k, experts = routing.top_k_index.shape[1], routing.probabilities.shape[1]
    times = channel.communication_s.tolist(), channel.computation_s.tolist()
    holders, cap = oracles.caps(by, gamma, k, len(chosen), experts, *times, places)
    parameters = dict(gamma=gamma, by=by, may_lose_all=may_lose_all)

    selection = build_policy("capacity", parameters).select(routing, channel)
    assert torch.equal(selection.expert_index, routing.top_k_index)
    assert kept(routing, selection) == oracles.capacity(weights, chosen, holders, cap, may_lose_all)

    selection = build_policy("expanded_drop", parameters | dict(candidates=candidates)).select(routing, channel)
    expected = oracles.expanded_drop(weights, chosen, holders, cap, may_lose_all, places, candidates == "all")
    assert kept(routing, selection) == expected
    if may_lose_all:
        for holder, most in cap.items():
            assert sum(holders[e] == holder for own in kept(routing, selection) for e in own) <= most
    added = selection.expert_index != routing.top_k_index
    own_weights = routing.weights_of(selection.expert_index)
    assert torch.equal(selection.weights[~added], routing.top_k_weights[~added])
    assert torch.equal(selection.weights[added], own_weights[added])
    assert not added[~routing.is_real_token].any()


@examples
@given(case=cases(), gamma=st.sampled_from([0.05, 0.3, 1.0]), by=st.sampled_from(["tokens", "device", "time"]))
def test_expanded_drop_is_capacity_with_one_expert_per_device_and_none_at_the_base_station(case, gamma, by):
    routing, channel = case
    experts = routing.probabilities.shape[1]
    channel = ChannelState(torch.rand(experts) + 0.1, torch.rand(experts), torch.arange(experts))
    one, other = (build_policy(name, dict(gamma=gamma, by=by)) for name in ("capacity", "expanded_drop"))
    one, other = one.select(routing, channel), other.select(routing, channel)
    assert torch.equal(one.keep, other.keep)
    assert torch.equal(one.expert_index, other.expert_index)


@examples
@given(case=cases(), gamma=st.sampled_from([0.05, 0.5]))
def test_caps_act_in_prefill_only_unless_told_otherwise(case, gamma):
    routing, channel = case
    decode = replace(routing, phase="decode")
    for name in ("capacity", "expanded_drop"):
        assert build_policy(name, dict(gamma=gamma)).select(decode, channel).keep.all()
        everywhere = build_policy(name, dict(gamma=gamma, phase="all"))
        assert torch.equal(everywhere.select(decode, channel).keep, everywhere.select(routing, channel).keep)


@examples
@given(case=cases(k=2), r=st.sampled_from(THRESHOLDS[:-1]))
def test_with_two_experts_four_rules_are_one(case, r):
    """r < beta, r/(1+r) < T, r/(1+r) < sqrt(T/h), 1/(1+r) > p, with r the second weight over the first."""
    routing, channel = case
    share = r / (1 + r)
    same = [
        build_policy("naee", dict(beta=r)),
        build_policy("one_t", dict(threshold=share)),
        build_policy("adapmoe", dict(threshold=2.5 * share**2, h=2.5)),
        build_policy("top_p", dict(p=1 / (1 + r))),
    ]
    keeps = [policy.select(routing, channel).keep for policy in same]
    assert all(torch.equal(keep, keeps[0]) for keep in keeps)


# By hand: 4 tokens, 4 experts, top-2, weights in 16ths, so that every ratio below is exact in binary.
#
#   token  weights (16ths)   top-2  r     shares        naee .5  one_t .25  adapmoe T=.125, h=2 (.25)  top_p .75
#   1       8  4  2  2       1, 2   .5    .667 .333     keep     keep       keep                       keep
#   2      12  3  1  0       1, 2   .25   .8   .2       drop     drop       drop                       drop
#   3       6  2  6  2       1, 3   1     .5   .5       keep     keep       keep                       keep
#   4       3  1  9  3       3, 1   .333  .75  .25      drop     keep       keep                       keep
#
# A ratio of exactly beta, a share of exactly T, a sum of exactly p: the expert stays.
HAND_WEIGHTS = [[8, 4, 2, 2], [12, 3, 1, 0], [6, 2, 6, 2], [3, 1, 9, 3]]
HAND_CHOICES = [[0, 1], [0, 1], [0, 2], [2, 0]]


def hand_case(latency_s=(1.0, 1.0, 1.0, 1.0), places=(0, 1, 2, 3)):
    probabilities, index = torch.tensor(HAND_WEIGHTS) / 16, torch.tensor(HAND_CHOICES)
    routing = Routing(
        probabilities, index, probabilities.gather(1, index), torch.ones(4, dtype=torch.bool), layer=0, phase="prefill"
    )
    return routing, ChannelState(torch.tensor(latency_s), torch.zeros(len(latency_s)), torch.tensor(places))


@pytest.mark.parametrize(
    ("name", "parameters", "tokens_that_drop"),
    [
        ("fixed_k", {}, [0, 1, 2, 3]),
        ("naee", dict(beta=0.5), [1, 3]),
        ("naee", dict(beta=[0.25]), []),
        ("naee", dict(beta=[0.5], scale=2), [0, 1, 3]),
        ("one_t", dict(threshold=0.25), [1]),
        ("adapmoe", dict(threshold=0.125, h=2), [1]),
        ("adapmoe", dict(h="mixtral_8x7b"), []),  # sqrt(0.005 / 46.69) = 0.0103 in the first layer
        ("top_p", dict(p=0.75), [1]),
        ("top_p", dict(p=0.5), [0, 1, 3]),
        # Loads 4, 2, 2, 0 times latency 1: mean 2, rho 2, 1, 1, 0; thresholds .25, .2, .2, 0; the shares .333, .2, .5
        # of experts 2, 2 and 3 and the .25 of expert 1 are not below.
        ("one_t", dict(threshold=0.2, load_aware="tokens", max_threshold=0.25), []),
        ("one_t", dict(threshold=0.2, load_aware="tokens", max_threshold=0.3), [3]),
        ("random_drop", dict(rate=0.0), []),
        ("random_drop", dict(rate=1.0), [0, 1, 2, 3]),
    ],
)
def test_second_experts_that_go_on_the_case_worked_by_hand(name, parameters, tokens_that_drop):
    routing, channel = hand_case()
    keep = build_policy(name, parameters).select(routing, channel).keep
    assert keep[:, 0].all()
    assert (~keep[:, 1]).nonzero().flatten().tolist() == tokens_that_drop


# The same tokens under caps. Pairs of expert 1 by score: token 2 (12), 1 (8), 3 (6), 4 (3); of expert 2: token 1 (4),
# 2 (3); of expert 3: token 4 (9), 3 (6). k J = 8.
#
#   tokens, gamma 1: C = ceil(8/4) = 2: expert 1 loses tokens 3 and 4; the others hold two each.
#   tokens, gamma .5: C = 1: expert 1 keeps token 2, expert 2 token 1, expert 3 token 4; token 3 loses both.
#   time, latencies 3, 1, 1, 3: 1/c = .333 1 1 .333, sum 2.667; caps 8 x (.125 .375 .375 .125) = 1 3 3 1:
#     expert 1 keeps token 2 only.
#   device, experts 1 and 2 on device 1, 3 and 4 on device 2, gamma .5: two pairs each: device 1 keeps 12 and 8 of
#     12 8 6 4 3 3, device 2 holds two.
@pytest.mark.parametrize(
    ("parameters", "channel", "expected"),
    [
        (dict(gamma=1.0), {}, [{0, 1}, {0, 1}, {2}, {2}]),
        (dict(gamma=0.5), {}, [{1}, {0}, set(), {2}]),
        (dict(gamma=0.5, may_lose_all=False), {}, [{0, 1}, {0}, {0}, {2}]),
        (dict(by="time"), dict(latency_s=(3.0, 1.0, 1.0, 3.0)), [{1}, {0, 1}, {2}, {2}]),
        (dict(by="device", gamma=0.5), dict(latency_s=(1.0, 1.0), places=(0, 0, 1, 1)), [{0}, {0}, {2}, {2}]),
        (dict(gamma=0.5), dict(places=(-1, 0, 1, 2)), [{0, 1}, {0}, {0}, {0, 2}]),
    ],
)
def test_capacity_on_the_case_worked_by_hand(parameters, channel, expected):
    routing, channel = hand_case(**channel)
    assert kept(routing, build_policy("capacity", parameters).select(routing, channel)) == expected


# Expanded drop after `tokens, gamma 1`: tokens 3 and 4 have one place left each. Room: experts 1, 2, 3 none, expert 4
# two. Experts 3 and 4 on one device, which both tokens reach by expert 3: expert 4 takes token 4 (3) and token 3 (2).
# With one expert per device it is out of reach unless all are candidates.
@pytest.mark.parametrize(
    ("parameters", "places", "expected"),
    [
        ({}, (0, 1, 2, 2), [{0, 1}, {0, 1}, {2, 3}, {2, 3}]),
        ({}, (0, 1, 2, 3), [{0, 1}, {0, 1}, {2}, {2}]),
        (dict(candidates="all"), (0, 1, 2, 3), [{0, 1}, {0, 1}, {2, 3}, {2, 3}]),
        ({}, (0, 1, 2, -1), [{0, 1}, {0, 1}, {2, 3}, {2, 3}]),
    ],
)
def test_expanded_drop_on_the_case_worked_by_hand(parameters, places, expected):
    routing, channel = hand_case(places=places)
    selection = build_policy("expanded_drop", parameters).select(routing, channel)
    assert kept(routing, selection) == expected
    added = selection.keep & (selection.expert_index != routing.top_k_index)
    assert selection.weights[added].tolist() == [2 / 16, 3 / 16][: added.sum()]


def many_tokens(seed=0, tokens=20000, experts=8, k=3):
    probabilities = torch.softmax(torch.randn(tokens, experts, generator=torch.Generator().manual_seed(seed)), dim=-1)
    weights, index = probabilities.topk(k, dim=-1)
    routing = Routing(probabilities, index, weights, torch.ones(tokens, dtype=torch.bool), layer=0, phase="prefill")
    return routing, ChannelState(torch.ones(experts), torch.ones(experts), torch.arange(experts))


SPREAD = 4 * 0.5 / math.sqrt(2 * 20000)  # four standard errors of a share of 40,000 draws: fails once in 16,000 seeds


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_random_drop_has_its_rate_whatever_the_weight(rate):
    routing, channel = many_tokens()
    keep = build_policy("random_drop", dict(rate=rate)).select(routing, channel).keep
    assert keep[:, 0].all()
    assert keep[:, 1:].float().mean().item() == pytest.approx(1 - rate, abs=SPREAD)
    heavy = routing.shares[:, 1] > routing.shares[:, 1].median()
    for part in (keep[heavy, 1], keep[~heavy, 1], keep[:, 2], keep[keep[:, 1], 2]):
        assert part.float().mean().item() == pytest.approx(1 - rate, abs=3 * SPREAD)


def test_random_draws_are_uniform_and_differ_by_seed_layer_and_expert():
    routing, _ = many_tokens()
    draws = uniform(routing, seed=0)
    assert torch.histc(draws, bins=10, min=0, max=1).tolist() == pytest.approx([6000] * 10, rel=0.06)
    other_layer = replace(routing, layer=1)
    for others in (
        uniform(routing, seed=1),
        uniform(other_layer, seed=0),
        draws.roll(1, dims=1),
        draws.roll(1, dims=0),
    ):
        correlation = torch.corrcoef(torch.stack([draws.flatten(), others.flatten()]))[0, 1].item()
        assert abs(correlation) < 4 / math.sqrt(draws.numel())


def test_random_draws_do_not_depend_on_the_order_of_tokens():
    routing, _ = many_tokens(tokens=50)
    order = torch.randperm(50)
    shuffled = replace(routing, probabilities=routing.probabilities[order], top_k_index=routing.top_k_index[order])
    assert torch.equal(uniform(shuffled, seed=3), uniform(routing, seed=3)[order])


def test_constants_come_from_a_calibration(tmp_path):
    path = str(tmp_path / "a.calibration.safetensors")
    Calibration(ratio_median=torch.tensor([0.5, 0.25]), sensitivity=torch.tensor([2.0, 8.0])).write(path)
    assert build_policy("naee", dict(calibration=path)).betas == [0.5, 0.25]
    assert build_policy("naee", dict(calibration=path, beta=0.1)).betas == 0.1
    assert build_policy("adapmoe", dict(calibration=path)).sensitivity == [2.0, 8.0]
    routing, channel = hand_case()
    by_layer = [replace(routing, layer=layer) for layer in (0, 1, 2)]
    policy = build_policy("naee", dict(calibration=path))
    dropped = [(~policy.select(routing, channel).keep).sum().item() for routing in by_layer[:2]]
    assert dropped == [2, 0]
    with pytest.raises(PolicyError, match="'naee': beta is of 2 MoE layers, this model has more"):
        policy.select(by_layer[2], channel)


def test_the_released_sensitivities_are_of_32_layers():
    assert len(MIXTRAL_8X7B_SENSITIVITY) == 32
    assert MIXTRAL_8X7B_SENSITIVITY[0] == 46.69
    assert MIXTRAL_8X7B_SENSITIVITY[-1] == 0.0229


@pytest.mark.parametrize(
    ("name", "parameters", "sentence"),
    [
        ("fixed_k", dict(k=0), "selection policy 'fixed_k': k must be a whole number >= 1, got 0"),
        ("fixed_k", dict(k=1.5), "k must be a whole number >= 1, got 1.5"),
        ("random_drop", dict(rate=1.2), "rate must be >= 0 and <= 1, got 1.2"),
        ("random_drop", dict(seed=-1), "seed must be a whole number >= 0"),
        ("naee", {}, "selection policy 'naee' needs beta, or calibration: a file of `wdmoe calibrate` for this model"),
        ("naee", dict(beta=[0.5, "x"]), "beta[1] must be >= 0, got 'x'"),
        ("naee", dict(beta=[]), "beta must be >= 0, got []"),
        ("naee", dict(beta=0.5, scale=float("nan")), "scale must be >= 0, got nan"),
        ("naee", dict(calibration="no.safetensors"), "no.safetensors: no such file"),
        ("one_t", dict(threshold=-0.1), "threshold must be >= 0 and <= 1, got -0.1"),
        ("one_t", dict(load_aware="energy"), "load_aware must be no or tokens or time, got 'energy'"),
        ("one_t", dict(max_threshold=2), "max_threshold must be >= 0 and <= 1, got 2"),
        ("adapmoe", {}, "selection policy 'adapmoe' needs h, or calibration"),
        ("adapmoe", dict(h="mixtral"), "h must be mixtral_8x7b, got 'mixtral'"),
        ("adapmoe", dict(h=[1.0, 0.0]), "h[1] must be > 0, got 0.0"),
        ("top_p", dict(p=True), "p must be >= 0 and <= 1, got True"),
        ("capacity", dict(gamma=0), "selection policy 'capacity': gamma must be > 0, got 0"),
        ("capacity", dict(by="energy"), "by must be tokens or device or time, got 'energy'"),
        ("capacity", dict(phase="decode"), "phase must be prefill or all, got 'decode'"),
        ("expanded_drop", dict(gamma=-1), "selection policy 'expanded_drop': gamma must be > 0, got -1"),
        ("expanded_drop", dict(candidates="none"), "candidates must be local or all, got 'none'"),
        ("expanded_drop", dict(may_lose_all="yes"), "may_lose_all must be True or False, got 'yes'"),
    ],
)
def test_bad_parameters_get_one_sentence(name, parameters, sentence):
    with pytest.raises(PolicyError) as caught:
        build_policy(name, parameters)
    assert sentence in str(caught.value)
