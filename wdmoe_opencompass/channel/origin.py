"""Where each value of a channel profile comes from: the paper, a fit to it, an assumption, a tool, or its user.

A profile's `origin` holds statements, such as "the paper: total_bandwidth_hz is 100e6". A value has an origin only
while it equals what is stated (our choice): an edited value is the user's own.
"""

import re
from collections.abc import Mapping
from typing import Any

OWN = "own"
ORIGINS = {  # word of a profile file -> what a table calls it
    "paper": "from the paper",
    "fitted": "fitted to the paper's Table II",
    "assumption": "assumption",
    "computed": "computed by wdmoe place",
    "measured": "measured by wdmoe testbed measure",
}
NAMES = {**ORIGINS, OWN: "own"}
NO_VALUES = ("name", "rates", "origin")  # say how the values are called or read
NOT_READ_IF_MEASURED = ("carrier_frequency_hz", "total_bandwidth_hz", "noise_psd_dbm_per_hz", "path_loss", "duplex")
NOT_READ_WITHOUT_FADING = ("fading.coherence", "fading.seed")
MAX_RANGES = 6  # of device numbers in a line
DEVICE_PATH = re.compile(r"devices\[(\d{1,7}|\*)\]\.(\w+)")

Statements = Mapping[str, Any]  # key path -> value


def value_origins(content: Mapping[str, Any]) -> dict[str, str]:
    """-> key path of every value that is read -> a word of ORIGINS, or OWN.

    content: a profile as `model_dump(mode="json", exclude_none=True)` gives it.
    """
    stated: Mapping[str, Statements] = content.get("origin") or {}
    latest_first = [(word, stated[word]) for word in reversed(ORIGINS) if word in stated]
    return {
        path: next((word for word, statements in latest_first if _is_stated(statements, path, value)), OWN)
        for path, value in profile_values(content).items()
    }


def profile_values(content: Mapping[str, Any]) -> dict[str, Any]:
    """-> key path, such as `devices[0].distance_m`, of every value that is read -> the value; content: as above."""
    values: dict[str, Any] = {}
    for key, value in content.items():
        if key == "devices":
            for number, device in enumerate(value):
                values |= {f"devices[{number}].{name}": held for name, held in device.items() if name != "name"}
        elif isinstance(value, Mapping):
            values |= {f"{key}.{name}": held for name, held in value.items() if held != {}}
        else:
            values[key] = value
    return {path: value for path, value in values.items() if _is_read(path, content)}


def _is_read(path: str, content: Mapping[str, Any]) -> bool:
    if path.partition(".")[0] in NO_VALUES:
        return False
    if content.get("rates") == "measured" and (
        path in NOT_READ_IF_MEASURED or path.startswith("fading.") or path.endswith("].distance_m")
    ):
        return False
    return content["fading"]["model"] != "none" or path not in NOT_READ_WITHOUT_FADING


def _is_stated(statements: Statements, path: str, value: Any) -> bool:
    if path not in statements and (match := DEVICE_PATH.fullmatch(path)):
        number, stated = int(match[1]), statements.get(f"devices[*].{match[2]}")
        if isinstance(stated, list):
            stated = stated[number] if number < len(stated) else None
    else:
        stated = statements.get(path)
    return stated == value


def keys_by_origin(origins: Mapping[str, str]) -> dict[str, list[str]]:
    """-> word -> its key paths, those of several devices as one: `devices[*].distance_m`, `devices[0-2,5].distance_m`.

    origins: what `value_origins` gives.
    """
    devices: dict[str, dict[str, list[int]]] = {}  # name of a device's key -> word -> numbers of devices
    found: dict[str, dict[str, None]] = {}  # word -> key paths in order, of devices the name of the key alone
    for path, word in origins.items():
        match = DEVICE_PATH.fullmatch(path)
        found.setdefault(word, {})[f"devices.{match[2]}" if match else path] = None
        if match:
            devices.setdefault(match[2], {}).setdefault(word, []).append(int(match[1]))
    return {
        word: [_of_devices(key[8:], word, devices[key[8:]]) if key[:8] == "devices." else key for key in found[word]]
        for word in NAMES
        if word in found
    }


def _of_devices(name: str, word: str, numbers: Mapping[str, list[int]]) -> str:
    if len(numbers) == 1:
        return f"devices[*].{name}"
    ranges: list[list[int]] = []
    for number in numbers[word]:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    if len(ranges) > MAX_RANGES:
        return f"devices[{len(numbers[word])} of {sum(map(len, numbers.values()))}].{name}"
    listed = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
    return f"devices[{listed}].{name}"


def origin_sentence(origins: Mapping[str, str]) -> str:
    """Origin of every value in one line: `from the paper: ...; own: ...`; origins: what `value_origins` gives."""
    keys = keys_by_origin(origins)
    if len(keys) == 1:
        return f"{NAMES[next(iter(keys))]}: every value"
    return "; ".join(f"{NAMES[word]}: {', '.join(of)}" for word, of in keys.items())
