"""The `wdmoe` command. Exit codes: 0 fine, 1 a check failed, 2 bad input."""

import csv
import io
import json
import re
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from pydantic import Strict, TypeAdapter, ValidationError
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from .allocation import ALLOCATORS, allocate
from .channel.profile import ChannelProfile, changed_profile, list_profiles, load_profile
from .channel.propagation import Channel, draw_channel, path_loss_db
from .channel.rates import rate_bit_per_s
from .energy import token_energy
from .errors import AllocationError, TraceError, WdmoeError
from .latency import ExpertShape, link_budget, token_latency_s
from .placement import OBJECTIVES, Comparison, compare_placements, placed_profile, profile_text
from .replay import DrawnLatency, ReplayedLatency, check_same_devices, replay, replay_draws
from .routing.trace import SEALED_SUFFIX, RoutingTrace, read_trace
from .testbed.cli import app as testbed_app

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, help=__doc__)
profile_app = typer.Typer(no_args_is_help=True, help="Channel profiles: list, show, validate.")
app.add_typer(profile_app, name="profile")
app.add_typer(testbed_app, name="testbed")

Scoped = Annotated[str, typer.Option(help="pass: one split per forward pass; layer: one per layer.")]
HiddenSize = Annotated[int, typer.Option(min=1, help="Hidden size m.")]
FfnSize = Annotated[int, typer.Option(min=1, help="FFN hidden size m_h.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
MIXTRAL = ExpertShape()


class Format(StrEnum):
    """How tables are printed."""

    md = "md"
    csv = "csv"
    tex = "tex"
    json = "json"


MOST_POINTS, MOST_DRAWS = 10_000, 10_000_000
INFINITE_MEAN = (
    "under Rayleigh fading the expected latency is infinite (a gain can be arbitrarily close to 0): mean and standard "
    "error describe these draws only; compare the medians, with their 95 % intervals"
)


@profile_app.command("list")
def profile_list(as_json: AsJson = False) -> None:
    """Names of the shipped channel profiles."""
    profiles = [load_profile(name) for name in list_profiles()]
    records = [dict(name=p.name, devices=len(p.devices), total_bandwidth_hz=p.total_bandwidth_hz) for p in profiles]
    _print(dict(profiles=records) if as_json else records)


@profile_app.command("show")
def profile_show(
    name: Annotated[str, typer.Argument(help="A shipped profile's name, or the path of a profile file.")],
    hidden_size: HiddenSize = MIXTRAL.hidden_size,
    ffn_size: FfnSize = MIXTRAL.ffn_size,
    as_json: AsJson = False,
) -> None:
    """Devices, gains of the profile's draw, and rates and token latency under even bandwidth, Eq. (2) to (8).

    Of measured rates: the rates, the fixed seconds of a message, and the token latency without these.
    """
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


@app.command("allocate")
def allocate_command(
    profile: Annotated[str, typer.Argument(help="Channel profile: name or file.")],
    loads: Annotated[Path, typer.Option(help="JSON file: a list of layers, each a list of tokens per device.")],
    scope: Scoped = "pass",
    method: Annotated[str, typer.Option(help=f"One of: {', '.join(ALLOCATORS)}.")] = "optimal",
    hidden_size: HiddenSize = MIXTRAL.hidden_size,
    ffn_size: FfnSize = MIXTRAL.ffn_size,
    as_json: AsJson = False,
) -> None:
    """Split the bandwidth for given device loads, P3 (Eq. 19-21), with a proof of how good the split is."""
    loaded = load_profile(profile)
    if loaded.rates == "measured":
        raise AllocationError(f"{loaded.name}: its rates are measured and fixed, so there is no bandwidth to split")
    try:
        device_load = _read_loads(loads)
        channel = _channel_of_layers(loaded, len(device_load))
        budget = link_budget(loaded, channel, ExpertShape(hidden_size, ffn_size))
        answer = allocate(method, scope, budget, device_load, loaded.total_bandwidth_hz, certified=True)
    except AllocationError as error:
        raise AllocationError(f"{loads}: {error}") from None
    if as_json:
        _print(
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
    _print([dict(zip(names, row, strict=True)) for row in answer.bandwidth_hz[0].tolist()])
    print(
        f"hertz per device, one row per {scope}; waiting latency {answer.waiting_latency_s[0]:.6g} s, "
        f"at most {answer.relative_gap[0]:.1e} above the optimum; method {method}, profile {loaded.name}"
    )


def _channel_of_layers(profile: ChannelProfile, layers: int) -> Channel:
    """The profile's draw; one per layer where its fading changes so often."""
    if profile.fading.coherence != "layer":
        return draw_channel(profile)
    gains = np.array([draw_channel(profile, layer=layer).downlink_gain for layer in range(layers)])
    return Channel(gains, gains)


def _read_loads(path: Path) -> list[list[float]]:
    try:
        return TypeAdapter(list[list[Annotated[float, Strict()]]]).validate_json(path.read_bytes()) or [[]]
    except OSError as error:
        raise AllocationError(f"cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        rule = "must be a list of layers, each a list of tokens per device"
        if first["type"] == "json_invalid":
            raise AllocationError(f"must be JSON: {first['msg'].removeprefix('Invalid JSON: ')}") from None
        where = "".join(f"[{part}]" for part in first["loc"])
        raise AllocationError(f"{rule}; {where or 'it'} is {str(first['input'])[:40]}") from None


@app.command("replay")
def replay_command(
    traces: Annotated[list[Path], typer.Argument(metavar="TRACE...", help="Sealed routing traces of a run.")],
    profile: Annotated[str, typer.Option(help="Channel profile: name or file.")],
    allocation: Annotated[str, typer.Option(help=f"One of: {', '.join(ALLOCATORS)}.")] = "uniform",
    scope: Scoped = "pass",
    sweep: Annotated[
        str | None,
        typer.Option(help="KEY=FROM:TO:POINTS, as total_bandwidth_hz=20e6:120e6:6 or devices[0].distance_m=…"),
    ] = None,
    draws: Annotated[int, typer.Option(min=1, max=MOST_DRAWS, help="Fading draws; the first is the run's own.")] = 1,
    payload_bits: Annotated[int | None, typer.Option(help="Bits per value instead of the profile's.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")] = False,
    as_json: AsJson = False,
) -> None:
    """Attention waiting latency of recorded passes under any profile with the same devices, Eq. (11).

    wdmoe replay RUN/predictions/*/*.trace.safetensors --profile paper_8_devices --sweep total_bandwidth_hz=20e6:120e6:6
    """
    if as_csv and as_json:
        raise WdmoeError("--csv and --json exclude each other")
    loaded = load_profile(profile)
    if payload_bits is not None:
        loaded = changed_profile(loaded, "payload_bits", payload_bits)
    read = [read_trace(path) for path in traces]
    for trace in read:
        check_same_devices(trace, loaded)
    points = _sweep_points(loaded, sweep)
    records, passes = _replayed(read, points, sweep.split("=")[0] if sweep else None, allocation, scope, draws)
    infinite_mean = draws > 1 and loaded.fading.model == "rayleigh"
    if as_json:
        answer: dict[str, Any] = dict(allocation=allocation, scope=scope, profile_hash=loaded.content_hash)
        answer["recorded_profile_hashes"] = sorted({trace.metadata.profile_hash for trace in read})
        answer |= dict(draws=draws, notes=[INFINITE_MEAN] if infinite_mean else [])
        if sweep is None:  # a mean over the points of a sweep would be of no system
            total = sum(record["passes"] for record in records)
            answer["mean_waiting_latency_s"] = sum(r["passes"] * r["mean_waiting_latency_s"] for r in records) / total
            answer["passes"] = passes
        _print(answer | dict(summary=records))
        return
    _print(records, as_csv)
    if not as_csv:
        print(f"mean per forward pass; allocation {allocation}, scope {scope}")
        print(f"replayed under profile {loaded.name} (hash {loaded.content_hash[:12]})")
        for name, run_hash in dict.fromkeys((t.metadata.profile.name, t.metadata.profile_hash[:12]) for t in read):
            print(f"recorded, and experts selected, under profile {name} (hash {run_hash})")
        if infinite_mean:
            print(INFINITE_MEAN)


def _sweep_points(profile: ChannelProfile, sweep: str | None) -> list[tuple[float | None, ChannelProfile]]:
    if sweep is None:
        return [(None, profile)]
    match = re.fullmatch(r"([^=]+)=([^:]+):([^:]+):(\d+)", sweep)
    try:
        if match is None:
            raise ValueError
        first, last, points = float(match[2]), float(match[3]), int(match[4])
    except ValueError:
        raise WdmoeError(f"--sweep must be KEY=FROM:TO:POINTS, got {sweep!r}") from None
    if not (1 <= points <= MOST_POINTS and np.isfinite([first, last]).all()):
        raise WdmoeError(f"--sweep must have 1 to {MOST_POINTS} points between finite numbers, got {sweep!r}")
    values = np.linspace(first, last, points)
    return [(float(value), changed_profile(profile, match[1], float(value))) for value in values]


def _replayed(
    traces: list[RoutingTrace],
    points: list[tuple[float | None, ChannelProfile]],
    key: str | None,
    allocation: str,
    scope: str,
    draws: int,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """-> one record per sweep point and trace, and, for the runs' own draws alone, one per forward pass."""
    records: list[dict[str, Any]] = []
    passes: list[dict[str, Any]] = []
    with _Progress(len(points) * len(traces)) as progress:
        for value, profile in points:
            for trace in traces:
                record: dict[str, Any] = {key: value} if key else {}
                record |= dict(model=trace.metadata.model, dataset=trace.metadata.dataset, passes=len(trace.batch))
                if draws > 1:
                    drawn = replay_draws(trace, profile, allocation, scope, draws, progress.advance)
                    record |= _drawn_columns(drawn)
                elif not len(trace.batch):
                    raise TraceError(f"the trace of {trace.metadata.dataset} holds no forward pass")
                else:
                    own = replay(trace, profile, allocation, scope, progress.advance)
                    record |= _own_columns(own)
                    passes += own.records()
                origin = dict(allocation=allocation, scope=scope, profile_hash=profile.content_hash[:12])
                records.append(record | origin | dict(recorded_profile_hash=trace.metadata.profile_hash[:12]))
    return records, passes


def _own_columns(own: ReplayedLatency) -> dict[str, Any]:
    energy = own.energy
    columns = dict(
        mean_waiting_latency_s=own.mean_s("pass", "all"),
        mean_downlink_energy_j=own.mean(energy.downlink_j, "pass", "all"),
        mean_uplink_energy_j=own.mean(energy.uplink_j, "pass", "all"),
    )
    if energy.computation_j is not None:
        columns["mean_computation_energy_j"] = own.mean(energy.computation_j, "pass", "all")
    return columns


def _drawn_columns(drawn: DrawnLatency) -> dict[str, Any]:
    low, high = drawn.quantile_interval_s(0.5) or (None, None)
    return dict(
        median_waiting_latency_s=drawn.quantile_s(0.5),
        median_95_low_s=low,
        median_95_high_s=high,
        **{f"quantile_{share:g}_s": drawn.quantile_s(share) for share in (0.05, 0.95)},
        mean_waiting_latency_s=drawn.mean_s,
        standard_error_s=drawn.standard_error_s,
    )


@app.command("place")
def place_command(
    traces: Annotated[
        list[Path], typer.Argument(metavar="TRACE...", help="Sealed routing traces of one vanilla model.")
    ],
    devices: Annotated[int | None, typer.Option(help="Use the first N devices of the profile; default all.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write a channel profile with our placement: FILE.yaml.")] = None,
    profile: Annotated[str | None, typer.Option(help="Channel profile: name or file; default the run's own.")] = None,
    objective: Annotated[str, typer.Option(help=f"What to minimise: {' or '.join(OBJECTIVES)}.")] = "latency",
    experts_per_device: Annotated[
        int | None, typer.Option(min=1, help="Most experts a device holds; default experts / devices, rounded up.")
    ] = None,
    time_limit: Annotated[
        float, typer.Option(min=0, help="Seconds for the exact solver; 0: local search only.")
    ] = 30.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the local search's random starts.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Place experts often chosen together on one device, Section V-D; exact for pairs (K = 2), a heuristic beyond.

    wdmoe place RUN/predictions/VANILLA/*.trace.safetensors --devices 4 --out placed.yaml
    """
    if out is not None and out.suffix not in (".yaml", ".yml"):
        raise WdmoeError(f"{out}: a channel profile file must end in .yaml")
    if out is not None and profile is not None and out.resolve() == Path(profile).resolve():
        raise WdmoeError(f"{out}: --out would overwrite the profile that is read; give another name")
    loaded = None if profile is None else load_profile(profile)
    read = [read_trace(path) for path in traces]
    with _Progress(2) as progress:
        answer = compare_placements(
            read, loaded, devices, objective, experts_per_device, time_limit, seed, progress.advance
        )
    if out is not None:
        try:
            out.write_text(profile_text(answer, read))
        except OSError as error:
            raise WdmoeError(f"{out}: cannot be written: {error.strerror}") from None
    if as_json:
        _print(_placement_record(answer))
        return
    _print(answer.records())
    print(f"least {objective}; experts per device: at most {answer.experts_per_device}; savings against the default")
    for name, experts in answer.experts_of(answer.ours).items():
        print(f"{name}: {' '.join(map(str, experts)) or 'no expert'}")
    for note in answer.notes:
        print(f"note: {note}")
    if out is not None:
        print(f"written: {out}")


def _placement_record(answer: Comparison) -> dict[str, Any]:
    placements = [
        record | dict(experts_of_device=answer.experts_of(judged))
        for record, judged in zip(answer.records(), answer.judged, strict=True)
    ]
    placed = placed_profile(answer.profile, answer.ours.device_of_expert)
    return dict(
        objective=answer.objective,
        experts_per_device=answer.experts_per_device,
        profile_hash=placed.content_hash,
        placement={str(expert): name for expert, name in placed.placement.experts.items()},
        placements=placements,
        notes=answer.notes,
    )


class _Progress:
    """A progress bar on standard error, shown on a terminal once the work has taken two seconds."""

    def __init__(self, total: float):
        self.total = total
        self.started = time.monotonic()
        self.bar: Progress | None = None

    def __enter__(self) -> "_Progress":
        self.done = 0.0
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self, share: float) -> None:
        """Add a share of one unit of work."""
        self.done += share
        if self.bar is None and time.monotonic() - self.started > 2 and sys.stderr.isatty():
            self.bar = Progress(console=Console(stderr=True))
            self.bar.start()
            self.bar.add_task("working", total=self.total)
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=self.done)


@app.command("plan")
def plan_command(
    config: Annotated[Path, typer.Argument(help="OpenCompass config, as given to the opencompass command.")],
    as_json: AsJson = False,
) -> None:
    """What a run would read, compute and leave, without loading weights; exit code 1 if it could not work."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # OpenCompass and its loaders talk a lot
        from .harness.plan import make_plan

        plan = make_plan(config)
    if as_json:
        _print(asdict(plan) | dict(can_work=not plan.problems))
    else:
        for rows in (plan.model_rows(), plan.dataset_rows(), plan.run_rows()):
            _print(rows)
            print()
        for kind, sentences in (("note", plan.notes), ("problem", plan.problems)):
            for sentence in sentences:
                print(f"{kind}: {sentence}")
        print("this run cannot work" if plan.problems else "this run can work")
    if plan.problems:
        raise typer.Exit(1)


@app.command("calibrate")
def calibrate_command(
    sources: Annotated[
        list[Path], typer.Argument(metavar="MODEL|TRACE...", help="A model's folder or name, or sealed routing traces.")
    ],
    out: Annotated[Path, typer.Option(help="File to write, ending in .calibration.safetensors.")],
    text: Annotated[Path | None, typer.Option(help="Text to run a model on.")] = None,
    tokens: Annotated[int, typer.Option(min=16, help="Tokens of the text to use.")] = 2048,
    dtype: Annotated[str, typer.Option(help="Precision to load a model in.")] = "auto",
) -> None:
    """Measure the constants that some policies need, and a sample of routing to match kept shares on.

    wdmoe calibrate quickstart/model --text my_text.txt --out my.calibration.safetensors

    Traces alone give the median weight ratios of `naee`, nothing more.
    """
    from .selection.calibration import CALIBRATION_SUFFIX

    if not out.name.endswith(CALIBRATION_SUFFIX):
        raise WdmoeError(f"--out must end in {CALIBRATION_SUFFIX}, got {out}")
    if all(path.name.endswith(SEALED_SUFFIX) for path in sources):
        from .routing.calibrate import calibrate_from_traces

        calibration = calibrate_from_traces([read_trace(path) for path in sources])
    elif len(sources) == 1 and text is not None:
        from .routing.calibrate import calibrate, load_model, read_chunks

        model, tokenizer = load_model(str(sources[0]), dtype)
        with _Progress(1) as progress:
            calibration = calibrate(model, read_chunks(tokenizer, text, tokens), str(sources[0]), progress.advance)
    else:
        raise WdmoeError("give one model and --text FILE, or sealed routing traces alone")
    calibration.write(out)
    print(f"{out}: {', '.join(f'{name} {list(part.shape)}' for name, part in calibration.parts().items())}")


@app.command("figures")
def figures_command(run_folder: Annotated[Path, typer.Argument(help="OpenCompass's time-stamped folder.")]) -> None:
    """Draw Figures 5 to 8 of the paper from a run's traces into its summary folder, as PNG and PDF."""
    from .report.figures import write_figures
    from .report.tables import benchmarks_of, runs_from_traces

    runs = runs_from_traces(run_folder)
    benchmarks = benchmarks_of([dataset for run in runs for dataset in run.traces], runs[0].groups)
    try:
        with _Progress(1) as progress:
            written = write_figures(runs, benchmarks, run_folder / "summary", progress.advance)
    except OSError as error:
        raise WdmoeError(f"{run_folder / 'summary'}: cannot be written: {error.strerror}") from None
    for path in written:
        print(path)


@app.command("report")
def report_command(
    run_folder: Annotated[Path, typer.Argument(help="OpenCompass's time-stamped folder.")],
    form: Annotated[Format, typer.Option("--format", help="Format of the two main tables.")] = Format.md,
    html: Annotated[bool, typer.Option("--html", help="Write the whole run as one page: summary/report.html.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print a run's main tables, or write its page; exit code 1 if a cell is empty, with the reason of each."""
    from .report.summary import MAIN
    from .report.tables import MAIN_TABLES_FILE, MISSING_FILE

    summary = run_folder / "summary"
    missing = _read_summary(run_folder, MISSING_FILE)
    form = Format.json if as_json else form
    if html:
        _write_page(run_folder, as_json)
    elif form == Format.md:
        print((summary / MAIN_TABLES_FILE).read_text())
        print(f"all formats: {summary}")
    elif form == Format.json:
        _print({name: json.loads((summary / f"{name}.json").read_text()) for name in MAIN})
    else:
        print("\n".join((summary / f"{name}.{form.value}").read_text() for name in MAIN), end="")
    for cell in missing:
        print(f"empty: {cell}", file=sys.stderr)
    if missing:
        raise typer.Exit(1)


def _write_page(run_folder: Path, as_json: bool) -> None:
    from .report.html.page import write_page
    from .report.publication import list_in_manifest

    try:
        path, page = write_page(run_folder)
        list_in_manifest(run_folder, path)
    except OSError as error:
        raise WdmoeError(f"{run_folder / 'summary'}: cannot be written: {error.strerror}") from None
    if as_json:
        _print(dict(page=str(path), bytes=path.stat().st_size, data_bytes=page.data_bytes, left_out=page.left_out))
        return
    print(path)
    for sentence in page.left_out:
        print(f"left out: {sentence}")


@app.command("compare")
def compare_command(
    run_a: Annotated[Path, typer.Argument(help="Time-stamped folder of one run.")],
    run_b: Annotated[Path, typer.Argument(help="Time-stamped folder of another.")],
    form: Annotated[Format, typer.Option("--format", help="Format of the table.")] = Format.md,
) -> None:
    """Differences between two runs, B - A, with intervals and p values: accuracy and latency that both measured."""
    from .report.compare import compared, notes_of
    from .report.tables import formatted

    records = [
        {name: _read_summary(folder, f"{name}.json") for name in ("accuracy", "latency", "origin", "groups")}
        | {name: _read_summary(folder, f"{name}.json", []) for name in ("items", "batches")}  # not in older runs
        for folder in (run_a, run_b)
    ]
    print(formatted(compared(*records), notes_of(*records), form.value), end="")


@app.command("verify")
def verify_command(
    run_folder: Annotated[Path, typer.Argument(help="Time-stamped folder of a finished run.")],
    as_json: AsJson = False,
) -> None:
    """Compute every result and table again from predictions and traces; exit code 1 if one does not match.

    Runs the run's own config and evaluators, as OpenCompass did; call it from the folder where the run was started, so
    that relative data paths hold. The run itself is only read.
    """
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # OpenCompass talks a lot on import
        from .harness.verify import verify

        verdict = verify(run_folder)
    matches = not verdict.mismatches
    if as_json:
        _print(asdict(verdict) | dict(matches=matches))
    else:
        for sentence in [*map(str, verdict.mismatches), *(f"note: {note}" for note in verdict.notes)]:
            print(sentence)
        print(
            f"{run_folder}: all {verdict.compared} files of results and tables match"
            if matches
            else f"{run_folder}: {len(verdict.mismatches)} mismatches"
        )
    if not matches:
        raise typer.Exit(1)


@app.command("frontier")
def frontier_command(
    run_folder: Annotated[Path, typer.Argument(help="OpenCompass's time-stamped folder.")],
    form: Annotated[Format, typer.Option("--format", help="Format of the table.")] = Format.md,
) -> None:
    """Accuracy against waiting latency of every policy of a run, with intervals; exit code 1 if there is but one."""
    from .report.frontier import FRONTIER

    summary = run_folder / "summary"
    if len(_read_summary(run_folder, "frontier_records.json")) < 2:
        print(f"{run_folder}: no two models of the same weights and profile to compare", file=sys.stderr)
        raise typer.Exit(1)
    print((summary / f"{FRONTIER}.{form.value}").read_text(), end="")
    if form == Format.md:
        print(f"\nfigure: {summary / FRONTIER}.png, .pdf")


@app.command("predict")
def predict_command(
    run_folder: Annotated[Path, typer.Argument(help="Time-stamped folder of a run on a testbed.")],
    profile: Annotated[
        str | None, typer.Option(help="Channel profile with the run's devices: name or file; default: the run's own.")
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="Format of the table.")] = Format.md,
    layers: Annotated[bool, typer.Option("--layers", help="Print every layer of every pass instead, as CSV.")] = False,
) -> None:
    """Predicted beside measured waiting latency of a testbed's run, from its traces and the times beside them."""
    from .report.tables import formatted, runs_from_traces
    from .report.testbed import measured_runs, prediction_notes, prediction_records, prediction_table

    chosen = None if profile is None else load_profile(profile)
    measured = measured_runs(runs_from_traces(run_folder), run_folder / "predictions")
    records, rows = prediction_records(measured, chosen)
    reasons = [f"{one.run.abbr}, {dataset}: {why}" for one in measured for dataset, why in one.missing.items()]
    if not records:
        raise TraceError("; ".join(reasons) or f"{run_folder}: no measured times beside its traces; no testbed ran it")
    if layers:
        print(rows.to_csv(index=False, lineterminator="\n"), end="")
    elif form == Format.json:
        _print(dict(predictions=records, notes=prediction_notes(measured, chosen)))
    else:
        print(formatted(prediction_table(records), prediction_notes(measured, chosen), form.value), end="")
    for reason in reasons:
        print(f"empty: {reason}", file=sys.stderr)
    if reasons:
        raise typer.Exit(1)


def _read_summary(run_folder: Path, name: str, otherwise: Any = None) -> Any:
    try:
        return json.loads((run_folder / "summary" / name).read_text())
    except OSError:
        if otherwise is not None:
            return otherwise
        raise WdmoeError(
            f"{run_folder}: no tables in its summary folder; give the time-stamped folder of a finished run whose "
            "config has summarizer=dict(type=WdmoeSummarizer)"
        ) from None
    except ValueError:
        raise WdmoeError(f"{run_folder / 'summary' / name}: not JSON; write it anew with --mode viz -r") from None


def _device_records(profile: ChannelProfile, shape: ExpertShape) -> list[dict[str, Any]]:
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


def _print(content: Any, as_csv: bool = False) -> None:
    """A dict as JSON; a list of records as a table, plain where the output is not a terminal, or as CSV."""
    if isinstance(content, dict):
        print(json.dumps(content, indent=1, allow_nan=False))
        return
    if not content:
        print("nothing to show")
        return
    if as_csv:
        writer = csv.DictWriter(sys.stdout, list(content[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(content)
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
