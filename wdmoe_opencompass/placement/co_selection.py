"""How often experts are chosen together, and what that says about tokens sent to a device. NumPy only."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import TraceError
from ..latency import Array
from ..trace.format import RoutingTrace

DeviceIndex = NDArray[np.intp]  # [experts] index of the device that holds each expert


@dataclass(frozen=True)
class CoSelection:
    """Co-selection counts of the router's own top-k choice; a row is one MoE layer of one batch.

    pairs:   [rows, pairs] tokens that chose both experts of a pair, in the order of ``numpy.triu_indices(experts, 1)``
    counts:  [rows, experts] tokens that chose the expert
    batches: how many batches the rows are of
    top_k:   experts per token, K
    """

    pairs: NDArray
    counts: Array
    batches: int
    top_k: int

    @classmethod
    def of_pairs(cls, pairs: NDArray, experts: int, top_k: int, batches: int) -> "CoSelection":
        """Each token that chose an expert is in K - 1 of its pairs: ``count_i = sum_j co_ij / (K - 1)``, K >= 2."""
        first, second = np.triu_indices(experts, 1)
        sums = [pairs[:, (first == i) | (second == i)].sum(axis=1) for i in range(experts)]
        return cls(pairs, np.stack(sums, axis=1) / (top_k - 1), batches, top_k)

    @property
    def experts(self) -> int:
        """Experts of a layer."""
        return self.counts.shape[1]

    @property
    def token_layers(self) -> float:
        """Tokens summed over layers and batches."""
        return float(self.counts.sum()) / self.top_k

    def summed(self) -> "CoSelection":
        """All rows added up to one."""
        pairs, counts = (array.sum(axis=0, keepdims=True, dtype=np.float64) for array in (self.pairs, self.counts))
        return replace(self, pairs=pairs, counts=counts)

    def grouped(self, groups: int) -> "CoSelection":
        """Neighbouring batches added up to this many groups, layers kept apart."""
        starts = np.arange(groups) * self.batches // groups

        def added(array: NDArray) -> NDArray:
            by_batch = array.reshape(self.batches, -1, array.shape[1])  # [batches, layers, ...]
            return np.add.reduceat(by_batch, starts, axis=0, dtype=np.float64).reshape(-1, array.shape[1])

        return replace(self, pairs=added(self.pairs), counts=added(self.counts), batches=groups)

    def matrix(self) -> Array:
        """-> [rows, experts, experts] symmetric, zeros on the diagonal."""
        first, second = np.triu_indices(self.experts, 1)
        matrix = np.zeros((len(self.pairs), self.experts, self.experts))
        matrix[:, first, second] = matrix[:, second, first] = self.pairs
        return matrix

    def on_devices(self, device_of_expert: DeviceIndex, devices: int) -> tuple[Array, Array]:
        """-> tokens sent to each device, (token, expert) pairs computed there: [rows, devices] each."""
        first, second = np.triu_indices(self.experts, 1)
        together = np.where(device_of_expert[first] == device_of_expert[second], device_of_expert[first], -1)
        evaluations = np.stack([self.counts[:, device_of_expert == k].sum(axis=1) for k in range(devices)], axis=1)
        pairs = np.stack([self.pairs[:, together == k].sum(axis=1) for k in range(devices)], axis=1)
        return device_load(evaluations, pairs, self.top_k), evaluations


def load_bounds(top_k: int) -> list[tuple[float, float]]:
    """-> (a, b) of each lower bound ``a S1 - b S2`` of a device's load.

    S1 counts the device's (token, expert) pairs, S2 its (token, pair of experts) triples. A token with r experts there
    adds ``a r - b r (r - 1) / 2 <= 1`` for a = 2 / (m + 1), b = 2 / (m (m + 1)), m = 1, 2, ... (Dawson and Sankoff's
    inequality; m = 1 is Bonferroni's). For K = 2 the first is exact; beyond K - 1 none is the largest.
    """
    return [(2 / (m + 1), 2 / (m * (m + 1))) for m in range(1, top_k)]


def device_load(evaluations: Array, pairs: Array, top_k: int) -> Array:
    """Tokens sent to a device: a token goes there once for all of its experts. Exact for K = 2, else a lower bound.

    evaluations, pairs: S1 and S2 of `load_bounds`, of any one shape
    """
    return np.max([a * evaluations - b * pairs for a, b in load_bounds(top_k)], axis=0)


def co_selection_of(traces: Sequence[RoutingTrace]) -> CoSelection:
    """Read several traces of one model as one; TraceError where they cannot be, or where pairs say too little."""
    first = traces[0].metadata
    for trace in traces:
        metadata = trace.metadata
        for key in ("layers", "experts", "top_k", "hidden_size", "ffn_size"):
            ours, theirs = getattr(first, key), getattr(metadata, key)
            if ours != theirs:
                raise TraceError(
                    f"the traces of {first.model}/{first.dataset} and {metadata.model}/{metadata.dataset} differ in "
                    f"{key} ({ours} and {theirs}); give traces of one model"
                )
        if metadata.top_k < 2:
            raise TraceError(
                f"the trace of {metadata.dataset} has top_k = {metadata.top_k}: a token with one expert makes no pair, "
                "and nothing can be saved by placing pairs together; top_k must be >= 2"
            )
        _check_sums(trace)
    pairs = np.concatenate([trace.co_selection for trace in traces])  # [batches, layers, pairs]
    if not pairs.any():
        raise TraceError(f"the trace of {first.dataset} holds no forward pass")
    return CoSelection.of_pairs(pairs.reshape(-1, pairs.shape[2]), first.experts, first.top_k, len(pairs))


def _check_sums(trace: RoutingTrace) -> None:
    """K experts per token make K (K - 1) / 2 pairs, else the counts of single experts do not follow from the pairs."""
    metadata = trace.metadata
    assignments = np.zeros(trace.co_selection.shape[:2])
    np.add.at(assignments, trace.batch, trace.assignments_before)
    if not np.array_equal(2 * trace.co_selection.sum(axis=2), (metadata.top_k - 1) * assignments):
        raise TraceError(
            f"the trace of {metadata.dataset}: co_selection does not add up to {metadata.top_k} experts per token; "
            "a placement needs a router that chooses equally many for every token"
        )
