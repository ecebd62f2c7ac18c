"""The paper's solver of P3 (Eq. 19-21): SciPy's SLSQP."""

import numpy as np
from scipy.optimize import minimize

from ..errors import AllocationError
from ..latency import Array, LinkBudget, communication_latency_s

SMALLEST_SHARE = 1e-6  # keeps a loaded device's rate away from 0, where its time has no derivative
FEASIBILITY = 1e-6  # how far a constraint, in units of the even split's latency, may be missed


def slsqp(budget: LinkBudget, load: Array, evaluations: Array, total_bandwidth_hz: float) -> Array:
    """Minimise ``sum_i max_k t_k^i`` with one split for the given layers; devices without load get 0 Hz.

    The maximum has no derivative where two devices finish together, which is where the optimum lies: SLSQP straight on
    it stops 0.6 to 5.6 % short. So we give it the epigraph form (our choice): minimise ``sum_i t_i`` subject to
    ``t_i >= t_k^i(B_k)``, with bandwidth in shares of the total and time in units of the even split's latency.

    load, evaluations: [layers, devices]. Raises AllocationError when SLSQP reports no convergence.
    """
    loaded = load.any(axis=0)
    busy = load.any(axis=1)  # a layer without load takes 0 s whatever the split
    load, evaluations = load[busy][:, loaded], evaluations[busy][:, loaded]
    part = LinkBudget(
        budget.payload_bit,
        budget.downlink_snr_hz[loaded],
        budget.uplink_snr_hz[loaded],
        budget.computation_s[loaded],
    )
    layers, devices = load.shape
    computation = evaluations * part.computation_s

    def times(shares: Array) -> Array:
        return load * communication_latency_s(part, shares * total_bandwidth_hz) + computation  # [layers, devices]

    even = np.full(devices, 1 / devices)
    unit = times(even).max()

    def slack(x: Array) -> Array:
        return (x[devices:, None] - times(x[:devices]) / unit).ravel()

    def slack_jacobian(x: Array) -> Array:
        slope = load * _communication_slope(part, x[:devices] * total_bandwidth_hz) * total_bandwidth_hz / unit
        jacobian = np.zeros((layers, devices, devices + layers))
        jacobian[:, np.arange(devices), np.arange(devices)] = -slope
        jacobian[np.arange(layers), :, devices + np.arange(layers)] = 1.0
        return jacobian.reshape(layers * devices, -1)

    result = minimize(
        lambda x: x[devices:].sum(),
        np.concatenate([even, times(even).max(axis=1) / unit]),
        jac=lambda x: np.concatenate([np.zeros(devices), np.ones(layers)]),
        bounds=[(SMALLEST_SHARE, 1.0)] * devices + [(0.0, None)] * layers,
        constraints=[
            dict(type="ineq", fun=slack, jac=slack_jacobian),
            dict(
                type="eq",
                fun=lambda x: x[:devices].sum() - 1,
                jac=lambda x: np.concatenate([np.ones(devices), np.zeros(layers)]),
            ),
        ],
        method="SLSQP",
        options=dict(maxiter=500, ftol=1e-10),
    )
    # SLSQP reports trouble of its line search (modes 4 and 8) at optima too; a feasible point no worse than the even
    # split is an answer, anything else is not.
    usable = (
        np.isfinite(result.x).all()
        and slack(result.x).min() > -FEASIBILITY
        and result.x[devices:].sum() <= times(even).max(axis=1).sum() / unit + FEASIBILITY
    )
    if not (result.success or (result.status in (4, 8) and usable)):
        raise AllocationError(f"SLSQP did not converge: {result.message} (status {result.status})")
    shares = np.zeros(loaded.shape)
    shares[loaded] = result.x[:devices] / result.x[:devices].sum()
    return shares * total_bandwidth_hz


def _communication_slope(budget: LinkBudget, bandwidth_hz: Array) -> Array:
    """d/dB of Eq. (6): ``-L R'(B) / R(B)^2`` for both directions, [devices] seconds per hertz."""
    down = _link_slope(budget.payload_bit, budget.downlink_snr_hz, bandwidth_hz)
    return down + _link_slope(budget.payload_bit, budget.uplink_snr_hz, bandwidth_hz)


def _link_slope(payload_bit: float, snr_hz: Array, bandwidth_hz: Array) -> Array:
    snr = snr_hz / bandwidth_hz
    rate = bandwidth_hz * np.log1p(snr) / np.log(2)
    rate_slope = (np.log1p(snr) - snr / (1 + snr)) / np.log(2)
    return -payload_bit * rate_slope / rate**2
