"""The schema of a channel profile: a base station, its devices and the radio environment.

dB and dBm are converted here and nowhere else; everything after knows W, Hz, s, bit and linear gains.
"""

import hashlib
import json
import os.path
import re
from collections import Counter
from collections.abc import Callable
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from .._util.number_text import INTEGER, how_to_write
from .._util.safe_yaml import FALSE, TRUE, Position, ReadMapping, parse_mapping, read_mapping
from ..errors import ProfileError, show, unknown_name
from .duplex import Duplex
from .origin import DEVICE_PATH, NO_VALUES, ORIGINS, origin_sentence, value_origins
from .path_loss import PATH_LOSS_MODELS
from .plausibility import check_mean_gain, check_range, unusual_values

BASE_STATION = "base_station"
MAX_EXPERTS = 1_000_000  # of a layer: far beyond any model, and a list of that many devices is small
MAX_NAME_LENGTH = 200
MAX_SEED = 10**18


def printable(name: str) -> str:
    """The name itself; ValueError where it holds control characters, line ends or other invisible ones."""
    if not name.isprintable():
        raise ValueError(f"must hold only printable characters, got {show(name)}")
    return name


def _file_name(name: str) -> str:
    if "/" in name:
        raise ValueError(f"must hold no /, got {show(name)}")
    return name


def _in_range(key: str) -> AfterValidator:
    """In the possible range of a key of `plausibility.RANGES`; -0.0 becomes 0.0."""
    return AfterValidator(lambda value: check_range(key, value) + 0.0)


Number = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_LENGTH), AfterValidator(printable)]


def _expert_number(expert: Any) -> int:
    """An expert is 0 in a file and "0" in JSON; nothing else is taken for a number."""
    if isinstance(expert, str) and INTEGER.fullmatch(expert):
        return int(expert)
    if isinstance(expert, bool) or not isinstance(expert, int):
        raise ValueError(f"must be a whole number, got {show(expert)}")
    return expert


Expert = Annotated[int, Field(ge=0, lt=MAX_EXPERTS), BeforeValidator(_expert_number)]
MEASURED_RATES = ("downlink_bit_per_s", "uplink_bit_per_s")
MEASURED = (*MEASURED_RATES, "fixed_s", "burst_bit")
SHARED = ("message_s", "shared_bit_per_s")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BaseStation(_Part):
    """The base station: one transmit power for every downlink.

    message_s, shared_bit_per_s: where the profile's rates are `measured`, what a layer's messages share: the seconds by
    which each further one delays the last answer (0 without it), and the rate at which the bits of all but the slowest
    pass the radio or the processor of the base station, there and back (without it no limit).
    """

    transmit_power_w: Annotated[Number, _in_range("base_station.transmit_power_w")]
    message_s: Annotated[Number, _in_range("message_s")] | None = None
    shared_bit_per_s: Annotated[Number, _in_range("shared_bit_per_s")] | None = None


class Device(_Part):
    """A device that holds experts; without energy_j_per_flop its compute energy is not reported.

    Where the profile's rates are `measured`, downlink_bit_per_s and uplink_bit_per_s replace Eq. (2) and (3); fixed_s:
    seconds that each message takes whatever its length (0 without it); burst_bit: bits of a message, each way, that
    pass before these rates limit it (0 without it), as in a token bucket.
    """

    name: Name
    distance_m: Annotated[Number, _in_range("distance_m")]
    transmit_power_w: Annotated[Number, _in_range("devices.transmit_power_w")]
    compute_flops: Annotated[Number, _in_range("compute_flops")]
    energy_j_per_flop: Annotated[Number, _in_range("energy_j_per_flop")] | None = None
    downlink_bit_per_s: Annotated[Number, _in_range("downlink_bit_per_s")] | None = None
    uplink_bit_per_s: Annotated[Number, _in_range("uplink_bit_per_s")] | None = None
    fixed_s: Annotated[Number, _in_range("fixed_s")] | None = None
    burst_bit: Annotated[Number, _in_range("burst_bit")] | None = None


