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
from ..errors import LabError, shown

Seconds = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False, strict=True)]
LOOPBACK_ONLY = "without keys only loopback addresses are allowed; make keys with `wdmoe testbed keys`"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LabDevice(_Part):
    """One device: its name (that of its certificate), its address and the experts it holds in every MoE layer."""

    name: Annotated[Name, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    address: Annotated[str, Field(max_length=MAX_NAME_LENGTH + 100), AfterValidator(printable)]
    experts: Annotated[
        tuple[Annotated[int, Field(ge=0, lt=MAX_EXPERTS, strict=True)], ...], Field(min_length=1), FailFast()
    ]


class Lab(_Part):
    """Devices of a testbed, as read from one YAML file.

    keys:          folder of `wdmoe testbed keys` (relative to the file); None only for loopback addresses
    payload_bits:  hidden states travel as whole numbers of so many bits; None sends them in the model's own type
    deadline_s:    of one message and its answer; then the device's experts are taken over
    connect_s:     how long to wait for the devices at the start
    health_s:      how often an idle device is asked whether it is there
    most_backoff_s: longest wait between two attempts to reach a device that is gone
    message_bytes: longest message; more tokens go in several
    experts_in_memory: `all`, the base station keeps the whole model; `own`, once it is loaded only the experts that no
                   device holds: to take over it reads the lacking ones from the model's files
    send_padding:  send tokens that are no load too (padding, finished rows): then even batches with padding answer bit
                   for bit as the local model, whose matrix products have those rows; else they are computed here
    """

    devices: Annotated[tuple[LabDevice, ...], Field(min_length=1), FailFast()]
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
    def _belongs_together(self) -> "Lab":
        if self.experts_in_memory == "own" and not self.send_padding:
            raise ValueError(
                "experts_in_memory: own needs send_padding: true, for the base station cannot compute padding then"
            )
        name, times = Counter(device.name for device in self.devices).most_common(1)[0]
        if times > 1:
            raise ValueError(f"devices: the name {name!r} stands twice, each device needs its own")
        for number, device in enumerate(self.devices):
            if device.name == BASE_STATION:
                raise ValueError(f"devices: the name {BASE_STATION!r} is kept for the base station")
            expert, times = Counter(device.experts).most_common(1)[0]
            if times > 1:
                raise ValueError(f"devices[{number}].experts: expert {expert} stands twice")
            host, _ = split_address(device.address, f"devices[{number}].address")
            if self.keys is None and not is_loopback(host):
                raise ValueError(f"devices[{number}].address: {device.address}: {LOOPBACK_ONLY}")
        return self

    @property
    def content_hash(self) -> str:
        """SHA-256 over what decides the times: devices, their hosts and experts, payload, padding."""
        devices = [(device.name, split_address(device.address)[0], device.experts) for device in self.devices]
        content = dict(devices=devices, payload_bits=self.payload_bits, send_padding=self.send_padding)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def device_of_expert(self, num_experts: int) -> list[int]:
        """-> [num_experts] the first device that holds each expert, -1 where none does: the base station.

        Raises LabError where a device names an expert that the model does not have.
        """
        placement = [-1] * num_experts
        for number, device in enumerate(self.devices):
            for expert in device.experts:
                if expert >= num_experts:
                    raise LabError(
                        f"devices[{number}].experts must be < {num_experts}, the model's number of experts, "
                        f"got {expert}"
                    )
                if placement[expert] < 0:
                    placement[expert] = number
        return placement


def split_address(address: str, key: str = "address") -> tuple[str, int]:
    """`HOST:PORT` (an IPv6 host in brackets) -> host, port; ValueError in one sentence."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or re.fullmatch("[0-9]{1,5}", port) is None or int(port) >= 1 << 16:
        raise ValueError(f"{key} must be HOST:PORT, got {shown(address)}")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine itself; a name other than localhost is not."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def load_lab(path: str | Path) -> Lab:
    """Read a lab file; its folder of keys becomes an absolute path. Raises LabError naming file, key, rule, value."""
    path = Path(path)
    data = read_mapping(path, LabError)
    try:
        lab = Lab.model_validate(data)
    except ValidationError as error:
        raise LabError(f"{path}: {sentence_of_file(error, _known_keys, data)}") from None
    if lab.keys is None:
        return lab
    keys = path.parent.absolute() / lab.keys
    if not os.path.isdir(keys):
        raise LabError(f"{path}: keys: no such folder {keys}; make it with `wdmoe testbed keys`")
    return lab.model_copy(update=dict(keys=str(keys)))


def profile_of_lab(profile: ChannelProfile, lab: Lab, source: str) -> ChannelProfile:
    """The simulated channel of a lab: device by device the profile's, with the lab's placement and payload bits."""
    if len(profile.devices) != len(lab.devices):
        raise LabError(
            f"{source}: devices must be as many as in channel profile {profile.name} ({len(profile.devices)}), "
            f"got {len(lab.devices)}"
        )
    placement = lab.device_of_expert(1 + max(expert for device in lab.devices for expert in device.experts))
    experts = {expert: profile.devices[number].name for expert, number in enumerate(placement) if number >= 0}
    update: dict[str, Any] = dict(placement=Placement(others="base_station", experts=experts))
    if lab.payload_bits is not None:
        update["payload_bits"] = lab.payload_bits
    return profile.model_copy(update=update)


def write_lab(path: Path, lab: Lab) -> None:
    """Write a lab file that `load_lab` reads back."""
    data: dict[str, Any] = lab.model_dump(mode="json", exclude_none=True)
    path.write_text(yaml_text(data))


def _known_keys(location: tuple) -> list[str]:
    part: type[BaseModel] = LabDevice if location[:1] == ("devices",) else Lab
    return list(part.model_fields)
