"""`wdmoe replay`: latencies of recorded passes, computed again."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._util.number_text import decimal
from ..errors import TraceError, WdmoeError
from .console import Progress, print_csv, print_json, print_table
from .options import PROFILE_HELP, Allocator, AsJson, Scope, open_profile, profile_names

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..channel.profile import ChannelProfile
    from ..replay import DrawnLatency, ReplayedLatency
    from ..trace.format import RoutingTrace

EXAMPLES = (
    "wdmoe replay RUN/predictions/*/*.trace.safetensors --profile paper_8_devices",
    "wdmoe replay d.trace.safetensors --draws 100 --csv",
    "wdmoe replay d.trace.safetensors --profile p.yaml --sweep payload_bits=4:8:2",
)
SELECTED_UNDER_ONE = (
    "selection never saw the other draws: it was made under each run's own; a saving is paired, draw by draw, and "
    "given as its median and 5 to 95 % range over the draws"
)
MAX_POINTS, MAX_DRAWS = 10_000, 10_000_000
INFINITE_MEAN = (
    "under Rayleigh fading the expected latency is infinite (a gain can be arbitrarily close to 0): mean and standard "
    "error describe these draws only; compare the medians, with their 95 % intervals"
)


def replay_command(
    traces: Annotated[list[Path], typer.Argument(metavar="TRACE", help="Sealed routing traces of a run.")],
    profile: Annotated[
        str | None, typer.Option(help=f"{PROFILE_HELP} Default: the run's own.", autocompletion=profile_names)
    ] = None,
    allocation: Allocator = "uniform",
    scope: Scope = "layer",
    sweep: Annotated[
        str | None,
        typer.Option(help="KEY=FROM:TO:POINTS, as total_bandwidth_hz=20e6:120e6:6 or devices[0].distance_m=…"),
    ] = None,
    draws: Annotated[
        int,
        typer.Option(
            min=1, max=MAX_DRAWS, help="Fading draws, the first being the run's own; several also give paired savings."
        ),
    ] = 1,
    payload_bits: Annotated[int | None, typer.Option(help="Bits per value instead of the profile's.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compute the attention waiting latency of recorded passes under any profile with the same devices, Eq. (11)."""
    from ..allocation import SCOPE_LABELS
    from ..channel.origin import keys_by_origin
    from ..channel.profile import changed_profile
    from ..replay import check_same_devices
    from ..trace.format import read_trace

    if as_csv and as_json:
        raise WdmoeError("--csv and --json exclude each other")
    read = [read_trace(path) for path in traces]
    loaded = _own_profile(read) if profile is None else open_profile(profile)
    if payload_bits is not None:
        loaded = changed_profile(loaded, "payload_bits", payload_bits)
    for trace in read:
        check_same_devices(trace, loaded)
    points = _sweep_points(loaded, sweep)
    records, passes = _replay(read, points, sweep.split("=")[0] if sweep else None, allocation, scope, draws)
    notes = list(dict.fromkeys(note for trace in read for note in trace.metadata.routed_notes()))
    notes += [SELECTED_UNDER_ONE, INFINITE_MEAN] if draws > 1 and loaded.fading.model == "rayleigh" else []
    if as_json:
        answer: dict[str, Any] = dict(allocation=allocation, scope=scope, profile_hash=loaded.content_hash)
        answer["origin"] = keys_by_origin(loaded.value_origins())
        answer["recorded_profile_hashes"] = sorted({trace.metadata.profile_hash for trace in read})
        answer |= dict(draws=draws, notes=notes)
        if sweep is None:  # a mean over the points of a sweep would be of no system
            total = sum(record["passes"] for record in records)
            answer["mean_waiting_latency_s"] = sum(r["passes"] * r["mean_waiting_latency_s"] for r in records) / total
            answer["passes"] = passes
        print_json(answer | dict(summary=records))
        return
    if as_csv:
        print_csv(records)
    else:
        label = SCOPE_LABELS[scope]
        print_table([record | dict(scope=label) for record in records])
        print(f"mean per forward pass; allocation {allocation}, scope {label}")
        print(f"replayed under profile {loaded.name} (hash {loaded.content_hash[:12]}): {loaded.origin_sentence}")
        for name, run_hash in dict.fromkeys((t.metadata.profile.name, t.metadata.profile_hash[:12]) for t in read):
            print(f"recorded, and experts selected, under profile {name} (hash {run_hash})")
        for note in notes:
            print(note)


def _own_profile(traces: list[RoutingTrace]) -> ChannelProfile:
    found = {trace.metadata.profile_hash: trace.metadata.profile for trace in traces}
    if len(found) > 1:
        names = ", ".join(sorted(f"{profile.name} ({digest[:12]})" for digest, profile in found.items()))
        raise WdmoeError(f"the traces were recorded under different profiles: {names}; say which with --profile")
    return next(iter(found.values()))


