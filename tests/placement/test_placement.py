"""Placements against plants, plain enumeration, token-by-token replays and cases worked by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import approx

from tests import oracles
from tests.builders.planted_routing import counted, planted, replayed, routing
from tests.examples import seeds
from wdmoe_opencompass.channel import draw_channel, load_profile
from wdmoe_opencompass.errors import ProfileError
from wdmoe_opencompass.latency import ExpertShape, communication_latency_s, link_budget
from wdmoe_opencompass.placement import (
    CoSelection,
    Objective,
    PlacementProblem,
    cap_greedy,
    exact,
    latency,
    local_search,
    modulo,
    transfers,
)
from wdmoe_opencompass.placement.cap import affinity

SHAPE = ExpertShape(32, 48)


def unequal(devices, seed=0):
    rng = np.random.default_rng(seed)
    return Objective(rng.uniform(1, 4, devices), rng.uniform(0.1, 2, devices), largest=True)


def brute_force(problem):
    places = itertools.product(range(problem.devices), repeat=problem.counts.experts)
    fitting = (p for p in places if np.bincount(p).max() <= problem.capacity)
    return min(problem.cost(np.array(place)) for place in fitting)


OBJECTIVES = {
    "transfers": transfers,
    "latency": unequal,
    "equal_devices": lambda n: Objective(np.ones(n), np.ones(n), True),
}
both = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


@both
@pytest.mark.parametrize("seed", seeds(3))
def test_the_predicted_cost_is_that_of_an_independent_replay(objective, seed):
    chosen = routing(rows=6, tokens=50, experts=8, top_k=2, seed=seed)
    problem = PlacementProblem(counted(chosen, 8, batches=3), objective(4), capacity=2)
    for place in (modulo(8, 4), cap_greedy(problem), local_search(problem, restarts=3)):
        assert problem.cost(place) == approx(sum(replayed(chosen, place, problem.objective)) / 3)


def test_the_latency_objective_is_eq_11_under_even_bandwidth():
    profile = load_profile("heterogeneous_compute_8_devices")
    objective = latency(profile, SHAPE)
    budget = link_budget(profile, draw_channel(profile), SHAPE)
    assert objective.per_token == approx(communication_latency_s(budget, 12.5e6))
    assert objective.per_evaluation == approx(budget.computation_s)
    fading = profile.fading.model_copy(update=dict(coherence="pass", seed=1))
    changing = latency(profile.model_copy(update=dict(fading=fading)), SHAPE)
    assert len(set(changing.per_token.tolist())) == 1  # equal distances and no fading


@pytest.mark.parametrize("top_k", [3, 5])
def test_visits_of_more_than_two_experts_are_a_lower_bound(top_k):
    chosen = routing(rows=5, tokens=60, experts=8, top_k=top_k)
    counts = counted(chosen, 8)
    for place in (modulo(8, 2), modulo(8, 8), np.repeat([0, 1], [7, 1])):
        sent, computed = counts.on_devices(place, place.max() + 1)
        for row, tokens in enumerate(chosen.tolist()):
            true_sent, true_computed = oracles.loads(tokens, [True] * 60, list(place), place.max() + 1)
            assert computed[row] == approx(np.array(true_computed, dtype=float))
            assert (sent[row] <= np.array(true_sent) + 1e-9).all()
            assert (sent[row] >= computed[row] / top_k - 1e-9).all()
    alone, _ = counts.on_devices(modulo(8, 8), 8)
    assert alone == approx(counts.counts)  # exact where no two experts share a device


@pytest.mark.parametrize("sizes", [(4, 2), (2, 4), (4, 4), (8, 8)])
@pytest.mark.parametrize("seed", seeds(3))
def test_the_plant_is_found(sizes, seed):
    counts, group = planted(*sizes, seed)
    found = local_search(PlacementProblem(counts, transfers(sizes[0]), sizes[1]))
    assert ((found[:, None] == found) == (group[:, None] == group)).all()
    problem = PlacementProblem(counts, transfers(sizes[0]), sizes[1])
    assert problem.cost(found) * 2 == approx(counts.token_layers)  # one visit per token and layer


@both
@pytest.mark.parametrize(("devices", "capacity"), [(3, 2), (2, 3), (3, 3), (5, 1), (1, 5)])
def test_the_exact_solver_equals_brute_force(objective, devices, capacity):
    for seed in seeds(3):
        counts = counted(routing(rows=4, tokens=40, experts=5, top_k=2, seed=seed), 5, batches=2)
        problem = PlacementProblem(counts, objective(devices), capacity)
        answer = exact(problem, modulo(5, devices))
        assert answer.is_proven
        assert answer.cost == approx(brute_force(problem)) == approx(problem.cost(answer.device_of_expert))


@both
def test_exact_and_local_search_agree_on_small_cases(objective):
    for seed in seeds(10):
        counts = counted(routing(rows=4, tokens=60, experts=8, top_k=2, seed=seed), 8, batches=2)  # 2 layers
        problem = PlacementProblem(counts, objective(4), capacity=2)
        answer = exact(problem, modulo(8, 4))
        assert answer.is_proven
        assert problem.cost(local_search(problem)) == approx(answer.cost)


@pytest.mark.parametrize("objective", [transfers, unequal])
def test_out_of_time_the_bound_still_holds(objective):
    problem = PlacementProblem(counted(routing(8, 60, 8, 2), 8, batches=2), objective(4), capacity=2)
    best = exact(problem, modulo(8, 4)).cost
    shares = []
    cut = exact(problem, modulo(8, 4), time_limit_s=1e-6, advance=shares.append)
    assert cut.lower_bound <= best * (1 + 1e-9) <= cut.cost * (1 + 2e-9)
    assert sum(shares) == approx(1)


def test_more_than_two_experts_per_token_are_no_case_for_the_exact_solver():
    problem = PlacementProblem(counted(routing(2, 30, 6, 3), 6), transfers(3), capacity=2)
    with pytest.raises(ProfileError, match="6 experts on 3 devices with K = 3 are no case for the exact solvers"):
        exact(problem, modulo(6, 3))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_expert_is_placed_once_within_capacity_and_never_worse_than_by_default(data):
    experts, devices = data.draw(st.integers(2, 9)), data.draw(st.integers(1, 5))
    top_k = data.draw(st.integers(2, min(4, experts)))
    capacity = data.draw(st.integers(-(-experts // devices), experts))
    seed = data.draw(st.integers(0, 1000))
    counts = counted(routing(rows=4, tokens=20, experts=experts, top_k=top_k, seed=seed), experts, batches=2)
    objective = data.draw(st.sampled_from(list(OBJECTIVES.values())))(devices)
    problem = PlacementProblem(counts, objective, capacity)
    for place in (local_search(problem, restarts=2, seed=seed), cap_greedy(problem)):
        assert place.shape == (experts,)
        assert place.min() >= 0
        assert np.bincount(place, minlength=devices).max() <= capacity
        assert len(np.bincount(place, minlength=devices)) == devices
    assert problem.cost(local_search(problem, restarts=2, seed=seed)) <= problem.cost(modulo(experts, devices))


@pytest.mark.parametrize("objective", [transfers, unequal])
def test_no_swap_and_no_move_betters_a_found_placement(objective):
    problem = PlacementProblem(counted(routing(6, 60, 7, 2), 7, batches=3), objective(3), capacity=4)
    found = local_search(problem, restarts=0)
    cost = problem.cost(found)
    for one, other in itertools.combinations(range(7), 2):
        swapped = found.copy()
        swapped[[one, other]] = found[[other, one]]
        assert problem.cost(swapped) >= cost * (1 - 1e-9)
    for expert, device in itertools.product(range(7), range(3)):
        moved = found.copy()
        moved[expert] = device
        if np.bincount(moved).max() <= 4:
            assert problem.cost(moved) >= cost * (1 - 1e-9)


def test_batches_are_added_up_where_there_are_very_many(monkeypatch):
    counts = counted(routing(12, 40, 6, 2), 6, batches=6)  # 2 layers
    problem = PlacementProblem(counts, unequal(3), capacity=2)
    monkeypatch.setattr("wdmoe_opencompass.placement.problem.SEARCH_NUMBERS", 3 * 2 * 36)
    small = problem.for_search()
    assert (small.counts.batches, small.counts.pairs.shape) == (3, (6, 15))
    first = counts.pairs.reshape(6, 2, 15)[:2].sum(axis=0)
    assert np.array_equal(small.counts.pairs[:2], first)
    assert small.counts.counts.sum() == counts.counts.sum()
    assert problem.cost(local_search(problem)) <= problem.cost(modulo(6, 3))


def test_too_little_room_gets_one_sentence():
    with pytest.raises(ProfileError, match=r"2 devices with 3 experts each cannot hold 8 .* must be >= 4"):
        PlacementProblem(counted(routing(2, 20, 8, 2), 8), transfers(2), capacity=3)


# Four experts, one row: 6 tokens chose {0, 1}, 2 {0, 2}, 1 {1, 3}, 3 {2, 3}. So experts 0 to 3 have 8, 7, 5 and 4
# tokens, and a = both / either: a_01 = 6/9, a_02 = 2/11, a_13 = 1/10, a_23 = 3/6, a_03 = a_12 = 0.
HAND = CoSelection.of_pairs(np.array([[6, 2, 0, 0, 1, 3]]), 4, 2, 1)


def test_affinity_worked_by_hand():
    assert HAND.counts.tolist() == [[8, 7, 5, 4]]
    assert affinity(HAND)[np.triu_indices(4, 1)] == approx([6 / 9, 2 / 11, 0, 0, 1 / 10, 3 / 6])


def test_cap_worked_by_hand():
    """Degrees 0.848, 0.767, 0.682, 0.6: seeds 0 on the fast device, 1 on the other.

    Device 0 takes expert 2 (2/11 > 0), device 1 is left expert 3: loads 13 and 11, communication 6/9 + 3/6. The best
    swap between them evens the loads to 12 and 12 (0 for 1: {1, 2} and {0, 3}), communication all 1.448. Both are on
    the front; transfers are 24 - 2 - 1 = 21 and 24, so the first is taken; by latency of equal devices 13 - 2 = 11
    (the other has 11 - 1 = 10) against 12.
    """
    equal = Objective(np.ones(2), np.zeros(2), largest=True)
    for objective, cost in ((transfers(2), 21), (equal, 11)):
        problem = PlacementProblem(HAND, objective, capacity=2)
        assert cap_greedy(problem).tolist() == [0, 1, 0, 1]
        assert problem.cost(cap_greedy(problem)) == cost
    by_work = Objective(np.zeros(2), np.ones(2), largest=True)  # computation only: 13 before the swap, 12 after
    assert cap_greedy(PlacementProblem(HAND, by_work, capacity=2)).tolist() == [1, 0, 0, 1]
    fast_second = Objective(np.array([2.0, 1.0]), np.zeros(2), largest=True)
    assert cap_greedy(PlacementProblem(HAND, fast_second, capacity=2)).tolist() == [1, 0, 1, 0]
    # The plant {0, 1}, {2, 3} needs 15 transfers: CAP's seeds tear it apart, ours finds it.
    assert PlacementProblem(HAND, transfers(2), 2).cost(local_search(PlacementProblem(HAND, transfers(2), 2))) == 15
