"""Table I (accuracy) and Table II (attention waiting latency) of a run, as CSV, Markdown, LaTeX and JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd

from .._util.atomic_write import write_whole
from .._util.file_names import files_below, whole_of
from .._util.json_values import changed
from .._util.utf8_text import all_replaced
from ..allocation.base import Scope
from ..errors import TraceError, visible
from ..identity import Facts, differing
from ..identity.facts import sentence
from ..replay import pooled_mean, replay
from ..trace.format import PHASES, SEALED_SUFFIX, RoutingTrace, read_trace
from .batches import OTHER_BATCHES, BatchSums, batch_sums, why_no_interval
from .cells import LATEX_LETTER, LATEX_PREAMBLE, csv_field, latex_row, markdown_cell, markdown_note
from .items import ItemResults
from .statistics import (
    CONFIDENCE,
    Interval,
    accuracy_interval,
    latency_interval,
    latency_ratio_interval,
    wilson_interval,
)

SCOPES = get_args(Scope)
OPTIMISED = "optimal"
EVEN = "vanilla_even"  # the row that savings are relative to
ROWS = {  # row name -> (is it the vanilla model's trace, bandwidth allocation), in Table II's order
    "vanilla_even": (True, "uniform"),
    "selection_only": (False, "uniform"),
    "allocation_only": (True, OPTIMISED),
    "both": (False, OPTIMISED),
}


DENSE = "dense"  # the policy column of a model without experts


@dataclass
class ModelRun:
    """One model of a run: what its config says and what it left.

    base:       path of the weights as the config names it, and the channel profile's hash
    identities: dataset -> every fact that its answers depend on besides policy and profile; where there are none those
                of its traces count
    asked:      dataset -> the same as the configs alone say it, for traces that do not tell
    scored:     dataset -> what was asked and how answers were scored, which no trace says; part of its identity
    accuracies: dataset -> (metric, value in percent)
    traces:     dataset -> its routing traces, several where OpenCompass split the dataset
    missing:    dataset -> why there is no accuracy or no trace
    groups:     benchmark -> the run's datasets that it is made of (MMLU's subjects); other benchmarks are one dataset
    group_size: benchmark -> datasets that a whole one has
    items:      dataset -> which of its items were answered right
    no_items:   dataset with an accuracy -> why that is not known: its accuracy has no interval then
    sources:    dataset -> files its traces and times were read from, by path in the run folder -> SHA-256 of each
    trace_names: dataset -> its name, or those of its parts, whose files the traces were read from
    own_batch_sizes: dataset -> the batch size that its own inferencer names in place of the model's
    batch_size: as the config names it; couples_tokens: whether what a token keeps depends on the others of its pass
    perplexity: how texts were scored, `stock` or `exact`
    """

    abbr: str
    policy: str
    base: tuple[str, str]
    accuracies: dict[str, tuple[str, float]] = field(default_factory=dict)
    traces: dict[str, list[RoutingTrace]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=dict)
    group_size: dict[str, int] = field(default_factory=dict)
    items: dict[str, ItemResults] = field(default_factory=dict)
    no_items: dict[str, str] = field(default_factory=dict)
    sources: dict[str, dict[str, str]] = field(default_factory=dict)
    trace_names: dict[str, list[str]] = field(default_factory=dict)
    own_batch_sizes: dict[str, int] = field(default_factory=dict)
    batch_size: int | None = None
    couples_tokens: bool = False
    perplexity: str = "stock"
    identities: dict[str, Facts] = field(default_factory=dict)
    asked: dict[str, Facts] = field(default_factory=dict)
    scored: dict[str, Facts] = field(default_factory=dict)

    @property
    def is_vanilla(self) -> bool:
        """Whether the model routes as it was trained to."""
        return self.policy == "top_k"

    def datasets_of(self, benchmark: str) -> list[str]:
        """The datasets that a benchmark is made of."""
        return self.groups.get(benchmark, [benchmark])

    def traces_of(self, benchmark: str) -> list[RoutingTrace]:
        """All traces of a benchmark; none where one of its datasets has none."""
        found = [self.traces.get(dataset, []) for dataset in self.datasets_of(benchmark)]
        return [trace for traces in found for trace in traces] if all(found) else []

    def accuracy_of(self, benchmark: str) -> tuple[str, float] | None:
        """(metric, percent) of a benchmark, a group's as the plain mean over its datasets; None where one lacks.

        The metric of a group whose datasets differ in it names them all.
        """
        datasets = self.datasets_of(benchmark)
        if not all(dataset in self.accuracies for dataset in datasets):
            return None
        percents = [self.accuracies[dataset][1] for dataset in datasets]
        return " and ".join(dict.fromkeys(self.metrics_of(benchmark))), sum(percents) / len(percents)

    def metrics_of(self, benchmark: str) -> list[str]:
        """The metric of each dataset of a benchmark; none where one of them has no accuracy."""
        datasets = self.datasets_of(benchmark)
        return [self.accuracies[d][0] for d in datasets] if all(d in self.accuracies for d in datasets) else []

    def items_of(self, benchmark: str) -> list[ItemResults]:
        """Right or wrong of the items of a benchmark, dataset by dataset; none where one of them does not tell."""
        datasets = self.datasets_of(benchmark)
        return [self.items[dataset] for dataset in datasets] if all(d in self.items for d in datasets) else []

    def accuracy_interval_of(self, benchmark: str) -> Interval | None:
        """95 % interval of a benchmark's accuracy, in percent: Wilson's, of a group by a stratified bootstrap."""
        rights = [items.right for items in self.items_of(benchmark)]
        if not rights:
            return None
        alone = len(rights) == 1
        found = wilson_interval(int(rights[0].sum()), len(rights[0])) if alone else accuracy_interval(rights)
        return found and Interval(100 * found.low, 100 * found.high)

    @property
    def all_traces(self) -> list[RoutingTrace]:
        """The traces of all datasets."""
        return [trace for traces in self.traces.values() for trace in traces]

    def identity_of(self, dataset: str) -> Facts:
        """Every fact that its answers to a dataset are known to depend on; empty where its traces are too old."""
        traced = next((trace.metadata.identity for trace in self.traces.get(dataset, [])), {})
        facts = self.identities.get(dataset, traced)
        return facts | self.scored.get(dataset, {}) if facts else {}

    def asked_of(self, dataset: str) -> Facts:
        """What stands in for `identity_of`: the configs' arguments, with the path of the weights."""
        dtypes = {trace.metadata.dtype for trace in self.traces.get(dataset, [])}
        known = dict(weights=self.base[0], perplexity=self.perplexity, dtype=" and ".join(sorted(dtypes)) or None)
        return self.asked.get(dataset, {}) | self.scored.get(dataset, {}) | known