class Fading(_Part):
    """The fading law; `coherence` is how long one draw holds."""

    model: Literal["none", "rayleigh"]
    coherence: Literal["run", "pass", "layer"] = "run"
    seed: Annotated[int, Field(ge=0, le=MAX_SEED, strict=True)] = 0


class Placement(_Part):
    """Which device, or `base_station`, holds which expert.

    `experts` names the device of single experts; `others` says where any other expert k is: on device k modulo the
    number of devices, or at the base station.
    """

    others: Literal["modulo", "base_station"] = "modulo"
    experts: dict[Expert, str] = Field(default_factory=dict)

    @field_validator("experts", mode="wrap")
    @classmethod
    def _each_expert_is_named_once(cls, given: Any, validated: Callable[[Any], dict[int, str]]) -> dict[int, str]:
        experts = validated(given)
        if len(experts) < len(given):  # 1 and "1" are two keys of a file
            raise ValueError("names an expert twice")
        return experts


class ChannelProfile(_Part):
    """A base station, its devices and the radio environment, as read from one YAML file.

    rates: `physical`, Eq. (2) and (3); `measured`, each device's own (`wdmoe testbed measure`): the bandwidth is then
    not ours to split, gains and distances say nothing, and there is no fading.
    origin: word of `origin.ORIGINS` -> key path -> the value that this origin gives it; a value that is not stated, or
    not as it is, is the user's own. It is no part of the content.
    """

    name: Annotated[Name, AfterValidator(_file_name)]
    carrier_frequency_hz: Annotated[Number, _in_range("carrier_frequency_hz")]
    total_bandwidth_hz: Annotated[Number, _in_range("total_bandwidth_hz")]
    noise_psd_dbm_per_hz: Annotated[Number, _in_range("noise_psd_dbm_per_hz")]
    payload_bits: Annotated[int, Field(ge=1, le=64, strict=True)] = 16
    path_loss: str = "free_space"
    duplex: Duplex = "shared"
    rates: Literal["physical", "measured"] = "physical"
    base_station: BaseStation
    devices: Annotated[tuple[Device, ...], Field(min_length=1), FailFast()]
    fading: Fading
    placement: Placement = Placement()
    origin: dict[str, dict[str, Any]] | None = None

    @field_validator("origin")
    @classmethod
    def _experts_are_named_as_in_json(cls, origin: dict[str, dict[str, Any]] | None) -> dict[str, dict] | None:
        """An expert is 0 in a file and "0" in JSON; one of them, so that equal profiles are equal."""
        if origin is None:
            return None
        return {
            word: {
                path: {str(key): held for key, held in value.items()} if isinstance(value, dict) else value
                for path, value in statements.items()
            }
            for word, statements in origin.items()
        }

    @model_validator(mode="after")
    def _names_belong_together(self) -> "ChannelProfile":
        names = Counter(device.name for device in self.devices)
        name, times = names.most_common(1)[0]
        if times > 1:
            raise ValueError(f"devices: the name {name!r} is used twice, each device needs its own")
        if BASE_STATION in names:
            raise ValueError(f"devices: the name {BASE_STATION!r} is kept for the base station")
        for expert, device_name in self.placement.experts.items():
            if device_name not in names and device_name != BASE_STATION:
                raise ValueError(
                    f"placement.experts[{expert}]: {unknown_name('device', device_name, (*names, BASE_STATION))}"
                )
        if self.path_loss not in PATH_LOSS_MODELS:
            raise ValueError(f"path_loss: {unknown_name('path-loss model', self.path_loss, PATH_LOSS_MODELS)}")
        return self

    @model_validator(mode="after")
    def _rates_are_of_one_kind(self) -> "ChannelProfile":
        for number, device in enumerate(self.devices):
            for key in MEASURED:
                given = getattr(device, key) is not None
                if given and self.rates == "physical":
                    raise ValueError(f"devices[{number}].{key} is only read with `rates: measured`")
                if not given and self.rates == "measured" and key in MEASURED_RATES:
                    raise ValueError(f"devices[{number}].{key} is missing; `rates: measured` needs it of every device")
        for key in SHARED:
            if self.rates == "physical" and getattr(self.base_station, key) is not None:
                raise ValueError(f"base_station.{key} is only read with `rates: measured`")
        if self.rates == "measured" and self.fading.model != "none":
            raise ValueError(f"fading.model must be none with `rates: measured`, got {self.fading.model!r}")
        return self

    @model_validator(mode="after")
    def _gains_are_at_most_one(self) -> "ChannelProfile":
        if self.rates == "physical":
            distances_m = [device.distance_m for device in self.devices]
            check_mean_gain(self, PATH_LOSS_MODELS[self.path_loss](distances_m, self.carrier_frequency_hz))
        return self

    @model_validator(mode="after")
    def _origin_states_values(self) -> "ChannelProfile":
        for word, statements in (self.origin or {}).items():
            if word not in ORIGINS:
                raise ValueError(f"origin: {unknown_name('origin', word, ORIGINS)}")
            for path, value in statements.items():
                _check_statement(word, path, value, len(self.devices))
        return self

    @property
    def noise_psd_w_per_hz(self) -> float:
        """Noise power spectral density N0 in W/Hz."""
        return 10 ** (self.noise_psd_dbm_per_hz / 10) / 1000

    @property
    def unusual_values(self) -> list[str]:
        """Sentences about values that few radios have, such as a power in mW where W is meant; see `plausibility`."""
        return unusual_values(self)

    @property
    def content_hash(self) -> str:
        """SHA-256 over every value of the profile, without its name and the values' origins: equal content, equal hash.

        What only measured rates know is left out of a physical profile, and of a measured one a burst and a shared rate
        that are not given: their hashes were there first.
        """
        content = self.model_dump(mode="json", exclude={"name", "origin"})
        if self.rates == "physical":
            del content["rates"], content["base_station"]["message_s"]
            for device in content["devices"]:
                for key in MEASURED_RATES:
                    del device[key]
                del device["fixed_s"]
        for part, key in [
            (content["base_station"], "shared_bit_per_s"),
            *((d, "burst_bit") for d in content["devices"]),
        ]:
            if part[key] is None:
                del part[key]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def value_origins(self) -> dict[str, str]:
        """-> key path of every value that is read -> its origin: a word of `origin.ORIGINS`, or `own`."""
        return value_origins(self.model_dump(mode="json", exclude_none=True))

    @property
    def origin_sentence(self) -> str:
        """Origin of every value, in one line for a footnote."""
        return origin_sentence(self.value_origins())

    def with_statements(self, word: str, statements: dict[str, Any]) -> "ChannelProfile":
        """The profile with more statements of one origin; earlier ones of the same word and key are replaced."""
        origin = self.origin or {}
        return self.model_copy(update=dict(origin=origin | {word: origin.get(word, {}) | statements}))

    def device_of_expert(self, num_experts: int) -> list[int]:
        """-> [num_experts] index of the device that holds each expert, -1 for the base station.

        Raises ProfileError where the placement names an expert that the model does not have.
        """
        names = [device.name for device in self.devices]
        for expert in self.placement.experts:
            if expert >= num_experts:
                raise ProfileError(
                    f"{self.name}: placement.experts[{expert}] must be < {num_experts}, the model's number of experts"
                )
        by_rule = (lambda expert: expert % len(names)) if self.placement.others == "modulo" else (lambda expert: -1)
        devices = {name: index for index, name in enumerate(names)} | {BASE_STATION: -1}
        return [
            devices[self.placement.experts[expert]] if expert in self.placement.experts else by_rule(expert)
            for expert in range(num_experts)
        ]


