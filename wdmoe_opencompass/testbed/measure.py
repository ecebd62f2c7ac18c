"""From a probe's measured times to a channel profile of measured rates: least squares, no gRPC and no torch."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.optimize import nnls

from ..channel.profile import ChannelProfile
from ..errors import ProfileError
from ..latency import ExpertShape, expert_flop, payload_bit
from ..routing.times import LayerTimes, MeasuredTimes

Array = NDArray[np.float64]
LEAST_SIZES = 2
DIGITS = 6  # of a fitted number, so that it can be written down


@dataclass(frozen=True)
class DeviceFit:
    """What a device was measured to do; the numbers of `rates: measured`.

    fixed_s:               of a message, whatever its length: there, computing, and back
    messages:              how many were measured
    tokens:                the shortest and the longest of them
    median_relative_error: of the fitted round trip against each measured one
    """

    downlink_bit_per_s: float
    uplink_bit_per_s: float
    compute_flops: float
    fixed_s: float
    messages: int
    tokens: tuple[int, int]
    median_relative_error: float

    def total_s(self, tokens: Array, bits: float, flop: float) -> Array:
        """Seconds of a round trip of so many tokens, each of so many bits one way, and so many FLOPs."""
        per_token = bits / self.downlink_bit_per_s + bits / self.uplink_bit_per_s + flop / self.compute_flops
        return self.fixed_s + tokens * per_token


def fit_device(name: str, times: Sequence[LayerTimes], shape: ExpertShape, payload_bits: int) -> DeviceFit:
    """Fit one device: ``send = fixed + bits / R_d``, ``return = fixed + bits / R_u``, ``compute = fixed + flop / C``.

    times: messages of several sizes, each token to one expert; bits of Eq. (4), FLOPs of Eq. (5).

    Our choices: what remains of the round trip (queueing, packing and unpacking) counts half to each direction, so that
    the parts sum to it. Least squares of the relative errors (a message of 1 ms tells as much as one of 100 ms) through
    the median of each size (one late message moves nothing), with no fixed time below 0. The three fixed times are one
    sum. ProfileError where there are too few sizes, or where a part does not grow with them.
    """
    whole = [one for one in times if one.tokens > 0 and np.isfinite(one.total_s) and one.total_s > 0]
    tokens = np.array([one.tokens for one in whole], dtype=np.float64)
    sizes = np.unique(tokens)
    if len(sizes) < LEAST_SIZES:
        raise ProfileError(
            f"{name}: messages of at least {LEAST_SIZES} sizes are needed to tell a rate from a fixed time, got "
            f"{len(sizes)}; probe with other numbers of tokens too"
        )
    send, compute, back, total = np.array(
        [(one.send_s, one.compute_s, one.return_s, one.total_s) for one in whole], dtype=np.float64
    ).T
    rest = total - send - compute - back
    bits, flop = payload_bit(payload_bits, shape.hidden_size), expert_flop(shape)
    fixed, rates = 0.0, []
    for what, seconds, amount in (
        ("send", send + rest / 2, bits),
        ("return", back + rest / 2, bits),
        ("compute", compute, flop),
    ):
        own_fixed, per_token = _line(tokens, seconds, sizes)
        if not per_token > 0:
            raise ProfileError(
                f"{name}: the time to {what} does not grow from {sizes[0]:.0f} to {sizes[-1]:.0f} tokens; probe with "
                "longer messages"
            )
        fixed += own_fixed
        rates.append(_rounded(amount / per_token))
    downlink, uplink, compute_flops = rates
    fit = DeviceFit(
        downlink_bit_per_s=downlink,
        uplink_bit_per_s=uplink,
        compute_flops=compute_flops,
        fixed_s=_rounded(fixed),
        messages=len(whole),
        tokens=(int(sizes[0]), int(sizes[-1])),
        median_relative_error=0.0,
    )
    error = np.abs(fit.total_s(tokens, bits, flop) / total - 1)
    return replace(fit, median_relative_error=float(np.median(error)))


def _line(tokens: Array, seconds: Array, sizes: Array) -> tuple[float, float]:
    """-> fixed seconds, seconds per token; both >= 0."""
    middle = np.array([np.median(seconds[tokens == size]) for size in sizes])
    positive = middle > 0
    if positive.sum() < LEAST_SIZES:
        return 0.0, 0.0
    weight = 1 / middle[positive]
    columns = np.stack([weight, sizes[positive] * weight], axis=1)
    scale = columns.max(axis=0)
    solution, _ = nnls(columns / scale, np.ones(len(weight)))
    fixed, per_token = solution / scale
    return float(fixed), float(per_token)


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def fit_devices(
    names: Sequence[str], times: Sequence[LayerTimes], shape: ExpertShape, payload_bits: int
) -> list[DeviceFit]:
    """Fit every device, in the order of `names`, which a time's `device` is an index of."""
    return [
        fit_device(name, [one for one in times if one.device == k], shape, payload_bits) for k, name in enumerate(names)
    ]