def _sweep_points(profile: ChannelProfile, sweep: str | None) -> list[tuple[float | None, ChannelProfile]]:
    import numpy as np

    from ..channel.profile import changed_profile

    if sweep is None:
        return [(None, profile)]
    match = re.fullmatch(r"([^=]+)=([^:]+):([^:]+):([0-9]+)", sweep)
    if match is None:
        raise WdmoeError(f"--sweep must be KEY=FROM:TO:POINTS, got {sweep!r}")
    rule = f"--sweep must have 1 to {MAX_POINTS} points between finite numbers, got {sweep!r}"
    try:
        first, last, points = decimal(match[2]), decimal(match[3]), int(decimal(match[4]))
    except ValueError as reason:
        raise WdmoeError(f"{rule}: a number {reason}") from None
    if not 1 <= points <= MAX_POINTS:
        raise WdmoeError(rule)
    values = np.linspace(first, last, points)
    return [(float(value), changed_profile(profile, match[1], float(value))) for value in values]


def _replay(
    traces: list[RoutingTrace],
    points: list[tuple[float | None, ChannelProfile]],
    key: str | None,
    allocation: str,
    scope: str,
    draws: int,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """-> one record per sweep point and trace, and one per forward pass if only the runs' own draws are replayed."""
    from ..replay import replay

    records: list[dict[str, Any]] = []
    passes: list[dict[str, Any]] = []
    with Progress("replaying", len(points) * len(traces)) as progress:
        for value, profile in points:
            drawn = _Drawn(traces, profile, allocation, scope, draws)
            for trace in traces:
                record: dict[str, Any] = {key: value} if key else {}
                record |= dict(model=trace.metadata.model, dataset=trace.metadata.dataset, passes=len(trace.batch))
                if draws > 1:
                    record |= drawn.columns(trace, progress.advance)
                elif not len(trace.batch):
                    raise TraceError(f"the trace of {trace.metadata.dataset} holds no forward pass")
                else:
                    own = replay(trace, profile, allocation, scope, progress.advance)
                    record |= _own_columns(own)
                    passes += own.records()
                origin = dict(allocation=allocation, scope=scope, profile_hash=profile.content_hash[:12])
                records.append(record | origin | dict(recorded_profile_hash=trace.metadata.profile_hash[:12]))
    return _without_empty_columns(records), passes


def _without_empty_columns(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records without the saving columns that are empty in all of them."""
    empty = [key for key in records[0] if all(record[key] is None for record in records) and "_saving_" in key]
    return [{key: value for key, value in record.items() if key not in empty} for record in records]


def _own_columns(own: ReplayedLatency) -> dict[str, Any]:
    from ..report.requests import percentiles

    energy = own.energy
    columns = dict(
        mean_waiting_latency_s=own.mean_s("pass", "all"),
        **{f"request_{name}": value for name, value in percentiles(own.request_latency_s).items()},
        mean_downlink_energy_j=own.mean(energy.downlink_j, "pass", "all"),
        mean_uplink_energy_j=own.mean(energy.uplink_j, "pass", "all"),
    )
    if energy.computation_j is not None:
        columns["mean_computation_energy_j"] = own.mean(energy.computation_j, "pass", "all")
    return columns


class _Drawn:
    """Latencies of traces over fading draws under one profile, and what they save against an even split.

    Draw n is the same for all of them. vanilla_even is the even split of the trace with the same weights, scoring and
    batches and the model's own routing, if it is among the traces.
    """

    def __init__(self, traces: list[RoutingTrace], profile: ChannelProfile, allocation: str, scope: str, draws: int):
        self._profile, self._allocation, self._scope, self._draws = profile, allocation, scope, draws
        self._even: dict[int, DrawnLatency] = {}
        vanilla = [trace for trace in reversed(traces) if trace.metadata.routing == "top_k"]
        self._vanilla = {_what_was_run(trace): trace for trace in vanilla}

    def columns(self, trace: RoutingTrace, advance: Callable[[float], None]) -> dict[str, Any]:
        """-> the columns of a trace's record over the draws; a saving against itself or against 0 s is None."""
        from ..replay import replay_draws

        even, vanilla = self._even_of(trace), self._vanilla.get(_what_was_run(trace))
        own, is_even = even, self._allocation == "uniform"
        if not is_even:
            own = replay_draws(trace, self._profile, self._allocation, self._scope, self._draws, advance)
        over_even = None if is_even else own.saving_over(even)
        over_vanilla = own.saving_over(self._even_of(vanilla)) if vanilla else None
        if is_even and vanilla is trace:
            over_vanilla = None
        columns = _drawn_columns(own) | _saving_columns("even", over_even)
        return columns | _saving_columns("vanilla_even", over_vanilla)

    def _even_of(self, trace: RoutingTrace) -> DrawnLatency:
        from ..replay import replay_draws

        if id(trace) not in self._even:
            self._even[id(trace)] = replay_draws(trace, self._profile, "uniform", self._scope, self._draws)
        return self._even[id(trace)]


def _what_was_run(trace: RoutingTrace) -> tuple:
    """What the traces of two models must have in common for their latencies to be compared."""
    from ..identity import key_of
    from ..report.batches import batch_key

    metadata = trace.metadata
    answered = key_of(metadata.identity) if metadata.identity else f"{metadata.weights} {metadata.perplexity}"
    return answered, metadata.test_range, *batch_key(trace)


def _saving_columns(against: str, saving: NDArray | None) -> dict[str, float | None]:
    import numpy as np

    shares = {"median": 0.5, "quantile_0.05": 0.05, "quantile_0.95": 0.95}
    return {
        f"{name}_saving_over_{against}": None if saving is None else float(np.quantile(saving, share))
        for name, share in shares.items()
    }


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