@cache
def _stated_types() -> dict[str, Any]:
    """-> key path that an origin can be stated of -> TypeAdapter of its values; of devices with [*]."""
    parts: dict[str, type[BaseModel]] = {
        "": ChannelProfile,
        "base_station.": BaseStation,
        "devices[*].": Device,
        "fading.": Fading,
        "placement.": Placement,
    }
    fields = {prefix + name: field for prefix, part in parts.items() for name, field in part.model_fields.items()}
    no_values = {*NO_VALUES, "devices[*].name", "base_station", "devices", "fading", "placement"}
    return {path: TypeAdapter(_annotate(field)) for path, field in fields.items() if path not in no_values}


def _annotate(field: Any) -> Any:
    return Annotated[field.annotation, field]


def _check_statement(word: str, path: str, value: Any, devices: int) -> None:
    """Raise ValueError, in one sentence, where no value of a profile could be as stated."""
    match = DEVICE_PATH.fullmatch(path)
    if match and match[1] != "*" and int(match[1]) >= devices:
        raise ValueError(f"origin.{word}: {path}: the profile has devices[0] to devices[{devices - 1}]")
    known = _stated_types()
    stated_type = known.get(f"devices[*].{match[2]}" if match else path)
    if stated_type is None:
        raise ValueError(f"origin.{word}: {unknown_name('key of a channel profile', path, known)}")
    try:
        for stated in value if isinstance(value, list) and path.startswith("devices[*].") else [value]:
            stated_type.validate_python(stated)
    except ValidationError as error:
        raise ValueError(f"origin.{word}.{path} {sentence(first_error(error), lambda _: []).lstrip()}") from None


