"""Files as a stranger might send them: valid ones, mutated, and what reading them comes to.

    python -m tests.fuzz 2000 [SEED]

mutates as many profiles, labs, traces, times, speeds, recordings of a router, their journals and calibrations, and
prints what was found.
"""

import copy
import functools
import hashlib
import json
import math
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.numpy import load, save

from tests.builders.trace_blocks import block, metadata
from tests.routing.recordings import recording_block, recording_metadata, run_recording
from tests.testbed.synthetic import measured_times, random_loads, times_block, times_metadata
from wdmoe_opencompass.channel.profile import ChannelProfile, list_profiles, load_profile
from wdmoe_opencompass.errors import TraceError, WdmoeError
from wdmoe_opencompass.selection.calibration import Calibration, read_calibration
from wdmoe_opencompass.testbed.lab_file import Testbed, load_testbed
from wdmoe_opencompass.trace.format import METADATA_KEY, Journal, join, read_trace, write_trace
from wdmoe_opencompass.trace.recording import METADATA_KEY as RECORDING_KEY
from wdmoe_opencompass.trace.recording import RecordingJournal, read_recording, write_recording
from wdmoe_opencompass.trace.speed import BatchSpeed, measured_batches
from wdmoe_opencompass.trace.times import METADATA_KEY as TIMES_KEY
from wdmoe_opencompass.trace.times import TimesJournal, read_times, write_times

MAX_SENTENCE_LENGTH = 4000
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the two differ on tabs
PROFILES = Path(__file__).parent.parent / "channel_profiles"
Rng = np.random.Generator


class Found:
    """What reading mutated files came to."""

    def __init__(self) -> None:
        self.files = self.refused = 0
        self.tracebacks: list[str] = []
        self.wrongly_accepted: list[str] = []
        self.slowest_s = 0.0
        self._before = _most_memory_mib()

    def read(self, how: str, read: Callable[[], Any], wrong: Callable[[Any], str | None]) -> None:
        """Read a file; `wrong` says why what was accepted should not have been, None where it was right."""
        self.files += 1
        start = time.perf_counter()
        try:
            answer = read()
        except WdmoeError as error:
            self.refused += 1
            if "\n" in str(error) or len(str(error)) > MAX_SENTENCE_LENGTH:
                self.tracebacks.append(f"{how}: no sentence: {str(error)[:200]!r}")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # whatever it is, also a panic of a library in Rust
            self.tracebacks.append(f"{how}: {type(error).__name__}: {str(error)[:200]}")
        else:
            reason = wrong(answer)
            if reason is not None:
                self.wrongly_accepted.append(f"{how}: {reason}")
        self.slowest_s = max(self.slowest_s, time.perf_counter() - start)

    def counts(self) -> dict[str, Any]:
        """-> the figures, and the first few of what went wrong."""
        return dict(
            files_fuzzed=self.files,
            refused=self.refused,
            tracebacks=len(self.tracebacks),
            wrongly_accepted=len(self.wrongly_accepted),
            slowest_s=round(self.slowest_s, 4),
            peak_mib=round(_most_memory_mib(), 1),
            grown_mib=round(_most_memory_mib() - self._before, 1),
            examples=(self.tracebacks + self.wrongly_accepted)[:10],
        )


def _most_memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# Bytes: what a bad disk, a torn copy or a blind attacker does.


