"""CAEE against one drop at a time, and by hand."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import seeds
from tests.selection import oracles_search
from tests.selection.search_cases import only_real, search_case, search_cases, sets_of, tokens_of
from wdmoe_opencompass.errors import PolicyError
from wdmoe_opencompass.selection import ChannelState, Routing, build_policy
from wdmoe_opencompass.selection.policies.caee import ROUNDS

TAU = st.sampled_from([0.0, 0.4, 0.6, 0.8, 0.95])


def facts(routing, channel):
    return (
        tokens_of(routing),
        routing.is_real_token.tolist(),
        channel.device_of_expert.tolist(),
        channel.communication_s.tolist(),
        channel.computation_s.tolist(),
    )


@settings(deadline=None, max_examples=100)
@given(case=search_cases(max_tokens=30, max_k=2), tau=TAU)
def test_with_two_experts_it_is_the_rule_step_by_step(case, tau):
    """Devices may hold several experts, or none, and some experts stay at the base station."""
    routing, channel = case
    selection = build_policy("caee", dict(tau=tau)).select(routing, channel)
    assert sets_of(selection) == oracles_search.caee_steps(*facts(routing, channel), tau)


@settings(deadline=None, max_examples=100)
@given(case=search_cases(max_tokens=20, max_experts=10), tau=TAU)
def test_with_more_it_is_the_rounds_of_its_docstring(case, tau):
    routing, channel = case
    rounds = 1 if routing.top_k_index.shape[1] <= 2 else ROUNDS
    selection = build_policy("caee", dict(tau=tau)).select(routing, channel)
    assert sets_of(selection) == oracles_search.caee_rounds(*facts(routing, channel), tau, rounds)


@settings(deadline=None, max_examples=60)
@given(case=search_cases(max_tokens=30), tau=TAU)
def test_every_token_keeps_tau_and_the_slowest_device_gains(case, tau):
    routing, channel = case
    keep = build_policy("caee", dict(tau=tau)).select(routing, channel).keep
    assert ((keep * routing.shares).sum(dim=1) >= tau - 1e-6).all()
    assert keep[~routing.is_real_token].all()
    assert keep[routing.rank == 0].all()


@pytest.mark.parametrize("k", [3, 6])
def test_rounds_wait_about_as_long_as_steps(k):
    """What fixing the candidates of a round costs: the slowest device's time, next to the rule step by step."""
    for seed in seeds(4):
        routing, channel = search_case(2 * seed, 60, 16, k, 8, 0, 1.0)
        times = []
        for kept in (
            sets_of(build_policy("caee", dict(tau=0.7)).select(routing, channel)),
            oracles_search.caee_steps(*facts(routing, channel), 0.7),
        ):
            load, evaluations = oracles_search.loads(
                kept, routing.is_real_token.tolist(), facts(routing, channel)[2], 8
            )
            time = torch.tensor(load) * channel.communication_s + torch.tensor(evaluations) * channel.computation_s
            times.append(time.max().item())
        assert times[0] <= 1.1 * times[1]


# By hand: 3 devices, one expert each, 2, 1 and 1 s per token; top-2 shares; tau = 0.6.
#
#   token     top      lower          device 1: tokens 1 to 4     4 * 2 = 8 s
#   1         2  .7    1  .3          device 2: 1, 4, 5           3 * 1 = 3 s
#   2         3  .8    1  .2          device 3: 2, 3, 5           3 * 1 = 3 s
#   3         1  .9    3  .1
#   4         1  .55   2  .45 (the top alone would keep .55 < tau: may not go)
#   5         2  .65   3  .35
#
#   device 1 is last: token 2 goes (.2), 6 s; token 1 goes (.3), 4 s; it is still last and has no pair that may go: end.
def test_caee_on_the_case_worked_by_hand():
    top, lower = [1, 2, 0, 0, 1], [0, 0, 2, 1, 2]
    first = torch.tensor([0.7, 0.8, 0.9, 0.55, 0.65])
    index, weights = torch.tensor([top, lower]).T.contiguous(), torch.stack([first, 1 - first], dim=1)
    probabilities = torch.zeros(5, 3).scatter(1, index, weights)
    routing = Routing(probabilities, index, weights, torch.ones(5, dtype=torch.bool), 0, "prefill")
    channel = ChannelState(torch.tensor([1.5, 0.5, 0.5]), torch.tensor([0.5, 0.5, 0.5]), torch.arange(3))
    keep = build_policy("caee", dict(tau=0.6)).select(routing, channel).keep
    assert (~keep).nonzero().tolist() == [[0, 1], [1, 1]]


def test_devices_that_finish_last_together_stop_together():
    """Two equal devices, one without a pair that may go: nothing would be won by drops on the other."""
    index = torch.tensor([[0, 1], [0, 1], [1, 0], [1, 0]])
    weights = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.9, 0.1], [0.9, 0.1]])
    routing = Routing(
        torch.zeros(4, 2).scatter(1, index, weights), index, weights, torch.ones(4, dtype=torch.bool), 0, "prefill"
    )
    channel = ChannelState(torch.tensor([0.3, 0.3]), torch.tensor([0.1, 0.1]), torch.arange(2))
    assert build_policy("caee").select(routing, channel).keep.all()


@settings(deadline=None, max_examples=30)
@given(case=search_cases(max_tokens=20))
def test_padding_changes_nothing(case):
    routing, channel = case
    keep = build_policy("caee", dict(tau=0.5)).select(routing, channel).keep
    alone = build_policy("caee", dict(tau=0.5)).select(only_real(routing), channel).keep
    assert torch.equal(keep[routing.is_real_token], alone)


@pytest.mark.parametrize("k", [2, 4])
def test_the_kept_share_grows_with_tau(k):
    routing, channel = search_case(1, 400, 8, k, 4, 0, 1.0)
    policies = [build_policy("caee", dict(tau=tau / 20)) for tau in range(21)]
    shares = [policy.select(routing, channel).keep.float().mean().item() for policy in policies]
    assert all(later >= earlier - (0 if k == 2 else 0.02) for earlier, later in itertools.pairwise(shares))
    assert shares[0] < 0.85
    assert shares[-1] == 1


@settings(deadline=None, max_examples=20)
@given(case=search_cases())
def test_at_its_neutral_parameter_it_is_top_k(case):
    routing, channel = case
    assert build_policy("caee", build_policy("caee").neutral).select(routing, channel).keep.all()


def test_bad_parameters_get_one_sentence():
    with pytest.raises(PolicyError, match="'caee': tau must be >= 0 and <= 1, got"):
        build_policy("caee", dict(tau=1.2))
