"""Energy of a forward pass: transmitting in both directions, and computing where the profile tells joules per FLOP."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .channel.profile import ChannelProfile
from .latency import Array, ExpertShape, LinkBudget, direction_latency_s, expert_flop


@dataclass(frozen=True)
class Energy:
    """Joules of forward passes, [passes] each; computation_j is None where a device has no energy_j_per_flop.

    A link's transmit energy is its power times the time it sends: load times payload over rate, Eq. (2)-(4); receiving
    and waiting are not counted (our choice).
    """

    downlink_j: Array
    uplink_j: Array
    computation_j: Array | None


def pass_energy(
    profile: ChannelProfile,
    shape: ExpertShape,
    budget: LinkBudget,
    bandwidth_hz: ArrayLike,
    device_load: ArrayLike,
    expert_evaluations: ArrayLike,
) -> Energy:
    """Sum over layers and devices; hertz, loads and evaluations broadcast to [passes, layers, devices]."""
    load = np.asarray(device_load, dtype=np.float64)
    down_s, up_s = (np.where(load > 0, time, 0.0) for time in direction_latency_s(budget, bandwidth_hz))
    power_w = np.array([device.transmit_power_w for device in profile.devices])
    per_flop = [device.energy_j_per_flop for device in profile.devices]
    computation = None
    if None not in per_flop:
        computation = (np.asarray(expert_evaluations) * (np.array(per_flop) * expert_flop(shape))).sum(axis=(-2, -1))
    return Energy(
        (load * down_s * profile.base_station.transmit_power_w).sum(axis=(-2, -1)),
        (load * up_s * power_w).sum(axis=(-2, -1)),
        computation,
    )