def flipped(rng: Rng, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 9))):
        changed[_place(rng, changed)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def replaced(rng: Rng, content: bytes) -> bytes:
    changed = bytearray(content)
    changed[_place(rng, changed)] = int(rng.integers(256))
    return bytes(changed)


def cut(rng: Rng, content: bytes) -> bytes:
    return content[: int(rng.integers(len(content)))]


def inserted(rng: Rng, content: bytes) -> bytes:
    at = _place(rng, content)
    return content[:at] + rng.bytes(int(rng.integers(1, 65))) + content[at:]


def doubled(rng: Rng, content: bytes) -> bytes:
    start, end = _slice(rng, content)
    return content[:end] + content[start:end] + content[end:]


def removed(rng: Rng, content: bytes) -> bytes:
    start, end = _slice(rng, content)
    return content[:start] + content[end:]


def zeroed(rng: Rng, content: bytes) -> bytes:
    start, end = _slice(rng, content)
    return content[:start] + bytes(end - start) + content[end:]


def appended(rng: Rng, content: bytes) -> bytes:
    return content + rng.bytes(int(rng.integers(1, 65)))


BYTE_MUTATIONS = (flipped, replaced, cut, inserted, doubled, removed, zeroed, appended)


def _place(rng: Rng, content: bytes | bytearray) -> int:
    """A position in the content, every other time near its beginning, where a header is."""
    most = len(content) if rng.random() < 0.5 else min(len(content), 4000)
    return int(rng.integers(max(most, 1)))


def _slice(rng: Rng, content: bytes) -> tuple[int, int]:
    start = _place(rng, content)
    return start, min(len(content), start + 1 + int(rng.integers(1, 300)))


# Profiles: YAML that is nasty, or values that are.

FRAGMENTS = [
    *(b"&a ", b"*a ", b"!x ", b"!!python/object/apply:os.system ['true'] ", b"\0", b"%TAG !a! b\n", b"---\n"),
    *(b"...\n---\nb: 1\n", b"[" * 50, b"{" * 3000, b"\t", b"\xff\xfe", b"\xef\xbb\xbf", b"? [a]\n", b"? "),
    *(b"<<: {a: 1}\n", b"a" * 5000, b"\x1b[31m", b"\xe2\x80\xae", b"'", b'"', b"#", b": ", b"- ", b"| ", b"> ", b"\r"),
    *(b"seed: 0\n", b"devices: []\n", b"\xc2\x85", b"\xe2\x80\xa8", b"@", b"`", b",", b"}", b"]", b"name: x\n"),
]
TEXTS = [
    *("1e999", "1.0e+999", "-1.0e+999", ".inf", "-.inf", ".nan", "-0.0", "0", "0.0", "-1", "-1.0", "9" * 400),
    *("9" * 5000, "0x" + "f" * 4000, "0b_", "0o8", "190:20:30", "1:" * 50 + "1", "1:" * 400 + "1.5", "2001-13-45"),
    *("2001-12-14", "true", "null", "~", "''", "'x'", "[]", "{}", "[1]", "{a: 1}", "[" * 22 + "1" + "]" * 22),
    *("'" + "n" * 201 + "'", '"\\x07"', '"\\u202e"', '"\\ud800"', '"\\U0010ffff"', '"\\Uffffffff"', "base_station"),
    *("device_1", "1e-400", "1.0e-320", "1.0e+308", "-1001.0", "65", "64.5", "=", "<<", "!!binary aGk=", "*x", "&x 1"),
    *(
        "|\n  x",
        *(
            "0040",
            "016",
            "08",
            "00.5",
            "0o40",
            "0X28",
            "1:40:00",
            "1:30.5",
            "3.5e9",
            "1E6",
            ".5",
            "5.",
            "+3",
            "yes",
            "off",
        ),
        *("inf", "nan", "'100'", "100 MHz", "3.5GHz", "\uff11\uff10", "\u0664\u0660", "40,5", "1e400", "1e-400"),
        "1_000",
        "+1__.0",
        "0.1e+5",
        "1.5e3",
        "{1: a, '1': b}",
        "{a: 1, a: 1}",
        "modulo",
        "rayleigh",
        "measured",
    ),
]
VALUES: list[Any] = [
    *(None, True, 10**400, -(10**400), 1 << 20000, math.inf, -math.inf, math.nan, -0.0, 0, -1, 0.5, 65, 1e308, 5e-324),
    *("", "x" * 300, "x" * 5000, "\0", "\x1b[2J", "\u202e", "base_station", "9", [], {}, [[[]]], {"a": {}}, {1: 2}),
    *({"1": "device_1", 1: "device_1"}, ["device_1"] * 3, {-1: "device_1"}, {10**9: "device_1"}, {0.5: "device_1"}),
]


def profile_sources() -> list[bytes]:
    measured = yaml.safe_load((PROFILES / "testbed_4_devices.yaml").read_bytes()) | dict(rates="measured")
    for device in measured["devices"]:
        device |= dict(downlink_bit_per_s=1e8, uplink_bit_per_s=2e8, fixed_s=0.001, burst_bit=12800.0)
    measured["base_station"]["message_s"] = 0.0002
    shipped = [(PROFILES / f"{name}.yaml").read_bytes() for name in list_profiles()]
    return [*shipped, yaml.safe_dump(measured, sort_keys=False).encode()]


def with_fragment(rng: Rng, content: bytes) -> bytes:
    lines = content.split(b"\n")
    row = int(rng.integers(len(lines)))
    column = 0 if rng.random() < 0.3 else int(rng.integers(len(lines[row]) + 1))
    lines[row] = lines[row][:column] + FRAGMENTS[int(rng.integers(len(FRAGMENTS)))] + lines[row][column:]
    return b"\n".join(lines)


def with_text(rng: Rng, content: bytes) -> bytes:
    lines = content.split(b"\n")
    rows = [row for row, line in enumerate(lines) if b": " in line and not line.startswith(b"#")]
    row = rows[int(rng.integers(len(rows)))]
    key = lines[row].partition(b":")[0]
    lines[row] = key + b": " + TEXTS[int(rng.integers(len(TEXTS)))].encode()
    return b"\n".join(lines)


def with_value(rng: Rng, content: bytes) -> bytes:
    data = yaml.safe_load(content)
    part, key = _somewhere(rng, data)
    if isinstance(part, dict) and rng.random() < 0.2:
        part[["x", 1, None, "name", "y" * 300, "\x07"][int(rng.integers(6))]] = part.pop(key)
    elif isinstance(part, list) and rng.random() < 0.2:
        part.append(copy.deepcopy(part[key]))
    else:
        part[key] = copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])
    return _yaml_of(data)


