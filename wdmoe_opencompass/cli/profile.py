"""`wdmoe profile`: channel profiles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import WdmoeError
from .console import print_json, print_table
from .options import (
    MIXTRAL_FFN_SIZE,
    MIXTRAL_HIDDEN_SIZE,
    AsJson,
    FfnSize,
    HiddenSize,
    ProfileArgument,
    examples,
    new_app,
    open_profile,
)

if TYPE_CHECKING:
    from ..channel.profile import ChannelProfile
    from ..latency import ExpertShape

app = new_app(help="Channel profiles: list, show, validate.")


@app.command("list", epilog=examples("wdmoe profile list"))
def profile_list(as_json: AsJson = False) -> None:
    """List the shipped channel profiles."""
    from ..channel.profile import list_profiles, load_profile

    profiles = [load_profile(name) for name in list_profiles()]
    records = [dict(name=p.name, devices=len(p.devices), total_bandwidth_hz=p.total_bandwidth_hz) for p in profiles]
    print_json(dict(profiles=records)) if as_json else print_table(records)


@app.command(
    "show",
    epilog=examples(
        "wdmoe profile show paper_8_devices --json",
        "wdmoe profile show my_lab.yaml --hidden-size 2048 --ffn-size 1024",
    ),
)
def profile_show(
    name: ProfileArgument,
    hidden_size: HiddenSize = MIXTRAL_HIDDEN_SIZE,
    ffn_size: FfnSize = MIXTRAL_FFN_SIZE,
    as_json: AsJson = False,
) -> None:
    """Show devices, gains of the profile's draw, and rates and token latency under even bandwidth, Eq. (2) to (8).

    Of measured rates: the rates, the fixed seconds and the burst of a message, and the token latency without these.
    Below, every value of the profile and its origin: the paper, fitted to its Table II, an assumption, computed,
    measured, or own.
    """
    from ..channel.origin import profile_values
    from ..latency import ExpertShape

    profile = open_profile(name)
    records = _device_records(profile, ExpertShape(hidden_size, ffn_size))
    values, origins = profile_values(profile.model_dump(mode="json", exclude_none=True)), profile.value_origins()
    if as_json:
        listed = [dict(key=key, value=value, origin=origins[key]) for key, value in values.items()]
        print_json(dict(devices=records, values=listed, unusual=profile.unusual_values))
        return
    print_table(records)
    print()
    print_table(_value_records(values, origins))


def _value_records(values: dict[str, Any], origins: dict[str, str]) -> list[dict[str, Any]]:
    """One row per value; of devices one per key and origin, with the smallest and the largest value."""
    from ..channel.origin import NAMES, keys_by_origin

    rows: dict[tuple[str, str], list[Any]] = {}
    for key, value in values.items():
        rows.setdefault((key.partition("].")[2] or key, origins[key]), []).append(value)
    named = {key: word for word, keys in keys_by_origin(origins).items() for key in keys}
    shown = []
    for key, word in named.items():
        held = rows[key.partition("].")[2] or key, word]
        text = _short(held[0]) if held.count(held[0]) == len(held) else f"{_short(min(held))} to {_short(max(held))}"
        shown.append(dict(key=key, value=text, origin=NAMES[word]))
    return shown


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return f"{len(value)} experts placed"
    return f"{value:.10g}" if isinstance(value, float) else str(value)


@app.command("validate", epilog=examples("wdmoe profile validate my_lab.yaml"))
def profile_validate(
    file: Annotated[Path, typer.Argument(help="A profile file.")],
    as_json: AsJson = False,
) -> None:
    """Check a profile file; exit code 2 and one sentence if it breaks a rule, a note on values that no radio has."""
    if file.suffix not in (".yaml", ".yml"):
        raise WdmoeError(f"{file}: a channel profile file must end in .yaml")
    profile = open_profile(file)
    if as_json:
        record = dict(file=str(file), name=profile.name, devices=len(profile.devices), hash=profile.content_hash)
        print_json(record | dict(valid=True, unusual=profile.unusual_values))
        return
    print(f"{file}: valid, {len(profile.devices)} devices, hash {profile.content_hash[:12]}")


def _device_records(profile: ChannelProfile, shape: ExpertShape) -> list[dict[str, Any]]:
    from ..channel.propagation import draw_channel, path_loss_db
    from ..channel.rates import rate_bit_per_s
    from ..energy import token_energy
    from ..latency import link_budget, token_latency_s

    channel = draw_channel(profile)
    even_hz = profile.total_bandwidth_hz / len(profile.devices)
    noise = profile.noise_psd_w_per_hz
    loss_db = path_loss_db(profile)
    budget = link_budget(profile, channel, shape)
    latency, energy = token_latency_s(budget, even_hz), token_energy(profile, shape, budget, even_hz)
    power_w = profile.base_station.transmit_power_w
    if profile.rates == "measured":
        return [
            dict(
                name=device.name,
                downlink_bit_per_s=device.downlink_bit_per_s,
                uplink_bit_per_s=device.uplink_bit_per_s,
                fixed_s=device.fixed_s or 0.0,
                burst_bit=device.burst_bit or 0.0,
                compute_flops=device.compute_flops,
                token_latency_s=float(latency[k]),
            )
            for k, device in enumerate(profile.devices)
        ]
    return [
        dict(
            name=device.name,
            distance_m=device.distance_m,
            path_loss_db=float(loss_db[k]),
            downlink_gain=float(channel.downlink_gain[k]),
            uplink_gain=float(channel.uplink_gain[k]),
            downlink_bit_per_s=float(rate_bit_per_s(even_hz, power_w, channel.downlink_gain[k], noise)),
            uplink_bit_per_s=float(rate_bit_per_s(even_hz, device.transmit_power_w, channel.uplink_gain[k], noise)),
            token_latency_s=float(latency[k]),
            downlink_j_per_token=float(energy.downlink_j[k]),
            uplink_j_per_token=float(energy.uplink_j[k]),
            computation_j_per_token=None if energy.computation_j is None else float(energy.computation_j[k]),
        )
        for k, device in enumerate(profile.devices)
    ]
