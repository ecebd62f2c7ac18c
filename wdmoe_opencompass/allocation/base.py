"""What every allocator takes and gives, and the one door to all of them."""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import AllocationError, unknown_name
from ..latency import Array, LinkBudget, waiting_latency_s
from .optimal import solve

Scope = Literal["pass", "layer"]


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

    bandwidth_hz:    [passes, layers, devices]; one row in place of the layers for scope `pass`
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
        waiting = self.waiting_latency_s
        return np.where(waiting > 0, (waiting - self.lower_bound_s) / np.where(waiting > 0, waiting, 1.0), 0.0)


def allocate(
    method: str,
    scope: str,
    budget: LinkBudget,
    device_load: ArrayLike,
    total_bandwidth_hz: float,
    expert_evaluations: ArrayLike | None = None,
    certified: bool = False,
) -> Allocation:
    """Split the bandwidth of forward passes by the named method.

    device_load:        [passes, layers, devices] tokens, Eq. (9); [layers, devices] is a single pass
    expert_evaluations: same shape; default: the loads
    budget:             SNRs [devices], or broadcasting to [passes, layers, devices] where the channel changes
    certified:          also give the duality bound of the exact optimum, whatever the method

    Raises AllocationError for unknown names, wrong shapes, and negative or non-finite numbers. Where nothing is loaded
    the latency is 0 s and the split even.
    """
    from . import ALLOCATORS

    if method not in ALLOCATORS:
        raise AllocationError(unknown_name("bandwidth allocation", method, ALLOCATORS))
    if scope not in get_args(Scope):
        raise AllocationError(unknown_name("scope", scope, get_args(Scope)))
    if not (np.isfinite(total_bandwidth_hz) and total_bandwidth_hz > 0):
        raise AllocationError(f"total_bandwidth_hz must be > 0 and finite, got {total_bandwidth_hz}")
    devices = budget.computation_s.shape[-1]
    load = _checked("device loads", device_load, devices)
    evaluations = load if expert_evaluations is None else _checked("evaluations", expert_evaluations, devices)
    if evaluations.shape != load.shape:
        raise AllocationError(f"evaluations must have the loads' shape {load.shape}, got {evaluations.shape}")
    problems = _problems(scope, _on_three_axes(budget), load, evaluations)
    loaded = problems.load.any(axis=(1, 2))
    bandwidth_hz = np.full((len(loaded), devices), total_bandwidth_hz / devices)
    bound = np.zeros(len(loaded))
    if loaded.any():
        part = problems.only(loaded)
        bandwidth_hz[loaded] = ALLOCATORS[method](part.budget, part.load, part.evaluations, total_bandwidth_hz)
        if certified:
            bound[loaded] = solve(part.budget, part.load, part.evaluations, total_bandwidth_hz).lower_s
    passes = len(load)
    bandwidth_hz = bandwidth_hz.reshape(passes, -1, devices)
    latency = waiting_latency_s(_on_three_axes(budget), bandwidth_hz, load, evaluations)
    return Allocation(bandwidth_hz, latency, bound.reshape(passes, -1).sum(axis=1) if certified else None)


def _checked(what: str, values: ArrayLike, devices: int) -> Array:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise AllocationError(f"{what} must be rows of {devices} numbers each, one per device") from None
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.shape[2] != devices:
        raise AllocationError(f"{what} must be layers x {devices} devices, got an array of shape {array.shape[-2:]}")
    if not np.isfinite(array).all() or (array < 0).any():
        raise AllocationError(f"{what} must be finite and >= 0")
    return array


def _on_three_axes(budget: LinkBudget) -> LinkBudget:
    def expanded(snr_hz: Array) -> Array:
        return snr_hz.reshape((1,) * (3 - snr_hz.ndim) + snr_hz.shape)

    return replace(
        budget, downlink_snr_hz=expanded(budget.downlink_snr_hz), uplink_snr_hz=expanded(budget.uplink_snr_hz)
    )


class _Problems(NamedTuple):
    """Independent problems: budget SNRs broadcast to load and evaluations, [problems, layers, devices]."""

    budget: LinkBudget
    load: Array
    evaluations: Array

    def only(self, rows: NDArray[np.bool_]) -> "_Problems":
        def chosen(snr_hz: Array) -> Array:
            return snr_hz if len(snr_hz) == 1 else snr_hz[rows]

        budget = self.budget
        part = replace(
            budget, downlink_snr_hz=chosen(budget.downlink_snr_hz), uplink_snr_hz=chosen(budget.uplink_snr_hz)
        )
        return _Problems(part, self.load[rows], self.evaluations[rows])


def _problems(scope: str, budget: LinkBudget, load: Array, evaluations: Array) -> _Problems:
    """One problem per pass, or one of a single layer per pass and layer."""
    if scope == "pass":
        return _Problems(budget, load, evaluations)

    def layers_apart(array: Array) -> Array:
        if array.shape[:2] == (1, 1):
            return array
        return np.broadcast_to(array, load.shape).reshape(-1, 1, load.shape[2])

    flat = replace(
        budget,
        downlink_snr_hz=layers_apart(budget.downlink_snr_hz),
        uplink_snr_hz=layers_apart(budget.uplink_snr_hz),
    )
    return _Problems(flat, load.reshape(-1, 1, load.shape[2]), evaluations.reshape(-1, 1, load.shape[2]))