def changed_profile(profile: ChannelProfile, key: str, value: float) -> ChannelProfile:
    """The profile with one number changed: `total_bandwidth_hz`, `payload_bits`, or `devices[3].distance_m`.

    Raises ProfileError for a key that is no number of a profile, or a value out of its range.
    """
    data = profile.model_dump(mode="json", exclude_none=True)
    match = re.fullmatch(r"devices\[(\d+)\]\.(\w+)", key)
    part: Any = data
    name = key
    if match:
        number, name = int(match[1]), match[2]
        if number >= len(profile.devices):
            raise ProfileError(f"{key}: the profile has devices[0] to devices[{len(profile.devices) - 1}]")
        part = data["devices"][number]
    numbers = [n for n, held in part.items() if isinstance(held, int | float) and not isinstance(held, bool)]
    if name not in numbers:
        raise ProfileError(unknown_name("number of a channel profile", key, numbers))
    part[name] = int(value) if isinstance(part[name], int) and float(value).is_integer() else value
    return validated_profile(profile.name, data.pop("name"), data)


def list_profiles() -> list[str]:
    """Names of the shipped profiles."""
    folder = files("wdmoe_opencompass") / "channel_profiles"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_profile(name_or_path: str | Path) -> ChannelProfile:
    """Load a shipped profile by name, or a profile file by its path (ending in .yaml).

    Of a file's origins, `paper` and `fitted` count only where a shipped profile states the same: searching and
    replacing a value in the whole file, its statement included, makes it the user's own too.
    Raises ProfileError naming file, key, rule and value.
    """
    text = str(name_or_path)
    if text.endswith((".yaml", ".yml")):
        if not os.path.lexists(text):
            raise ProfileError(f"{text}: no such channel profile file")
        return _without_own_claims(_validate_file(text, Path(text).stem, read_mapping(text, ProfileError)))
    if text not in list_profiles():
        raise ProfileError(unknown_name("channel profile", text, list_profiles()) + "; or give a path ending in .yaml")
    entry = files("wdmoe_opencompass") / "channel_profiles" / f"{text}.yaml"
    return _validate_file(f"{text}.yaml", text, parse_mapping(f"{text}.yaml", entry.read_bytes(), ProfileError))


CLAIMS = ("paper", "fitted")  # origins that say something of the paper


def _without_own_claims(profile: ChannelProfile) -> ChannelProfile:
    if not profile.origin or not set(CLAIMS) & set(profile.origin):
        return profile
    shipped = [load_profile(name).origin or {} for name in list_profiles()]
    origin = {
        word: {
            path: value
            for path, value in statements.items()
            if word not in CLAIMS or any(other.get(word, {}).get(path) == value for other in shipped)
        }
        for word, statements in profile.origin.items()
    }
    return profile.model_copy(update=dict(origin={word: kept for word, kept in origin.items() if kept} or None))


def _validate_file(source: str, name: str, data: dict) -> ChannelProfile:
    if "name" in data:
        raise ProfileError(f"{source}: unknown key name; a profile is named by its file")
    return validated_profile(source, name, data)


