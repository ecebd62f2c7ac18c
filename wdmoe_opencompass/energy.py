"""Energy of a forward pass: transmitting in both directions, and computing where the profile tells joules per FLOP."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .channel.profile import ChannelProfile
from .errors import ProfileError
from .latency import Array, ExpertShape, LinkBudget, direction_latency_s, expert_flop


@dataclass(frozen=True)
class Energy:
    """Joules of sending down, up and computing; computation_j is None unless all devices give energy_j_per_flop.

    A link's transmit energy is its power times the time it sends: tokens times payload over rate, Eq. (2)-(4).
    Receiving and waiting are not counted (our choice); each device's downlink takes the base station's full power.
    """

    downlink_j: Array
    uplink_j: Array
    computation_j: Array | None


def token_energy(profile: ChannelProfile, shape: ExpertShape, budget: LinkBudget, bandwidth_hz: ArrayLike) -> Energy:
    """Energy of one token on each device.

    profile, shape: transmit powers and joules per FLOP, and the expert's sizes.
    budget: of that profile, SNRs [..., devices].
    bandwidth_hz: [..., devices] Hz; at 0 Hz the energy is infinite.
    Returns: [..., devices] J.
    """
    down_s, up_s = direction_latency_s(budget, bandwidth_hz)
    power_w = np.array([device.transmit_power_w for device in profile.devices])
    per_flop = [device.energy_j_per_flop for device in profile.devices]
    computation = None if None in per_flop else np.array(per_flop, dtype=np.float64) * float(expert_flop(shape))
    return Energy(down_s * profile.base_station.transmit_power_w, up_s * power_w, computation)


def pass_energy(
    profile: ChannelProfile,
    shape: ExpertShape,
    budget: LinkBudget,
    bandwidth_hz: ArrayLike,
    device_load: ArrayLike,
    expert_evaluations: ArrayLike,
) -> Energy:
    """Energy of forward passes: the sum over layers and devices.

    profile, shape, budget: as `token_energy` takes them.
    bandwidth_hz, device_load, expert_evaluations: [passes, layers, devices] Hz, tokens, and pairs; they broadcast.
    Returns: [passes] J. Raises ProfileError, which names the key to blame, where an energy is not finite.
    """
    load = np.asarray(device_load, dtype=np.float64)
    token = token_energy(profile, shape, budget, bandwidth_hz)

    def total(token_j: Array) -> Array:
        return (load * np.where(load > 0, token_j, 0.0)).sum(axis=(-2, -1))

    computed = None
    if token.computation_j is not None:
        computed = (np.asarray(expert_evaluations, dtype=np.float64) * token.computation_j).sum(axis=(-2, -1))
    energy = Energy(total(token.downlink_j), total(token.uplink_j), computed)
    if not all(
        np.isfinite(joules).all()
        for joules in (energy.downlink_j, energy.uplink_j, 0.0 if computed is None else computed)
    ):
        raise ProfileError(f"an energy is beyond what numbers can hold; {budget.blame}")
    return energy
