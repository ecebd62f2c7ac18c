"""The schema of a `lab.yaml`: which machine holds which experts, and how the base station talks to it."""

import hashlib
import ipaddress
import json
import os.path
import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, ValidationError, model_validator

from .._util.safe_yaml import read_mapping, yaml_text
from ..channel.profile import (
    BASE_STATION,
    MAX_EXPERTS,
    MAX_NAME_LENGTH,
    ChannelProfile,
    Name,
    Placement,
    printable,
    sentence_of_file,
)
from ..errors import TestbedError, show

Seconds = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False, strict=True)]
LOOPBACK_ONLY = "without keys only loopback addresses are allowed; make keys with `wdmoe testbed keys`"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TestbedDevice(_Part):
    """A device: its name, as in its certificate, its address, and the experts it holds in every MoE layer."""

    name: Annotated[Name, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    address: Annotated[str, Field(max_length=MAX_NAME_LENGTH + 100), AfterValidator(printable)]
    experts: Annotated[
        tuple[Annotated[int, Field(ge=0, lt=MAX_EXPERTS, strict=True)], ...], Field(min_length=1), FailFast()
    ]


class Testbed(_Part):
    """A testbed, as read from a YAML file.

    keys:          folder of `wdmoe testbed keys` (relative to the file); None only for loopback addresses
    payload_bits:  bits of the whole numbers in which hidden states travel; None: the model's own type
    deadline_s:    for a message and its answer; after it the device's experts are taken over
    connect_s:     how long to wait for the devices at the start
    health_s:      interval between health checks of an idle device
    most_backoff_s: longest wait between two attempts to reach a missing device
    message_bytes: longest message; more tokens go in several
    experts_in_memory: `all`: the base station keeps the whole model; `own`: after loading it keeps only the experts
                   that no device holds, and reads others from the model's files to take over
    send_padding:  send padding and finished rows too. Batches with padding are then bit for bit those of the local
                   model, because the matrix products have the same rows; otherwise they are computed here
    """

    devices: Annotated[tuple[TestbedDevice, ...], Field(min_length=1), FailFast()]
    keys: Annotated[str, AfterValidator(printable)] | None = None
    payload_bits: Literal[4, 8, 16] | None = None
    deadline_s: Seconds = 10.0
    connect_s: Seconds = 30.0
    health_s: Seconds = 1.0
    most_backoff_s: Seconds = 30.0
    message_bytes: Annotated[int, Field(ge=1 << 16, le=1 << 30, strict=True)] = 1 << 26
    experts_in_memory: Literal["all", "own"] = "all"
    send_padding: Annotated[bool, Field(strict=True)] = False

    @model_validator(mode="after")
    def _belongs_together(self) -> "Testbed":
        if self.experts_in_memory == "own" and not self.send_padding:
            raise ValueError(
                "experts_in_memory: own needs send_padding: true, for the base station cannot compute padding then"
            )
        name, times = Counter(device.name for device in self.devices).most_common(1)[0]
        if times > 1:
            raise ValueError(f"devices: the name {name!r} is used twice; each device needs a different one")
        for number, device in enumerate(self.devices):
            if device.name == BASE_STATION:
                raise ValueError(f"devices: the name {BASE_STATION!r} is reserved for the base station")
            expert, times = Counter(device.experts).most_common(1)[0]
            if times > 1:
                raise ValueError(f"devices[{number}].experts: expert {expert} is listed twice")
            host, _ = split_address(device.address, f"devices[{number}].address")
            if self.keys is None and not is_loopback(host):
                raise ValueError(f"devices[{number}].address: {device.address}: {LOOPBACK_ONLY}")
        return self

    @property
    def content_hash(self) -> str:
        """SHA-256 of everything that affects the times: devices, their hosts and experts, payload, padding."""
        devices = [(device.name, split_address(device.address)[0], device.experts) for device in self.devices]
        content = dict(devices=devices, payload_bits=self.payload_bits, send_padding=self.send_padding)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def device_of_expert(self, num_experts: int) -> list[int]:
        """-> [num_experts] the first device that holds each expert, -1 for the base station.

        Raises TestbedError if a device names an expert that the model does not have.
        """
        placement = [-1] * num_experts
        for number, device in enumerate(self.devices):
            for expert in device.experts:
                if expert >= num_experts:
                    raise TestbedError(
                        f"devices[{number}].experts must be < {num_experts}, the model's number of experts, "
                        f"got {expert}"
                    )
                if placement[expert] < 0:
                    placement[expert] = number
        return placement


def split_address(address: str, key: str = "address") -> tuple[str, int]:
    """`HOST:PORT` (an IPv6 host in brackets) -> host, port; ValueError for anything else."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or re.fullmatch("[0-9]{1,5}", port) is None or int(port) >= 1 << 16:
        raise ValueError(f"{key} must be HOST:PORT, got {show(address)}")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine; of all names only localhost is."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def load_testbed(path: str | Path) -> Testbed:
    """Read a lab file, its keys as an absolute path. Raises TestbedError naming file, key, rule and value."""
    path = Path(path)
    data = read_mapping(path, TestbedError)
    try:
        testbed = Testbed.model_validate(data)
    except ValidationError as error:
        raise TestbedError(f"{path}: {sentence_of_file(error, _known_keys, data)}") from None
    if testbed.keys is None:
        return testbed
    keys = path.parent.absolute() / testbed.keys
    if not os.path.isdir(keys):
        raise TestbedError(f"{path}: keys: no such folder {keys}; make it with `wdmoe testbed keys`")
    return testbed.model_copy(update=dict(keys=str(keys)))


def profile_of_testbed(profile: ChannelProfile, testbed: Testbed, source: str) -> ChannelProfile:
    """Return the profile with the testbed's placement and payload bits; TestbedError if it has other devices."""
    if len(profile.devices) != len(testbed.devices):
        raise TestbedError(
            f"{source}: devices must be as many as in channel profile {profile.name} ({len(profile.devices)}), "
            f"got {len(testbed.devices)}"
        )
    placement = testbed.device_of_expert(1 + max(expert for device in testbed.devices for expert in device.experts))
    experts = {expert: profile.devices[number].name for expert, number in enumerate(placement) if number >= 0}
    update: dict[str, Any] = dict(placement=Placement(others="base_station", experts=experts))
    if testbed.payload_bits is not None:
        update["payload_bits"] = testbed.payload_bits
    return profile.model_copy(update=update)


def write_testbed(path: Path, testbed: Testbed) -> None:
    """Write a lab file that `load_testbed` reads back."""
    data: dict[str, Any] = testbed.model_dump(mode="json", exclude_none=True)
    path.write_text(yaml_text(data))


def _known_keys(location: tuple) -> list[str]:
    part: type[BaseModel] = TestbedDevice if location[:1] == ("devices",) else Testbed
    return list(part.model_fields)
