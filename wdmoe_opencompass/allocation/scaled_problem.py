"""P3 without units: bandwidth as a share of the total, time as a fraction of the even split's latency."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..channel.duplex import Curve, Duplex, both_directions
from ..latency import Array, LinkBudget


@dataclass(frozen=True)
class ScaledProblems:
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
    def of(cls, budget: LinkBudget, load: Array, evaluations: Array, total_hz: float) -> "ScaledProblems":
        """Scale problems by the total bandwidth and the even split's latency.

        budget: SNRs [problems or 1, layers or 1, devices].
        load, evaluations: [problems, layers, devices] tokens, and (token, expert) pairs computed.
        total_hz: Hz.
        """
        down, up = budget.downlink_snr_hz / total_hz, budget.uplink_snr_hz / total_hz
        weight = load * (budget.payload_bit * np.log(2) / total_hz)
        fixed = evaluations * budget.computation_s
        even = both_directions(budget.duplex, down, up, np.full((1, 1, load.shape[2]), 1 / load.shape[2]))
        unit = (weight * even.value + fixed).max(axis=2).sum(axis=1)  # [problems]
        unit = np.where(unit > 0, unit, 1.0)
        return cls(down, up, weight / unit[:, None, None], fixed / unit[:, None, None], unit, budget.duplex)

    def __getitem__(self, rows: NDArray) -> "ScaledProblems":
        def select(snr: Array) -> Array:
            return snr if len(snr) == 1 else snr[rows]

        weight, fixed, unit_s = (array[rows] for array in (self.weight, self.fixed, self.unit_s))
        return ScaledProblems(select(self.snr_down), select(self.snr_up), weight, fixed, unit_s, self.duplex)

    def communication(self, share: Array) -> Curve:
        """f and its derivatives; share: [problems, layers or 1, devices] > 0 of the total bandwidth."""
        return both_directions(self.duplex, self.snr_down, self.snr_up, share)