def what_differs(run: ModelRun, other: ModelRun, benchmark: str) -> dict[str, str]:
    """-> every fact, but for policy and profile, that two models' answers to a benchmark have not in common, in words.

    Only where it is empty may a difference between them be put down to the policy. Where one of them does not know its
    facts, both are compared by what their configs say.
    """
    found: dict[str, str] = {}
    for dataset in dict.fromkeys((*run.datasets_of(benchmark), *other.datasets_of(benchmark))):
        facts = [model.identity_of(dataset) for model in (other, run)]
        if not all(facts):
            facts = [model.asked_of(dataset) for model in (other, run)]
        found = differing(*facts) | found
    return found


def vanilla_of(run: ModelRun, runs: Sequence[ModelRun], benchmark: str) -> ModelRun | None:
    """The run that `run` is compared with: the first that routes by top-k and is the same in everything else."""
    alike = (other for other in _vanillas(run, runs, benchmark) if not what_differs(run, other, benchmark))
    return next(alike, None)


def _vanillas(run: ModelRun, runs: Sequence[ModelRun], benchmark: str) -> list[ModelRun]:
    """The vanilla models under a model's profile that have measured something on a benchmark."""
    others = [other for other in runs if other.is_vanilla and other.base[1] == run.base[1] and run.policy != DENSE]
    return [other for other in others if other.traces_of(benchmark) or other.accuracy_of(benchmark)]


