"""A run's latency by groups of batches, the units that latency intervals are drawn from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..latency import Array
from ..replay import ReplayedLatency
from ..trace.format import RoutingTrace
from ..trace.times import MeasuredTimes
from .statistics import MIN_GROUPS

FEW_GROUPS = f"fewer than {MIN_GROUPS} batches of different items"
OTHER_BATCHES = "its batches are not of the same items as vanilla's"


@dataclass(frozen=True)
class BatchSums:
    """Sums over the batches of the same items; a perplexity item has one batch per possible answer.

    items:     [groups] of (dataset or part of one, first item, number of items)
    latency_s: [groups] attention waiting latency (s)
    passes:    [groups] number of forward passes
    batches:   [groups] number of batches
    """

    items: list[tuple[str, int, int]]
    latency_s: Array
    passes: Array
    batches: Array

    def count(self, per: str) -> Array:
        """The divisor of a mean.

        per:     "pass" or "batch"
        Returns: [groups] passes, or batches weighted by their items (with the same sum), because a short final batch
        must not look fast. Source: our choice.
        """
        if per == "pass":
            return self.passes
        items = np.array([number for *_, number in self.items], dtype=float)
        return items * self.batches.sum() / items.sum()


def batch_key(trace: RoutingTrace) -> tuple[str, bytes, bytes]:
    """Equal for two traces of the same batches: dataset or part of one, items before and in each batch."""
    return trace.metadata.dataset, trace.first_item.tobytes(), trace.items.tobytes()


def batch_sums(parts: Sequence[ReplayedLatency], phase: str) -> BatchSums:
    """Sum several traces as one over the passes of a phase; groups without such a pass are left out."""
    chosen = [part.trace.is_phase(phase) for part in parts]
    return grouped_sums(
        (part.trace, part.trace.batch[rows], part.waiting_latency_s[rows]) for part, rows in zip(parts, chosen)
    )


def grouped_sums(parts: Iterable[tuple[RoutingTrace | MeasuredTimes, NDArray, Array]]) -> BatchSums:
    """Sum latency over the batches of the same items.

    parts:   (trace or times, [passes] batch number, [passes] waiting latency (s)) each
    Returns: the sums; groups in the order in which they occur.
    """
    found: dict[tuple[str, int, int], Array] = {}
    for origin, batch, waiting_s in parts:
        batches = len(origin.first_item)
        passes = np.bincount(batch, minlength=batches)
        latency_s = np.bincount(batch, waiting_s, batches)
        for number in np.flatnonzero(passes):
            key = (origin.metadata.dataset, int(origin.first_item[number]), int(origin.items[number]))
            own = np.array([latency_s[number], passes[number], 1])
            found[key] = found[key] + own if key in found else own
    latency, passes, batches = np.array(list(found.values())).reshape(-1, 3).T
    return BatchSums(list(found), latency, passes, batches)


def why_no_interval(vanilla: BatchSums, other: BatchSums) -> str | None:
    """Why two runs' latencies cannot be compared batch by batch; None if they can."""
    if vanilla.items != other.items:
        return OTHER_BATCHES
    return FEW_GROUPS if len(vanilla.items) < MIN_GROUPS else None
