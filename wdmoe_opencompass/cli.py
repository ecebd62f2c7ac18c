"""The `wdmoe` command. Exit codes: 0 fine, 1 a check failed, 2 bad input."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .allocation import ALLOCATORS
from .channel.profile import ChannelProfile, list_profiles, load_profile
from .channel.propagation import draw_channel, path_loss_db
from .channel.rates import rate_bit_per_s
from .errors import WdmoeError
from .latency import ExpertShape, link_budget, token_latency_s

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, help=__doc__)
profile_app = typer.Typer(no_args_is_help=True, help="Channel profiles: list, show, validate.")
app.add_typer(profile_app, name="profile")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
MIXTRAL = ExpertShape()


@profile_app.command("list")
def profile_list(as_json: AsJson = False) -> None:
    """Names of the shipped channel profiles."""
    profiles = [load_profile(name) for name in list_profiles()]
    records = [dict(name=p.name, devices=len(p.devices), total_bandwidth_hz=p.total_bandwidth_hz) for p in profiles]
    _print(dict(profiles=records) if as_json else records)


@profile_app.command("show")
def profile_show(
    name: Annotated[str, typer.Argument(help="A shipped profile's name, or the path of a profile file.")],
    hidden_size: Annotated[int, typer.Option(min=1, help="Hidden size m.")] = MIXTRAL.hidden_size,
    ffn_size: Annotated[int, typer.Option(min=1, help="FFN hidden size m_h.")] = MIXTRAL.ffn_size,
    as_json: AsJson = False,
) -> None:
    """Devices, gains of the profile's draw, and rates and token latency under even bandwidth, Eq. (2) to (8)."""
    profile = load_profile(name)
    records = _device_records(profile, ExpertShape(hidden_size, ffn_size))
    _print(dict(devices=records) if as_json else records)


@profile_app.command("validate")
def profile_validate(file: Annotated[Path, typer.Argument(help="A profile file.")]) -> None:
    """Check a profile file; exit code 2 and one sentence if it breaks a rule."""
    if file.suffix not in (".yaml", ".yml"):
        raise WdmoeError(f"{file}: a channel profile file must end in .yaml")
    profile = load_profile(file)
    print(f"{file}: valid, {len(profile.devices)} devices, hash {profile.content_hash[:12]}")


@app.command("replay")
def replay_command(
    traces: Annotated[list[Path], typer.Argument(metavar="TRACE...", help="Sealed routing traces of a run.")],
    profile: Annotated[str, typer.Option(help="Channel profile: name or file.")],
    allocation: Annotated[str, typer.Option(help=f"One of: {', '.join(ALLOCATORS)}.")] = "uniform",
    scope: Annotated[str, typer.Option(help="pass: one split per forward pass; layer: one per layer.")] = "pass",
    as_json: AsJson = False,
) -> None:
    """Attention waiting latency of recorded passes under any profile with the same devices, Eq. (11)."""
    from .replay import replay
    from .routing.trace import read_trace

    loaded = load_profile(profile)
    records: list[dict[str, Any]] = []
    for path in traces:
        records += replay(read_trace(path), loaded, allocation, scope).records()
    mean = sum(record["waiting_latency_s"] for record in records) / len(records) if records else None
    if as_json:
        _print(dict(passes=records, mean_waiting_latency_s=mean))
        return
    datasets = dict.fromkeys(record["dataset"] for record in records)
    rows = []
    for dataset in datasets:
        own = [record["waiting_latency_s"] for record in records if record["dataset"] == dataset]
        rows.append(dict(dataset=dataset, passes=len(own), mean_waiting_latency_s=sum(own) / len(own)))
    _print(rows)
    print(f"allocation {allocation}, scope {scope}, profile {loaded.name} (hash {loaded.content_hash[:12]}),")
    print("selection was made under the run's own profile")


@app.command("report")
def report_command(run_folder: Annotated[Path, typer.Argument(help="OpenCompass's time-stamped folder.")]) -> None:
    """Print a run's main tables; exit code 1 if a cell is empty, with the reason of each."""
    from .report.tables import MAIN_TABLES_FILE, MISSING_FILE

    summary = run_folder / "summary"
    if not (summary / MISSING_FILE).is_file():
        raise WdmoeError(
            f"{run_folder}: no tables in its summary folder; give the time-stamped folder of a finished run whose "
            "config has summarizer=dict(type=WdmoeSummarizer)"
        )
    print((summary / MAIN_TABLES_FILE).read_text())
    print(f"all formats: {summary}")
    missing = json.loads((summary / MISSING_FILE).read_text())
    for cell in missing:
        print(f"empty: {cell}", file=sys.stderr)
    if missing:
        raise typer.Exit(1)


def _device_records(profile: ChannelProfile, shape: ExpertShape) -> list[dict[str, Any]]:
    channel = draw_channel(profile)
    even_hz = profile.total_bandwidth_hz / len(profile.devices)
    noise = profile.noise_psd_w_per_hz
    loss_db = path_loss_db(profile)
    latency = token_latency_s(link_budget(profile, channel, shape), even_hz)
    power_w = profile.base_station.transmit_power_w
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
        )
        for k, device in enumerate(profile.devices)
    ]


def _print(content: Any) -> None:
    """A dict as JSON; a list of records as a table, plain where the output is not a terminal."""
    if isinstance(content, dict):
        print(json.dumps(content, indent=1))
        return
    if not content:
        print("nothing to show")
        return
    columns = list(content[0])
    cells = [[f"{value:.6g}" if isinstance(value, float) else str(value) for value in row.values()] for row in content]
    if not sys.stdout.isatty():
        print("\n".join("\t".join(row) for row in [columns, *cells]))
        return
    table = Table(*columns)
    for row in cells:
        table.add_row(*row)
    Console().print(table)


def main() -> None:
    """Entry point: a WdmoeError becomes one sentence and exit code 2."""
    try:
        app()
    except WdmoeError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
