"""The exact optimum of P3 (Eq. 19-21), for thousands of problems at once, each with a certificate from duality."""

from dataclasses import dataclass

import numpy as np

from ..errors import AllocationError
from ..latency import Array, LinkBudget
from .base import relative_gap
from .layer_optimum import finish_together
from .pass_optimum import interior_point
from .scaled_problem import ScaledProblems

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


def optimal(budget: LinkBudget, load: Array, evaluations: Array, total_bandwidth_hz: float) -> Array:
    """Minimise ``sum_i max_k t_k^i`` with one split per problem, Eq. (19)-(21).

    budget: SNRs [problems or 1, layers or 1, devices].
    load, evaluations: [problems, layers, devices] tokens, and (token, expert) pairs computed.
    total_bandwidth_hz: Hz.
    Returns: [problems, devices] Hz; 0 on devices without load. Raises AllocationError where an answer is not proven
    within ACCEPTED_GAP of the optimum.
    """
    return solve(budget, load, evaluations, total_bandwidth_hz).share * total_bandwidth_hz


def solve(budget: LinkBudget, load: Array, evaluations: Array, total_bandwidth_hz: float) -> Optimum:
    """Solve as `optimal`, with the certificate: the optimum lies between lower_s and upper_s.

    budget, load, evaluations, total_bandwidth_hz: [problems, layers, devices] and Hz, as `optimal` takes them.
    """
    problems = ScaledProblems.of(budget, load, evaluations, total_bandwidth_hz)
    share, upper, lower = finish_together(problems) if load.shape[1] == 1 else interior_point(problems)
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
