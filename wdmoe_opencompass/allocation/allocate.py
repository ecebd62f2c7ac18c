"""The way to every allocator: what it is given is checked, and what it gives is put together by forward pass."""

from collections.abc import Callable
from dataclasses import replace
from numbers import Real
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike

from ..errors import AllocationError, unknown_name
from ..latency import Array, LinkBudget, waiting_latency_s
from .base import Allocation, Allocator, Scope
from .optimal import optimal, solve
from .slsqp import slsqp
from .uniform import uniform

ALLOCATORS: dict[str, Allocator] = {"uniform": uniform, "slsqp": slsqp, "optimal": optimal}
MAX_LOAD = 1e12


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
    MAX_LOAD, and where no finite latency comes out. Where nothing is loaded the latency is 0 s and the split even.

    Measured rates are fixed: there is nothing to split, so every method answers with the even split, and the bound is
    the latency itself.
    """
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
    budget = _with_snrs(budget, lambda snr_hz: snr_hz.reshape((1,) * (3 - snr_hz.ndim) + snr_hz.shape))
    bandwidth_hz, bound_s = _solve(method, scope, budget, load, evaluations, total_bandwidth_hz, certified)
    with np.errstate(all="ignore"):
        latency_s = waiting_latency_s(budget, bandwidth_hz, load, evaluations)
    if not np.isfinite(latency_s).all():
        raise AllocationError(f"a latency is beyond what numbers can hold; {budget.blame}")
    if budget.measured is not None:
        bound_s = latency_s
    return Allocation(bandwidth_hz, latency_s, bound_s.sum(axis=1) if certified else None)


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
    if len(counted) and not (counted.min() >= 1 / MAX_LOAD and counted.max() <= MAX_LOAD):
        raise AllocationError(f"{what} must be 0 or between {1 / MAX_LOAD:g} and {MAX_LOAD:g} tokens")
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


def _solve(
    method: str,
    scope: str,
    budget: LinkBudget,
    load: Array,
    evaluations: Array,
    total_bandwidth_hz: float,
    certified: bool,
) -> tuple[Array, Array]:
    """-> hertz [passes, layers, devices], lower bounds in seconds [passes, layers]; scope `pass` has one layer there.

    One problem per pass, or one of a single layer per pass and layer. Without load the split is even, the bound 0.
    """
    passes, layers, devices = load.shape
    if scope == "layer":
        budget = _with_snrs(budget, lambda snr_hz: _split_layers(snr_hz, load.shape))
        load, evaluations = (array.reshape(-1, 1, devices) for array in (load, evaluations))
    loaded = load.any(axis=(1, 2))  # [problems]
    bandwidth_hz = np.full((len(loaded), devices), total_bandwidth_hz / devices)
    bound_s = np.zeros(len(loaded))
    if loaded.any() and budget.measured is None:
        budget = _with_snrs(budget, lambda snr_hz: snr_hz if len(snr_hz) == 1 else snr_hz[loaded])
        problems = budget, load[loaded], evaluations[loaded], total_bandwidth_hz
        bandwidth_hz[loaded] = ALLOCATORS[method](*problems)
        if certified:
            bound_s[loaded] = solve(*problems).lower_s
    shape = (passes, layers if scope == "layer" else 1)
    return bandwidth_hz.reshape(*shape, devices), bound_s.reshape(shape)


def _split_layers(snr_hz: Array, shape: tuple[int, ...]) -> Array:
    """[passes or 1, layers or 1, devices] -> one problem per pass and layer of `shape`, or 1 where all are alike."""
    return snr_hz if snr_hz.shape[:2] == (1, 1) else np.broadcast_to(snr_hz, shape).reshape(-1, 1, shape[2])


def _with_snrs(budget: LinkBudget, changed: Callable[[Array], Array]) -> LinkBudget:
    return replace(budget, downlink_snr_hz=changed(budget.downlink_snr_hz), uplink_snr_hz=changed(budget.uplink_snr_hz))
