"""Local search: swap two experts, or move one to a device with room, while it pays; from many starts. Our choice."""

from collections.abc import Callable, Sequence

import numpy as np

from ..latency import Array
from .co_selection import DeviceIndex
from .problem import PlacementProblem, device_costs, modulo

RESTARTS = 800  # over the number of experts: 100 for 8 experts, 6 for 128: their descents take longer
MIN_GAIN = 1e-12  # of the cost: less is rounding


def local_search(
    problem: PlacementProblem,
    starts: Sequence[DeviceIndex] = (),
    restarts: int | None = None,
    seed: int = 0,
    advance: Callable[[float], None] = lambda share: None,
) -> DeviceIndex:
    """Find the best placement that no swap and no move betters; never worse than the default placement.

    problem: counts, costs and capacity.
    starts: [experts] each, placements to descend from, besides the default one.
    restarts, seed: how many random placements to descend from too (default: RESTARTS / experts), and their draw.
    advance: told the share of the work that each descent was.
    Returns: [experts] device of each.
    """
    small = problem.for_search()
    search = _Search(small)
    random = np.random.default_rng(seed)
    experts, slots = problem.counts.experts, np.repeat(np.arange(problem.devices), problem.capacity)
    restarts = RESTARTS // experts if restarts is None else restarts
    given = [modulo(experts, problem.devices), *starts]
    begun = [*given, *(random.permutation(slots)[:experts] for _ in range(restarts))]
    found = []
    for start in begun:
        found.append(search.descend(start))
        advance(1 / len(begun))
    best = sorted(found, key=small.cost)[:3]  # where batches were added up, the order is nearly that of the true costs
    return min([*best, *given], key=problem.cost)


class _Search:
    """Descents on one problem.

    After the experts comes one empty slot per device: a move is a swap with it.
    """

    def __init__(self, problem: PlacementProblem):
        self.problem = problem
        self.experts = problem.counts.experts
        empty = problem.devices
        self.pairs = np.pad(problem.counts.matrix(), ((0, 0), (0, empty), (0, empty)))
        self.counts = np.pad(problem.counts.counts, ((0, 0), (0, empty)))

    def descend(self, start: DeviceIndex) -> DeviceIndex:
        """Give every expert in turn its best swap or move, until a whole round changes nothing."""
        self.device = np.concatenate([start, np.arange(self.problem.devices)])  # [experts + devices]
        held = self._is_at()[: self.experts].astype(float)
        # [rows, experts + devices, devices] pairs with a device
        self.pairs_with = self.pairs[:, :, : self.experts] @ held
        unchanged, expert = 0, 0
        while unchanged < self.experts:
            unchanged = 0 if self._improve(expert) else unchanged + 1
            expert = (expert + 1) % self.experts
        return self.device[: self.experts]

    def _is_at(self) -> np.ndarray:
        return self.device[:, None] == np.arange(self.problem.devices)

    def _improve(self, expert: int) -> bool:
        is_at, here = self._is_at(), self.device[expert]
        has_room = is_at[: self.experts].sum(axis=0) < self.problem.capacity
        may = np.concatenate([np.ones(self.experts, dtype=bool), has_room]) & (self.device != here)
        partners = np.flatnonzero(may)
        if not len(partners):
            return False
        now, swapped = self._costs(expert, partners, is_at.astype(float))
        best = int(np.argmin(swapped))
        if not swapped[best] < now * (1 - MIN_GAIN):
            return False
        partner = partners[best]
        there = self.device[partner]
        change = self.pairs[:, :, partner] - self.pairs[:, :, expert]
        self.pairs_with[:, :, here] += change
        self.pairs_with[:, :, there] -= change
        self.device[expert] = there
        if partner < self.experts:
            self.device[partner] = here
        return True

    def _costs(self, expert: int, partners: DeviceIndex, is_at: Array) -> tuple[float, Array]:
        """-> the cost now, and [partners] the cost after swapping the expert with each."""
        objective, top_k = self.problem.objective, self.problem.counts.top_k
        here, there = self.device[expert], self.device[partners]
        own = np.take_along_axis(self.pairs_with, self.device[None, :, None], axis=2)[..., 0]  # pairs on its device
        evaluations, inside = self.counts @ is_at, own @ is_at / 2  # [rows, devices] S1 and S2 of load_bounds
        per_device = device_costs(objective, np.arange(self.problem.devices), evaluations, inside, top_k)

        both = self.pairs[:, partners, expert]  # [rows, partners], as all below
        more = self.counts[:, partners] - self.counts[:, [expert]]
        pairs_here = self.pairs_with[:, partners, here] - self.pairs_with[:, [expert], here] - both
        pairs_there = self.pairs_with[:, expert][:, there] - own[:, partners] - both
        changed = (
            device_costs(objective, here, evaluations[:, [here]] + more, inside[:, [here]] + pairs_here, top_k),
            device_costs(objective, there, evaluations[:, there] - more, inside[:, there] + pairs_there, top_k),
        )
        if not objective.largest:
            others = per_device.sum(axis=1, keepdims=True) - per_device[:, [here]] - per_device[:, there]
            return float(per_device.sum()), (others + changed[0] + changed[1]).sum(axis=0)
        others = _largest_but(per_device, here)[:, there]
        return float(per_device.max(axis=1).sum()), np.maximum(others, np.maximum(*changed)).sum(axis=0)


def _largest_but(per_device: Array, here: int) -> Array:
    """-> [rows, devices] the largest cost of all devices but `here` and the column's own; 0 where none is left."""
    rest = per_device.copy()
    rest[:, here] = 0.0
    largest = rest.argmax(axis=1)
    answer = np.repeat(rest.max(axis=1)[:, None], rest.shape[1], axis=1)
    rows = np.arange(len(rest))
    rest[rows, largest] = 0.0
    answer[rows, largest] = rest.max(axis=1)
    return answer
