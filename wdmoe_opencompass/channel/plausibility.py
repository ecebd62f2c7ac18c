"""Ranges of the numbers of a channel profile: those that no radio leaves, and those that nearly all keep to.

A value outside the first is refused; one outside the second is named wherever the profile is shown (our choice).
Radios reach from long waves to light, from a sensor's bits per second to a fibre's, and from a chip to deep space. The
usual ranges catch slips of the unit: GHz for Hz, mW or dBm for W, km for m, GFLOP/s for FLOP/s, bytes for bits.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import show

Convert = Callable[[float], float]
STRONG_W, NEAR_M = 1.0, 10.0  # no device is nearer to a base station that strong
MAX_MEAN_POWER_GAIN = 1.0


def _times(factor: float) -> Convert:
    return lambda value: value * factor


def _dbm_to_w(dbm: float) -> float:
    return 10 ** (dbm / 10) / 1000 if abs(dbm) < 1000 else math.nan


def _w_to_dbm(watts: float) -> float:
    return 10 * math.log10(1000 * watts) if watts > 0 else math.nan


class Range(NamedTuple):
    """Lowest and highest value of a key: possible, and usual; slips: unit that may have been meant -> conversion."""

    unit: str
    possible: tuple[float, float]
    usual: tuple[float, float]
    slips: Mapping[str, Convert] = {}


_HERTZ = {"GHz": _times(1e9), "MHz": _times(1e6), "kHz": _times(1e3)}
_WATTS = {"mW": _times(1e-3), "dBm": _dbm_to_w}
_BIT_PER_S = {"Gbit/s": _times(1e9), "Mbit/s": _times(1e6), "kbit/s": _times(1e3)}
_SECONDS = {"ms": _times(1e-3), "µs": _times(1e-6)}
_RATE = Range("bit/s", (1.0, 1e15), (1e5, 1e12), _BIT_PER_S)
_DELAY = Range("s", (0.0, 1e5), (0.0, 0.5), _SECONDS)
DEVICE_POWER = Range("W", (1e-12, 1e9), (1e-5, 2.0), _WATTS)
BASE_STATION_POWER = Range("W", (1e-12, 1e9), (1e-4, 10.0), _WATTS)
RANGES: dict[str, Range] = {
    "carrier_frequency_hz": Range("Hz", (10.0, 1e16), (1e8, 3e11), _HERTZ),
    "total_bandwidth_hz": Range("Hz", (1.0, 1e15), (1e5, 1e10), _HERTZ),
    "noise_psd_dbm_per_hz": Range(
        "dBm/Hz",
        (-250.0, -50.0),
        (-200.0, -110.0),
        {"dBW/Hz": lambda value: value + 30, "W/Hz": _w_to_dbm, "-dBm/Hz": lambda value: -value},
    ),
    "payload_bits": Range("bit", (1, 64), (3, 64), {"bytes": _times(8)}),
    "distance_m": Range("m", (1e-4, 1e14), (0.5, 1e5), {"km": _times(1e3), "mm": _times(1e-3)}),
    "compute_flops": Range(
        "FLOP/s",
        (1e6, 1e20),
        (1e9, 1e16),
        {"TFLOP/s": _times(1e12), "GFLOP/s": _times(1e9), "MFLOP/s": _times(1e6)},
    ),
    "energy_j_per_flop": Range(
        "J/FLOP",
        (1e-18, 1e-5),
        (1e-14, 1e-8),
        {"pJ/FLOP": _times(1e-12), "nJ/FLOP": _times(1e-9), "FLOP/J": lambda value: 1 / value if value else math.nan},
    ),
    "downlink_bit_per_s": _RATE,
    "uplink_bit_per_s": _RATE,
    "shared_bit_per_s": _RATE,
    "fixed_s": _DELAY,
    "message_s": _DELAY,
    "burst_bit": Range("bit", (0.0, 1e15), (0.0, 1e10)),
}
RANGES |= {"devices.transmit_power_w": DEVICE_POWER, "base_station.transmit_power_w": BASE_STATION_POWER}


def check_range(key: str, value: float) -> float:
    """The value itself; ValueError, as the end of a sentence, where it is out of the key's possible range."""
    unit, (lowest, highest), _, _ = its_range = RANGES[key]
    if lowest <= value <= highest:
        return value
    if lowest > 0 and value <= 0:
        raise ValueError(f"must be > 0, got {show(value)}{_meant(its_range, value)}")
    if lowest == 0 and value < 0:
        raise ValueError(f"must be >= 0, got {show(value)}")
    raise ValueError(f"must be between {lowest:g} and {highest:g} {unit}, got {show(value)}{_meant(its_range, value)}")


def _meant(its_range: Range, value: float) -> str:
    """-> the units in which a value would be a usual one, with what to write for each; empty for none."""
    lowest, highest = its_range.usual
    try:
        meant = {unit: convert(value) for unit, convert in its_range.slips.items()}
    except OverflowError:
        return ""
    written = [f"{found:.6g} if it is in {unit}" for unit, found in meant.items() if lowest <= found <= highest]
    return f"; write {' or '.join(written)}" if written else ""


