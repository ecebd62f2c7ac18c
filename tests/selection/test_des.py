"""DES and JESA against trying every set of experts, and by hand."""

import itertools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.selection import oracles_search
from tests.selection.search_cases import only_real, search_case, search_cases, sets_of, tokens_of
from wdmoe_opencompass.errors import PolicyError
from wdmoe_opencompass.selection import ChannelState, Routing, build_policy, knapsack
from wdmoe_opencompass.selection.bandwidth_split import optimal_split
from wdmoe_opencompass.selection.base import BandwidthCurve
from wdmoe_opencompass.selection.expert_choice import device_cost
from wdmoe_opencompass.selection.knapsack import by_price
from wdmoe_opencompass.selection.policies import des

PARAMETERS = st.fixed_dictionaries(
    dict(
        z=st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.5]),
        gamma_0=st.sampled_from([0.9, 1.0]),
        most_experts=st.sampled_from([None, 1, 2, 9]),
        cost=st.sampled_from(["latency", "energy"]),
    )
)


def facts(routing, channel, parameters):
    """-> cost per expert, Q_l, D, for the oracles."""
    cost = oracles_search.costs_of_experts(
        channel.device_of_expert.tolist(), device_cost(channel, parameters["cost"]).tolist()
    )
    k = routing.top_k_index.shape[1]
    return cost, parameters["z"] * parameters["gamma_0"], min(k, parameters["most_experts"] or k)


@settings(deadline=None, max_examples=80)
@given(case=search_cases(), parameters=PARAMETERS)
@example(search_case(260, 2, 4, 2, 1, 1, 3.0), dict(z=0.2, gamma_0=0.9, most_experts=None, cost="latency"))
def test_des_is_the_cheapest_set_of_all(case, parameters):
    routing, channel = case
    selection = build_policy("des", parameters).select(routing, channel)
    assert sets_of(selection) == oracles_search.des(tokens_of(routing), *facts(routing, channel, parameters))
    own = selection.expert_index == routing.top_k_index
    assert torch.equal(selection.weights[own], routing.top_k_weights[own])
    assert torch.allclose(selection.weights, routing.weights_of(selection.expert_index), rtol=1e-5)


@settings(deadline=None, max_examples=80)
@given(case=search_cases(), parameters=PARAMETERS, may_lose_all=st.booleans())
def test_des_within_the_top_k_is_the_cheapest_subset(case, parameters, may_lose_all):
    routing, channel = case
    selection = build_policy("des_top_k", parameters | dict(may_lose_all=may_lose_all)).select(routing, channel)
    assert torch.equal(selection.expert_index, routing.top_k_index)
    assert selection.weights is None
    expected = oracles_search.des_top_k(tokens_of(routing), *facts(routing, channel, parameters), may_lose_all)
    assert sets_of(selection) == expected


@settings(deadline=None, max_examples=80)
@given(
    case=search_cases(max_tokens=30),
    least=st.sampled_from([0.0, 0.3, 0.6, 0.9]),
    most=st.integers(1, 4),
    stays=st.booleans(),
)
def test_prices_give_a_choice_where_there_is_one_and_bound_the_cheapest(case, least, most, stays):
    routing, channel = case
    cost = channel.of_experts(device_cost(channel, "latency"))
    scores = routing.probabilities
    must = scores == scores.amax(dim=1, keepdim=True) if stays else None
    answer = by_price(scores, cost.expand(scores.shape), least, most, must)
    for number, row in enumerate(scores.tolist()):
        top = [row.index(max(row))] if stays else []
        best = oracles_search.cheapest(range(len(row)), row, cost.tolist(), least, most, top)
        assert bool(answer.found[number]) == (best is not None)
        if best is not None:
            chosen = answer.chosen[number].nonzero().flatten().tolist()
            paid, least_paid = (sum(cost[i].item() for i in one) for one in (chosen, best))
            assert sum(row[i] for i in chosen) >= least - 2e-6
            assert 1 <= len(chosen) <= most
            assert set(top) <= set(chosen)
            assert answer.bound[number].item() <= least_paid * (1 + 1e-5) + 1e-9 <= paid * (1 + 2e-5) + 2e-9