def why_no_vanilla(run: ModelRun, runs: Sequence[ModelRun], benchmark: str) -> str | None:
    """Why `run` is compared with none of the vanilla models under its profile; None where it is, or there is none."""
    others = _vanillas(run, runs, benchmark)
    if not others or vanilla_of(run, runs, benchmark) is not None:
        return None
    nearest = min(others, key=lambda other: len(what_differs(run, other, benchmark)))
    differences = sentence(what_differs(run, nearest, benchmark))
    return f"{nearest.abbr} and {run.abbr} differ in more than the policy: {differences}"


def not_compared_notes(runs: Sequence[ModelRun], benchmarks: Sequence[str]) -> list[str]:
    """One line for every model that differs from vanilla in more than its policy: what differs, and where."""
    lines = []
    for run in runs:
        found: dict[str, list[str]] = {}
        for benchmark in benchmarks:
            is_measured = bool(run.accuracy_of(benchmark) or run.traces_of(benchmark))
            why = why_no_vanilla(run, runs, benchmark) if is_measured else None
            if why is not None:
                found.setdefault(why, []).append(benchmark)
        lines += [f"not compared on {', '.join(where)}: {why}" for why, where in found.items()]
    return lines


def benchmarks_of(datasets: Sequence[str], groups: dict[str, list[str]]) -> list[str]:
    """Columns of the tables: the datasets in order, groups in place of the first dataset of each."""
    columns = ([name for name, members in groups.items() if dataset in members] or [dataset] for dataset in datasets)
    return list(dict.fromkeys(name for names in columns for name in names))


def datasets_of(runs: Sequence[ModelRun]) -> list[str]:
    """Every dataset that the runs were to answer, whether they did or not."""
    return list(dict.fromkeys(name for run in runs for name in (*run.accuracies, *run.traces, *run.missing)))


def _read_if_there(path: Path, kind: type) -> Any:
    """-> what a JSON file holds, an empty list or dict where there is none; TraceError where it holds another kind."""
    try:
        content = json.loads(path.read_bytes()) if path.is_file() else kind()
    except ValueError:
        content = None
    if not isinstance(content, kind):
        way_out = "write it anew: opencompass CONFIG -r TIME --mode viz"
        raise TraceError(f"{path}: must hold a {kind.__name__} as JSON; {way_out}")
    return content


def runs_from_traces(run_folder: Path) -> list[ModelRun]:
    """The models of a run folder with their sealed traces, without accuracies.

    TraceError where there is no trace, or where a model's traces are of different weights or channel profiles.
    """
    groups = _read_if_there(run_folder / "summary" / GROUPS_FILE, dict)
    datasets = _read_if_there(run_folder / "summary" / DATASETS_FILE, list)
    runs: dict[str, ModelRun] = {}
    for path in files_below(run_folder / "predictions", SEALED_SUFFIX):
        trace = read_trace(path)
        one = trace.metadata
        run = runs.setdefault(one.model, ModelRun(one.model, one.routing, (one.weights, one.profile_hash)))
        run.perplexity, run.batch_size = one.perplexity, one.batch_size
        if run.base != (one.weights, one.profile_hash):
            raise TraceError(f"{path}: recorded with other weights or another channel profile than {one.model}'s first")
        run.traces.setdefault(whole_of(one.dataset, datasets), []).append(trace)
        run.groups = groups
    if not runs:
        raise TraceError(f"{run_folder}: no sealed routing trace in its predictions; give a run's time-stamped folder")
    for run in runs.values():
        in_order = [dataset for dataset in (*datasets, *run.traces) if dataset in run.traces]
        run.traces = {dataset: _whole_or_parts(dataset, run.traces[dataset]) for dataset in in_order}
    return sorted(runs.values(), key=lambda run: (not run.is_vanilla, run.abbr))


def _whole_or_parts(dataset: str, traces: list[RoutingTrace]) -> list[RoutingTrace]:
    return [trace for trace in traces if trace.metadata.dataset == dataset] or traces