def _meant_if_unusual(key: str, value: float) -> str:
    lowest, highest = RANGES[key].usual
    meant = "" if lowest <= value <= highest else _meant(RANGES[key], value)
    return meant.replace("; write", f"; as {key} write")


class Value(NamedTuple):
    """A number of a profile: its key path, such as `devices[3].distance_m`, its name in RANGES, and itself."""

    path: str
    key: str
    value: float


def numbers_of(profile: Any) -> Iterator[Value]:
    """-> the numbers of a profile that have a range."""
    for prefix, part in [
        ("", profile),
        ("base_station.", profile.base_station),
        *((f"devices[{number}].", device) for number, device in enumerate(profile.devices)),
    ]:
        for name in type(part).model_fields:
            key = name if name in RANGES else f"{prefix.partition('[')[0].rstrip('.')}.{name}"
            value = getattr(part, name)
            if key in RANGES and value is not None:
                yield Value(prefix + name, key, value)


def unusual_values(profile: Any) -> list[str]:
    """-> a sentence for each key of a profile with values that hardly any radio has, and what may have been meant.

    Values that measured rates leave unread (bandwidth, carrier, noise, distances) are skipped.
    """
    found: dict[str, list[tuple[Value, str]]] = {}
    for number in numbers_of(profile):
        reason = _why_unusual(profile, number)
        if reason is not None:
            found.setdefault(number.key, []).append((number, reason))
    sentences = []
    for numbers in found.values():
        (path, key, value), reason = numbers[0]
        more = f" (and {len(numbers) - 1} more like it)" if len(numbers) > 1 else ""
        sentences.append(f"{path}{more} is {value:g} {RANGES[key].unit}: {reason}")
    return sentences


NOT_READ_IF_MEASURED = ("carrier_frequency_hz", "total_bandwidth_hz", "noise_psd_dbm_per_hz", "distance_m")


def _why_unusual(profile: Any, number: Value) -> str | None:
    if profile.rates == "measured" and number.key in NOT_READ_IF_MEASURED:
        return None
    its_range = RANGES[number.key]
    lowest, highest = its_range.usual
    if not lowest <= number.value <= highest:
        usual = f"between {lowest:g} and {highest:g} {its_range.unit}"
        return f"nearly always it is {usual}{_meant(its_range, number.value)}"
    if number.key == "distance_m" and number.value < NEAR_M and profile.base_station.transmit_power_w > STRONG_W:
        power_w = profile.base_station.transmit_power_w
        return f"near for a base station of {power_w:g} W; write {1000 * number.value:g} if it is in km"
    if number.key == "total_bandwidth_hz" and number.value > 2 * profile.carrier_frequency_hz:
        return f"wider than a band around carrier_frequency_hz, {profile.carrier_frequency_hz:g}, can be"
    return None


def check_mean_gain(profile: Any, path_loss_db: NDArray[np.float64]) -> None:
    """Raise ValueError, one sentence, unless every mean power gain is at most 1.

    No receiver gets more than is sent; path-loss formulas of the far field say otherwise near the antenna. Rayleigh
    fading fixes the mean amplitude, so that the mean power gain is 4 / pi times its square.

    profile: to name the keys to blame.
    path_loss_db: [devices] dB.
    """
    device = int(path_loss_db.argmin())
    gain = 10 ** (-float(path_loss_db[device]) / 10) * (4 / math.pi if profile.fading.model == "rayleigh" else 1)
    if gain <= MAX_MEAN_POWER_GAIN:
        return
    distance_m, carrier_hz = profile.devices[device].distance_m, profile.carrier_frequency_hz
    raise ValueError(
        f"devices[{device}].distance_m {distance_m:g} m and carrier_frequency_hz {carrier_hz:g} Hz give a mean power "
        f"gain of {gain:.3g}, must be <= 1: no receiver gets more than is sent; check the units of both (m, Hz)"
        + _meant_if_unusual("distance_m", distance_m)
        + _meant_if_unusual("carrier_frequency_hz", carrier_hz)
    )


def culprit(profile: Any) -> str:
    """-> the number of a profile that is farthest out of its possible range, and the range: the end of a sentence.

    Where all are within, an expert's sizes or the loads must be too large.
    """
    worst = max(numbers_of(profile), key=_decades_out)
    lowest, highest = RANGES[worst.key].possible
    if _decades_out(worst) <= 0:
        return "every value is in its range, so the loads or the expert's sizes are too large"
    return f"{worst.path} is {worst.value:g}, must be between {lowest:g} and {highest:g} {RANGES[worst.key].unit}"


def _decades_out(number: Value) -> float:
    """-> decades by which a value is beyond its possible range; negative within."""
    lowest, highest = RANGES[number.key].possible
    value = float(number.value)
    if not math.isfinite(value):
        return math.inf
    if lowest < 0:  # decibels
        return max(value - highest, lowest - value) / 10
    if value <= 0:
        return math.inf if value < 0 or lowest > 0 else -math.inf
    above = math.log10(value) - math.log10(highest)
    return above if lowest == 0 else max(above, math.log10(lowest) - math.log10(value))
