"""Exact placement of pairs (K = 2): HiGHS for the transfers, a branch and bound of ours for the waiting latency.

HiGHS (SciPy's `milp`) proves the number of transfers optimal in a fraction of a second. Its bound on a sum of maxima
stays weak: for 8 experts on 8 devices and 392 rows of the quickstart, 40 % were open after 40 s; the branch and bound
closes them in 0.1 s.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from ..errors import ProfileError
from ..latency import Array
from .co_selection import DeviceIndex
from .problem import PlacementProblem, device_costs

TOLERANCE = 1e-6  # relative: HiGHS's own, and rounding
MAX_PAIRS = 4_000  # pairs times devices that HiGHS gets
MAX_SET_NUMBERS = 20_000_000  # costs of all sets of experts, on all devices, in all rows: 160 MB
NODE_NUMBERS = 4_000_000  # of the nodes that are expanded at once
Advance = Callable[[float], None]


@dataclass(frozen=True)
class ExactPlacement:
    """A placement, its cost, and a bound that no placement's cost is below."""

    device_of_expert: DeviceIndex
    cost: float
    lower_bound: float

    @property
    def relative_gap(self) -> float:
        """How far the optimum can be below the cost, relative to the cost."""
        return max(0.0, 1 - self.lower_bound / self.cost) if self.cost else 0.0

    @property
    def is_proven(self) -> bool:
        """Whether the placement is proven optimal, within TOLERANCE."""
        return self.relative_gap <= TOLERANCE


def can_be_exact(problem: PlacementProblem) -> bool:
    """Whether `exact` takes the problem: K = 2 (beyond, pairs do not tell the loads), and few experts."""
    experts, devices = problem.counts.experts, problem.devices
    if problem.counts.top_k != 2:
        return False
    if problem.objective.largest:
        return experts < 32 and 2**experts * len(problem.counts.pairs) * devices <= MAX_SET_NUMBERS
    return problem.counts.pairs.shape[1] * devices <= MAX_PAIRS


def exact(
    problem: PlacementProblem, known: DeviceIndex, time_limit_s: float = 30.0, advance: Advance = lambda share: None
) -> ExactPlacement:
    """Better a known placement to the optimum, or say how far from it the best one can be when time is up.

    `advance` is told shares of the time limit, 1 in all. Raises ProfileError where `can_be_exact` does not hold.
    """
    if not can_be_exact(problem):
        raise ProfileError(
            f"{problem.counts.experts} experts on {problem.devices} devices with K = {problem.counts.top_k} are no "
            "case for the exact solvers (few experts, K = 2); use local_search"
        )
    solve = _branch_and_bound if problem.objective.largest else _milp
    placement, bound = solve(problem, known, time_limit_s, advance)
    cost = problem.cost(placement)
    return ExactPlacement(placement, cost, min(bound, cost))


def _milp(
    problem: PlacementProblem, known: DeviceIndex, time_limit_s: float, advance: Advance
) -> tuple[DeviceIndex, float]:
    """Most pairs together: every token is sent twice, once less where both of its experts share a device.

    Binary x_id puts expert i on device d; y_pd <= x_id, x_jd says that pair p = (i, j) is together on d. An expert has
    at most capacity - 1 partners, and device d's first expert comes before that of device d + 1 (devices are alike):
    both leave the optimum and cut the search.
    """
    counts, devices, capacity = problem.counts, problem.devices, problem.capacity
    experts, together = counts.experts, counts.pairs.sum(axis=0, dtype=float)
    pairs = np.flatnonzero(together)
    first, second = (index[pairs] for index in np.triu_indices(experts, 1))
    x, y, each = experts * devices, len(pairs) * devices, sparse.identity(devices)

    def is_in(index: NDArray) -> sparse.csr_matrix:  # [pairs, experts]
        return sparse.csr_matrix((np.ones(len(index)), (np.arange(len(index)), index)), (len(index), experts))

    def rows(of_x: sparse.spmatrix, of_y: sparse.spmatrix | None, least: float, most: float) -> LinearConstraint:
        of_y = sparse.csr_matrix((of_x.shape[0], y)) if of_y is None else of_y
        return LinearConstraint(sparse.hstack([of_x, of_y], format="csr"), least, most)

    constraints = [
        rows(sparse.kron(sparse.identity(experts), np.ones((1, devices))), None, 1, 1),
        rows(sparse.kron(np.ones((1, experts)), each), None, 0, capacity),
        rows(_ordered_devices(experts, devices), None, -np.inf, 0),
        rows(sparse.kron(-is_in(first), each), sparse.identity(y), -np.inf, 0),
        rows(sparse.kron(-is_in(second), each), sparse.identity(y), -np.inf, 0),
        rows(-(capacity - 1) * sparse.identity(x), sparse.kron((is_in(first) + is_in(second)).T, each), -np.inf, 0),
    ]
    scale = together.max()
    gains = np.concatenate([np.zeros(x), np.repeat(-together[pairs] / scale, devices)])
    options = dict(time_limit=time_limit_s, mip_rel_gap=TOLERANCE / 10)
    with ThreadPoolExecutor(1) as pool:  # so that progress can be shown meanwhile
        future = pool.submit(
            milp,
            gains,
            integrality=np.repeat([1, 0], [x, y]),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options=options,
        )
        shown = 0.0
        while not wait([future], timeout=0.5).done:
            step = min(0.5 / time_limit_s, 1 - shown)
            shown += step
            advance(step)
        advance(1 - shown)
    answer = future.result()
    placement = known
    if answer.x is not None:
        found = answer.x[:x].reshape(experts, devices).argmax(axis=1)
        placement = min(known, found, key=problem.cost)
    most_saved = together.sum() if answer.mip_dual_bound is None else -answer.mip_dual_bound * scale
    return placement, (counts.counts.sum() - min(most_saved, together.sum())) / counts.batches