def row_runs(runs: Sequence[ModelRun], row: str) -> list[ModelRun]:
    """The runs whose traces make a row of Table II."""
    return [run for run in runs if run.policy != DENSE and run.is_vanilla == ROWS[row][0]]


def accuracy_records(runs: Sequence[ModelRun]) -> list[dict[str, Any]]:
    """Records (model, dataset, metric, value, ...): accuracy, active experts per token, share of assignments dropped.

    A group of datasets has records of its own beside those of its datasets. An accuracy comes with its number of items
    and the ends of its 95 % interval, low and high; None where its evaluator does not tell the items apart.
    """
    none = dict(low=None, high=None, items=None)
    records: list[dict[str, Any]] = []
    for run in runs:
        for name in _names(run):
            accuracy = run.accuracy_of(name)
            if accuracy is not None:
                low, high = run.accuracy_interval_of(name) or (None, None)
                items = sum(len(one.right) for one in run.items_of(name)) or None
                of = dict(model=run.abbr, dataset=name, metric=accuracy[0], value=accuracy[1])
                records.append(of | dict(low=low, high=high, items=items))
            traces = run.traces_of(name)
            before, after = (
                sum(int(array.sum()) for array in arrays)
                for arrays in ([t.assignments_before for t in traces], [t.assignments for t in traces])
            )
            token_layers = sum(int(t.tokens.sum()) * t.metadata.layers for t in traces)
            if token_layers:
                active, dropped = after / token_layers, 1 - after / before
                for metric, value in (("active_experts_per_token", active), ("share_dropped", dropped)):
                    records.append(dict(model=run.abbr, dataset=name, metric=metric, value=value) | none)
    return records


def _names(run: ModelRun) -> list[str]:
    return list(dict.fromkeys([*run.accuracies, *run.traces, *run.groups]))


def latency_records(runs: Sequence[ModelRun]) -> list[dict[str, Any]]:
    """One record per row of Table II, dataset or group, scope, per (pass or batch) and phase; latency_s in seconds.

    A group's mean is over all passes or batches of its datasets. Scope `layer` comes first, `pass` is hindsight; a row
    without bandwidth allocation reads the same in both. saving is relative to the vanilla_even row of the model's
    `vanilla_of`, dataset, scope, per and phase; None where its batches are of other items. Both have the
    ends of their 95 % interval (`_low`, `_high`; None without one, for the reason in no_interval), drawn over groups of
    batches under the run's own channel draws.
    """
    return [record for record, _ in latency_cells(runs)]


def latency_cells(runs: Sequence[ModelRun]) -> list[tuple[dict[str, Any], BatchSums]]:
    """The records of `latency_records`, each with the sums over batches that its intervals come from."""
    cells: list[tuple[dict[str, Any], BatchSums]] = []
    for row, (_, method) in ROWS.items():
        for run in row_runs(runs, row):
            for name in _names(run):
                vanilla = vanilla_of(run, runs, name)
                compared = dict(vanilla=vanilla and vanilla.abbr, not_compared=why_no_vanilla(run, runs, name))
                cells += [(record | compared, sums) for record, sums in _cells_of(run, name, row, method)]
    baseline = {_cell(record, record["model"]): (record, sums) for record, sums in cells if record["row"] == EVEN}
    for record, sums in cells:
        base = baseline.get(_cell(record, record["vanilla"]))
        record |= _saving(record, sums, *base) if base else _NO_SAVING | dict(no_interval=record["not_compared"])
    return cells


_NO_SAVING = dict(saving=None, saving_low=None, saving_high=None, no_interval=None)


def _saving(
    record: dict[str, Any], sums: BatchSums, vanilla: dict[str, Any], vanilla_sums: BatchSums
) -> dict[str, Any]:
    saving = 1 - record["latency_s"] / vanilla["latency_s"] if vanilla["latency_s"] else None
    if record is vanilla or saving is None:
        return _NO_SAVING | dict(saving=saving)
    ratio, why = latency_ratio(vanilla_sums, sums, record["per"])
    low, high = (1 - ratio.high, 1 - ratio.low) if ratio else (None, None)
    saving = None if why == OTHER_BATCHES else saving
    return dict(saving=saving, saving_low=low, saving_high=high, no_interval=why)