def _somewhere(rng: Rng, data: Any) -> tuple[Any, Any]:
    """-> a list or mapping inside, and one of its keys."""
    while True:
        keys = list(data) if isinstance(data, dict) else list(range(len(data)))
        key = keys[int(rng.integers(len(keys)))]
        if not isinstance(data[key], dict | list) or not data[key] or rng.random() < 0.3:
            return data, key
        data = data[key]


def _yaml_of(data: Any) -> bytes:
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True).encode()
    finally:
        sys.set_int_max_str_digits(limit)


PROFILE_MUTATIONS = (*BYTE_MUTATIONS, *(with_fragment,) * 4, *(with_text,) * 6, *(with_value,) * 6)
RANGES = dict.fromkeys(["downlink_bit_per_s", "uplink_bit_per_s", "shared_bit_per_s"], (1, 1e15))
RANGES |= dict.fromkeys(["message_s", "fixed_s"], (0, 1e5)) | {"burst_bit": (0, 1e15)}
RANGES |= {"carrier_frequency_hz": (10, 1e16), "total_bandwidth_hz": (1, 1e15), "transmit_power_w": (1e-12, 1e9)}
RANGES |= {"distance_m": (1e-4, 1e14), "compute_flops": (1e6, 1e20), "energy_j_per_flop": (1e-18, 1e-5)}
RANGES |= {"noise_psd_dbm_per_hz": (-250, -50), "payload_bits": (1, 64), "seed": (0, 10**18)}
OTHER_VALUES = ("int", "float", "timestamp")  # of YAML 1.1
UNREAD_IF_MEASURED = ("carrier_frequency_hz", "total_bandwidth_hz", "noise_psd_dbm_per_hz", "distance_m")
DECIMAL = re.compile(r"[-+]?((0|[1-9]\d*)\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
WORDS = dict(
    path_loss={"free_space"},
    duplex={"shared", "frequency_division"},
    rates={"physical", "measured"},
    model={"none", "rayleigh"},
    coherence={"run", "pass", "layer"},
    others={"modulo", "base_station"},
)


def fuzz_profiles(count: int, seed: int) -> dict[str, Any]:
    """Load mutated profiles; -> what was found."""
    rng, found, sources = np.random.default_rng(seed), Found(), profile_sources()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fuzzed.yaml"
        for _ in range(count):
            content, names = sources[int(rng.integers(len(sources)))], []
            for _ in range(int(rng.integers(1, 3))):
                mutation = PROFILE_MUTATIONS[int(rng.integers(len(PROFILE_MUTATIONS)))]
                try:
                    content = mutation(rng, content)
                except Exception:  # what is broken already stays so
                    continue
                names.append(mutation.__name__)
            path.write_bytes(content)
            judge = functools.partial(broken_rule, content)
            found.read("+".join(names), functools.partial(load_profile, path), judge)
    return found.counts()


UNITS: dict[str, list[Callable[[float], float]]] = {  # key -> from its unit to one that people mistake for it
    "carrier_frequency_hz": [lambda hz: hz / 1e9, lambda hz: hz / 1e6],
    "total_bandwidth_hz": [lambda hz: hz / 1e9, lambda hz: hz / 1e6],
    "noise_psd_dbm_per_hz": [lambda dbm: -dbm, lambda dbm: dbm - 30, lambda dbm: 10 ** (dbm / 10 - 3)],
    "payload_bits": [lambda bits: bits // 8],
    "transmit_power_w": [lambda watts: 1000 * watts, lambda watts: 10 * math.log10(1000 * watts)],
    "distance_m": [lambda metres: metres / 1e6, lambda metres: metres * 1e6],
    "compute_flops": [lambda flops: flops / 1e9, lambda flops: flops / 1e12],
    "downlink_bit_per_s": [lambda rate: rate / 1e6, lambda rate: rate / 1e9],
    "uplink_bit_per_s": [lambda rate: rate / 1e6, lambda rate: rate / 1e9],
    "fixed_s": [lambda seconds: 1000 * seconds],
}


def odd_notation(rng: Rng, number: float) -> str:
    """A number in a notation that readers of YAML or people read differently, or not at all."""
    whole, sign = int(abs(number)) or 40, "-" if number < 0 else ""
    digits = str(whole)
    odd = [
        *(f"0{digits}", f"00{digits}.5", f"0o{whole:o}", f"0x{whole:x}", f"0b{whole:b}", f"0{whole:o}", f"0{digits}e0"),
        *(f"{digits[0]}_{digits[1:] or 0}", f"{digits}_000.0", f"{digits}:30:00", f"{digits}:30.5", f"{digits} m"),
        *(
            f"{digits}GHz",
            f"{digits} 000",
            f"{digits},5",
            f"'{digits}'",
            f'"{digits}.0"',
            f"{digits}e999",
            ".inf",
            "nan",
        ),
        *(
            digits.translate({48 + d: 0xFF10 + d for d in range(10)}),
            f"{digits}e",
            f"1e-{400 + whole % 90}",
            "yes",
            "~",
        ),
        *(
            digits.translate({48 + d: 0x660 + d for d in range(10)}),
            "2024-01-01",
            f"[{digits}]",
            f"{digits}.0.0",
            "inf",
        ),
    ]
    return sign * (not odd[0].startswith("[")) + odd[int(rng.integers(len(odd)))]


def fuzz_numbers(count: int, seed: int) -> dict[str, Any]:
    """Load that many profiles with one number in odd notation, in another unit, or in other decimals; what was found.

    An odd notation must be refused; so must another unit, unless the profile says that the value is unusual; and other
    decimals of the same number must be read as that number.
    """
    rng, found, sources = np.random.default_rng(seed), Found(), profile_sources()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fuzzed.yaml"
        while found.files < count:
            data = yaml.safe_load(sources[int(rng.integers(len(sources)))])
            data.pop("origin", None)
            part, key = _number_in(rng, data)
            kind = ("notation", "unit", "decimals")[int(rng.integers(3))]
            if kind == "unit" and key not in UNITS:
                continue
            number, part[key] = part[key], "@"
            text = _written(rng, kind, key, number)
            if text is None:
                continue
            path.write_bytes(_yaml_of(data).replace(b"'@'", text.encode()))
            judge = functools.partial(_wrong_number, kind, key, number)
            found.read(f"{kind} {key}: {text}", functools.partial(load_profile, path), judge)
    return found.counts()


def _number_in(rng: Rng, data: Any) -> tuple[Any, Any]:
    while True:
        part, key = _somewhere(rng, data)
        if isinstance(part[key], int | float) and not isinstance(part[key], bool):
            return part, key


def _written(rng: Rng, kind: str, key: str, number: float) -> str | None:
    """The text to write; None where another unit gives nothing to be noticed."""
    if kind == "notation":
        return odd_notation(rng, number)
    if kind == "unit":
        slip = UNITS[key][int(rng.integers(len(UNITS[key])))](number)
        harmless = (key == "payload_bits" and slip == 0) or (key == "fixed_s" and slip <= 0.5) or slip == number
        return None if harmless else repr(slip)
    if isinstance(number, int):
        return f"+{number}"
    texts = [f"{number:.17e}", f"{number:.17E}", repr(number), f"{number:.16e}".replace("e+", "e")]
    return texts[int(rng.integers(len(texts)))]


def _wrong_number(kind: str, key: str, number: float, profile: ChannelProfile) -> str | None:
    if kind == "notation":
        return "accepted an odd notation"
    if kind == "unit" and profile.rates == "measured" and key in UNREAD_IF_MEASURED:
        return None
    if kind == "unit":
        return None if any(key in sentence for sentence in profile.unusual_values) else "another unit is not noticed"
    values = [part.get(key) for part in _parts(profile.model_dump())]
    return None if number in values else f"{number} read as one of {values}"


def _parts(dump: Any) -> list[Any]:
    return [dump, dump["base_station"], dump["fading"], *dump["devices"]]


def fuzz_speeds(count: int, seed: int) -> dict[str, Any]:
    """Read that many mutated files of measured speed; wrong is a batch that no line written so states."""
    rng, found = np.random.default_rng(seed), Found()
    trace = join(metadata(), [block(0), block(4, seed=1)])
    ends = np.cumsum(trace.items).tolist()
    written = [
        BatchSpeed(end=end, items=int(items), prefill_s=0.5, decode_s=0.25, batch_s=1.0, device="cpu")
        for end, items in zip(ends, trace.items, strict=True)
    ]
    content = b"".join(speed.model_dump_json().encode() + b"\n" for speed in written)
    odd = [b"NaN", b"Infinity", b"-1", b"1e999", b'"0.5"', b"true", b"null", b"0x1", b"01", b"1_0", b"[]", b"-Infinity"]

    def wrong(read: dict[int, BatchSpeed]) -> str | None:
        numbers = [seconds for speed in read.values() for seconds in (speed.prefill_s, speed.decode_s, speed.batch_s)]
        if not all(math.isfinite(seconds) and seconds >= 0 for seconds in numbers):
            return f"accepted {numbers}"
        return None if all(trace.items[number] == speed.items for number, speed in read.items()) else "of other batches"

    def all_measured_batches(path: Path, trace: Any, expected: int) -> dict[int, BatchSpeed]:
        batches = measured_batches(path, trace)
        if len(batches) < expected:  # lines that cannot be true are left out; a dataset needs all of them
            raise TraceError("a batch without a line")
        return batches

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fuzzed.speed.jsonl"
        for number in range(count):
            changed = BYTE_MUTATIONS[int(rng.integers(len(BYTE_MUTATIONS)))](rng, content)
            if number % 2:
                changed = content.replace(b"0.5", odd[int(rng.integers(len(odd)))], 1 + number % 4 // 2)
            path.write_bytes(changed)
            found.read("speed", functools.partial(all_measured_batches, path, trace, len(written)), wrong)
    return found.counts()


def fuzz_labs(count: int, seed: int) -> dict[str, Any]:
    """Load mutated lab files; -> what was found. Wrong is what PyYAML reads otherwise, or an address abroad."""
    rng, found = np.random.default_rng(seed), Found()
    devices = [dict(name=f"d{k}", address=f"127.0.0.1:{5000 + k}", experts=[k, k + 4]) for k in range(4)]
    source = yaml.safe_dump(dict(devices=devices, payload_bits=8, deadline_s=5.0, send_padding=True)).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fuzzed.yaml"
        for _ in range(count):
            mutation = PROFILE_MUTATIONS[int(rng.integers(len(PROFILE_MUTATIONS)))]
            content = mutation(rng, source)
            path.write_bytes(content)
            found.read(
                mutation.__name__, functools.partial(load_testbed, path), functools.partial(_wrong_testbed, content)
            )
    return found.counts()


def _wrong_testbed(content: bytes, testbed: Testbed) -> str | None:
    try:
        text = content.decode("utf-8-sig")
        _check_plain(text)
        read = {key: value for key, value in testbed.model_dump(exclude_unset=True).items() if key != "keys"}
        given = yaml.load(text, LOADER)
        given.pop("keys", None)
        _check_same(given, read)
    except (yaml.YAMLError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    names = [device.name for device in testbed.devices]
    hosts = {device.address.rpartition(":")[0] for device in testbed.devices}
    if len(set(names)) < len(names) or (
        testbed.keys is None
        and not all(host == "localhost" or host == "[::1]" or host.startswith("127.") for host in hosts)
    ):
        return f"accepted {names} at {hosts}"
    return None


def broken_rule(content: bytes, profile: ChannelProfile) -> str | None:
    """Why a profile should not have been accepted, judged by PyYAML's own reading and by rules written again here."""
    try:
        text = content.decode("utf-8-sig")
        data = yaml.load(text, LOADER)
        _check_plain(text)
        if not isinstance(data, dict):
            return f"holds a {type(data).__name__}"
        data.pop("origin", None)  # of its statements some do not count: tests/channel/test_origin.py
        _check_same(data, profile.model_dump(exclude={"name", "origin"}, exclude_unset=True))
        _check_rules(profile.model_dump(exclude={"name"}))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _check_plain(text: str) -> None:
    for event in yaml.parse(text, LOADER):
        if getattr(event, "anchor", None) or getattr(event, "tag", None):
            raise ValueError(f"accepted {event}")
    waiting = [yaml.compose(text, LOADER)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            if len(set(keys)) < len(keys):
                raise ValueError(f"accepted a key twice in {keys}")
            waiting += [value for _, value in node.value]
            waiting += [key for key, _ in node.value]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif node.style is None and node.tag.rpartition(":")[2] in OTHER_VALUES and not DECIMAL.fullmatch(node.value):
            raise ValueError(f"accepted {node.value} as a value")


def _check_same(given: Any, read: Any) -> None:
    """What was read is what the file says, value by value."""
    if isinstance(given, dict):
        if {str(key) for key in given} != {str(key) for key in read}:
            raise ValueError(f"keys {list(given)} read as {list(read)}")
        by_name = {str(key): value for key, value in read.items()}
        for key, value in given.items():
            _check_same(value, by_name[str(key)])
    elif isinstance(given, list) and isinstance(read, list | tuple):
        if len(given) != len(read):
            raise ValueError(f"{len(given)} entries read as {len(read)}")
        for first, second in zip(given, read, strict=True):
            _check_same(first, second)
    elif given is read:
        pass
    elif isinstance(given, bool) or (given != read and float(given) != read):
        raise ValueError(f"{given!r} read as {read!r}")


def _check_rules(dump: Any) -> None:
    names = [device["name"] for device in dump["devices"]]
    placement = dump["placement"]["experts"]
    if not names or len(set(names)) < len(names) or "base_station" in names:
        raise ValueError(f"accepted the names {names}")
    if not all(0 < len(name) <= 200 and name.isprintable() for name in names):
        raise ValueError(f"accepted the names {names}")
    if not all(0 <= expert < 10**6 and device in (*names, "base_station") for expert, device in placement.items()):
        raise ValueError(f"accepted the placement {placement}")
    for part in (dump, dump["base_station"], dump["fading"], dump["placement"], *dump["devices"]):
        for key, value in part.items():
            low, high = RANGES.get(key, (-math.inf, math.inf))
            if isinstance(value, float | int) and not (math.isfinite(value) and low <= value <= high):
                raise ValueError(f"accepted {key} = {value}")
            if key in WORDS and value not in WORDS[key]:
                raise ValueError(f"accepted {key} = {value}")
    for device in dump["devices"] if dump["rates"] == "physical" else []:
        loss_db = 32.4 + 20 * math.log10(dump["carrier_frequency_hz"] / 1e9) + 20 * math.log10(device["distance_m"])
        if 10 ** (-loss_db / 10) * (4 / math.pi if dump["fading"]["model"] == "rayleigh" else 1) > 1 + 1e-9:
            raise ValueError(f"accepted a mean power gain above 1 of {device['name']}")


# Recordings: safetensors files, their headers, and rules broken under a digest that fits.


def sealed(header: bytes, data: bytes) -> bytes:
    """A safetensors file of a header and data; where it states a digest, one that fits (as our format says it)."""
    header += b" " * (-len(header) % 8)
    blob = len(header).to_bytes(8, "little") + header + data
    start = blob.find(b'"sha256":"') + len(b'"sha256":"')
    if start < 10:
        return blob
    zeros = blob[:start] + b"0" * 64 + blob[start + 64 :]
    return blob[:start] + hashlib.sha256(zeros).hexdigest().encode() + blob[start + 64 :]


def header_and_data(blob: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(blob[:8], "little")
    return json.loads(blob[8 : 8 + length]), blob[8 + length :]


def json_bytes(header: Any) -> bytes:
    return json.dumps(header, separators=(",", ":")).encode()


def bad_array(rng: Rng, arrays: dict[str, Any]) -> None:
    """Break a rule of the arrays; `batch` must not be all the same."""
    names = sorted(arrays)
    name = names[int(rng.integers(len(names)))]
    array = arrays[name] = np.array(arrays[name])
    floats = [key for key in names if arrays[key].dtype == np.float32]
    change = int(rng.integers(9))
    if change == 8 and "item_passes" in arrays:
        passes = arrays["item_passes"] = np.array(arrays["item_passes"])
        if rng.random() < 0.5:
            passes[int(rng.integers(len(passes)))] = [-1, 1000, 2**31 - 1][int(rng.integers(3))]
        else:
            arrays["item_passes"] = [passes[:-1], np.append(passes, passes[:1]), passes.astype(np.int64)][
                int(rng.integers(3))
            ]
    elif change == 0 and array.dtype != np.uint8:
        array.reshape(-1)[int(rng.integers(array.size))] = -1 - int(rng.integers(1000))
    elif change == 1:
        damaged = arrays[floats[int(rng.integers(len(floats)))]] = np.array(arrays[floats[0]])
        damaged.reshape(-1)[int(rng.integers(damaged.size))] = [np.nan, np.inf, -np.inf, -1e-30][int(rng.integers(4))]
    elif change == 2:
        arrays["batch"] = np.array(arrays["batch"]) + len(arrays["first_item"])
    elif change == 3:
        arrays["batch"] = arrays["batch"][::-1].copy()
    elif change == 4:
        del arrays[name]
    elif change == 5:
        arrays["x" * int(rng.integers(1, 400))] = array
    elif change == 6:
        kinds = [np.int64, np.float64, np.uint32, np.int8, np.float16, bool]
        arrays[name] = array.astype(kinds[int(rng.integers(len(kinds)))])
    else:
        shapes = [array[..., None], array.reshape(-1, 1, 1, 1), array[:0], array[..., :0].reshape(0, 7)]
        arrays[name] = np.ascontiguousarray(shapes[int(rng.integers(len(shapes)))])


WRONG_NUMBERS = [-1, 10**30, "3", 3.5, None, [], True, 1 << 31, 17]


def bad_metadata(rng: Rng, about: Any) -> Any:
    """Metadata with a broken rule."""
    wrong = WRONG_NUMBERS[int(rng.integers(len(WRONG_NUMBERS)))]
    change = int(rng.integers(8))
    if change == 0:
        about["layers"] = wrong
    elif change == 1:
        about["format_version"] = [*WRONG_NUMBERS, 99, 3, math.inf, math.nan][int(rng.integers(13))]
    elif change == 2:
        about["extra" * int(rng.integers(1, 100))] = 1
    elif change == 3:
        required = [key for key in ("model", "dataset", "policy", "layers", "ffn_size", "hidden_size") if key in about]
        del about[required[int(rng.integers(len(required)))]]
    elif change == 4 and "profile" in about:
        about["profile_hash"] = ["", "0" * 64, "x" * 9999, 5][int(rng.integers(4))]
    elif change == 5 and "profile" in about:
        before = json.dumps(about)
        while json.dumps(about) == before:
            part, key = _somewhere(rng, about["profile"])
            part[key] = [-1, 0, math.nan, math.inf, "\x07", 10**400, None, [], "y" * 300][int(rng.integers(9))]
    elif change == 6:
        return [None, [], "x", 5, {}, {"format_version": 4}, {"format_version": 2}][int(rng.integers(7))]
    else:
        about["hidden_size"] = [-1, 10**30, "3", 3.5, None, [], 1 << 31][int(rng.integers(7))]
    return about


def bad_text(rng: Rng) -> str:
    deep = 100_000
    return ["[" * deep, '{"a":' * deep, "{", "", "\ud800", '{"format_version":4,"model":"\\ud800"}', "\0", "9" * 5000][
        int(rng.integers(8))
    ]


def bad_header(rng: Rng, header: dict[str, Any]) -> bytes:
    """A header that says what cannot be, or is none."""
    names = sorted(set(header) - {"__metadata__"})
    entry = header[names[int(rng.integers(len(names)))]]
    change = int(rng.integers(11))
    if change == 0:
        entry["dtype"] = ["F8_E4M3", "BF16", "X9", "F64", "BOOL", "I8", 5, None][int(rng.integers(8))]
    elif change == 1:
        entry["shape"] = [[1 << 62, 4], [-1], [], "x", [1.5], [1 << 70], [0, 1 << 60], None][int(rng.integers(8))]
    elif change == 2:
        entry["data_offsets"] = [[0, 0], [8, 4], [-1, 4], [0, 1 << 63], [0, 1 << 70], "x", [1]][int(rng.integers(7))]
    elif change == 3:
        del header["__metadata__"]
    elif change == 4:
        header["__metadata__"] = [None, [], "x", {}, {"sha256": "0" * 64}][int(rng.integers(5))]
    elif change == 5:
        header["__metadata__"].pop("sha256")
    elif change == 6:
        header["__metadata__"]["sha256"] = ["", "0" * 63, "G" * 64, "0" * 65, "0" * 64 + " "][int(rng.integers(5))]
        return json_bytes(header).replace(b'"sha256"', b'"sha256" ')
    elif change == 7:
        return b'{"a":' * 100_000
    elif change == 8:
        return b"[" * (1 << 20)
    elif change == 9:
        twice = json_bytes(header).replace(b'"__metadata__":{', b'"__metadata__":{"sha256":"' + b"0" * 64 + b'",')
        assert twice.count(b'"sha256":"') == 2
        return twice
    else:
        header[names[0]] = [None, [], {}, "x", {"dtype": "I32"}][int(rng.integers(5))]
    return json_bytes(header)


def forged(rng: Rng, blob: bytes, key: str) -> bytes:
    """A sealed file that breaks a rule and yet has a digest that fits."""
    header, data = header_and_data(blob)
    kind = int(rng.integers(4))
    if kind == 0:
        arrays = dict(load(blob))
        bad_array(rng, arrays)
        return sealed(*_header_bytes_and_data(save(arrays, metadata=header["__metadata__"])))
    if kind == 1:
        header["__metadata__"][key] = json.dumps(bad_metadata(rng, json.loads(header["__metadata__"][key])))
    elif kind == 2:
        header["__metadata__"][key] = bad_text(rng)
    else:
        return sealed(bad_header(rng, header), data)
    return sealed(json_bytes(header), data)


def _header_bytes_and_data(blob: bytes) -> tuple[bytes, bytes]:
    length = int.from_bytes(blob[:8], "little")
    return blob[8 : 8 + length], blob[8 + length :]


def nonsense(rng: Rng, blob: bytes, key: str) -> bytes:
    """Nothing of a sealed file, or of its length."""
    lengths = [0, 1, 7, 1 << 24, (1 << 24) + 1, 1 << 31, 1 << 63, (1 << 64) - 1]
    choices = [
        *(b"", b"\0", b"{}", bytes(len(blob)), b"\xff" * len(blob), rng.bytes(len(blob)), blob * 2, blob[8:]),
        *(length.to_bytes(8, "little") + blob[8:] for length in lengths),
    ]
    return choices[int(rng.integers(len(choices)))]


def edited(rng: Rng, blob: bytes, key: str) -> bytes:
    """A header rewritten, the digest left as it was."""
    header, data = header_and_data(blob)
    kept = header["__metadata__"]["sha256"]
    header["__metadata__"][key] = json.dumps(json.loads(header["__metadata__"][key]), indent=int(rng.integers(3)))
    header["__metadata__"]["sha256"] = kept
    raw = json_bytes(header)
    return len(raw).to_bytes(8, "little") + raw + data


def bytes_of(rng: Rng, blob: bytes, key: str) -> bytes:
    return BYTE_MUTATIONS[int(rng.integers(len(BYTE_MUTATIONS)))](rng, blob)


SEALED_MUTATIONS = (bytes_of, bytes_of, forged, forged, forged, nonsense, edited)


def fuzz_traces(count: int, seed: int) -> dict[str, Any]:
    """Read mutated sealed traces, times and recordings, and journals; -> what was found."""
    rng, found = np.random.default_rng(seed), Found()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_trace(folder / "trace", join(metadata(), [block(0), block(4, seed=1)]))
        write_times(folder / "times", measured_times(batches=2))
        write_recording(folder / "recording", run_recording())
        sources = [(folder / "trace", METADATA_KEY, read_trace)] * 3 + [
            (folder / "times", TIMES_KEY, read_times),
            (folder / "recording", RECORDING_KEY, read_recording),
        ]
        contents = {path: path.read_bytes() for path, _, _ in sources}
        journals = [
            _journal(folder / "j.trace.part"),
            _times_journal(folder / "j.times.part"),
            _recording_journal(folder / "j.routing.part"),
        ]
        while found.files < count:
            if rng.random() < 0.15:
                _fuzz_journal(rng, found, *journals[int(rng.integers(3))])
                continue
            source, key, read = sources[int(rng.integers(len(sources)))]
            mutation = SEALED_MUTATIONS[int(rng.integers(len(SEALED_MUTATIONS)))]
            content = mutation(rng, contents[source], key)
            if content == contents[source]:
                continue
            path = folder / "fuzzed.safetensors"
            path.write_bytes(content)
            how = f"{source.name} {mutation.__name__}"
            found.read(how, functools.partial(read, path), lambda answer: "its bytes are not the original's")
    return found.counts()


def _journal(path: Path) -> tuple[Journal, bytes]:
    growing = Journal(path, metadata())
    growing.resume(0)
    for number in range(2):
        growing.append(block(4 * number, seed=number))
    return growing, path.read_bytes()


def _times_journal(path: Path) -> tuple[Journal, bytes]:
    growing = TimesJournal(path, times_metadata())
    growing.resume(0)
    for number in range(2):
        growing.append(times_block(4 * number, random_loads(number)))
    return growing, path.read_bytes()


def _recording_journal(path: Path) -> tuple[Journal, bytes]:
    growing = RecordingJournal(path, recording_metadata())
    growing.resume(0)
    for number in range(2):
        growing.append(recording_block(2 * number, seed=number))
    return growing, path.read_bytes()


def frames_of(content: bytes) -> list[bytes]:
    frames, position = [], 0
    while position < len(content):
        length = int.from_bytes(content[position : position + 8], "little")
        frames.append(content[position + 40 : position + 40 + length])
        position += 40 + length
    return frames


def framed(frames: list[bytes]) -> bytes:
    """A journal of these frames, each with a digest that fits."""
    return b"".join(len(frame).to_bytes(8, "little") + hashlib.sha256(frame).digest() + frame for frame in frames)


def _fuzz_journal(rng: Rng, found: Found, journal: Journal, content: bytes) -> None:
    """What is torn is forgotten; a frame with a fitting digest that breaks a rule is refused."""
    frames = frames_of(content)
    whole = [dict(load(frame)) for frame in frames[1:]]
    forge = rng.random() < 0.5
    if forge:
        number = int(rng.integers(len(frames)))
        if number == 0:
            text = json.dumps(bad_metadata(rng, json.loads(frames[0]))) if rng.random() < 0.7 else bad_text(rng)
            frames[0] = text.encode(errors="surrogatepass")
        elif rng.random() < 0.5:
            arrays = dict(load(frames[number]))
            bad_block(rng, arrays)
            frames[number] = save(arrays)
        else:
            frames[number] = [b"", b"x", frames[0], cut(rng, frames[number]), bytes(len(frames[number]))][
                int(rng.integers(5))
            ]
        content = framed(frames)
    else:
        content = BYTE_MUTATIONS[int(rng.integers(len(BYTE_MUTATIONS)))](rng, content)

    def wrong(answer: Any) -> str | None:
        about, blocks = answer
        if forge:
            return "a block that breaks a rule was read"
        same = [len(blocks) <= len(whole)] + [all(np.array_equal(a[n], b[n]) for n in b) for a, b in zip(blocks, whole)]
        torn = about is None and not blocks
        return None if torn or (about == journal.metadata and all(same)) else "a block is not what was written"

    journal.path.write_bytes(content)
    found.read(f"{journal.path.name} {'forged' if forge else 'bytes'}", journal._read, wrong)


def bad_block(rng: Rng, arrays: dict[str, Any]) -> None:
    """Break a rule of a journal's block of one batch: its `batch` cannot descend."""
    before = dict(arrays)
    while len(arrays) == len(before) and all(
        arrays[n].dtype == before[n].dtype and np.array_equal(arrays[n], before[n], equal_nan=False) for n in arrays
    ):
        arrays.clear()
        arrays.update(before)
        bad_array(rng, arrays)


def fuzz_calibrations(count: int, seed: int) -> dict[str, Any]:
    """Read mutated calibrations; -> what was found. Wrong is a part that is not what was written."""
    rng, found = np.random.default_rng(seed), Found()
    sample = torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(seed))
    weights, index = sample.topk(2, dim=-1)
    written = Calibration(probabilities=sample, top_k_index=index, top_k_weights=weights, model="tiny")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fuzzed.calibration.safetensors"
        written.write(path)
        content = path.read_bytes()

        def wrong(read: Calibration) -> str | None:
            same = read.parts().keys() == written.parts().keys() and all(
                torch.equal(part, written.parts()[name]) for name, part in read.parts().items()
            )
            return None if same else "a part is not what was written"

        for number in range(count):
            header, data = header_and_data(content)
            if number % 3 == 0:
                changed = sealed(bad_header(rng, header | {"__metadata__": {"sha256": "0" * 64}}), data)
            else:
                changed = (bytes_of, bytes_of, nonsense)[int(rng.integers(3))](rng, content, "")
            path.write_bytes(changed)
            read_calibration.cache_clear()
            found.read("calibration", functools.partial(read_calibration, str(path)), wrong)
    return found.counts()


ALL = (fuzz_profiles, fuzz_numbers, fuzz_labs, fuzz_traces, fuzz_speeds, fuzz_calibrations)

if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    its_seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    for fuzz in ALL:
        print(fuzz.__name__, json.dumps(fuzz(wanted, its_seed), indent=1))
