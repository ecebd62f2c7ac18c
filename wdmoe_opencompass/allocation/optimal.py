"""The exact optimum of P3 (Eq. 19-21), for thousands of problems at once, each with a certificate from duality.

In here bandwidth is a share of the total (they sum to 1) and time is a fraction of the problem's even-split latency.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..channel.duplex import Curve, Duplex, both_directions
from ..errors import AllocationError
from ..latency import Array, LinkBudget

LAYER_CHUNK = 8192  # problems times devices worked on at a time: what stays in a core's cache
LAYER_STEPS = 100
FIRST_GUESS_STEPS = 3
LAYER_GAP = 1e-11
LARGEST_LOG_STEP = 3.0
PASS_STEPS = 100
PASS_GAP = 1e-7
MIN_PRODUCT = 4e-12  # of a slack and its multiplier; with smaller ones multipliers, and so the bound, lose digits
CENTRING = 0.1  # target of the complementarity products, relative to their mean
TO_BOUNDARY = 0.999
SHARE_TO_BOUNDARY = 0.7  # finish times grow without limit as a share goes to 0: Newton's model is poor there
ACCEPTED_GAP = {"layer": 1e-9, "pass": 1e-6}  # by the scope that a problem has
ROUNDING = 1e-12  # a lower bound above the upper one by more is no bound


@dataclass(frozen=True)
class Optimum:
    """share: [problems, devices] of the total; upper, lower: [problems] the optimum lies between, in seconds."""

    share: Array
    upper_s: Array
    lower_s: Array

    @property
    def relative_gap(self) -> Array:
        """-> [problems] (upper - lower) / upper; 0 where nothing is loaded."""
        return relative_gap(self.upper_s, self.lower_s)


def relative_gap(upper_s: Array, lower_s: Array) -> Array:
    """(upper - lower) / upper; 0 where both are 0, NaN where a bound is none."""
    with np.errstate(invalid="ignore"):
        return (upper_s - lower_s) / np.where(upper_s == 0, 1.0, upper_s)


def optimal(budget: LinkBudget, load: Array, evaluations: Array, total_bandwidth_hz: float) -> Array:
    """Minimise ``sum_i max_k t_k^i`` with one split per problem, Eq. (19)-(21); -> [problems, devices] hertz.

    load, evaluations: [problems, layers, devices]; the budget's SNRs broadcast to that shape. Devices without load get
    0 Hz. Raises AllocationError where an answer is not proven within ACCEPTED_GAP of the optimum.
    """
    return solve(budget, load, evaluations, total_bandwidth_hz).share * total_bandwidth_hz


def solve(budget: LinkBudget, load: Array, evaluations: Array, total_bandwidth_hz: float) -> Optimum:
    """As `optimal`, with the certificate: the optimum lies between lower_s and upper_s."""
    problems = _Problems.scaled(budget, load, evaluations, total_bandwidth_hz)
    share, upper, lower = _finish_together(problems) if load.shape[1] == 1 else _interior_point(problems)
    answer = Optimum(share, upper * problems.unit_s, lower * problems.unit_s)
    accepted = ACCEPTED_GAP["layer" if load.shape[1] == 1 else "pass"]
    proven = (answer.relative_gap <= accepted) & (answer.relative_gap >= -ROUNDING) & np.isfinite(share).all(axis=1)
    if not proven.all():
        worst = answer.relative_gap[~proven][0]
        raise AllocationError(
            f"the optimal allocation of {(~proven).sum()} of {len(proven)} problems is not proven: "
            f"relative gap {worst:.1e}, must be <= {accepted:.0e}"
        )
    return answer


@dataclass(frozen=True)
class _Problems:
    """Scaled problems. Time of device k in layer i: ``weight_ik f_ik(b_k) + fixed_ik``.

    f: `both_directions` of channel/duplex.py. snr_down, snr_up: broadcast to [problems, layers, devices]; weight,
    fixed: that shape; unit_s: [problems] seconds.
    """

    snr_down: Array
    snr_up: Array
    weight: Array
    fixed: Array
    unit_s: Array
    duplex: Duplex

    @classmethod
    def scaled(cls, budget: LinkBudget, load: Array, evaluations: Array, total_hz: float) -> "_Problems":
        def three_axes(snr_hz: Array) -> Array:
            return (snr_hz / total_hz).reshape((1,) * (3 - snr_hz.ndim) + snr_hz.shape)

        down, up = three_axes(budget.downlink_snr_hz), three_axes(budget.uplink_snr_hz)
        weight = load * (budget.payload_bit * np.log(2) / total_hz)
        fixed = evaluations * budget.computation_s
        even = both_directions(budget.duplex, down, up, np.full((1, 1, load.shape[2]), 1 / load.shape[2]))
        unit = (weight * even.value + fixed).max(axis=2).sum(axis=1)  # [problems]
        unit = np.where(unit > 0, unit, 1.0)
        return cls(down, up, weight / unit[:, None, None], fixed / unit[:, None, None], unit, budget.duplex)

    def __getitem__(self, rows: NDArray) -> "_Problems":
        def chosen(snr: Array) -> Array:
            return snr if len(snr) == 1 else snr[rows]

        return _Problems(
            chosen(self.snr_down),
            chosen(self.snr_up),
            self.weight[rows],
            self.fixed[rows],
            self.unit_s[rows],
            self.duplex,
        )

    def communication(self, share: Array) -> Curve:
        """f and its derivatives at shares > 0 that broadcast to [problems, layers, devices]."""
        return both_directions(self.duplex, self.snr_down, self.snr_up, share)


def _finish_together(problems: _Problems) -> tuple[Array, Array, Array]:
    """One layer per problem: at the optimum all loaded devices finish together; -> share, upper, lower.

    Newton on the logarithms of the shares, coupled by the common finish time T alone. For any split the weights
    ``1 / |dt_k/db_k|``, normalised, give a lower bound: by convexity their mean of the finish times can be beaten by no
    other split. Where it meets the slowest device's time the split is optimal.
    """
    count, devices = len(problems.weight), problems.weight.shape[2]
    share = np.zeros((count, devices))
    upper, lower = np.zeros(count), np.zeros(count)
    loaded = np.flatnonzero(problems.weight.any(axis=(1, 2)))
    per_chunk = max(1, LAYER_CHUNK // devices)
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
    def of(cls, problems: _Problems, rows: NDArray) -> "_DeviceMajor":
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
    for step in range(LAYER_STEPS):
        value, slope, _ = part.communication(b + part.idle)
        communication = part.weight * value
        finish = communication + part.fixed
        steepness = np.maximum(part.idle - part.weight * slope, 1e-300)
        mixing = (1 - part.idle) / steepness
        slowest = finish.max(axis=0)
        bound = (mixing * finish).sum(axis=0) / mixing.sum(axis=0)
        going = slowest - bound > LAYER_GAP * slowest
        number_going = np.count_nonzero(going)
        if number_going < 0.5 * len(going) or step == LAYER_STEPS - 1:
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
    moved = b * np.exp(np.clip(step, -LARGEST_LOG_STEP, LARGEST_LOG_STEP))
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


def _interior_point(problems: _Problems) -> tuple[Array, Array, Array]:
    """Several layers share a split: primal-dual interior point on the epigraph form; -> share, upper, lower.

    Minimise ``sum_i T_i`` with ``T_i >= t_ik(b_k)``. The multipliers and the T_i are eliminated, which leaves one
    devices x devices system per problem and step. For multipliers that sum to 1 in every layer, convexity gives the
    lower bound ``sum lambda t - sum_k S_k b_k + min_k S_k`` with ``S_k = sum_i lambda_ik dt_ik/db_k``.
    """
    active = problems.weight > 0  # [problems, layers, devices]
    used = active.any(axis=1)  # [problems, devices]
    share = _first_split(problems)
    upper, lower = np.zeros(len(share)), np.zeros(len(share))
    rows = np.flatnonzero(used.sum(axis=1) > 1)
    single = np.flatnonzero(used.sum(axis=1) == 1)
    if len(single):
        finish = _finish(problems[single], share[single])[0]
        upper[single] = lower[single] = finish.max(axis=2).sum(axis=1)
    if not len(rows):
        return share, upper, lower
    state = _Iterate.start(problems[rows], share[rows])
    best = np.full(len(share), np.inf)
    lower[rows] = -np.inf
    for _ in range(PASS_STEPS):
        now, bound = state.bounds()
        better = now < best[rows]
        share[rows[better]] = state.share[better]
        best[rows] = np.minimum(best[rows], now)
        lower[rows] = np.maximum(lower[rows], bound)
        going = best[rows] - lower[rows] > np.maximum(PASS_GAP, 3 * state.least_gap()) * best[rows]
        if not going.any():
            break
        if not going.all():  # a solved problem must not go on: its system becomes singular
            rows, state = rows[going], state.only(going)
        state.step()
    solved = np.isfinite(best)
    upper[solved] = best[solved]
    return share, upper, lower


def _first_split(problems: _Problems) -> Array:
    """The split that is optimal for the layers' summed loads."""

    def mean(snr: Array) -> Array:
        return snr.mean(axis=1, keepdims=True)

    summed = _Problems(
        mean(problems.snr_down),
        mean(problems.snr_up),
        problems.weight.sum(axis=1, keepdims=True),
        problems.fixed.sum(axis=1, keepdims=True),
        problems.unit_s,
        problems.duplex,
    )
    return _finish_together(summed)[0]