def _ordered_devices(experts: int, devices: int) -> sparse.csr_matrix:
    """Expert i may be on device d > 0 only if an expert before i is on device d - 1."""
    before = sparse.csr_matrix(np.tri(experts, k=-1))
    one_less = sparse.diags(np.ones(devices - 1), -1, shape=(devices, devices))
    later = sparse.diags(np.minimum(np.arange(devices), 1.0))
    return (sparse.kron(sparse.identity(experts), later) - sparse.kron(before, one_less)).tocsr()


@dataclass
class _Nodes:
    """Placements of the first `depth` experts, in order of falling count.

    sets:    [nodes, devices] which experts a device holds, as bits
    per_row: [nodes, rows] the largest cost of a device; whatever is added, it becomes no smaller
    """

    sets: NDArray[np.intp]
    per_row: Array
    depth: int


def _branch_and_bound(
    problem: PlacementProblem, known: DeviceIndex, time_limit_s: float, advance: Advance
) -> tuple[DeviceIndex, float]:
    """Place expert after expert; a partial placement that already costs as much as the best one is given up.

    Adding an expert never lowers a device's load (for K = 2 it is exact), so a partial cost is a lower bound.
    """
    order = np.argsort(-problem.counts.counts.sum(axis=0), kind="stable")
    costs, rank = _costs_of_sets(problem, order), np.argsort(order)  # [devices, sets, rows]
    best, least = known, problem.cost(known) * problem.counts.batches
    root = _Nodes(np.zeros((1, problem.devices), dtype=np.intp), np.zeros((1, costs.shape[2])), 0)
    waiting, started, shown = [root], time.monotonic(), 0.0
    while waiting and (share := (time.monotonic() - started) / time_limit_s) < 1:
        advance(share - shown)
        shown = share
        nodes = waiting.pop()
        parent, device = np.nonzero(_may_hold_next(problem, nodes))
        sets, child = nodes.sets[parent], np.arange(len(parent))
        sets[child, device] |= 1 << nodes.depth
        per_row = np.maximum(nodes.per_row[parent], costs[device, sets[child, device]])
        total = per_row.sum(axis=1)
        if nodes.depth + 1 == problem.counts.experts:
            if len(total) and total.min() < least:
                least = float(total.min())
                best = (sets[total.argmin()] >> rank[:, None] & 1).argmax(axis=1)
            continue
        kept = np.flatnonzero(total < least)
        kept = kept[np.argsort(-total[kept])]  # the most promising comes last and is taken first
        parts = np.array_split(kept, 1 + per_row.size * problem.devices // NODE_NUMBERS) if len(kept) else []
        waiting += [_Nodes(sets[part], per_row[part], nodes.depth + 1) for part in parts if len(part)]
    advance(1 - shown)
    bound = min([least, *(float(nodes.per_row.sum(axis=1).min()) for nodes in waiting)])
    return best, bound / problem.counts.batches


def _costs_of_sets(problem: PlacementProblem, order: DeviceIndex) -> Array:
    """-> [devices, sets, rows] cost of a device that holds a set of experts; bit r of a set is expert order[r]."""
    counts, experts = problem.counts, problem.counts.experts
    is_in = (np.arange(1 << experts)[:, None] >> np.arange(experts) & 1).astype(float)  # [sets, experts]
    first, second = np.triu_indices(experts, 1)
    rank = np.argsort(order)
    evaluations = is_in @ counts.counts[:, order].T  # [sets, rows]
    pairs = (is_in[:, rank[first]] * is_in[:, rank[second]]) @ counts.pairs.T
    return np.stack([device_costs(problem.objective, k, evaluations, pairs, 2) for k in range(problem.devices)])


def _may_hold_next(problem: PlacementProblem, nodes: _Nodes) -> NDArray[np.bool_]:
    """-> [nodes, devices] devices with room; of empty ones that cost the same, only the first."""
    held = (nodes.sets[:, :, None] >> np.arange(nodes.depth) & 1).sum(axis=2)
    allowed = held < problem.capacity
    for device, alike in enumerate(problem.objective.alike_before()):
        if alike is not None:
            allowed[:, device] &= held[:, alike] > 0
    return allowed
