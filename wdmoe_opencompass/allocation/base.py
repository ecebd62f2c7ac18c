"""What every allocator takes and gives."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from ..errors import AllocationError
from ..latency import Array, LinkBudget

Scope = Literal["layer", "pass"]
PRIMARY_SCOPE: Scope = "layer"  # what tables, figures and commands show first
SCOPE_LABELS: dict[str, str] = {"layer": "layer", "pass": "pass (hindsight)"}  # as people read them
SCOPE_MEANING: dict[str, str] = {
    "layer": "one bandwidth split per layer",
    "pass": "one bandwidth split for all layers of a forward pass; it needs the loads of layers that are not routed "
    "yet, so it cannot be run",
}


class Allocator(Protocol):
    """Splits the total bandwidth in many independent problems; the layers of one problem share its split."""

    def __call__(self, budget: LinkBudget, load: Array, evaluations: Array, total_bandwidth_hz: float) -> Array:
        """Return hertz per device, [problems, devices].

        load, evaluations: [problems, layers, devices]; in every problem some device is loaded. The budget's SNRs
        broadcast to that shape.
        """
        ...


@dataclass(frozen=True)
class Allocation:
    """Bandwidth allocations of forward passes, and what they give.

    bandwidth_hz:    [passes, layers, devices]; one row in place of the layers for scope `pass` (hindsight)
    layer_latency_s: [passes, layers] attention waiting latency, Eq. (11)
    lower_bound_s:   [passes] by duality no allocation of this scope waits less; None where it was not asked for
    """

    bandwidth_hz: Array
    layer_latency_s: Array
    lower_bound_s: Array | None = None

    @property
    def waiting_latency_s(self) -> Array:
        """-> [passes] sum over the layers, the objective of P1 and P3."""
        return self.layer_latency_s.sum(axis=1)

    @property
    def relative_gap(self) -> Array:
        """-> [passes] how far the waiting latency can be above the optimum, relative to itself; 0 without load."""
        if self.lower_bound_s is None:
            raise AllocationError("no certificate was asked for: allocate(..., certified=True)")
        return relative_gap(self.waiting_latency_s, self.lower_bound_s)


def relative_gap(upper_s: Array, lower_s: Array) -> Array:
    """(upper - lower) / upper; 0 where both are 0, NaN where a bound is none."""
    with np.errstate(invalid="ignore"):
        return (upper_s - lower_s) / np.where(upper_s == 0, 1.0, upper_s)
