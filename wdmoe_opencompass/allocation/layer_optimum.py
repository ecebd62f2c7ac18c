"""The exact optimum of P3 for problems of one layer: a Newton iteration over thousands of them at once."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..channel.duplex import Curve, Duplex, both_directions
from ..latency import Array
from .scaled_problem import ScaledProblems

CHUNK = 8192  # problems times devices worked on at a time: what stays in a core's cache
MAX_STEPS = 100
FIRST_GUESS_STEPS = 3
GAP = 1e-11
MAX_LOG_STEP = 3.0


def finish_together(problems: ScaledProblems) -> tuple[Array, Array, Array]:
    """One layer per problem: at the optimum all loaded devices finish together; -> share, upper, lower.

    Newton on the logarithms of the shares, coupled by the common finish time T alone. For any split the weights
    ``1 / |dt_k/db_k|``, normalised, give a lower bound: by convexity their mean of the finish times can be beaten by no
    other split. Where it meets the slowest device's time the split is optimal.
    """
    count, devices = len(problems.weight), problems.weight.shape[2]
    share = np.zeros((count, devices))
    upper, lower = np.zeros(count), np.zeros(count)
    loaded = np.flatnonzero(problems.weight.any(axis=(1, 2)))
    per_chunk = max(1, CHUNK // devices)
    for start in range(0, len(loaded), per_chunk):
        rows = loaded[start : start + per_chunk]
        _newton(_DeviceMajor.of(problems, rows), rows, share, upper, lower)
    return share, upper, lower


class _DeviceMajor(NamedTuple):
    """Problems of one layer as [devices, problems]: NumPy's inner loops then run over the many problems.

    idle: 1 where a device has no load, else 0; added where it would otherwise divide by 0.
    """

    duplex: Duplex
    snr_down: Array
    snr_up: Array
    weight: Array
    fixed: Array
    idle: Array

    @classmethod
    def of(cls, problems: ScaledProblems, rows: NDArray) -> "_DeviceMajor":
        part = problems[rows]
        arrays = (part.snr_down, part.snr_up, part.weight, part.fixed)
        down, up, weight, fixed = (np.ascontiguousarray(array[:, 0].T) for array in arrays)
        return cls(problems.duplex, down, up, weight, fixed, (weight == 0).astype(float))

    def only(self, going: NDArray[np.bool_]) -> "_DeviceMajor":
        return _DeviceMajor(self.duplex, *(array if array.shape[1] == 1 else array[:, going] for array in self[1:]))

    def communication(self, share: Array) -> Curve:
        return both_directions(self.duplex, self.snr_down, self.snr_up, share, curvature=False)


def _newton(part: _DeviceMajor, rows: NDArray, share: Array, upper: Array, lower: Array) -> None:
    """Solve the given problems and write their answers into `rows` of share, upper and lower."""
    b = _first_guess(part)
    for step in range(MAX_STEPS):
        value, slope, _ = part.communication(b + part.idle)
        communication = part.weight * value
        finish = communication + part.fixed
        steepness = np.maximum(part.idle - part.weight * slope, 1e-300)
        mixing = (1 - part.idle) / steepness
        slowest = finish.max(axis=0)
        bound = (mixing * finish).sum(axis=0) / mixing.sum(axis=0)
        going = slowest - bound > GAP * slowest
        number_going = np.count_nonzero(going)
        if number_going < 0.5 * len(going) or step == MAX_STEPS - 1:
            share[rows], upper[rows], lower[rows] = b.T, slowest, bound
            if not number_going:
                return
            rows, part, b, bound = rows[going], part.only(going), b[:, going], bound[going]
            communication, steepness = communication[:, going], steepness[:, going]
        b = _newton_step(part, b, communication, steepness, bound)


def _newton_step(part: _DeviceMajor, b: Array, communication: Array, steepness: Array, bound: Array) -> Array:
    """One step on ``log(communication_k(b_k)) = log(T - fixed_k)``, ``sum_k b_k = 1``; -> new shares, normalised."""
    target = np.maximum(bound, (part.fixed + 0.05 * communication).max(axis=0))
    inverse = 1 / (target - part.fixed)
    softness = communication / steepness  # b over the elasticity -d log(communication) / d log(b), which is in (0, 1)
    residual = np.log(communication * inverse + part.idle)
    shift = (softness * residual).sum(axis=0) / (softness * inverse).sum(axis=0)
    step = (residual - shift * inverse) * softness / (b + part.idle)
    moved = b * np.exp(np.clip(step, -MAX_LOG_STEP, MAX_LOG_STEP))
    return moved / moved.sum(axis=0)


def _first_guess(part: _DeviceMajor) -> Array:
    """The optimum if f were ``offset + scale / b``, as it is to first order at the even split: Newton on T alone."""
    devices = len(part.weight)
    even = part.communication(np.full((devices, 1), 1 / devices))
    scale = -even.slope / devices**2
    work = part.weight * scale
    fixed = part.fixed + part.weight * (even.value - devices * scale)
    finish = (fixed + work).max(axis=0)  # before the root of a convex, falling function
    shortest = np.maximum(work, 1e-300)  # what is left for a device's work, but for rounding; cut off without work
    for _ in range(FIRST_GUESS_STEPS):
        inverse = 1 / np.maximum(finish - fixed, shortest)
        ratio = work * inverse
        finish = finish + (ratio.sum(axis=0) - 1) / (ratio * inverse).sum(axis=0)
    b = work / np.maximum(finish - fixed, shortest)
    return b / b.sum(axis=0)