def _finish(problems: _Problems, share: Array) -> tuple[Array, Array, Array]:
    """-> [problems, layers, devices] finish times and their first and second derivatives in the device's share."""
    used = share[:, None, :] > 0
    value, slope, curvature = problems.communication(np.where(used, share[:, None, :], 1.0))
    return (
        problems.weight * value + problems.fixed,
        problems.weight * slope,
        problems.weight * curvature,
    )


@dataclass
class _Iterate:
    """Primal and dual variables of a batch of problems, and what follows from them."""

    problems: _Problems
    share: Array  # [problems, devices]
    time: Array  # [problems, layers] T_i
    slack: Array  # [problems, layers, devices] T_i - t_ik, as a variable of its own: the difference loses its digits
    dual: Array  # [problems, layers, devices] lambda
    counts: Array  # [problems, layers, devices] 1 where a device has load in a layer, else 0
    used: NDArray  # [problems, devices]

    @classmethod
    def start(cls, problems: _Problems, share: Array) -> "_Iterate":
        active = problems.weight > 0
        used = active.any(axis=1)
        # away from the boundary: a device that the summed problem starved must be able to move
        share = np.where(used, 0.9 * share + 0.1 / used.sum(axis=1, keepdims=True), 0.0)
        finish, _, _ = _finish(problems, share)
        time = 1.1 * finish.max(axis=2) + 1e-3
        slack = np.where(active, time[:, :, None] - finish, 1.0)
        dual = np.where(active, 1 / slack, 0.0)
        dual /= np.maximum(dual.sum(axis=2, keepdims=True), 1e-300)
        state = cls(problems, share, time, slack, dual, active.astype(float), used)
        state._refresh()
        return state

    def only(self, keep: NDArray) -> "_Iterate":
        state = _Iterate(
            self.problems[np.flatnonzero(keep)],
            self.share[keep],
            self.time[keep],
            self.slack[keep],
            self.dual[keep],
            self.counts[keep],
            self.used[keep],
        )
        state._refresh()
        return state

    def _refresh(self) -> None:
        self.finish, self.slope, self.curvature = _finish(self.problems, self.share)

    def least_gap(self) -> Array:
        """-> [problems] the duality gap that double precision reaches safely; it grows with the constraints."""
        return np.maximum(MIN_PRODUCT * self.counts.sum(axis=(1, 2)), 0.2 * PASS_GAP)

    def bounds(self) -> tuple[Array, Array]:
        """-> [problems] what this split takes, and the duality bound of these multipliers."""
        upper = self.finish.max(axis=2).sum(axis=1)
        total = self.dual.sum(axis=2, keepdims=True)
        mixing = self.dual / np.where(total > 0, total, 1.0)
        steep = (mixing * self.slope).sum(axis=1)  # [problems, devices]
        lowest = np.where(self.used, steep, np.inf).min(axis=1)
        return upper, (mixing * self.finish).sum(axis=(1, 2)) - (steep * self.share).sum(axis=1) + lowest

    def step(self) -> None:
        """One Newton step towards a tenth of the present complementarity."""
        dual, slope = self.dual, self.slope
        inverse = self.counts / self.slack  # 0 where a device has no load in a layer
        ratio = dual * inverse
        products = np.einsum("pik,pik->p", dual, self.slack)
        aim = np.maximum(CENTRING * products, self.least_gap()) / self.counts.sum(axis=(1, 2))
        residual = self.time[:, :, None] - self.finish - self.slack
        centre = aim[:, None, None] * inverse - ratio * residual
        coupling = ratio * slope  # [problems, layers, devices]
        mass = ratio.sum(axis=2)
        busy = mass > 0
        mass = np.where(busy, mass, 1.0)
        excess = np.where(busy, centre.sum(axis=2) - 1, 0.0)
        scaled = coupling / mass[:, :, None]
        # devices x devices system: (diagonal - coupling' mass^-1 coupling) d_share + nu = right
        matrix = -np.matmul(scaled.transpose(0, 2, 1), coupling)
        index = np.arange(matrix.shape[1])
        diagonal = np.einsum("pik,pik->pk", dual, self.curvature) + np.einsum("pik,pik->pk", coupling, slope)
        matrix[:, index, index] += np.where(self.used, diagonal, 1.0)
        right = np.einsum("pik,pi->pk", scaled, excess) - np.einsum("pik,pik->pk", centre, slope)
        ones = self.used.astype(float)
        solved = np.linalg.solve(matrix, np.stack([right * ones, ones], axis=2))
        along, across = solved[:, :, 0], solved[:, :, 1]
        nu = (along * ones).sum(axis=1) / (across * ones).sum(axis=1)
        d_share = ones * (along - nu[:, None] * across)
        d_time = np.where(busy, (excess + np.einsum("pik,pk->pi", coupling, d_share)) / mass, 0.0)
        change = d_time[:, :, None] - slope * d_share[:, None, :]
        d_dual = centre - dual - ratio * change
        self._move(d_share, d_time, (change + residual) * self.counts, d_dual)

    def _move(self, d_share: Array, d_time: Array, d_slack: Array, d_dual: Array) -> None:
        length = np.minimum(SHARE_TO_BOUNDARY * _to_boundary(self.share, d_share), 1.0)
        length = np.minimum(TO_BOUNDARY * _to_boundary(self.slack, d_slack), length)
        dual_length = np.minimum(TO_BOUNDARY * _to_boundary(self.dual, d_dual), 1.0)
        self.share = self.share + length[:, None] * d_share
        self.share /= self.share.sum(axis=1, keepdims=True)
        self.time = self.time + length[:, None] * d_time
        self.slack = self.slack + length[:, None, None] * d_slack
        self.dual = self.dual + dual_length[:, None, None] * d_dual
        self._refresh()


def _to_boundary(value: Array, step: Array) -> Array:
    """-> [problems] the largest step length that keeps every value >= 0; a value of 0 has a step of 0."""
    fastest = (-step / np.maximum(value, 1e-300)).reshape(len(value), -1).max(axis=1)
    return 1 / np.maximum(fastest, 1e-300)