def test_prices_are_close_to_the_cheapest(monkeypatch):
    """What the heuristic costs beyond the optimum where both can be told: 8 of 40 experts on 8 devices."""
    routing, channel = search_case(1, 200, 40, 8, 8, 0, 1.0)
    cost = channel.of_experts(device_cost(channel, "latency"))
    policy = build_policy("des", dict(z=0.4, gamma_0=1.0))

    def paid():
        chosen = policy.chosen(routing, channel, device_cost(channel, "latency"))
        return (chosen * cost).sum(dim=1)

    exact = paid()
    monkeypatch.setattr(des, "MAX_CHOICES", 1)
    ratio = paid() / exact
    assert (ratio >= 1 - 1e-5).all()
    assert ratio.mean() < 1.1


def test_many_tokens_are_tried_in_parts(monkeypatch):
    routing, channel = search_case(3, 30, 8, 2, 4, 1, 1.0)
    for name in ("des", "des_top_k"):
        whole = build_policy(name).select(routing, channel)
        monkeypatch.setattr(knapsack, "MAX_TRIED_AT_ONCE", 200)
        parts = build_policy(name).select(routing, channel)
        monkeypatch.undo()
        assert torch.equal(whole.expert_index, parts.expert_index)
        assert torch.equal(whole.keep, parts.keep)


# By hand: 3 experts on 3 devices of cost 4, 1, 2; top-2; Q = 0.5.
#
#   token  scores        reach 0.5 with at most two                          des      des_top_k (top expert stays)
#   1      .60 .10 .30   {1} 4, {1,2} 5, {1,3} 6                             {1}      {1}
#   2      .40 .25 .35   {1,2} 5, {1,3} 6, {2,3} .60 at 3                    {2,3}    {1,3}, the top-2
#   3      .45 .51 .04   {2} 1, ...                                          {2}      {2}
#   4      .55 .06 .39   {1} 4, ... {2,3} is .45                             {1}      {1}
def hand_case():
    probabilities = torch.tensor([[0.60, 0.10, 0.30], [0.40, 0.25, 0.35], [0.45, 0.51, 0.04], [0.55, 0.06, 0.39]])
    weights, index = probabilities.topk(2, dim=1)
    routing = Routing(probabilities, index, weights, torch.ones(4, dtype=torch.bool), 0, "prefill")
    return routing, ChannelState(torch.tensor([3.0, 0.5, 1.0]), torch.tensor([1.0, 0.5, 1.0]), torch.arange(3))


def test_des_on_the_case_worked_by_hand():
    routing, channel = hand_case()
    selection = build_policy("des", dict(z=0.5, gamma_0=1.0)).select(routing, channel)
    assert sets_of(selection) == [{0}, {1, 2}, {1}, {0}]
    assert selection.expert_index[1].tolist() == [1, 2]  # expert 3 keeps its place, expert 2 takes that of expert 1
    assert selection.weights[1].tolist() == pytest.approx([0.25, 0.35])
    within = build_policy("des_top_k", dict(z=0.5, gamma_0=1.0)).select(routing, channel)
    assert sets_of(within) == [{0}, {0, 2}, {1}, {0}]


def test_a_score_out_of_reach_leaves_the_routers_own():
    routing, channel = hand_case()
    for name in ("des", "des_top_k"):
        selection = build_policy(name, dict(z=0.99, gamma_0=1.0, most_experts=1)).select(routing, channel)
        assert sets_of(selection) == [{0}, {0}, {1}, {0}]


def test_layers_may_ask_for_less_and_less():
    assert build_policy("des", dict(z=0.8, gamma_0=0.5)).least_score(2) == pytest.approx(0.1)


