"""From a probe's measured times to a channel profile of measured rates: least squares, no gRPC and no torch."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linprog, nnls

from .._util.safe_yaml import yaml_text
from ..channel.profile import MEASURED, ChannelProfile, validated_profile
from ..errors import ProfileError
from ..latency import Array, ExpertShape, expert_flop, last_answer_s, others, payload_bit
from ..trace.times import LayerTimes

MIN_SIZES = 2
MIN_GAIN = 0.2  # by which a burst, or a shared rate, must lower the error that is left without it
BURST_STEPS = 256  # of the sizes that a burst may hide
STRAIGHT = 0.01  # relative error of a line that needs no burst
MIN_TOKEN_S = 1e-9  # below it what messages share has no limit
DIGITS = 6  # of a fitted number, so that it can be written down


@dataclass(frozen=True)
class DeviceFit:
    """What a device was measured to do; the numbers of `rates: measured`.

    burst_bit: of a message, each way, that take no time of their own: a token bucket lets them pass at once
    fixed_s:   of a message, whatever its length: handed over, there, computing, and back
    messages:  how many were measured
    tokens:    the shortest and the longest of them
    """

    downlink_bit_per_s: float
    uplink_bit_per_s: float
    burst_bit: float
    compute_flops: float
    fixed_s: float
    messages: int
    tokens: tuple[int, int]

    def total_s(self, tokens: Array, bits: float, flop: float) -> Array:
        """Seconds of a round trip of so many tokens, each of so many bits one way, and so many FLOPs; 0 without any."""
        limited_bit = np.maximum(tokens * bits - self.burst_bit, 0.0)
        transfer_s = limited_bit / self.downlink_bit_per_s + limited_bit / self.uplink_bit_per_s
        return np.where(tokens > 0, self.fixed_s + transfer_s + tokens * flop / self.compute_flops, 0.0)


@dataclass(frozen=True)
class LabFit:
    """What a lab was measured to do.

    devices:               in the lab's order
    message_s:             by which each further message of a layer delays the last answer
    shared_bit_per_s:      at which the bits of all but the slowest message pass what they share; None: at once
    layers:                how many exchanges were measured
    median_relative_error: of the fitted waiting latency against that of each exchange
    """

    devices: tuple[DeviceFit, ...]
    message_s: float
    shared_bit_per_s: float | None
    layers: int
    median_relative_error: float


def fit_lab(names: Sequence[str], times: Sequence[LayerTimes], shape: ExpertShape, payload_bits: int) -> LabFit:
    """Fit a lab: a message of n tokens takes ``fixed + (n bits - burst) (1 / R_d + 1 / R_u) + n flop / C``.

    names: of the devices, which a time's `device` is an index of. times: of exchanges (one pass_index and layer each)
    with messages of several sizes to each device alone, to all at once and to some, every token to one expert. bits of
    Eq. (4), FLOPs of Eq. (5).

    Our choices. What is a device's own is measured alone: its time per token is the slope of its exchanges, by least
    squares of the relative errors (1 ms tells as much as 100 ms) through the median of each size (one late message
    moves nothing), split as the slopes of sending, computing and returning are; what else the round trip took grows no
    part of its own. The burst is where the transfers begin to grow; `fixed_s` is what the waiting latencies are beyond.
    What messages share, `message_s` and `shared_bit_per_s`, is from the waiting latencies of exchanges with messages of
    several sizes, as a router sends them (equal ones arrive together and hinder each other more), by the least relative
    errors of what `waiting_latency_s` predicts. None is below 0. ProfileError where a device has too few sizes, or a
    part does not grow with them.
    """
    bits, flop = payload_bit(payload_bits, shape.hidden_size), expert_flop(shape)
    exchanges = _exchanges(times)
    fits = [_fit_device(name, _messages(exchanges, device), bits, flop) for device, name in enumerate(names)]
    tokens = np.zeros((len(exchanges), len(names)))
    for row, exchange in enumerate(exchanges):
        for message in exchange:
            tokens[row, message.device] = message.tokens
    seconds = np.stack([fit.total_s(tokens[:, k], bits, flop) for k, fit in enumerate(fits)], axis=1)
    waiting = np.array([exchange[0].waiting_s for exchange in exchanges])

    message_s, token_s = _fit_shared(seconds, tokens, waiting)
    error = np.abs(last_answer_s(seconds, tokens, message_s, token_s) / waiting - 1)
    return LabFit(
        tuple(fits),
        _rounded(message_s),
        _rounded(2 * bits / token_s) if token_s > MIN_TOKEN_S else None,
        len(exchanges),
        float(np.median(error)),
    )


def _fit_shared(seconds: Array, tokens: Array, waiting: Array) -> tuple[float, float]:
    """-> seconds >= 0 by which each message, and each of its tokens, delay the slowest message.

    seconds, tokens: [exchanges, devices] fitted and sent. waiting: [exchanges]. The least mean relative error, as a
    linear program; tokens count where that lowers it by MIN_GAIN, else scatter would pass for a rate.
    """
    several = (tokens > 0).sum(axis=1) > 1
    mixed = several & (tokens.max(axis=1) > np.where(tokens > 0, tokens, np.inf).min(axis=1))
    chosen = mixed if mixed.any() else several
    if not chosen.any():
        return 0.0, 0.0
    factors = np.stack(others(seconds[chosen], tokens[chosen]), axis=1) / waiting[chosen, None]
    missing = 1 - seconds[chosen].max(axis=1) / waiting[chosen]
    (message_s,), error = _least_relative_errors(factors[:, :1], missing)
    both, error_of_both = _least_relative_errors(factors, missing)
    return (both[0], both[1]) if error_of_both < (1 - MIN_GAIN) * error else (message_s, 0.0)


def _least_relative_errors(factors: Array, missing: Array) -> tuple[list[float], float]:
    """-> x >= 0 with the least mean of ``|factors x - missing|``, and that mean; factors: [exchanges, unknowns]."""
    scale = factors.max(axis=0)
    each = np.eye(len(missing))
    solution = linprog(
        np.concatenate([np.zeros(len(scale)), np.ones(len(missing))]),
        A_ub=np.block([[factors / scale, -each], [-factors / scale, -each]]),
        b_ub=np.concatenate([missing, -missing]),
    )
    return (solution.x[: len(scale)] / scale).tolist(), float(solution.fun) / len(missing)


def _exchanges(times: Sequence[LayerTimes]) -> list[list[LayerTimes]]:
    """The times of each exchange in which every message is whole."""
    found: dict[tuple[int, int], list[LayerTimes]] = {}
    for message in times:
        found.setdefault((message.pass_index, message.layer), []).append(message)
    return [
        exchange
        for exchange in found.values()
        if all(part.tokens > 0 and np.isfinite(part.total_s) and part.total_s > 0 for part in exchange)
    ]


def _messages(exchanges: Sequence[Sequence[LayerTimes]], device: int) -> dict[int, list[LayerTimes]]:
    """-> by the number of devices of its exchange, every message to one device."""
    found: dict[int, list[LayerTimes]] = {}
    for exchange in exchanges:
        found.setdefault(len(exchange), []).extend(message for message in exchange if message.device == device)
    return {count: messages for count, messages in found.items() if messages}


def _fit_device(name: str, messages: dict[int, list[LayerTimes]], bits: float, flop: float) -> DeviceFit:
    alone = messages[min(messages)] if messages else []
    tokens = np.array([message.tokens for message in alone], dtype=np.float64)
    sizes = np.unique(tokens)
    if len(sizes) < MIN_SIZES:
        raise ProfileError(
            f"{name}: messages of at least {MIN_SIZES} sizes are needed to tell a rate from a fixed time, got "
            f"{len(sizes)}; probe with other numbers of tokens too"
        )
    burst = _burst_tokens(alone)
    limited = np.maximum(tokens - burst, 0.0)
    per_token, expected_s = {}, np.zeros(len(tokens))
    for part, growth in (("send", limited), ("compute", tokens), ("return", limited)):
        per_token[part] = _slope(growth, np.array([getattr(message, f"{part}_s") for message in alone]))
        expected_s += per_token[part] * growth
    scale = _slope(expected_s, np.array([message.total_s for message in alone]))
    for part, slope in dict(total=scale, **per_token).items():
        if not slope > 0:
            raise ProfileError(
                f"{name}: the {part} time does not grow from {sizes[0]:.0f} to {sizes[-1]:.0f} tokens; probe with "
                "longer messages"
            )
    fit = DeviceFit(
        downlink_bit_per_s=_rounded(bits / (scale * per_token["send"])),
        uplink_bit_per_s=_rounded(bits / (scale * per_token["return"])),
        burst_bit=_rounded(burst * bits),
        compute_flops=_rounded(flop / (scale * per_token["compute"])),
        fixed_s=0.0,
        messages=sum(map(len, messages.values())),
        tokens=(int(sizes[0]), int(sizes[-1])),
    )
    is_alone = min(messages) == 1
    answered_s = np.array([message.waiting_s if is_alone else message.total_s for message in alone])
    beyond_s = answered_s - fit.total_s(np.array([message.tokens for message in alone]), bits, flop)
    return replace(fit, fixed_s=_rounded(max(0.0, _weighted_median(beyond_s, 1 / answered_s))))


def _burst_tokens(messages: Sequence[LayerTimes]) -> float:
    """-> how many tokens of a message pass before the rate counts; 0 where the transfer times follow a straight line.

    The line through the tokens beyond must predict the transfers better by MIN_GAIN, in the mean of the relative
    errors.
    """
    tokens = np.array([message.tokens for message in messages], dtype=np.float64)
    transfer_s = np.array([message.send_s + message.return_s for message in messages])
    tokens, transfer_s = tokens[transfer_s > 0], transfer_s[transfer_s > 0]
    sizes, size = np.unique(tokens, return_inverse=True)
    if len(sizes) <= MIN_SIZES:
        return 0.0
    middle = np.array([np.median(transfer_s[size == k]) for k in range(len(sizes))])

    def error(burst: float) -> float:
        limited = np.maximum(sizes - burst, 0.0)
        fixed_s, per_token = _line(limited, middle)
        return float(np.abs((fixed_s + per_token * limited)[size] / transfer_s - 1).mean())

    burst = min(np.linspace(0, sizes[-MIN_SIZES], BURST_STEPS, endpoint=False), key=error)
    straight = error(0.0)
    return float(burst) if straight > STRAIGHT and error(burst) < (1 - MIN_GAIN) * straight else 0.0


def _weighted_median(values: Array, weights: Array) -> float:
    order = np.argsort(values)
    middle = np.searchsorted(np.cumsum(weights[order]), weights.sum() / 2)
    return float(values[order][middle])


def _line(x: Array, seconds: Array) -> tuple[float, float]:
    """-> fixed seconds >= 0 and seconds per x >= 0 of a line, by the least squares of the relative errors."""
    weight = 1 / seconds
    columns = np.stack([weight, x * weight], axis=1)
    scale = columns.max(axis=0)
    if not scale.all():
        return 0.0, 0.0
    solution, _ = nnls(columns / scale, np.ones(len(weight)))
    fixed_s, slope = solution / scale
    return float(fixed_s), float(slope)


def _slope(x: Array, seconds: Array) -> float:
    """-> seconds per x >= 0 of a line through the median of each x."""
    values = np.unique(x)
    middle = np.array([np.median(seconds[x == value]) for value in values])
    positive = middle > 0
    return _line(values[positive], middle[positive])[1] if positive.sum() >= MIN_SIZES else 0.0


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def measured_profile(
    base: ChannelProfile, names: Sequence[str], fit: LabFit, payload_bits: int, name: str = "measured"
) -> ChannelProfile:
    """The profile with the rates of its devices as measured; placement and transmit powers stay as they are.

    Raises ProfileError unless `names`, those of the fitted devices, are the profile's devices in its order, and where a
    fitted value is out of its range.
    """
    known = [device.name for device in base.devices]
    if list(names) != known:
        raise ProfileError(
            f"{base.name}: its devices must be those measured, {', '.join(names)}; got {', '.join(known)}"
        )
    devices = [
        device.model_dump(exclude_none=True) | {key: getattr(found, key) for key in ("compute_flops", *MEASURED)}
        for device, found in zip(base.devices, fit.devices, strict=True)
    ]
    content = base.model_dump(mode="json", exclude_none=True)
    station = content["base_station"] | dict(message_s=fit.message_s, shared_bit_per_s=fit.shared_bit_per_s)
    changed = dict(rates="measured", payload_bits=payload_bits, devices=devices, fading=dict(model="none"))
    del content["name"]
    profile = validated_profile("what was measured", name, content | changed | dict(base_station=station))
    statements: dict[str, object] = {
        f"devices[*].{key}": [getattr(found, key) for found in fit.devices] for key in ("compute_flops", *MEASURED)
    }
    return profile.with_statements("measured", statements | {"base_station.message_s": fit.message_s})


def measured_profile_text(profile: ChannelProfile, fit: LabFit) -> str:
    """A measured profile as YAML; comments say how each device was measured, and what is not read."""
    sentences = [
        "Made by `wdmoe testbed measure`: rates, bursts, FLOP/s and fixed seconds fitted to the times of a probe; "
        f"{fit.layers} exchanges, median relative error of their waiting latency "
        f"{100 * fit.median_relative_error:.1f} %.",
        *(
            f"{device.name}: {found.messages} messages of {found.tokens[0]} to {found.tokens[1]} tokens."
            for device, found in zip(profile.devices, fit.devices, strict=True)
        ),
        "With `rates: measured` bandwidth, noise, distances and path loss are not read; powers are, for energy alone.",
    ]
    comment = textwrap.TextWrapper(118, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False)
    content = profile.model_dump(exclude={"name"}, exclude_none=True)
    content["devices"] = list(content["devices"])
    return "\n".join([*map(comment.fill, sentences), yaml_text(content)])
