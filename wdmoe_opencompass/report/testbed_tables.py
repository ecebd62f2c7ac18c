"""Measurements of a testbed: Tables III and IV and Figure 10."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..channel.profile import ChannelProfile
from ..latency import Array
from ..trace.times import MeasuredTimes
from .batches import BatchSums, grouped_sums
from .cells import figure_text
from .differences import cell_notes, difference_records
from .figures import panel_grid, save_figure
from .formats import brackets, by_reason, write_json, write_table
from .predictions import write_predictions
from .provenance import footnote, profile_line, provenance
from .records import latency_ratio
from .runs import MeasuredRun, ModelRun, measured_runs, vanilla_of
from .statistics import Interval, latency_interval
from .summary_files import FIGURE_10, TABLE_3, TABLE_4
from .tables import BATCH_METHOD, accuracy_notes, column_of, table_1

OTHER_TESTBED = "measured on another testbed than vanilla's"
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
).replace("not other fading", "not a radio or a machine that became slower between the two runs")
FIGURE_TEXT = "line: mean over layers and passes with that number of tokens; band: minimum and maximum; as measured"


def table_3(measured: Sequence[MeasuredRun], benchmarks: Sequence[str]) -> pd.DataFrame:
    """As Table I, of the runs with measured times: accuracy, its difference from vanilla, and how much was dropped."""
    own_runs = [measured_run.run for measured_run in measured]
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

    gain is 1 - latency / vanilla's; None for vanilla itself, and without a vanilla to compare with. A missing interval
    is None, for the reason in no_interval.
    """
    sums = {
        (measured_run.run.abbr, benchmark): measured_sums(
            [times for _, times in measured_run.pairs_of(benchmark)], layer
        )
        for measured_run in measured
        for benchmark in benchmarks
        if measured_run.pairs_of(benchmark)
    }
    records = []
    for (abbr, benchmark), own in sums.items():
        if not own.batches.sum():
            continue
        measured_run = next(found for found in measured if found.run.abbr == abbr)
        low, high = latency_interval(own.latency_s, own.count("batch")) or (None, None)
        tokens = sum(int(times.pass_tokens.sum()) for _, times in measured_run.pairs_of(benchmark))
        record = dict(
            model=abbr, policy=measured_run.run.policy, dataset=benchmark, layer=layer, latency_s=_mean_s(own)
        )
        record |= dict(latency_low_s=low, latency_high_s=high, batches=int(own.batches.sum()))
        record |= dict(tokens_per_batch=tokens / own.batches.sum())
        records.append(record | _gain(measured_run, own, measured, sums, benchmark))
    return records


def _mean_s(sums: BatchSums) -> float:
    return float(sums.latency_s.sum() / sums.batches.sum())


def _gain(
    measured_run: MeasuredRun,
    own: BatchSums,
    measured: Sequence[MeasuredRun],
    sums: dict[tuple[str, str], BatchSums],
    benchmark: str,
) -> dict[str, Any]:
    nothing = dict(gain=None, gain_low=None, gain_high=None, no_interval=None)
    vanilla = vanilla_of(measured_run.run, [other.run for other in measured], benchmark)
    if vanilla is None or vanilla is measured_run.run or (vanilla.abbr, benchmark) not in sums:
        return nothing
    testbeds = next(other.testbeds for other in measured if other.run is vanilla)
    first = sums[vanilla.abbr, benchmark]
    if testbeds != measured_run.testbeds or not first.latency_s.sum():
        return nothing | dict(no_interval=OTHER_TESTBED if testbeds != measured_run.testbeds else "vanilla waited 0 s")
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
    text = " ".join([f"{1e3 * record['latency_s']:.3f}", *brackets(interval, "{:.3f}")])
    if record["gain_low"] is None:
        return text
    gain = Interval(100 * record["gain_low"], 100 * record["gain_high"])
    return f"{text} ({100 * record['gain']:+.1f} % {brackets(gain)[0]})"


def token_bins(tokens: Array, waiting_s: Array) -> Array:
    """Average latency over layers with the same number of tokens, into at most MAX_POINTS points.

    tokens:    [layers] tokens of the layer's forward pass
    waiting_s: [layers] waiting latency of the layer (s)
    Returns:   [4, points] mean number of tokens; mean, minimum and maximum latency (s). With more than MAX_POINTS
    numbers of tokens, each point has equally many layers, but equal numbers stay together. Source: our choice.
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
        for number, measured_run in enumerate(measured):
            pairs = measured_run.pairs_of(benchmark)
            points = [_points(times, layer) for _, times in pairs if len(times.pass_tokens)]
            if not points:
                continue
            tokens, mean, low, high = token_bins(*np.concatenate(points, axis=1))
            colour = COLOURS[number % len(COLOURS)]
            panel.plot(
                tokens, 1e3 * mean, color=colour, marker="o", markersize=3, label=figure_text(measured_run.run.abbr)
            )
            panel.fill_between(tokens, 1e3 * low, 1e3 * high, color=colour, alpha=0.2, linewidth=0)
        panel.set(title=figure_text(benchmark), xlabel="tokens in the forward pass", ylabel="latency of one layer (ms)")
        panel.set_ylim(0, None)
        panel.legend()
    return figure


def _points(times: MeasuredTimes, layer: int | None) -> Array:
    """-> [2, passes x layers] tokens of the pass, seconds of the layer."""
    waiting = times.waiting_s if layer is None else times.waiting_s[:, layer : layer + 1]
    tokens = np.broadcast_to(times.pass_tokens[:, None], waiting.shape)
    return np.array([tokens.ravel(), waiting.ravel()], dtype=np.float64)


def write_testbed(
    runs: Sequence[ModelRun],
    benchmarks: Sequence[str],
    predictions: Path,
    folder: Path,
    profile: ChannelProfile | None = None,
) -> list[str]:
    """Write all tables and figures of the measured times in `predictions` into `folder`; -> lines for the screen.

    profile: what predictions are made from; default: each run's own.
    """
    measured = measured_runs(runs, predictions)
    if not measured:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    missing = [
        f"empty: {measured_run.run.abbr}, {d}: {why}"
        for measured_run in measured
        for d, why in measured_run.missing.items()
    ]
    own_runs = [measured_run.run for measured_run in measured]
    differences = difference_records(own_runs, benchmarks)
    notes = footnote(own_runs, ACCURACY_TEXT) + accuracy_notes(own_runs) + cell_notes(differences)
    origin = provenance(own_runs)
    write_table(folder / TABLE_3, table_3(measured, benchmarks), notes, origin)
    records = waiting_records(measured, benchmarks)
    write_json(folder / f"{TABLE_4}_records.json", records)
    notes = [*footnote(own_runs, LATENCY_TEXT), f"square brackets: {INTERVALS}", *_gain_notes(records), *missing]
    lines = [write_table(folder / TABLE_4, table_4(records, benchmarks), notes, origin)]
    present = [b for b in benchmarks if any(measured_run.pairs_of(b) for measured_run in measured)]
    if present:
        save_figure(figure_10(measured, present), folder / FIGURE_10, profile_line(own_runs), FIGURE_TEXT)
    return lines + write_predictions(measured, folder, profile)


def _gain_notes(records: Sequence[dict[str, Any]]) -> list[str]:
    reasons = by_reason((record["no_interval"], f"{record['model']} on {record['dataset']}") for record in records)
    return [f"no gain shown: {where}: {why}" for why, where in reasons.items()]
