"""What a testbed measured: Tables III and IV, Figure 10, and predicted beside measured waiting latency."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .._util.file_names import dataset_file
from ..channel.profile import ChannelProfile, changed_profile
from ..errors import TraceError, WdmoeError
from ..latency import Array
from ..replay import replay
from ..trace.format import RoutingTrace
from ..trace.times import TIMES_SUFFIX, MeasuredTimes, check_belongs, read_times
from .batches import BatchSums, grouped_sums
from .cells import figure_text
from .differences import cell_notes, difference_records
from .figures import panel_grid, save_figure
from .provenance import footnote, origin_notes, profile_line, provenance
from .statistics import Interval, latency_interval
from .tables import (
    BATCH_METHOD,
    ModelRun,
    accuracy_notes,
    bracketed,
    column_of,
    latency_ratio,
    table_1,
    vanilla_of,
    write_json,
    write_table,
)

TABLE_3, TABLE_4, FIGURE_10 = "table_3_testbed_accuracy", "table_4_testbed_latency", "figure_10_testbed_latency"
PREDICTION, LAYER_PASSES = "testbed_prediction", "testbed_layer_passes.csv"
OTHER_LAB = "measured on another testbed than vanilla's"
MAX_POINTS = 24  # on a line of Figure 10; more numbers of tokens are put together, equally many layers in each
COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")  # Okabe-Ito

ACCURACY_TEXT = "accuracy in % with the experts on the testbed's devices, as OpenCompass's evaluators score it"
LATENCY_TEXT = (
    "measured attention waiting latency of one MoE layer in ms per batch: summed over the batch's forward passes, mean "
    "over the layers; in brackets the gain against vanilla of the same weights, profile and testbed, 1 - latency / "
    "vanilla's, with its interval"
)
INTERVALS = BATCH_METHOD.replace(
    "under the run's own channel draws (paired", "as measured, vanilla and policy one after the other (paired"
).replace("not of other fading", "not of a radio or a machine that became slower between the two runs")
FIGURE_TEXT = "line: mean over layers and passes with so many tokens; band: least and most; as measured"
PREDICTION_TEXT = (
    "waiting latency of each MoE layer of each forward pass that had a token on a device: predicted from the recorded "
    "loads and the profile (load x bits / rate both ways + evaluations x FLOPs / device FLOP/s; where rates are "
    "measured less the burst of a link, + the fixed seconds of a message and those of each further message of the "
    "layer; slowest device, Eq. (4) to (11), bandwidth split evenly), beside what was measured from the first message "
    "to the last answer; relative error |predicted / measured - 1|"
)


@dataclass
class MeasuredRun:
    """A model's run on a testbed.

    measured: dataset -> its traces, each with the times beside it
    missing:  dataset -> why there are none
    """

    run: ModelRun
    measured: dict[str, list[tuple[RoutingTrace, MeasuredTimes]]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def pairs_of(self, benchmark: str) -> list[tuple[RoutingTrace, MeasuredTimes]]:
        """All traces and times of a benchmark; none where one of its datasets has none."""
        found = [self.measured.get(dataset, []) for dataset in self.run.datasets_of(benchmark)]
        return [pair for pairs in found for pair in pairs] if all(found) else []

    @property
    def labs(self) -> set[tuple[str, tuple[str, ...]]]:
        """The testbeds it was measured on."""
        every = [times.metadata for pairs in self.measured.values() for _, times in pairs]
        return {(one.lab_hash, one.devices) for one in every}


def measured_runs(runs: Sequence[ModelRun], predictions: Path) -> list[MeasuredRun]:
    """The runs beside whose traces measured times lie, in `predictions/<model>/`."""
    found = [_measured_run(run, predictions) for run in runs]
    return [one for one in found if one.measured or any(why for why in one.missing.values())]


def _measured_run(run: ModelRun, predictions: Path) -> MeasuredRun:
    one = MeasuredRun(run)
    for dataset, traces in run.traces.items():
        paths = [dataset_file(predictions, run.abbr, trace.metadata.dataset, TIMES_SUFFIX) for trace in traces]
        there = [path.exists() for path in paths]
        if not any(there):
            continue
        try:
            pairs = [(trace, read_times(path)) for trace, path in zip(traces, paths, strict=True)]
            for trace, times in pairs:
                check_belongs(times, trace)
            one.measured[dataset] = pairs
        except TraceError as error:
            one.missing[dataset] = str(error)
    if one.measured:
        one.missing |= {d: "no measured times beside its trace" for d in run.traces if d not in _known(one)}
    return one


def _known(one: MeasuredRun) -> set[str]:
    return {*one.measured, *one.missing}


# -- Tables III and IV -----------------------------------------------------------------------------------------------
def table_3(measured: Sequence[MeasuredRun], benchmarks: Sequence[str]) -> pd.DataFrame:
    """As Table I, of the runs with measured times: accuracy, its difference from vanilla, and how much was dropped."""
    own_runs = [one.run for one in measured]
    return table_1(own_runs, benchmarks, difference_records(own_runs, benchmarks))


def measured_sums(parts: Sequence[MeasuredTimes], layer: int | None = None) -> BatchSums:
    """Measured waiting latency of one layer over batches of the same items; layer None: mean over the layers."""

    def waiting_s(times: MeasuredTimes) -> Array:
        waiting = times.waiting_s.astype(np.float64)  # [passes, layers]
        return waiting.mean(axis=1) if layer is None else waiting[:, layer]

    return grouped_sums((times, times.batch, waiting_s(times)) for times in parts)


def waiting_records(
    measured: Sequence[MeasuredRun], benchmarks: Sequence[str], layer: int | None = None
) -> list[dict[str, Any]]:
    """One record per model and benchmark of Table IV: latency_s and gain with the ends of their 95 % intervals.

    gain is 1 - latency / vanilla's; None for vanilla itself, and where there is no vanilla to compare with. An interval
    that is lacking is None, for the reason in no_interval.
    """
    sums = {
        (one.run.abbr, benchmark): measured_sums([times for _, times in one.pairs_of(benchmark)], layer)
        for one in measured
        for benchmark in benchmarks
        if one.pairs_of(benchmark)
    }
    records = []
    for (abbr, benchmark), own in sums.items():
        if not own.batches.sum():
            continue
        one = next(one for one in measured if one.run.abbr == abbr)
        low, high = latency_interval(own.latency_s, own.count("batch")) or (None, None)
        tokens = sum(int(times.pass_tokens.sum()) for _, times in one.pairs_of(benchmark))
        record = dict(model=abbr, policy=one.run.policy, dataset=benchmark, layer=layer, latency_s=_mean_s(own))
        record |= dict(latency_low_s=low, latency_high_s=high, batches=int(own.batches.sum()))
        record |= dict(tokens_per_batch=tokens / own.batches.sum())
        records.append(record | _gain(one, own, measured, sums, benchmark))
    return records


def _mean_s(sums: BatchSums) -> float:
    return float(sums.latency_s.sum() / sums.batches.sum())


def _gain(
    one: MeasuredRun,
    own: BatchSums,
    measured: Sequence[MeasuredRun],
    sums: dict[tuple[str, str], BatchSums],
    benchmark: str,
) -> dict[str, Any]:
    nothing = dict(gain=None, gain_low=None, gain_high=None, no_interval=None)
    vanilla = vanilla_of(one.run, [other.run for other in measured], benchmark)
    if vanilla is None or vanilla is one.run or (vanilla.abbr, benchmark) not in sums:
        return nothing
    labs = next(other.labs for other in measured if other.run is vanilla)
    first = sums[vanilla.abbr, benchmark]
    if labs != one.labs or not first.latency_s.sum():
        return nothing | dict(no_interval=OTHER_LAB if labs != one.labs else "vanilla waited 0 s")
    ratio, why = latency_ratio(first, own, "batch")
    low, high = (1 - ratio.high, 1 - ratio.low) if ratio else (None, None)
    return dict(gain=1 - _mean_s(own) / _mean_s(first), gain_low=low, gain_high=high, no_interval=why)


def table_4(records: Sequence[dict[str, Any]], benchmarks: Sequence[str]) -> pd.DataFrame:
    """Models by benchmarks: latency in ms with its interval; in brackets the gain and its interval.

    A gain without an interval is not shown.
    """
    rows: list[dict[str, str]] = []
    for model, policy in dict.fromkeys((r["model"], r["policy"]) for r in records):
        cells = {r["dataset"]: _cell(r) for r in records if r["model"] == model}
        rows.append({"model": model, "policy": policy} | {column_of(b): cells.get(b, "-") for b in benchmarks})
    if records:
        sizes = {r["dataset"]: f"{r['tokens_per_batch']:.1f}" for r in reversed(records)}
        rows.append({"model": "tokens per batch", "policy": ""} | {column_of(b): sizes.get(b, "-") for b in benchmarks})
    return pd.DataFrame(rows)


def _cell(record: dict[str, Any]) -> str:
    low, high = record["latency_low_s"], record["latency_high_s"]
    interval = None if low is None else Interval(1e3 * low, 1e3 * high)
    text = " ".join([f"{1e3 * record['latency_s']:.3f}", *bracketed(interval, "{:.3f}")])
    if record["gain_low"] is None:
        return text
    gain = Interval(100 * record["gain_low"], 100 * record["gain_high"])
    return f"{text} ({100 * record['gain']:+.1f} % {bracketed(gain)[0]})"


# -- Figure 10 -------------------------------------------------------------------------------------------------------
def token_bins(tokens: Array, waiting_s: Array) -> Array:
    """-> [4, points] mean number of tokens, then mean, least and most seconds.

    tokens, waiting_s: [n] layers of passes. One point per number of tokens, or MAX_POINTS with equally many layers
    where there are more numbers; equal numbers stay together.
    """
    numbers, which = np.unique(tokens, return_inverse=True)
    if len(numbers) > MAX_POINTS:
        before = np.searchsorted(np.sort(tokens), numbers)  # layers with fewer tokens
        which = (before * MAX_POINTS // len(tokens))[which]
    points = [(tokens[which == n], waiting_s[which == n]) for n in np.unique(which)]
    return np.array([(t.mean(), s.mean(), s.min(), s.max()) for t, s in points]).T


def figure_10(measured: Sequence[MeasuredRun], benchmarks: Sequence[str], layer: int | None = None) -> Any:
    """Measured latency of one layer against the tokens of its pass: mean line, min-max band; layer None: of any."""
    figure, panels = panel_grid(len(benchmarks))
    for panel, benchmark in zip(panels, benchmarks):
        for number, one in enumerate(measured):
            pairs = one.pairs_of(benchmark)
            points = [_points(times, layer) for _, times in pairs if len(times.pass_tokens)]
            if not points:
                continue
            tokens, mean, least, most = token_bins(*np.concatenate(points, axis=1))
            colour = COLOURS[number % len(COLOURS)]
            panel.plot(tokens, 1e3 * mean, color=colour, marker="o", markersize=3, label=figure_text(one.run.abbr))
            panel.fill_between(tokens, 1e3 * least, 1e3 * most, color=colour, alpha=0.2, linewidth=0)
        panel.set(title=figure_text(benchmark), xlabel="tokens in the forward pass", ylabel="latency of one layer (ms)")
        panel.set_ylim(0, None)
        panel.legend()
    return figure


def _points(times: MeasuredTimes, layer: int | None) -> Array:
    """-> [2, passes x layers] tokens of the pass, seconds of the layer."""
    waiting = times.waiting_s if layer is None else times.waiting_s[:, layer : layer + 1]
    tokens = np.broadcast_to(times.pass_tokens[:, None], waiting.shape)
    return np.array([tokens.ravel(), waiting.ravel()], dtype=np.float64)


# -- predicted | measured --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Prediction:
    """Waiting latency of layers of passes, predicted and measured: [n] each; those with a token on a device alone."""

    batch: NDArray
    pass_index: NDArray
    layer: NDArray
    tokens: NDArray
    predicted_s: Array
    measured_s: Array

    @property
    def relative_error(self) -> Array:
        """-> [n] ``|predicted / measured - 1|``."""
        return np.abs(self.predicted_s / self.measured_s - 1)


def predicted_and_measured(
    trace: RoutingTrace, times: MeasuredTimes, profile: ChannelProfile | None = None
) -> Prediction:
    """Predict every layer of every pass from its recorded loads, and set it beside what was measured.

    profile: of the devices and placement of the run; default: the run's own. Its payload is that on the wire.
    Raises TraceError where trace, times and profile do not belong together.
    """
    check_belongs(times, trace)
    own = changed_profile(profile or trace.metadata.profile, "payload_bits", times.metadata.payload_bits)
    predicted = replay(trace, own, "uniform", "layer").layer_latency_s
    measured = times.waiting_s.astype(np.float64)
    passes, layers = np.nonzero((trace.device_load.sum(axis=2) > 0) & (measured > 0))
    return Prediction(
        batch=times.batch[passes],
        pass_index=times.pass_index[passes],
        layer=layers,
        tokens=times.pass_tokens[passes],
        predicted_s=predicted[passes, layers],
        measured_s=measured[passes, layers],
    )


def _predictions(
    measured: Sequence[MeasuredRun], profile: ChannelProfile | None
) -> Iterator[tuple[str, str, Prediction]]:
    for one in measured:
        for dataset, pairs in one.measured.items():
            for trace, times in pairs:
                yield one.run.abbr, dataset, predicted_and_measured(trace, times, profile)


def prediction_records(
    measured: Sequence[MeasuredRun], profile: ChannelProfile | None = None
) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """-> one record per model and dataset, and one over all; every layer of every pass as a row.

    A record: layer_passes, predicted_s and measured_s (means), median_relative_error, quantile_90_relative_error.
    """
    rows: list[pd.DataFrame] = []
    for model, dataset, found in _predictions(measured, profile):
        columns = {"model": model, "dataset": dataset} | {name: getattr(found, name) for name in found.__annotations__}
        rows.append(pd.DataFrame(columns | {"relative_error": found.relative_error}))
    table = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()
    if table.empty:
        return [], table
    parts = [(model, dataset, part) for (model, dataset), part in table.groupby(["model", "dataset"], sort=False)]
    everything = [("all", "all", table)] if len(parts) > 1 else []
    records = [
        dict(
            model=model,
            dataset=dataset,
            layer_passes=len(part),
            predicted_s=float(part["predicted_s"].mean()),
            measured_s=float(part["measured_s"].mean()),
            median_relative_error=float(part["relative_error"].median()),
            quantile_90_relative_error=float(part["relative_error"].quantile(0.9)),
        )
        for model, dataset, part in [*parts, *everything]
    ]
    return records, table


def prediction_table(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """`predicted | measured` as cells."""
    return pd.DataFrame(
        {
            "model": record["model"],
            "dataset": record["dataset"],
            "layer passes": str(record["layer_passes"]),
            "predicted (ms)": f"{1e3 * record['predicted_s']:.3f}",
            "measured (ms)": f"{1e3 * record['measured_s']:.3f}",
            "median relative error (%)": f"{100 * record['median_relative_error']:.1f}",
            "90 % are below (%)": f"{100 * record['quantile_90_relative_error']:.1f}",
        }
        for record in records
    )


# -- all of it -------------------------------------------------------------------------------------------------------
def write_testbed(
    runs: Sequence[ModelRun],
    benchmarks: Sequence[str],
    predictions: Path,
    folder: Path,
    profile: ChannelProfile | None = None,
) -> list[str]:
    """Write everything that the measured times in `predictions` allow into `folder`; -> lines for the screen.

    profile: what predictions are made from; default: each run's own.
    """
    measured = measured_runs(runs, predictions)
    if not measured:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    lacking = [f"empty: {one.run.abbr}, {d}: {why}" for one in measured for d, why in one.missing.items()]
    own_runs = [one.run for one in measured]
    differences = difference_records(own_runs, benchmarks)
    notes = footnote(own_runs, ACCURACY_TEXT) + accuracy_notes(own_runs) + cell_notes(differences)
    origin = provenance(own_runs)
    write_table(folder / TABLE_3, table_3(measured, benchmarks), notes, origin)
    records = waiting_records(measured, benchmarks)
    write_json(folder / f"{TABLE_4}_records.json", records)
    notes = [*footnote(own_runs, LATENCY_TEXT), f"square brackets: {INTERVALS}", *_gain_notes(records), *lacking]
    printed = [write_table(folder / TABLE_4, table_4(records, benchmarks), notes, origin)]
    present = [b for b in benchmarks if any(one.pairs_of(b) for one in measured)]
    if present:
        save_figure(figure_10(measured, present), folder / FIGURE_10, profile_line(own_runs), FIGURE_TEXT)
    return printed + _write_predictions(measured, folder, profile)


def _gain_notes(records: Sequence[dict[str, Any]]) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for record in records:
        if record["no_interval"]:
            reasons.setdefault(record["no_interval"], []).append(f"{record['model']} on {record['dataset']}")
    return [f"no gain shown: {', '.join(where)}: {why}" for why, where in reasons.items()]


def _write_predictions(measured: Sequence[MeasuredRun], folder: Path, profile: ChannelProfile | None) -> list[str]:
    try:
        records, rows = prediction_records(measured, profile)
    except WdmoeError as error:
        return [f"no prediction beside the measured latency: {error}\n"]
    if not records:
        return []
    rows.to_csv(folder / LAYER_PASSES, index=False)
    write_json(folder / f"{PREDICTION}_records.json", records)
    own_runs = [one.run for one in measured]
    notes = prediction_notes(measured, profile) + origin_notes(own_runs)
    table = write_table(folder / PREDICTION, prediction_table(records), notes, provenance(own_runs))
    return [*assumed(measured, profile), table, f"every layer pass: {folder / LAYER_PASSES}\n"]


def prediction_notes(measured: Sequence[MeasuredRun], profile: ChannelProfile | None) -> list[str]:
    """Lines under the table: what was predicted and from which profiles."""
    traces = [trace for one in measured for pairs in one.measured.values() for trace, _ in pairs]
    every = {one.content_hash: one for one in ([profile] if profile else [t.metadata.profile for t in traces])}
    named = ", ".join(f"{one.name} (hash {key[:12]}, {one.rates} rates)" for key, one in every.items())
    lines = [*assumed(measured, profile), PREDICTION_TEXT, f"predicted from profile {named}; payload as on the wire"]
    return lines + [f"profile {one.name}: {one.origin_sentence}" for one in every.values() if profile]


def assumed(measured: Sequence[MeasuredRun], profile: ChannelProfile | None) -> list[str]:
    """A warning where a prediction is made from physical rates."""
    traces = [trace for one in measured for pairs in one.measured.values() for trace, _ in pairs]
    used = [profile] if profile else [trace.metadata.profile for trace in traces]
    if all(one.rates == "measured" for one in used):
        return []
    return [
        "PREDICTED FROM AN ASSUMED PROFILE: a profile of physical rates is an assumption about the testbed, no "
        "measurement of it; make one by `wdmoe testbed measure`, then `wdmoe predict RUN --profile measured.yaml`"
    ]
