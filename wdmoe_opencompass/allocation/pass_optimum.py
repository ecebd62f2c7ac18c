"""The exact optimum of P3 where several layers share a split: a primal-dual interior point."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..latency import Array
from .layer_optimum import finish_together
from .scaled_problem import ScaledProblems

MAX_STEPS = 100
GAP = 1e-7
MIN_PRODUCT = 4e-12  # of a slack and its multiplier; with smaller ones multipliers, and so the bound, lose digits
CENTRING = 0.1  # target of the complementarity products, relative to their mean
TO_BOUNDARY = 0.999
SHARE_TO_BOUNDARY = 0.7  # finish times grow without limit as a share goes to 0: Newton's model is poor there


def interior_point(problems: ScaledProblems) -> tuple[Array, Array, Array]:
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
    for _ in range(MAX_STEPS):
        now, bound = state.bounds()
        better = now < best[rows]
        share[rows[better]] = state.share[better]
        best[rows] = np.minimum(best[rows], now)
        lower[rows] = np.maximum(lower[rows], bound)
        going = best[rows] - lower[rows] > np.maximum(GAP, 3 * state.least_gap()) * best[rows]
        if not going.any():
            break
        if not going.all():  # a solved problem must not go on: its system becomes singular
            rows, state = rows[going], state.only(going)
        state.step()
    solved = np.isfinite(best)
    upper[solved] = best[solved]
    return share, upper, lower


def _first_split(problems: ScaledProblems) -> Array:
    """The split that is optimal for the layers' summed loads."""

    def mean(snr: Array) -> Array:
        return snr.mean(axis=1, keepdims=True)

    summed = ScaledProblems(
        mean(problems.snr_down),
        mean(problems.snr_up),
        problems.weight.sum(axis=1, keepdims=True),
        problems.fixed.sum(axis=1, keepdims=True),
        problems.unit_s,
        problems.duplex,
    )
    return finish_together(summed)[0]


def _finish(problems: ScaledProblems, share: Array) -> tuple[Array, Array, Array]:
    """-> [problems, layers, devices] finish times and their first and second derivatives in the device's share."""
    used = share[:, None, :] > 0
    value, slope, curvature = problems.communication(np.where(used, share[:, None, :], 1.0))
    weight = problems.weight
    return weight * value + problems.fixed, weight * slope, weight * curvature


@dataclass
class _Iterate:
    """Primal and dual variables of a batch of problems, and what follows from them."""

    problems: ScaledProblems
    share: Array  # [problems, devices]
    time: Array  # [problems, layers] T_i
    slack: Array  # [problems, layers, devices] T_i - t_ik, as a variable of its own: the difference loses its digits
    dual: Array  # [problems, layers, devices] lambda
    counts: Array  # [problems, layers, devices] 1 where a device has load in a layer, else 0
    used: NDArray  # [problems, devices]

    @classmethod
    def start(cls, problems: ScaledProblems, share: Array) -> "_Iterate":
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
        arrays = (self.share, self.time, self.slack, self.dual, self.counts, self.used)
        state = _Iterate(self.problems[np.flatnonzero(keep)], *(array[keep] for array in arrays))
        state._refresh()
        return state

    def _refresh(self) -> None:
        self.finish, self.slope, self.curvature = _finish(self.problems, self.share)

    def least_gap(self) -> Array:
        """-> [problems] the duality gap that double precision reaches safely; it grows with the constraints."""
        return np.maximum(MIN_PRODUCT * self.counts.sum(axis=(1, 2)), 0.2 * GAP)

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