def profile_from_times(base: ChannelProfile, times: MeasuredTimes, name: str = "measured") -> ChannelProfile:
    """A profile of measured rates from a whole run's times, which serve as a probe where passes had several sizes.

    Where a device holds several experts, a token that needs two of them there is computed twice but counted once: the
    FLOP/s are then of tokens, not of evaluations; a probe with one expert per token tells them exactly.
    """
    of = times.metadata
    fits = fit_devices(of.devices, times.layer_times(), ExpertShape(of.hidden_size, of.ffn_size), of.payload_bits)
    return measured_profile(base, of.devices, fits, of.payload_bits, name)


def measured_profile(
    base: ChannelProfile, names: Sequence[str], fits: Sequence[DeviceFit], payload_bits: int, name: str = "measured"
) -> ChannelProfile:
    """The profile with the rates of its devices as measured; placement and transmit powers stay as they are.

    Raises ProfileError unless `names`, those of `fits`, are the profile's devices in its order.
    """
    known = [device.name for device in base.devices]
    if list(names) != known:
        raise ProfileError(
            f"{base.name}: its devices must be those measured, {', '.join(names)}; got {', '.join(known)}"
        )
    devices = [
        device.model_dump(exclude_none=True)
        | dict(
            downlink_bit_per_s=fit.downlink_bit_per_s,
            uplink_bit_per_s=fit.uplink_bit_per_s,
            fixed_s=fit.fixed_s,
            compute_flops=fit.compute_flops,
        )
        for device, fit in zip(base.devices, fits, strict=True)
    ]
    changed = dict(name=name, rates="measured", payload_bits=payload_bits, devices=devices, fading=dict(model="none"))
    return ChannelProfile.model_validate(base.model_dump(mode="json", exclude_none=True) | changed)


def measured_profile_text(profile: ChannelProfile, fits: Sequence[DeviceFit]) -> str:
    """A measured profile as YAML; comments say how each device was measured, and what is not read."""
    sentences = [
        "Made by `wdmoe testbed measure`: rates, FLOP/s and fixed seconds per message fitted by least squares.",
        *(
            f"{device.name}: {fit.messages} messages of {fit.tokens[0]} to {fit.tokens[1]} tokens, median relative "
            f"error of the round trip {100 * fit.median_relative_error:.1f} %."
            for device, fit in zip(profile.devices, fits, strict=True)
        ),
        "With `rates: measured` bandwidth, noise, distances and path loss are not read; powers are, for energy alone.",
    ]
    comment = textwrap.TextWrapper(118, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False)
    content = profile.model_dump(exclude={"name"}, exclude_none=True)
    content["devices"] = list(content["devices"])
    return "\n".join([*map(comment.fill, sentences), yaml.safe_dump(content, sort_keys=False)])
