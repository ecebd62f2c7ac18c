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
    """Sums over the batches of the same items: those of one perplexity item are as many as it has possible answers.

    items:     [groups] of (dataset or part of one, first item, number of items)
    latency_s: [groups] attention waiting latency; passes, batches: [groups] how many
    """

    items: list[tuple[str, int, int]]
    latency_s: Array
    passes: Array
    batches: Array

    def count(self, per: str) -> Array:
        """-> [groups] what a mean per pass or per batch divides by.

        Batches are counted by their items, which leaves the sum as it is: a short last batch is no quick one.
        """
        if per == "pass":
            return self.passes
        items = np.array([number for *_, number in self.items], dtype=float)
        return items * self.batches.sum() / items.sum()


def batch_key(trace: RoutingTrace) -> tuple[str, bytes, bytes]:
    """What is equal for two traces of the same batches: dataset or part of one, items before and in each batch."""
    return trace.metadata.dataset, trace.first_item.tobytes(), trace.items.tobytes()


def batch_sums(parts: Sequence[ReplayedLatency], phase: str) -> BatchSums:
    """Sums of several traces read as one, over the passes of a phase; a group without any such pass is left out."""
    chosen = [part.trace.is_phase(phase) for part in parts]
    return grouped_sums(
        (part.trace, part.trace.batch[rows], part.waiting_latency_s[rows]) for part, rows in zip(parts, chosen)
    )


def grouped_sums(parts: Iterable[tuple[RoutingTrace | MeasuredTimes, NDArray, Array]]) -> BatchSums:
    """Sums of (where they come from, each pass's batch, each pass's seconds), over the batches of the same items."""
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
    """Why two runs' latencies cannot be compared batch by batch; None where they can."""
    if vanilla.items != other.items:
        return OTHER_BATCHES
    return FEW_GROUPS if len(vanilla.items) < MIN_GROUPS else None