def latency_ratio(first: BatchSums, second: BatchSums, per: str) -> tuple[Interval | None, str | None]:
    """-> (95 % interval of the ratio second / first of mean latencies, why there is none)."""
    why = why_no_interval(first, second)
    if why:
        return None, why
    counts = first.count(per), second.count(per)
    interval = latency_ratio_interval(first.latency_s, counts[0], second.latency_s, counts[1])
    return interval, None if interval else "some batches take no time"


def _cells_of(run: ModelRun, name: str, row: str, method: str) -> list[tuple[dict[str, Any], BatchSums]]:
    cells = []
    for scope in SCOPES:
        parts = [replay(trace, trace.metadata.profile, method, scope) for trace in run.traces_of(name)]
        for phase in ("all", *PHASES):
            sums = batch_sums(parts, phase)
            for per in ("pass", "batch"):
                latency_s = pooled_mean(parts, lambda part: part.waiting_latency_s, per, phase)
                if latency_s is None:
                    continue
                low, high = latency_interval(sums.latency_s, sums.count(per)) or (None, None)
                record = dict(
                    row=row,
                    model=run.abbr,
                    dataset=name,
                    scope=scope,
                    per=per,
                    phase=phase,
                    latency_s=latency_s,
                    latency_low_s=low,
                    latency_high_s=high,
                    allocation=method,
                    downlink_energy_j=pooled_mean(parts, lambda part: part.energy.downlink_j, per, phase),
                    uplink_energy_j=pooled_mean(parts, lambda part: part.energy.uplink_j, per, phase),
                    computation_energy_j=pooled_mean(parts, lambda part: part.energy.computation_j, per, phase),
                    tokens_per_batch=pooled_mean(parts, lambda part: part.trace.tokens, "batch", phase),
                    passes_per_batch=pooled_mean(parts, lambda p: np.ones(len(p.trace.tokens)), "batch", phase),
                )
                cells.append((record, sums))
    return cells


def _cell(record: dict[str, Any], model: str | None) -> tuple:
    return model, *(record[key] for key in ("dataset", "scope", "per", "phase"))


OWN_COLUMNS = ("row", "model", "policy", "active experts per token", "assignments dropped (%)")


def column_of(benchmark: str) -> str:
    """What the column of a benchmark is called: its name, unless a table has another column of that name."""
    return f"{benchmark} (benchmark)" if benchmark in OWN_COLUMNS else benchmark


def table_1(
    runs: Sequence[ModelRun], benchmarks: Sequence[str], differences: Sequence[dict[str, Any]] = ()
) -> pd.DataFrame:
    """Models by benchmarks: accuracy in percent with its 95 % interval, then means over them of what was dropped.

    differences: records of `difference_records`. Each that has an interval goes into the cell of its model and
    benchmark, in round brackets and with a `*` where it is significant.
    """
    records = accuracy_records(runs)
    difference = {(record["model"], record["benchmark"]): _bracketed_difference(record) for record in differences}
    rows = []
    for run in runs:
        own = [record for record in records if record["model"] == run.abbr]
        row: dict[str, str] = {"model": run.abbr, "policy": run.policy}
        for benchmark in benchmarks:
            accuracy = run.accuracy_of(benchmark)
            interval = run.accuracy_interval_of(benchmark)
            parts = [*bracketed(interval), *difference.get((run.abbr, benchmark), [])]
            row[column_of(benchmark)] = " ".join([f"{accuracy[1]:.2f}", *parts]) if accuracy else "-"
        for metric, title, scale in (
            ("active_experts_per_token", "active experts per token", 1),
            ("share_dropped", "assignments dropped (%)", 100),
        ):
            values = [r["value"] for r in own if r["metric"] == metric and r["dataset"] in benchmarks]
            row[title] = f"{scale * sum(values) / len(values):.3f}" if values else "-"
        rows.append(row)
    return pd.DataFrame(rows)