@settings(deadline=None, max_examples=40)
@given(case=search_cases(max_tokens=20), parameters=PARAMETERS)
def test_jesa_alternates_until_loads_repeat(case, parameters):
    routing, channel = case
    routing = only_real(routing)
    even = device_cost(channel, parameters["cost"]).tolist()

    def cost_under_split(visits, evaluations):
        sent = optimal_split(channel, torch.tensor(visits), torch.tensor(evaluations)).communication_s.tolist()
        if parameters["cost"] == "latency":
            now = [a + b for a, b in zip(sent, channel.computation_s.tolist())]
        else:
            now = [joules * a / b for joules, a, b in zip(even, sent, channel.communication_s.tolist())]
        return [cost if count else None for cost, count in zip(now, visits)]

    _, least, most = facts(routing, channel, parameters)
    expected = oracles_search.jesa(
        tokens_of(routing),
        routing.is_real_token.tolist(),
        channel.device_of_expert.tolist(),
        even,
        cost_under_split,
        least,
        most,
    )
    assert sets_of(build_policy("jesa", parameters).select(routing, channel)) == expected


@pytest.mark.parametrize("name", ["des", "jesa"])
@settings(deadline=None, max_examples=30)
@given(case=search_cases(max_tokens=20))
def test_padding_changes_nothing(name, case):
    routing, channel = case
    policy = build_policy(name, dict(z=0.4, gamma_0=1.0))
    padded = policy.select(routing, channel)
    alone = policy.select(only_real(routing), channel)
    assert [one for one, real in zip(sets_of(padded), routing.is_real_token) if real] == sets_of(alone)


# By hand: every token may have expert 1 or 2 (score .5 each), devices 1 and 2 alike, both 1 s per token with half the
# bandwidth, device 1 a little cheaper. DES sends all to device 1; alone it gets the whole bandwidth and is cheaper
# still; device 2 keeps what it cost. Loads repeat in round 2: all stay on device 1.
def test_jesa_on_the_case_worked_by_hand():
    share = torch.logspace(-4, 0, 80)
    communication = torch.tensor([0.9, 1.0])
    channel = ChannelState(
        communication,
        torch.zeros(2),
        torch.arange(2),
        curve=BandwidthCurve(share, communication[:, None] / (2 * share)),
    )
    scores = torch.full((6, 2), 0.5)
    routing = Routing(
        scores, torch.ones(6, 1, dtype=torch.long), scores[:, :1], torch.ones(6, dtype=torch.bool), 0, "decode"
    )
    assert sets_of(build_policy("jesa", dict(z=0.3)).select(routing, channel)) == [{0}] * 6


@pytest.mark.parametrize("name", ["des", "des_top_k", "jesa"])
def test_the_kept_share_grows_with_z_but_for_small_turns(name):
    """One dear expert may take the place of two cheap ones when more score is asked for."""
    routing, channel = search_case(1, 400, 8, 3, 4, 0, 1.0)
    values = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.1]
    policies = [build_policy(name, dict(z=z, gamma_0=1.0)) for z in values]
    shares = [policy.select(routing, channel).keep.float().mean().item() for policy in policies]
    assert all(later >= earlier - 0.05 for earlier, later in itertools.pairwise(shares))
    assert shares[0] < 0.5
    assert shares[-1] == 1


@pytest.mark.parametrize("name", ["des", "des_top_k", "jesa"])
@settings(deadline=None, max_examples=20)
@given(case=search_cases())
def test_at_its_neutral_parameters_it_is_top_k(name, case):
    routing, channel = case
    policy = build_policy(name)
    selection = build_policy(name, policy.neutral).select(routing, channel)
    assert selection.keep.all()
    assert torch.equal(selection.expert_index, routing.top_k_index)


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        (dict(z=-1), "selection policy 'des': z must be >= 0, got -1"),
        (dict(gamma_0=0), "gamma_0 must be > 0 and <= 1, got 0"),
        (dict(most_experts=1.5), "most_experts must be a whole number >= 1, got 1.5"),
        (dict(cost="price"), "cost must be latency or energy, got 'price'"),
    ],
)
def test_bad_parameters_get_one_sentence(parameters, sentence):
    with pytest.raises(PolicyError) as caught:
        build_policy("des", parameters)
    assert sentence in str(caught.value)


def test_energy_must_be_known():
    routing, channel = hand_case()
    with pytest.raises(PolicyError, match="needs the channel state's token_energy_j"):
        build_policy("des", dict(cost="energy")).select(routing, channel)
