"""Table I (accuracy) and Table II (attention waiting latency) of a run, as CSV, Markdown, LaTeX and JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from ..allocation.base import Scope
from ..errors import TraceError
from ..replay import replay
from ..routing.trace import PHASES, SEALED_SUFFIX, RoutingTrace, TraceMetadata, read_trace

SCOPES = get_args(Scope)
OPTIMISED = "optimal"
ROWS = {  # row name -> (is it the vanilla model's trace, bandwidth allocation), in Table II's order
    "vanilla_even": (True, "uniform"),
    "selection_only": (False, "uniform"),
    "allocation_only": (True, OPTIMISED),
    "both": (False, OPTIMISED),
}


@dataclass
class ModelRun:
    """One model of a run: what its config says and what it left.

    base:       what must be equal for two models to be compared: weights and channel profile
    accuracies: dataset -> (metric, value in percent)
    traces:     dataset -> routing trace
    missing:    dataset -> why there is no accuracy or no trace
    """

    abbr: str
    policy: str
    base: tuple[str, str]
    accuracies: dict[str, tuple[str, float]] = field(default_factory=dict)
    traces: dict[str, RoutingTrace] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def is_vanilla(self) -> bool:
        """Whether the model routes as it was trained to."""
        return self.policy == "top_k"


def runs_from_traces(run_folder: Path) -> list[ModelRun]:
    """The models of a run folder with their sealed traces, without accuracies.

    TraceError where there is no trace, or where a model's traces are of different weights or channel profiles.
    """
    runs: dict[str, ModelRun] = {}
    for path in sorted((run_folder / "predictions").glob(f"*/*{SEALED_SUFFIX}")):
        trace = read_trace(path)
        one = trace.metadata
        run = runs.setdefault(one.model, ModelRun(one.model, one.policy, (one.weights, one.profile_hash)))
        if run.base != (one.weights, one.profile_hash) or one.profile_hash != one.profile.content_hash:
            raise TraceError(f"{path}: recorded with other weights or another channel profile than {one.model}'s first")
        run.traces[one.dataset] = trace
    if not runs:
        raise TraceError(f"{run_folder}: no sealed routing trace in its predictions; give a run's time-stamped folder")
    return sorted(runs.values(), key=lambda run: (not run.is_vanilla, run.abbr))


def row_runs(runs: Sequence[ModelRun], row: str) -> list[ModelRun]:
    """The runs whose traces make a row of Table II."""
    return [run for run in runs if run.is_vanilla == ROWS[row][0]]


def accuracy_records(runs: Sequence[ModelRun]) -> list[dict[str, Any]]:
    """Records (model, dataset, metric, value): accuracy, active experts per token, share of assignments dropped."""
    records = []
    for run in runs:
        for dataset, (metric, value) in run.accuracies.items():
            records.append(dict(model=run.abbr, dataset=dataset, metric=metric, value=value))
        for dataset, trace in run.traces.items():
            before, after = int(trace.assignments_before.sum()), int(trace.assignments.sum())
            token_layers = int(trace.tokens.sum()) * trace.metadata.layers
            if token_layers:
                active, dropped = after / token_layers, 1 - after / before
                records.append(dict(model=run.abbr, dataset=dataset, metric="active_experts_per_token", value=active))
                records.append(dict(model=run.abbr, dataset=dataset, metric="share_dropped", value=dropped))
    return records


def latency_records(runs: Sequence[ModelRun]) -> list[dict[str, Any]]:
    """One record per row of Table II, dataset, scope, per (pass or batch) and phase; latency_s in seconds.

    A row without bandwidth allocation reads the same in both scopes. saving is relative to the vanilla_even row of the
    same weights, profile, dataset, scope, per and phase.
    """
    records: list[dict[str, Any]] = []
    for run in runs:
        for dataset, trace in run.traces.items():
            for row, (is_vanilla, method) in ROWS.items():
                if is_vanilla == run.is_vanilla:
                    records += _records_of(run, dataset, trace, row, method)
    baseline = {_cell(r): r["latency_s"] for r in records if r["row"] == "vanilla_even"}
    for record in records:
        vanilla = baseline.get(_cell(record))
        record["saving"] = None if not vanilla else 1 - record["latency_s"] / vanilla
    return records


def _records_of(run: ModelRun, dataset: str, trace: RoutingTrace, row: str, method: str) -> list[dict[str, Any]]:
    records = []
    for scope in SCOPES:
        replayed = replay(trace, trace.metadata.profile, method, scope)
        energy = replayed.energy
        for phase in ("all", *PHASES):
            chosen = trace.is_phase(phase)
            batches = len(set(trace.batch[chosen].tolist()))
            for per in ("pass", "batch"):
                latency_s = replayed.mean_s(per, phase)
                if latency_s is None:
                    continue
                records.append(
                    dict(
                        row=row,
                        model=run.abbr,
                        base=run.base,
                        dataset=dataset,
                        scope=scope,
                        per=per,
                        phase=phase,
                        latency_s=latency_s,
                        allocation=method,
                        downlink_energy_j=replayed.mean(energy.downlink_j, per, phase),
                        uplink_energy_j=replayed.mean(energy.uplink_j, per, phase),
                        computation_energy_j=replayed.mean(energy.computation_j, per, phase),
                        tokens_per_batch=float(trace.tokens[chosen].sum()) / batches,
                        passes_per_batch=float(chosen.sum()) / batches,
                    )
                )
    return records


def _cell(record: dict[str, Any]) -> tuple:
    return tuple(record[key] for key in ("base", "dataset", "scope", "per", "phase"))


def table_1(runs: Sequence[ModelRun], datasets: Sequence[str]) -> pd.DataFrame:
    """Models by datasets: accuracy in percent, then means over the datasets of active experts and of dropped shares."""
    records = accuracy_records(runs)
    rows = []
    for run in runs:
        own = [record for record in records if record["model"] == run.abbr]
        row: dict[str, str] = {"model": run.abbr, "policy": run.policy}
        for dataset in datasets:
            row[dataset] = f"{run.accuracies[dataset][1]:.2f}" if dataset in run.accuracies else "-"
        for metric, title, scale in (
            ("active_experts_per_token", "active experts per token", 1),
            ("share_dropped", "assignments dropped (%)", 100),
        ):
            values = [record["value"] for record in own if record["metric"] == metric]
            row[title] = f"{scale * sum(values) / len(values):.3f}" if values else "-"
        rows.append(row)
    return pd.DataFrame(rows)


def table_2(
    records: Sequence[dict[str, Any]], datasets: Sequence[str], scope: str, per: str, phase: str
) -> pd.DataFrame:
    """Table II's rows by datasets: waiting latency in ms and, in brackets, the relative saving against vanilla_even."""
    chosen = [r for r in records if (r["scope"], r["per"], r["phase"]) == (scope, per, phase)]
    rows: list[dict[str, str]] = []
    models = list(dict.fromkeys((ROWS_ORDER[r["row"]], r["row"], r["model"]) for r in chosen))
    for _, row, model in sorted(models, key=lambda entry: entry[0]):
        cells = {r["dataset"]: r for r in chosen if (r["row"], r["model"]) == (row, model)}
        rows.append({"row": row, "model": model} | {d: _latency_cell(cells.get(d)) for d in datasets})
    vanilla = {r["dataset"]: r for r in chosen if r["row"] == "vanilla_even"}
    for title, key in (("tokens per batch", "tokens_per_batch"), ("passes per batch", "passes_per_batch")):
        sizes = {d: f"{vanilla[d][key]:.1f}" if d in vanilla else "-" for d in datasets}
        rows.append({"row": title, "model": "vanilla"} | sizes)
    return pd.DataFrame(rows)


