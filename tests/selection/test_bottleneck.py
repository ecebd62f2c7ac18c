"""Algorithm 2 against a plain loop and on a case worked by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracles
from tests.builders.rival_cases import cases, kept, plain
from wdmoe_opencompass.errors import PolicyError
from wdmoe_opencompass.selection import ChannelState, Routing, build_policy
from wdmoe_opencompass.selection.loads import routed_loads
from wdmoe_opencompass.selection.policies.bottleneck import third_quartile


@settings(deadline=None, max_examples=200)
@given(
    case=cases(),
    factor=st.sampled_from([1.0, 1.5, 3.0]),
    quartile_of=st.sampled_from(["all", "loaded"]),
    candidates=st.sampled_from(["pairs", "visits"]),
    slow=st.sampled_from([1.0, 10.0]),
    is_measured=st.booleans(),
)
def test_it_equals_algorithm_2_step_by_step(case, factor, quartile_of, candidates, slow, is_measured):
    """Ties, unsorted top-k, padding, devices with several experts or none, experts at the base station."""
    routing, channel = case
    seconds = channel.communication_s + channel.computation_s
    seconds[0] *= slow
    unknown = torch.full_like(seconds, torch.nan)
    if is_measured:
        channel = replace(channel, communication_s=unknown, mean_token_s=seconds)
    else:
        channel = replace(channel, communication_s=seconds, computation_s=torch.zeros_like(seconds))
    policy = build_policy("bottleneck", dict(factor=factor, quartile_of=quartile_of, candidates=candidates))
    selection = policy.select(routing, channel)
    weights, chosen = plain(routing)
    places = channel.device_of_expert.tolist()
    assert kept(routing, selection) == oracles.algorithm_2(
        weights, chosen, seconds.tolist(), places, factor, quartile_of == "loaded", candidates == "visits"
    )
    assert selection.keep[~routing.is_real_token].all()


# By hand: 6 tokens, 4 devices with one expert each, top-2, weights in hundredths; measured 1, 1, 1 and 4 s per token.
#
#   token  weights        top-2
#   1      60  0  0 40    1, 4     lowest at 4: .40
#   2      70  0  0 30    1, 4     lowest at 4: .30
#   3       0 80  0 20    2, 4     lowest at 4: .20
#   4       0  0 10 90    4, 3     top at 4: .90
#   5      55 45  0  0    1, 2
#   6       0 52 48  0    2, 3
#
#   J = 3, 3, 2, 4; that = 3, 3, 2, 16 s; sorted 2 3 3 16, Q3 at place 2.25: 3 + .25 * 13 = 6.25; 16 > 9.375
#   J_drop = floor((16 - 6.25) / 4) = floor(2.4375) = 2; mean weight at 4: (.40+.30+.20+.90) / 4 = .45
#   candidates: tokens 3 (.20), 2 (.30), 1 (.40); the two smallest go: tokens 3 and 2.
HAND = [[60, 0, 0, 40], [70, 0, 0, 30], [0, 80, 0, 20], [0, 0, 10, 90], [55, 45, 0, 0], [0, 52, 48, 0]]


def hand_case(seconds=(1.0, 1.0, 1.0, 4.0), weights=HAND):
    probabilities = torch.tensor(weights) / 100
    top, index = probabilities.topk(2, dim=-1)
    routing = Routing(probabilities, index, top, torch.ones(len(weights), dtype=torch.bool), 0, "decode")
    nothing = torch.zeros(4)
    return routing, ChannelState(nothing, nothing, torch.arange(4), False, mean_token_s=torch.tensor(seconds))


@pytest.mark.parametrize(
    ("factor", "seconds", "dropped_tokens"),
    [
        (1.5, (1, 1, 1, 4), [1, 2]),
        (2.5, (1, 1, 1, 4), [1, 2]),  # 16 > 15.625
        (2.6, (1, 1, 1, 4), []),  # 16 < 16.25
        (1.5, (1, 1, 1, 1), []),  # that 3, 3, 2, 4: 4 < 1.5 * 3.25
        (1.0, (1, 1, 1, 1), []),  # 4 > 3.25, but J_drop = floor(.75) = 0
        (1.5, (0, 0, 0, 4), [0, 1, 2]),  # Q3 = 4, J_drop = 3: all candidates
        (1.5, (1, 10, 1, 4), [4]),  # khat is device 2: 30 > 1.5 * 19.5, J_drop 1, mean .59, candidate token 5 (.45)
    ],
)
def test_the_case_worked_by_hand(factor, seconds, dropped_tokens):
    routing, channel = hand_case([float(one) for one in seconds])
    keep = build_policy("bottleneck", dict(factor=factor)).select(routing, channel).keep
    assert keep[:, 0].all()
    assert (~keep[:, 1]).nonzero().flatten().tolist() == dropped_tokens


def test_no_more_than_j_drop_tokens_leave_the_bottleneck_and_it_stays_at_q3():
    generator = torch.Generator().manual_seed(3)
    probabilities = torch.softmax(torch.randn(500, 4, generator=generator), dim=1)
    weights, index = probabilities.topk(2, dim=1)
    routing = Routing(probabilities, index, weights, torch.ones(500, dtype=torch.bool), 0, "prefill")
    seconds = torch.tensor([1.0, 1.1, 0.9, 2.5])
    channel = ChannelState(seconds, torch.zeros(4), torch.arange(4), False)
    keep = build_policy("bottleneck").select(routing, channel).keep
    before = routed_loads(routing, channel)[0] * seconds
    gone = torch.bincount(routing.top_k_index[~keep], minlength=4)
    assert gone[3] > 20
    assert gone[:3].sum() == 0
    assert before[3] - gone[3] * 2.5 >= torch.quantile(before, 0.75)


@settings(deadline=None, max_examples=60)
@given(case=cases())
def test_among_visits_every_drop_spares_the_bottleneck_a_token(case):
    routing, channel = case
    keep = build_policy("bottleneck", dict(factor=1.0, candidates="visits")).select(routing, channel).keep
    left = replace(routing, top_k_index=torch.where(keep, routing.top_k_index, len(channel.device_of_expert)))
    nowhere = replace(channel, device_of_expert=torch.cat([channel.device_of_expert, torch.tensor([-1])]))
    before, after = (routed_loads(*one)[0] for one in ((routing, channel), (left, nowhere)))
    assert (before - after).sum() == (~keep).sum()


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 10_000), devices=st.integers(1, 12))
def test_the_quartile_is_numpys(seed, devices):
    generator = np.random.default_rng(seed)
    values, counts = generator.uniform(0, 5, devices), generator.random(devices) < 0.6
    ours = third_quartile(torch.tensor(values), torch.tensor(counts)).item()
    assert ours == pytest.approx(np.quantile(values[counts], 0.75) if counts.any() else 0.0)


def test_a_token_with_one_expert_loses_none():
    routing, channel = hand_case()
    only = replace(routing, top_k_index=routing.top_k_index[:, :1], top_k_weights=routing.top_k_weights[:, :1])
    assert build_policy("bottleneck", dict(factor=1.0)).select(only, channel).keep.all()


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        (dict(factor=0.5), "selection policy 'bottleneck': factor must be >= 1, got 0.5"),
        (dict(factor=float("nan")), "factor must be >= 1, got nan"),
        (dict(candidates="tokens"), "candidates must be pairs or visits, got 'tokens'"),
        (dict(quartile_of="some"), "quartile_of must be all or loaded, got 'some'"),
    ],
)
def test_bad_parameters_get_one_sentence(parameters, sentence):
    with pytest.raises(PolicyError, match=sentence):
        build_policy("bottleneck", parameters)
