"""From a probe's measured times to a channel profile of measured rates: least squares, no gRPC and no torch."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.optimize import nnls

from ..channel.profile import MEASURED, ChannelProfile
from ..errors import ProfileError
from ..latency import ExpertShape, expert_flop, last_answer_s, payload_bit
from ..routing.times import LayerTimes

Array = NDArray[np.float64]
PARTS = ("send", "compute", "return")
LEAST_SIZES = 2
DIGITS = 6  # of a fitted number, so that it can be written down


@dataclass(frozen=True)
class DeviceFit:
    """What a device was measured to do; the numbers of `rates: measured`.

    fixed_s:               of a message, whatever its length: there, computing, and back
    messages:              how many were measured
    tokens:                the shortest and the longest of them
    """

    downlink_bit_per_s: float
    uplink_bit_per_s: float
    compute_flops: float
    fixed_s: float
    messages: int
    tokens: tuple[int, int]

    def total_s(self, tokens: Array, bits: float, flop: float) -> Array:
        """Seconds of a round trip of so many tokens, each of so many bits one way, and so many FLOPs; 0 without any."""
        per_token = bits / self.downlink_bit_per_s + bits / self.uplink_bit_per_s + flop / self.compute_flops
        return np.where(tokens > 0, self.fixed_s + tokens * per_token, 0.0)


@dataclass(frozen=True)
class LabFit:
    """What a lab was measured to do.

    devices:               in the lab's order
    message_s:             from the start of one of a layer's messages to that of the next
    layers:                how many exchanges were measured
    median_relative_error: of the fitted waiting latency against that of each exchange
    """

    devices: tuple[DeviceFit, ...]
    message_s: float
    layers: int
    median_relative_error: float


def fit_lab(names: Sequence[str], times: Sequence[LayerTimes], shape: ExpertShape, payload_bits: int) -> LabFit:
    """Fit a lab: a message of n tokens takes ``fixed + n (bits / R_d + bits / R_u + flop / C)``, there and back.

    names: of the devices, which a time's `device` is an index of. times: of exchanges (one pass_index and layer each)
    with messages of several sizes to all devices at once, to each alone and to some, every token to one expert. bits of
    Eq. (4), FLOPs of Eq. (5).

    Our choices. A device's time per token is the slope over its exchanges with the most devices, for devices share the
    radio in a run: least squares of the relative errors (1 ms tells as much as 100 ms) through the median of each size
    (one late message moves nothing). It is split as the slopes of sending, computing and returning are; what else the
    round trip took (queueing, packing) grows no part of its own. `fixed_s` is from the exchanges with the fewest
    devices, and `message_s` from all waiting latencies, as `waiting_latency_s` predicts them: the least relative
    errors. None is below 0. ProfileError where a device has too few sizes, or a part does not grow with them.
    """
    bits, flop = payload_bit(payload_bits, shape.hidden_size), expert_flop(shape)
    exchanges = _exchanges(times)
    fits = [_fit_device(name, _messages(exchanges, k), bits, flop) for k, name in enumerate(names)]
    tokens = np.zeros((len(exchanges), len(names)))
    for row, exchange in enumerate(exchanges):
        for one in exchange:
            tokens[row, one.device] = one.tokens
    seconds = np.stack([fit.total_s(tokens[:, k], bits, flop) for k, fit in enumerate(fits)], axis=1)
    waiting = np.array([exchange[0].waiting_s for exchange in exchanges])

    message_s = _message_s(seconds, waiting)
    error = np.abs(last_answer_s(seconds, message_s) / waiting - 1)
    return LabFit(tuple(fits), message_s, len(exchanges), float(np.median(error)))


def _message_s(seconds: Array, waiting: Array) -> float:
    """-> what predicts the waiting latencies [exchanges] best, in the mean of the relative errors.

    seconds: [exchanges, devices] fitted. Each exchange is predicted exactly by one number of seconds: the best of them.
    """
    later = -np.sort(-seconds, axis=1)[:, 1:]
    exact = np.where(later > 0, (waiting[:, None] - later) / np.arange(1, 1 + later.shape[1]), np.inf)
    exact = exact.min(axis=1, initial=np.inf)
    candidates = [0.0, *map(_rounded, exact[(exact > 0) & np.isfinite(exact)])]
    return min(candidates, key=lambda one: float(np.abs(last_answer_s(seconds, one) / waiting - 1).mean()))


def _exchanges(times: Sequence[LayerTimes]) -> list[list[LayerTimes]]:
    """The times of each exchange in which every message is whole."""
    found: dict[tuple[int, int], list[LayerTimes]] = {}
    for one in times:
        found.setdefault((one.pass_index, one.layer), []).append(one)
    return [
        exchange
        for exchange in found.values()
        if all(one.tokens > 0 and np.isfinite(one.total_s) and one.total_s > 0 for one in exchange)
    ]


def _messages(exchanges: Sequence[Sequence[LayerTimes]], device: int) -> dict[int, list[LayerTimes]]:
    """-> by the number of devices of its exchange, every message to one device."""
    found: dict[int, list[LayerTimes]] = {}
    for exchange in exchanges:
        found.setdefault(len(exchange), []).extend(one for one in exchange if one.device == device)
    return {count: messages for count, messages in found.items() if messages}


def _fit_device(name: str, messages: dict[int, list[LayerTimes]], bits: float, flop: float) -> DeviceFit:
    together = messages[max(messages)] if messages else []
    tokens = np.array([one.tokens for one in together], dtype=np.float64)
    sizes = np.unique(tokens)
    if len(sizes) < LEAST_SIZES:
        raise ProfileError(
            f"{name}: messages of at least {LEAST_SIZES} sizes are needed to tell a rate from a fixed time, got "
            f"{len(sizes)}; probe with other numbers of tokens too"
        )
    per_token = {}
    for what in ("total", *PARTS):
        per_token[what] = _slope(tokens, np.array([getattr(one, f"{what}_s") for one in together]), sizes)
        if not per_token[what] > 0:
            raise ProfileError(
                f"{name}: the {what} time does not grow from {sizes[0]:.0f} to {sizes[-1]:.0f} tokens; probe with "
                "longer messages"
            )
    scale = per_token["total"] / sum(per_token[part] for part in PARTS)
    alone = messages[min(messages)]
    total_s = np.array([one.total_s for one in alone])
    beyond = total_s - per_token["total"] * np.array([one.tokens for one in alone])
    return DeviceFit(
        downlink_bit_per_s=_rounded(bits / (scale * per_token["send"])),
        uplink_bit_per_s=_rounded(bits / (scale * per_token["return"])),
        compute_flops=_rounded(flop / (scale * per_token["compute"])),
        fixed_s=_rounded(max(0.0, _weighted_median(beyond, 1 / total_s))),
        messages=sum(map(len, messages.values())),
        tokens=(int(sizes[0]), int(sizes[-1])),
    )


def _weighted_median(values: Array, weights: Array) -> float:
    order = np.argsort(values)
    middle = np.searchsorted(np.cumsum(weights[order]), weights.sum() / 2)
    return float(values[order][middle])


def _slope(tokens: Array, seconds: Array, sizes: Array) -> float:
    """-> seconds per token >= 0 of a line with a fixed time >= 0."""
    middle = np.array([np.median(seconds[tokens == size]) for size in sizes])
    positive = middle > 0
    if positive.sum() < LEAST_SIZES:
        return 0.0
    weight = 1 / middle[positive]
    columns = np.stack([weight, sizes[positive] * weight], axis=1)
    scale = columns.max(axis=0)
    solution, _ = nnls(columns / scale, np.ones(len(weight)))
    return float(solution[1] / scale[1])


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def measured_profile(
    base: ChannelProfile, names: Sequence[str], fit: LabFit, payload_bits: int, name: str = "measured"
) -> ChannelProfile:
    """The profile with the rates of its devices as measured; placement and transmit powers stay as they are.

    Raises ProfileError unless `names`, those of the fitted devices, are the profile's devices in its order.
    """
    known = [device.name for device in base.devices]
    if list(names) != known:
        raise ProfileError(
            f"{base.name}: its devices must be those measured, {', '.join(names)}; got {', '.join(known)}"
        )
    devices = [
        device.model_dump(exclude_none=True)
        | dict(
            downlink_bit_per_s=one.downlink_bit_per_s,
            uplink_bit_per_s=one.uplink_bit_per_s,
            fixed_s=one.fixed_s,
            compute_flops=one.compute_flops,
        )
        for device, one in zip(base.devices, fit.devices, strict=True)
    ]
    content = base.model_dump(mode="json", exclude_none=True)
    station = content["base_station"] | dict(message_s=fit.message_s)
    changed = dict(name=name, rates="measured", payload_bits=payload_bits, devices=devices, fading=dict(model="none"))
    profile = ChannelProfile.model_validate(content | changed | dict(base_station=station))
    statements: dict[str, object] = {
        f"devices[*].{key}": [getattr(one, key) for one in fit.devices] for key in ("compute_flops", *MEASURED)
    }
    return profile.with_statements("measured", statements | {"base_station.message_s": fit.message_s})


def measured_profile_text(profile: ChannelProfile, fit: LabFit) -> str:
    """A measured profile as YAML; comments say how each device was measured, and what is not read."""
    sentences = [
        "Made by `wdmoe testbed measure`: rates, FLOP/s and fixed seconds fitted to the round trips of a probe; "
        f"{fit.layers} exchanges, median relative error of their waiting latency "
        f"{100 * fit.median_relative_error:.1f} %.",
        *(
            f"{device.name}: {one.messages} messages of {one.tokens[0]} to {one.tokens[1]} tokens."
            for device, one in zip(profile.devices, fit.devices, strict=True)
        ),
        "With `rates: measured` bandwidth, noise, distances and path loss are not read; powers are, for energy alone.",
    ]
    comment = textwrap.TextWrapper(118, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False)
    content = profile.model_dump(exclude={"name"}, exclude_none=True)
    content["devices"] = list(content["devices"])
    return "\n".join([*map(comment.fill, sentences), yaml.safe_dump(content, sort_keys=False)])