def _bracketed_difference(record: dict[str, Any]) -> list[str]:
    """-> one text `(difference [low, high] *)`, or none without an interval."""
    if record["low"] is None:
        return []
    interval = bracketed(Interval(record["low"], record["high"]), "{:+.1f}")[0]
    return [f"({record['difference']:+.2f} {interval}{' *' if record['significant'] else ''})"]


def table_2(
    records: Sequence[dict[str, Any]], datasets: Sequence[str], scope: str, per: str, phase: str
) -> pd.DataFrame:
    """Table II's rows by datasets: waiting latency in ms; in brackets the saving against vanilla_even and its interval.

    A saving without an interval is not shown. Below a row is one with its median saving over fading draws and in square
    brackets its 5 to 95 % range, where the records have one. The last rows are the sizes of each model's batches.
    """
    chosen = [r for r in records if (r["scope"], r["per"], r["phase"]) == (scope, per, phase)]
    rows: list[dict[str, str]] = []
    models = list(dict.fromkeys((ROWS_ORDER[r["row"]], r["row"], r["model"]) for r in chosen))
    for _, row, model in sorted(models, key=lambda entry: entry[0]):
        cells = {r["dataset"]: r for r in chosen if (r["row"], r["model"]) == (row, model)}
        rows.append({"row": row, "model": model} | {column_of(d): _latency_cell(cells.get(d)) for d in datasets})
        draws = next((r["draws"] for r in cells.values() if r.get("draws")), None)
        if draws:
            drawn = {column_of(d): _draws_cell(cells.get(d)) for d in datasets}
            rows.append({"row": f"{row}, {draws} draws", "model": model} | drawn)
    even = [r for r in chosen if ROWS[r["row"]][1] == "uniform"]
    for title, key in (("tokens per batch", "tokens_per_batch"), ("passes per batch", "passes_per_batch")):
        for model in dict.fromkeys(r["model"] for r in even):
            sizes = {r["dataset"]: f"{r[key]:.1f}" for r in even if r["model"] == model}
            rows.append({"row": title, "model": model} | {column_of(d): sizes.get(d, "-") for d in datasets})
    return pd.DataFrame(rows)


MISSING_FILE, MAIN_TABLES_FILE, GROUPS_FILE = "missing.json", "main_tables.md", "groups.json"
DATASETS_FILE = "datasets.json"
ROWS_ORDER = {row: number for number, row in enumerate(ROWS)}


def _latency_cell(record: dict[str, Any] | None) -> str:
    if record is None:
        return "-"
    text = f"{1e3 * record['latency_s']:.3f}"
    if record["row"] == "vanilla_even" or record["saving_low"] is None:
        return text
    interval = Interval(100 * record["saving_low"], 100 * record["saving_high"])
    return f"{text} ({100 * record['saving']:+.1f} % {bracketed(interval)[0]})"


def _draws_cell(record: dict[str, Any] | None) -> str:
    if record is None or not record.get("draws"):
        return "-"
    low, median, high = (100 * record[f"saving_draws_{which}"] for which in ("low", "median", "high"))
    return f"{median:+.1f} % {bracketed(Interval(low, high))[0]}"


def bracketed(interval: Interval | None, number: str = "{:.1f}") -> list[str]:
    """-> one text `[low, high]`, or none."""
    return [f"[{number.format(interval.low)}, {number.format(interval.high)}]"] if interval else []


def difference_cell(value: float, interval: Interval | None, number: str = "{:.2f}") -> str:
    """A difference with its interval; without one it is not shown."""
    signed = "{:+" + number[2:]
    return f"{signed.format(value)} {bracketed(interval, signed)[0]}" if interval else "-"


ACCURACY_METHOD = (
    f"in square brackets: {100 * CONFIDENCE:.0f} % intervals over items, Wilson's (1927); of a mean over several "
    "datasets by a bootstrap of 5000 resamples within each"
)
BATCH_METHOD = (
    f"{100 * CONFIDENCE:.0f} % intervals over batches of different items under the run's own channel draws (paired "
    "bootstrap of 2000 resamples, stretched by Student's t for few batches): they tell of other prompts, not of other "
    "fading"
)


