"""Latency from device loads, Eq. (4) to (11): pure functions of arrays."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from .channel.duplex import Array, Duplex, downlink_share
from .channel.plausibility import culprit
from .channel.profile import ChannelProfile
from .channel.propagation import Channel
from .channel.rates import rate_bit_per_s
from .errors import ProfileError

ACTIVATION_FLOPS = 4  # eta of Eq. (5): FLOPs of the activation per value, our choice


@dataclass(frozen=True)
class ExpertShape:
    """The two sizes of an expert network that latency depends on (defaults: Mixtral-8x7B)."""

    hidden_size: int = 4096
    ffn_size: int = 14336


def payload_bit(payload_bits: int, hidden_size: int) -> int:
    """Bits to send one token one way: ``L_comm = eps m``, Eq. (4)."""
    return payload_bits * hidden_size


def expert_flop(shape: ExpertShape) -> int:
    """FLOPs of one token in one expert: ``4 m m_h + 2 m_h m + eta m_h + m_h``, Eq. (5), eta = 4 (our choice)."""
    m, m_h = shape.hidden_size, shape.ffn_size
    return 4 * m * m_h + 2 * m_h * m + ACTIVATION_FLOPS * m_h + m_h


@dataclass(frozen=True)
class MeasuredLink:
    """What a testbed has measured of every device, in place of Eq. (2) and (3); [devices] each.

    fixed_s:   seconds that a layer's message to the device takes, there and back, whatever its length
    burst_bit: bits of a message, each way, that pass before the rates limit it: a token bucket's
    message_s: seconds by which each further message of a layer delays its last answer
    shared_bit_per_s: rate at which the bits of all but the slowest message pass what they share, there and back
    """

    downlink_bit_per_s: Array
    uplink_bit_per_s: Array
    fixed_s: Array
    burst_bit: Array
    message_s: float = 0.0
    shared_bit_per_s: float = np.inf


@dataclass(frozen=True)
class LinkBudget:
    """All that the time of one token on each device depends on, besides the bandwidth.

    payload_bit:      bits of one token one way, Eq. (4)
    downlink_snr_hz:  [..., devices] ``P_d g_BS,k / N0`` in Hz; divided by a bandwidth it is the SNR of Eq. (2)
    uplink_snr_hz:    [..., devices] ``P_u,k g_k,BS / N0`` in Hz, Eq. (3)
    computation_s:    [devices] seconds of one token in one expert, Eq. (7)
    duplex:           how a device's bandwidth serves both directions, see channel/duplex.py
    measured:         measured rates, whatever the bandwidth and the SNRs; None: Eq. (2) and (3)
    profile:          what it was made from, to name the key that is to blame for a latency that is not finite
    """

    payload_bit: float
    downlink_snr_hz: Array
    uplink_snr_hz: Array
    computation_s: Array
    duplex: Duplex = "shared"
    measured: MeasuredLink | None = None
    profile: ChannelProfile | None = field(default=None, repr=False, compare=False)

    @property
    def blame(self) -> str:
        """What to check where a latency is not finite, the key of the profile by name: the end of a sentence."""
        if self.profile is None:
            return "check the SNRs, the computation times and the loads"
        return f"channel profile {self.profile.name}: {culprit(self.profile)}"


def link_budget(profile: ChannelProfile, channel: Channel, shape: ExpertShape) -> LinkBudget:
    """Combine a profile, one draw of it (gains [..., devices]) and an expert's sizes.

    Raises ProfileError, which names the key to blame, where an SNR, rate or time is not finite or an SNR or rate is 0.
    A profile that was read from a file has no such value.
    """
    try:
        noise = profile.noise_psd_w_per_hz
    except OverflowError:
        noise = np.inf
    device_power_w = np.array([device.transmit_power_w for device in profile.devices])
    compute_flops = np.array([device.compute_flops for device in profile.devices])
    with np.errstate(all="ignore"):
        budget = LinkBudget(
            payload_bit=payload_bit(profile.payload_bits, shape.hidden_size),
            downlink_snr_hz=profile.base_station.transmit_power_w * channel.downlink_gain / noise,
            uplink_snr_hz=device_power_w * channel.uplink_gain / noise,
            computation_s=float(expert_flop(shape)) / compute_flops,
            duplex=profile.duplex,
            measured=_measured_link(profile) if profile.rates == "measured" else None,
            profile=profile,
        )
    measured = budget.measured
    positive = [budget.downlink_snr_hz, budget.uplink_snr_hz]
    if measured is not None:  # distances and powers are not read
        positive = [measured.downlink_bit_per_s, measured.uplink_bit_per_s]
    if (
        not all((np.isfinite(values) & (values > 0)).all() for values in positive)
        or not (np.isfinite(budget.computation_s) & (budget.computation_s >= 0)).all()
    ):
        raise ProfileError(f"no finite latency comes out: {budget.blame}")
    return budget


def _measured_link(profile: ChannelProfile) -> MeasuredLink:
    values = [
        (device.downlink_bit_per_s, device.uplink_bit_per_s, device.fixed_s or 0.0, device.burst_bit or 0.0)
        for device in profile.devices
    ]
    down, up, fixed_s, burst_bit = np.array(values, dtype=np.float64).T
    station = profile.base_station
    return MeasuredLink(down, up, fixed_s, burst_bit, station.message_s or 0.0, station.shared_bit_per_s or np.inf)


def direction_latency_s(budget: LinkBudget, bandwidth_hz: ArrayLike) -> tuple[Array, Array]:
    """Seconds to send one token down and to send it up, the terms of Eq. (6): [..., devices]; infinite at 0 Hz.

    Measured rates are the same at any bandwidth.
    """
    down_hz = up_hz = np.asarray(bandwidth_hz, dtype=np.float64)
    if budget.measured is not None:
        every = np.ones(np.broadcast_shapes(down_hz.shape, budget.measured.fixed_s.shape))
        rates = budget.measured.downlink_bit_per_s, budget.measured.uplink_bit_per_s
        return budget.payload_bit / rates[0] * every, budget.payload_bit / rates[1] * every
    if budget.duplex == "frequency_division":
        safe_hz = np.where(up_hz > 0, up_hz, 1.0)
        down_hz = downlink_share(budget.downlink_snr_hz, budget.uplink_snr_hz, safe_hz) * up_hz
        up_hz = up_hz - down_hz
    with np.errstate(divide="ignore"):
        down = budget.payload_bit / rate_bit_per_s(down_hz, budget.downlink_snr_hz, 1.0, 1.0)
        up = budget.payload_bit / rate_bit_per_s(up_hz, budget.uplink_snr_hz, 1.0, 1.0)
    return down, up


def communication_latency_s(budget: LinkBudget, bandwidth_hz: ArrayLike) -> Array:
    """Seconds to send one token there and back, Eq. (6): [..., devices]; infinite at 0 Hz."""
    down, up = direction_latency_s(budget, bandwidth_hz)
    return down + up


def token_latency_s(budget: LinkBudget, bandwidth_hz: ArrayLike) -> Array:
    """Seconds of one token in one expert on each device, t_k of Eq. (8): [..., devices]."""
    return communication_latency_s(budget, bandwidth_hz) + budget.computation_s


def device_latency_s(
    budget: LinkBudget, bandwidth_hz: ArrayLike, device_load: ArrayLike, expert_evaluations: ArrayLike | None = None
) -> Array:
    """Seconds each device takes in a layer, t_k^i of Eq. (10): [..., devices].

    Measured links (our choice) let their burst of each message pass in no time, and add their fixed seconds.

    device_load:        [..., devices] tokens sent to the device, q_k^i of Eq. (9)
    expert_evaluations: [..., devices] (token, expert) pairs computed there; more than the load where a token has
                        several experts on one device: it is sent once and computed once per expert (our choice).
                        Default: the load.
    """
    load = np.asarray(device_load, dtype=np.float64)
    evaluations = load if expert_evaluations is None else np.asarray(expert_evaluations, dtype=np.float64)
    communication = np.where(load > 0, communication_latency_s(budget, bandwidth_hz), 0.0)  # 0 tokens at 0 Hz take 0 s
    if budget.measured is None:
        return load * communication + evaluations * budget.computation_s
    limited = np.maximum(load - budget.measured.burst_bit / budget.payload_bit, 0.0)
    seconds = limited * communication + evaluations * budget.computation_s
    return seconds + np.where(load > 0, budget.measured.fixed_s, 0.0)


def waiting_latency_s(
    budget: LinkBudget, bandwidth_hz: ArrayLike, device_load: ArrayLike, expert_evaluations: ArrayLike | None = None
) -> Array:
    """Attention waiting latency of each layer, ``t^i = max_k t_k^i``, Eq. (11): [...].

    Measured links (our choice): all messages of a layer share a base station that works on them at once, in no order,
    and perhaps a radio, so that each other one delays the slowest, k: ``t^i = t_k^i + sum_{j != k} (message_s + 2 q_j^i
    L_comm / R_shared)``.
    """
    seconds = device_latency_s(budget, bandwidth_hz, device_load, expert_evaluations)
    if budget.measured is None:
        return seconds.max(axis=-1)
    token_s = 2 * budget.payload_bit / budget.measured.shared_bit_per_s
    return last_answer_s(seconds, np.asarray(device_load, dtype=np.float64), budget.measured.message_s, token_s)


def last_answer_s(device_latency_s: Array, device_load: Array, message_s: float, token_s: float) -> Array:
    """-> [...] seconds until the last answer: the slowest message's, delayed by every other one.

    device_latency_s: [..., devices] of each message and its answer. device_load: [..., devices] tokens, 0 without a
    message. message_s, token_s: by which a message and each of its tokens delay the slowest.
    """
    messages, tokens = others(device_latency_s, device_load)
    return device_latency_s.max(axis=-1) + message_s * messages + token_s * tokens


def others(device_latency_s: Array, device_load: Array) -> tuple[Array, Array]:
    """-> [...] number of messages but the slowest, and of their tokens; arguments: [..., devices] as last_answer_s."""
    slowest = np.arange(device_latency_s.shape[-1]) == device_latency_s.argmax(axis=-1)[..., None]
    load = np.where(slowest, 0.0, device_load)
    return (load > 0).sum(axis=-1), load.sum(axis=-1)
