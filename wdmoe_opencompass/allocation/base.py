"""What every allocator takes and gives, and the one door to all of them."""

from dataclasses import dataclass, replace
from numbers import Real
from typing import Literal, NamedTuple, Protocol, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import AllocationError, unknown_name
from ..latency import Array, LinkBudget, waiting_latency_s
from .optimal import relative_gap, solve

Scope = Literal["layer", "pass"]
PRIMARY_SCOPE: Scope = "layer"  # what tables, figures and commands show first
SCOPE_LABELS: dict[str, str] = {"layer": "layer", "pass": "pass (hindsight)"}  # as people read them
SCOPE_MEANING: dict[str, str] = {
    "layer": "one bandwidth split per layer",
    "pass": "one bandwidth split for all layers of a forward pass; it needs the loads of layers that are not routed "
    "yet, so it cannot be run",
}
LARGEST_LOAD = 1e12


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

    scope:              `layer` splits the bandwidth in every layer, P3 for each layer (our reading: it fits Table II
                        and can be run); `pass` has one split for all layers, P3 to the letter, in hindsight: it needs
                        the loads of layers that are not routed yet, and bounds what any single split could save
    device_load:        [passes, layers, devices] tokens, Eq. (9); [layers, devices] is a single pass
    expert_evaluations: same shape; default: the loads
    budget:             SNRs [devices], or broadcasting to [passes, layers, devices] where the channel changes
    certified:          also give the duality bound of the exact optimum, whatever the method

    Raises AllocationError for unknown names, wrong shapes, numbers that are negative, not finite or beyond
    LARGEST_LOAD, and where no finite latency comes out. Where nothing is loaded the latency is 0 s and the split even.

    Measured rates are fixed: there is nothing to split, so every method answers with the even split, and the bound is
    the latency itself.
    """
    from . import ALLOCATORS

    if method not in ALLOCATORS:
        raise AllocationError(unknown_name("bandwidth allocation", method, ALLOCATORS))
    if scope not in get_args(Scope):
        raise AllocationError(unknown_name("scope", scope, get_args(Scope)))
    if not (isinstance(total_bandwidth_hz, Real) and np.isfinite(total_bandwidth_hz) and total_bandwidth_hz > 0):
        raise AllocationError(f"total_bandwidth_hz must be > 0 and finite, got {total_bandwidth_hz}")
    devices = budget.computation_s.shape[-1]
    load = _checked("device loads", device_load, devices)
    evaluations = load if expert_evaluations is None else _checked("evaluations", expert_evaluations, devices)
    if evaluations.shape != load.shape:
        raise AllocationError(f"evaluations must have the loads' shape {load.shape}, got {evaluations.shape}")
    if (evaluations[load == 0] > 0).any():
        raise AllocationError("evaluations must be 0 where the load is 0: what is computed must have been sent")
    _check_budget(budget, load.shape)
    problems = _problems(scope, _on_three_axes(budget), load, evaluations)
    loaded = problems.load.any(axis=(1, 2))
    bandwidth_hz = np.full((len(loaded), devices), total_bandwidth_hz / devices)
    bound = np.zeros(len(loaded))
    if loaded.any() and budget.measured is None:
        part = problems.only(loaded)
        bandwidth_hz[loaded] = ALLOCATORS[method](part.budget, part.load, part.evaluations, total_bandwidth_hz)
        if certified:
            bound[loaded] = solve(part.budget, part.load, part.evaluations, total_bandwidth_hz).lower_s
    passes = len(load)
    bandwidth_hz = bandwidth_hz.reshape(passes, load.shape[1] if scope == "layer" else 1, devices)
    with np.errstate(all="ignore"):
        latency = waiting_latency_s(_on_three_axes(budget), bandwidth_hz, load, evaluations)
    if not np.isfinite(latency).all():
        raise AllocationError(f"a latency is beyond what numbers can hold; {budget.blame}")
    if budget.measured is not None:
        return Allocation(bandwidth_hz, latency, latency.sum(axis=1) if certified else None)
    return Allocation(bandwidth_hz, latency, bound.reshape(bandwidth_hz.shape[:2]).sum(axis=1) if certified else None)


def _checked(what: str, values: ArrayLike, devices: int) -> Array:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise AllocationError(f"{what} must be rows of {devices} numbers each, one per device") from None
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.shape[2] != devices:
        raise AllocationError(f"{what} must be layers x {devices} devices, got an array of shape {array.shape[-2:]}")
    if not np.isfinite(array).all() or (array < 0).any():
        raise AllocationError(f"{what} must be finite and >= 0")
    counted = array[array > 0]
    if len(counted) and not (counted.min() >= 1 / LARGEST_LOAD and counted.max() <= LARGEST_LOAD):
        raise AllocationError(f"{what} must be 0 or between {1 / LARGEST_LOAD:g} and {LARGEST_LOAD:g} tokens")
    return array


def _check_budget(budget: LinkBudget, shape: tuple[int, ...]) -> None:
    for name in ("downlink_snr_hz", "uplink_snr_hz", "computation_s"):
        values = np.asarray(getattr(budget, name))
        try:
            fits = np.broadcast_shapes(values.shape, shape) == shape
        except ValueError:
            fits = False
        if not fits:
            raise AllocationError(f"{name} of the link budget has shape {values.shape}, which does not fit {shape}")
        rule, holds = (">= 0", values >= 0) if name == "computation_s" else ("> 0", values > 0)
        if not (np.isfinite(values) & holds).all():
            raise AllocationError(f"{name} of the link budget must be finite and {rule} for every device")


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