MISSING_FILE, MAIN_TABLES_FILE = "missing.json", "main_tables.md"
ROWS_ORDER = {row: number for number, row in enumerate(ROWS)}


def _latency_cell(record: dict[str, Any] | None) -> str:
    if record is None:
        return "-"
    text = f"{1e3 * record['latency_s']:.3f}"
    if record["row"] == "vanilla_even" or record["saving"] is None:
        return text
    return f"{text} ({100 * record['saving']:+.1f} %)"


def footnote(runs: Sequence[ModelRun], text: str) -> list[str]:
    """Lines under a table: what it shows, then profile, seed, policies, versions and what is empty and why."""
    lines = [text]
    metadata = {trace.metadata.profile_hash: trace.metadata for run in runs for trace in run.traces.values()}
    for one in metadata.values():
        lines.append(f"{_described(one)}; values marked `assumption` in the profile file are ours, not the paper's")
    for run in runs:
        trace = next(iter(run.traces.values()), None)
        if trace is not None:
            parameters = ", ".join(f"{k}={v}" for k, v in trace.metadata.policy_parameters.items()) or "no parameters"
            lines.append(
                f"{run.abbr}: policy {trace.metadata.policy} ({parameters}), renormalise {trace.metadata.renormalise}, "
                f"{trace.metadata.dtype}"
            )
    versions = {f"{name} {number}" for one in metadata.values() for name, number in one.versions.items()}
    if versions:
        lines.append("versions: " + ", ".join(sorted(versions)))
    return lines + [f"empty: {cell}" for cell in missing_cells(runs)]


