"""The paper's solver of P3 (Eq. 19-21): SciPy's SLSQP."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from ..channel.duplex import Duplex, both_directions
from ..errors import AllocationError
from ..latency import Array, LinkBudget

SMALLEST_SHARE = 1e-6  # keeps a loaded device's rate away from 0, where its time has no derivative
FEASIBILITY = 1e-6  # how far a constraint, in units of the even split's latency, may be missed


def slsqp(budget: LinkBudget, load: Array, evaluations: Array, total_bandwidth_hz: float) -> Array:
    """Minimise ``sum_i max_k t_k^i`` with one split per problem.

    The maximum has no derivative where two devices finish together, which is where the optimum lies: SLSQP straight on
    it stops 0.6 to 5.6 % short. So we give it the epigraph form (our choice): minimise ``sum_i t_i`` subject to
    ``t_i >= t_k^i(B_k)``, with bandwidth in shares of the total and time in units of the even split's latency.

    budget, load, evaluations, total_bandwidth_hz: [problems, layers, devices] and Hz, as `optimal` takes them.
    Returns: [problems, devices] Hz; 0 on devices without load. Raises AllocationError where SLSQP does not converge.
    """
    scale = budget.payload_bit * np.log(2) / total_bandwidth_hz
    down, up = (
        np.broadcast_to(snr_hz / total_bandwidth_hz, load.shape)
        for snr_hz in (budget.downlink_snr_hz, budget.uplink_snr_hz)
    )
    shares = np.zeros((len(load), load.shape[2]))
    for number in range(len(load)):
        loaded, busy = load[number].any(axis=0), load[number].any(axis=1)  # an idle layer takes 0 s whatever the split
        chosen = (number, *np.ix_(busy, loaded))
        computation = evaluations[chosen] * budget.computation_s[loaded]
        part = _Problem(budget.duplex, down[chosen], up[chosen], scale * load[chosen], computation)
        shares[number, loaded] = part.solve()
    return shares * total_bandwidth_hz


@dataclass(frozen=True)
class _Problem:
    """One split; all arrays [layers, devices], every layer and every device with some load."""

    duplex: Duplex
    snr_down: Array
    snr_up: Array
    weight: Array
    computation: Array

    def solve(self) -> Array:
        """-> [devices] shares of the total bandwidth."""
        layers, devices = self.weight.shape
        even = np.full(devices, 1 / devices)
        latest = self._finish(even)[0].max(axis=1)
        unit = latest.sum()

        def slack(x: Array) -> Array:
            return (x[devices:, None] - self._finish(x[:devices])[0] / unit).ravel()

        def slack_jacobian(x: Array) -> Array:
            jacobian = np.zeros((layers, devices, devices + layers))
            jacobian[:, np.arange(devices), np.arange(devices)] = -self._finish(x[:devices])[1] / unit
            jacobian[np.arange(layers), :, devices + np.arange(layers)] = 1.0
            return jacobian.reshape(layers * devices, -1)

        towards_shares = np.concatenate([np.ones(devices), np.zeros(layers)])
        result = minimize(
            lambda x: x[devices:].sum(),
            np.concatenate([even, latest / unit]),
            jac=lambda x: 1 - towards_shares,
            bounds=[(SMALLEST_SHARE, 1.0)] * devices + [(0.0, None)] * layers,
            constraints=[
                dict(type="ineq", fun=slack, jac=slack_jacobian),
                dict(type="eq", fun=lambda x: x[:devices].sum() - 1, jac=lambda x: towards_shares),
            ],
            method="SLSQP",
            options=dict(maxiter=500, ftol=1e-10),
        )
        # SLSQP reports trouble of its line search (modes 4 and 8) at optima too; a feasible point no worse than the
        # even split is an answer, anything else is not.
        usable = (
            np.isfinite(result.x).all()
            and slack(result.x).min() > -FEASIBILITY
            and result.x[devices:].sum() <= 1 + FEASIBILITY
        )
        if not (result.success or (result.status in (4, 8) and usable)):
            raise AllocationError(f"SLSQP did not converge: {result.message} (status {result.status})")
        return result.x[:devices] / result.x[:devices].sum()

    def _finish(self, share: Array) -> tuple[Array, Array]:
        """-> [layers, devices] finish times in seconds and their slopes."""
        curve = both_directions(self.duplex, self.snr_down, self.snr_up, share)
        return self.weight * curve.value + self.computation, self.weight * curve.slope