def validated_profile(source: str, name: str, data: dict) -> ChannelProfile:
    """-> the profile of these values; ProfileError, in one sentence that begins with `source`, where one is wrong."""
    try:
        return ChannelProfile.model_validate({"name": name, **data})
    except ValidationError as error:
        raise ProfileError(f"{source}: {sentence_of_file(error, _known_keys, data)}") from None


def sentence_of_file(error: ValidationError, known_keys: Callable[[tuple], list[str]], data: dict) -> str:
    """The first of pydantic's errors as a sentence; of a file's mapping with the line, and the value as written."""
    first = first_error(error)
    written = data.position_of(first["loc"]) if isinstance(data, ReadMapping) and first["loc"] else None
    return (f"line {written.line}: " if written else "") + sentence(first, known_keys, written)


def first_error(error: ValidationError) -> Any:
    """The first of pydantic's errors; with what was given, without links."""
    return error.errors(include_url=False)[0]


def sentence(error: Any, known_keys: Callable[[tuple], list[str]], position: Position | None = None) -> str:
    """One pydantic error as a sentence: key, rule, value; known_keys: a location -> the keys allowed there."""
    key = "".join(map(_step, error["loc"])).lstrip(".")
    kind, context = error["type"], error.get("ctx", {})
    got = _as_written(kind, error["input"], position)
    rules = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    if kind == "extra_forbidden":
        near = get_close_matches(str(error["loc"][-1]), known_keys(error["loc"][:-1]), n=1)
        parent = key.rpartition(".")[0]
        hint = f"; did you mean {parent + '.' if parent else ''}{near[0]}?" if near else ""
        return f"unknown key {key}{hint}"
    if kind == "invalid_key":
        return f"unknown key {show(error['input'])}"
    if kind == "missing":
        return f"key {key} is missing"
    if kind == "value_error":
        return f"{key} {error['msg'].removeprefix('Value error, ')}".lstrip()
    if kind in rules:
        rule = rules[kind]
        return f"{key} must be {signs[rule]} {context[rule]:g}, got {got}"
    if kind in ("too_short", "string_too_short"):
        return f"{key} must hold at least one entry, got none"
    if kind == "string_too_long":
        return f"{key} must have at most {context['max_length']} characters, got {len(error['input'])}"
    if kind == "literal_error":
        return f"{key} must be one of {context['expected']}, got {got}"
    if kind.endswith(("_type", "_parsing", "_parsing_size")) or kind in ("finite_number", "int_from_float"):
        expected = {"float": "a number", "int": "a whole number", "finite": "a finite number", "model": "a mapping"}
        kinds = kind.split("_")[0]
        wanted = expected.get(kinds, error["msg"].lower().removeprefix("input should be "))
        return f"{key} must be {wanted}, got {got}{_hint(kinds, error['loc'], error['input'])}"
    return f"{key}: {error['msg']}, got {got}"


def _as_written(kind: str, value: Any, position: Position | None) -> str:
    if position is None or position.written is None or not isinstance(value, bool | int | float):
        return show(value)
    if isinstance(value, bool) and position.written not in (*TRUE, *FALSE):
        return f"{position.written}, which YAML reads as {str(value).lower()}"
    return position.written if kind == "string_type" else show(value)


def _hint(kind: str, location: tuple, value: Any) -> str:
    """What to write instead of a value of the wrong kind, such as a number in quotes."""
    if kind in ("float", "int", "finite") and isinstance(value, str):
        name = next((step for step in reversed(location) if isinstance(step, str)), "")
        return f"; {how_to_write(value, name)}"
    if kind == "int" and isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"; write {int(value)}"
    if kind == "string" and isinstance(value, int | float):
        return "; put it in quotes if it is a text"
    return ""


def _step(part: Any) -> str:
    if isinstance(part, int):
        return f"[{part}]"
    return f".{part}" if part.isprintable() and len(part) <= MAX_NAME_LENGTH else f".{show(part)}"


def _known_keys(location: tuple) -> list[str]:
    parts: dict[tuple, type[BaseModel]] = {
        (): ChannelProfile,
        ("devices",): Device,
        ("base_station",): BaseStation,
        ("fading",): Fading,
        ("placement",): Placement,
    }
    part = parts.get(location[:1], ChannelProfile)
    return list(part.model_fields)