def accuracy_notes(runs: Sequence[ModelRun]) -> list[str]:
    """Lines under a table of accuracies: what its intervals are, and which are lacking and why."""
    lacking: dict[str, list[str]] = {}
    for run in runs:
        for dataset, why in run.no_items.items():
            lacking.setdefault(why, []).append(f"{run.abbr} on {dataset}")
    return [ACCURACY_METHOD, *(f"no interval: {', '.join(where)}: {why}" for why, where in lacking.items())]


def saving_notes(records: Sequence[dict[str, Any]]) -> list[str]:
    """Lines under a table of latencies: what the intervals of its savings are, and which are lacking and why."""
    lacking: dict[str, list[str]] = {}
    for record in records:
        if record["no_interval"]:
            lacking.setdefault(record["no_interval"], []).append(record["dataset"])
    lines = [f"no saving shown on {', '.join(dict.fromkeys(where))}: {why}" for why, where in lacking.items()]
    return [f"a saving's square brackets: {BATCH_METHOD}", *lines]


def missing_cells(runs: Sequence[ModelRun]) -> list[str]:
    """One line for every model and dataset, or group of them, without accuracy or trace, with the reason."""
    lines = []
    for run in runs:
        lines += [f"{run.abbr}, {dataset}: {why}" for dataset, why in run.missing.items()]
        for name, members in run.groups.items():
            lacking = [dataset for dataset in members if dataset in run.missing]
            if lacking:
                lines.append(f"{run.abbr}, {name}: no mean without {', '.join(lacking)}")
    return lines


FORMATS = ("md", "csv", "tex", "json")


def write_table(path: Path, table: pd.DataFrame, notes: list[str], origin: dict[str, Any]) -> str:
    """Write a table with its notes beside `path` in all FORMATS; -> the Markdown.

    origin: what `provenance.provenance` gives, for the JSON; the notes tell it in the other formats.
    """
    for form in FORMATS:
        write_whole(path.parent / f"{path.name}.{form}", formatted(table, notes, form, origin))
    return formatted(table, notes, "md")


def formatted(table: pd.DataFrame, notes: list[str], form: str, origin: dict[str, Any] | None = None) -> str:
    """A table and its notes as text of one of FORMATS."""
    cells = [list(table.columns), *table.astype(str).values.tolist()]
    if form == "json":
        content = dict(rows=table.to_dict("records"), notes=notes) | (dict(provenance=origin) if origin else {})
        return json_text(content)
    if form == "csv":
        rows: list[Sequence[Any]] = [list(table.columns), *table.itertuples(index=False, name=None)]
        lines = [",".join(map(csv_field, row)) for row in rows]
        return "".join(f"{line}\n" for line in [*(f"# {visible(note)}" for note in notes), *lines])
    if form == "tex":
        return _latex(cells, notes)
    bars = ["| " + " | ".join(map(markdown_cell, row)) + " |" for row in cells]
    bars.insert(1, "|" + "---|" * len(table.columns))
    return "\n".join(bars) + "\n\n" + "".join(f"- {markdown_note(note)}\n" for note in notes)


def _latex(cells: list[list[str]], notes: list[str]) -> str:
    head, *body = map(latex_row, cells)
    letters = LATEX_PREAMBLE if any(LATEX_LETTER in row for row in (head, *body)) else ()
    table = [
        r"\begin{tabular}{" + "l" * len(cells[0]) + "}",
        r"\hline",
        head,
        r"\hline",
        *body,
        r"\hline",
        r"\end{tabular}",
    ]
    return "\n".join([*(f"% {visible(note)}" for note in notes), *letters, *table]) + "\n"


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON."""
    write_whole(path, json_text(content))


def json_text(content: Any) -> str:
    """Indented JSON that any program reads: it has no number for NaN and infinity, so null stands for both."""
    return json.dumps(changed(all_replaced(content), _finite), indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