def profile_line(runs: Sequence[ModelRun]) -> str:
    """Profiles and seeds of the runs' traces, in one line."""
    metadata = {trace.metadata.profile_hash: trace.metadata for run in runs for trace in run.traces.values()}
    return "; ".join(_described(one) for one in metadata.values())


def _described(one: TraceMetadata) -> str:
    fading = one.profile.fading
    return (
        f"profile {one.profile.name} (hash {one.profile_hash[:12]}), "
        f"fading {fading.model} per {fading.coherence}, seed {one.seed}"
    )


def missing_cells(runs: Sequence[ModelRun]) -> list[str]:
    """One line for every model and dataset without accuracy or trace, with the reason."""
    return [f"{run.abbr}, {dataset}: {why}" for run in runs for dataset, why in run.missing.items()]


LATENCY_TEXT = (
    "attention waiting latency in ms, Eq. (11) summed over the MoE layers of a forward pass, mean per {per}, "
    "phase: {phase}, bandwidth scope: {scope}, allocation: uniform or {method} (Eq. 19-21); in brackets the saving "
    "against vanilla_even. Base station compute is neglected, as in the paper. Selection was made under the run's own "
    "profile."
)
ACCURACY_TEXT = (
    "accuracy in % as OpenCompass's evaluators score it; active experts and dropped assignments count real tokens "
    "only, over all MoE layers, mean over the datasets."
)


def write_report(runs: Sequence[ModelRun], datasets: Sequence[str], folder: Path) -> list[str]:
    """Write all tables into `folder` (a run's `summary/`); -> the two main tables as text for the screen.

    missing.json lists the cells that a failed task left empty, each with its reason; main_tables.md holds the answer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "accuracy.json", accuracy_records(runs))
    records = latency_records(runs)
    public = [{key: value for key, value in record.items() if key != "base"} for record in records]
    _write_json(folder / "latency.json", public)
    printed = [_write_table(folder / "table_1_accuracy", table_1(runs, datasets), footnote(runs, ACCURACY_TEXT))]
    for scope in SCOPES:
        for per in ("pass", "batch"):
            for phase in ("all", *PHASES):
                table = table_2(records, datasets, scope, per, phase)
                text = LATENCY_TEXT.format(per=per, phase=phase, scope=scope, method=OPTIMISED)
                name = f"table_2_latency_{scope}_per_{per}_{phase}"
                shown = _write_table(folder / name, table, footnote(runs, text))
                if (scope, per, phase) == ("pass", "batch", "all"):
                    printed.append(shown)
    _write_json(folder / MISSING_FILE, missing_cells(runs))
    (folder / MAIN_TABLES_FILE).write_text("\n".join(printed))
    return printed


def _write_table(path: Path, table: pd.DataFrame, notes: list[str]) -> str:
    cells = [list(table.columns), *table.astype(str).values.tolist()]
    bars = ["| " + " | ".join(row) + " |" for row in cells]
    bars.insert(1, "|" + "---|" * len(table.columns))
    markdown = "\n".join(bars) + "\n\n" + "".join(f"- {note}\n" for note in notes)
    path.with_name(path.name + ".md").write_text(markdown)
    path.with_name(path.name + ".csv").write_text("".join(f"# {note}\n" for note in notes) + table.to_csv(index=False))
    path.with_name(path.name + ".tex").write_text(_latex(cells, notes))
    _write_json(path.with_name(path.name + ".json"), dict(rows=table.to_dict("records"), notes=notes))
    return markdown


def _latex(cells: list[list[str]], notes: list[str]) -> str:
    def escaped(text: str) -> str:
        for sign in "&%$#_{}":
            text = text.replace(sign, "\\" + sign)
        return text

    lines = [" & ".join(map(escaped, row)) + r" \\" for row in cells]
    head, body = lines[0], lines[1:]
    table = [
        r"\begin{tabular}{" + "l" * len(cells[0]) + "}",
        r"\hline",
        head,
        r"\hline",
        *body,
        r"\hline",
        r"\end{tabular}",
    ]
    return "\n".join([f"% {note}" for note in notes] + table) + "\n"


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")
