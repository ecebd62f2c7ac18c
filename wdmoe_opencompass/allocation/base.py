"""What every allocator takes and gives."""

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import ArrayLike

from ..errors import AllocationError, unknown_name
from ..latency import Array, LinkBudget, waiting_latency_s

Scope = Literal["pass", "layer"]


class Allocator(Protocol):
    """Splits the total bandwidth for one set of loads."""

    def __call__(self, budget: LinkBudget, load: Array, evaluations: Array, total_bandwidth_hz: float) -> Array:
        """Return hertz per device, [devices], for loads [layers, devices] that share one split."""
        ...


@dataclass(frozen=True)
class Allocation:
    """A bandwidth allocation and what it gives.

    bandwidth_hz:    [layers, devices]; a single row for scope `pass`
    layer_latency_s: [layers] attention waiting latency, Eq. (11)
    """

    bandwidth_hz: Array
    layer_latency_s: Array

    @property
    def waiting_latency_s(self) -> float:
        """Sum over the layers of the forward pass, the objective of P1 and P3."""
        return float(self.layer_latency_s.sum())


def allocate(
    method: str,
    scope: str,
    budget: LinkBudget,
    device_load: ArrayLike,
    total_bandwidth_hz: float,
    expert_evaluations: ArrayLike | None = None,
) -> Allocation:
    """Split the bandwidth of one forward pass by the named method.

    device_load:        [layers, devices] tokens, Eq. (9)
    expert_evaluations: [layers, devices] default: the loads
    budget:             arrays [devices], or [layers, devices] where the channel changes from layer to layer; scope
                        `pass` then splits by the mean SNR over the layers (our choice)

    Raises AllocationError for unknown names, wrong shapes, and negative or non-finite numbers. A layer without any
    load takes 0 s and is given an even split.
    """
    from . import ALLOCATORS

    if method not in ALLOCATORS:
        raise AllocationError(unknown_name("bandwidth allocation", method, ALLOCATORS))
    if scope not in get_args(Scope):
        raise AllocationError(unknown_name("scope", scope, get_args(Scope)))
    devices = budget.computation_s.shape[-1]
    load = _checked("device loads", device_load, devices)
    evaluations = load if expert_evaluations is None else _checked("expert evaluations", expert_evaluations, devices)
    if not (np.isfinite(total_bandwidth_hz) and total_bandwidth_hz > 0):
        raise AllocationError(f"total_bandwidth_hz must be > 0 and finite, got {total_bandwidth_hz}")
    split = _by_layer if scope == "layer" else _by_pass
    bandwidth_hz = split(ALLOCATORS[method], budget, load, evaluations, total_bandwidth_hz)
    return Allocation(bandwidth_hz, waiting_latency_s(budget, bandwidth_hz, load, evaluations))


def _checked(what: str, values: ArrayLike, devices: int) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != devices:
        raise AllocationError(f"{what} must be layers x {devices} devices, got an array of shape {array.shape}")
    if not np.isfinite(array).all() or (array < 0).any():
        raise AllocationError(f"{what} must be finite and >= 0")
    return array


def _by_layer(method: Allocator, budget: LinkBudget, load: Array, evaluations: Array, total_hz: float) -> Array:
    rows = []
    for layer in range(len(load)):
        one = budget_of_layer(budget, layer)
        rows.append(_one_split(method, one, load[layer : layer + 1], evaluations[layer : layer + 1], total_hz))
    return np.array(rows)


def _by_pass(method: Allocator, budget: LinkBudget, load: Array, evaluations: Array, total_hz: float) -> Array:
    mean = LinkBudget(
        budget.payload_bit,
        budget.downlink_snr_hz.reshape(-1, load.shape[1]).mean(axis=0),
        budget.uplink_snr_hz.reshape(-1, load.shape[1]).mean(axis=0),
        budget.computation_s,
    )
    return _one_split(method, mean, load, evaluations, total_hz)[None]


def _one_split(method: Allocator, budget: LinkBudget, load: Array, evaluations: Array, total_hz: float) -> Array:
    if not load.any():
        return np.full(load.shape[1], total_hz / load.shape[1])
    return method(budget, load, evaluations, total_hz)


def budget_of_layer(budget: LinkBudget, layer: int) -> LinkBudget:
    """The budget of one layer, where the channel may change from layer to layer."""
    if budget.downlink_snr_hz.ndim == 1:
        return budget
    return LinkBudget(
        budget.payload_bit, budget.downlink_snr_hz[layer], budget.uplink_snr_hz[layer], budget.computation_s
    )
