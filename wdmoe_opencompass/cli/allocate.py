"""`wdmoe allocate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .._util.bounded_read import read_regular
from ..errors import AllocationError
from .console import print_json, print_table
from .options import (
    MIXTRAL_FFN_SIZE,
    MIXTRAL_HIDDEN_SIZE,
    Allocator,
    AsJson,
    FfnSize,
    HiddenSize,
    ProfileArgument,
    Scope,
    open_profile,
)

if TYPE_CHECKING:
    from ..channel.profile import ChannelProfile
    from ..channel.propagation import Channel

MAX_LOADS_BYTES = 1 << 28  # our choice: some ten million loads
EXAMPLES = ("wdmoe allocate paper_8_devices --loads loads.json --json",)


def allocate_command(
    profile: ProfileArgument,
    loads: Annotated[Path, typer.Option(help="JSON file: a list of layers, each a list of tokens per device.")],
    scope: Scope = "layer",
    method: Allocator = "optimal",
    hidden_size: HiddenSize = MIXTRAL_HIDDEN_SIZE,
    ffn_size: FfnSize = MIXTRAL_FFN_SIZE,
    as_json: AsJson = False,
) -> None:
    """Split the bandwidth for given device loads, P3 (Eq. 19-21), with a proven gap to the optimum."""
    from ..allocation import SCOPE_LABELS, allocate
    from ..latency import ExpertShape, link_budget

    loaded = open_profile(profile)
    if loaded.rates == "measured":
        raise AllocationError(f"{loaded.name}: its rates are measured and fixed, so there is no bandwidth to split")
    content = read_regular(loads, MAX_LOADS_BYTES, AllocationError)
    try:
        device_load = _read_loads(content)
        channel = _channel_of_layers(loaded, len(device_load))
        budget = link_budget(loaded, channel, ExpertShape(hidden_size, ffn_size))
        answer = allocate(method, scope, budget, device_load, loaded.total_bandwidth_hz, certified=True)
    except AllocationError as error:
        raise AllocationError(f"{loads}: {error}") from None
    if as_json:
        print_json(
            dict(
                bandwidth_hz=answer.bandwidth_hz[0].tolist(),
                layer_latency_s=answer.layer_latency_s[0].tolist(),
                waiting_latency_s=float(answer.waiting_latency_s[0]),
                lower_bound_s=float(answer.lower_bound_s[0]),  # type: ignore[index]
                relative_gap=float(answer.relative_gap[0]),
                method=method,
                scope=scope,
            )
        )
        return
    names = [device.name for device in loaded.devices]
    splits = [dict(zip(names, row, strict=True)) for row in answer.bandwidth_hz[0].tolist()]
    print_table([dict(layer=k) | split for k, split in enumerate(splits, 1)] if scope == "layer" else splits)
    print(
        f"hertz per device, scope {SCOPE_LABELS[scope]}; waiting latency {answer.waiting_latency_s[0]:.6g} s, "
        f"at most {answer.relative_gap[0]:.1e} above the optimum; method {method}, profile {loaded.name}"
    )


def _channel_of_layers(profile: ChannelProfile, layers: int) -> Channel:
    """The profile's draw; one per layer if its fading changes per layer."""
    import numpy as np

    from ..channel.propagation import Channel, draw_channel

    if profile.fading.coherence != "layer":
        return draw_channel(profile)
    draws = [draw_channel(profile, layer=layer) for layer in range(layers)]
    return Channel(*(np.array([getattr(draw, gain) for draw in draws]) for gain in ("downlink_gain", "uplink_gain")))


def _read_loads(content: bytes) -> list[list[float]]:
    from pydantic import Strict, TypeAdapter, ValidationError

    try:
        return TypeAdapter(list[list[Annotated[float, Strict()]]]).validate_json(content) or [[]]
    except ValidationError as error:
        first = error.errors()[0]
        rule = "must be a list of layers, each a list of tokens per device"
        if first["type"] == "json_invalid":
            raise AllocationError(f"must be JSON: {first['msg'].removeprefix('Invalid JSON: ')}") from None
        where = "".join(f"[{part}]" for part in first["loc"])
        raise AllocationError(f"{rule}; {where or 'it'} is {str(first['input'])[:40]}") from None
