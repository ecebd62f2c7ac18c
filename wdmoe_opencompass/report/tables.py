"""Table I (accuracy) and Table II (attention waiting latency) of a run, with the notes under them."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from .formats import brackets, by_reason
from .records import ROWS, ROWS_ORDER, accuracy_records
from .runs import ModelRun
from .statistics import CONFIDENCE, Interval

OWN_COLUMNS = ("row", "model", "policy", "active experts per token", "assignments dropped (%)")


def column_of(benchmark: str) -> str:
    """The column title of a benchmark: its name, unless a table has another column of that name."""
    return f"{benchmark} (benchmark)" if benchmark in OWN_COLUMNS else benchmark


def table_1(
    runs: Sequence[ModelRun], benchmarks: Sequence[str], differences: Sequence[dict[str, Any]] = ()
) -> pd.DataFrame:
    """Models by benchmarks: accuracy in percent with its 95 % interval, then means over them of what was dropped.

    differences: records of `difference_records`. Those with an interval go into the cell of their model and benchmark,
    in round brackets, with a `*` if significant.
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
            parts = [*brackets(interval), *difference.get((run.abbr, benchmark), [])]
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
    interval = brackets(Interval(record["low"], record["high"]), "{:+.1f}")[0]
    return [f"({record['difference']:+.2f} {interval}{' *' if record['significant'] else ''})"]


def table_2(
    records: Sequence[dict[str, Any]], datasets: Sequence[str], scope: str, per: str, phase: str
) -> pd.DataFrame:
    """Table II's rows by datasets: waiting latency in ms; in brackets the saving against vanilla_even and its interval.

    A saving without an interval is not shown. If the records have draws, the row below has the median saving over
    fading draws and in square brackets its 5 to 95 % range. The last rows are the sizes of each model's batches.
    """
    chosen = [r for r in records if (r["scope"], r["per"], r["phase"]) == (scope, per, phase)]
    rows: list[dict[str, str]] = []
    models = list(dict.fromkeys((ROWS_ORDER[r["row"]], r["row"], r["model"]) for r in chosen))
    for _, row, model in sorted(models, key=lambda entry: entry[0]):
        cells = {r["dataset"]: r for r in chosen if (r["row"], r["model"]) == (row, model)}
        rows.append({"row": row, "model": model} | {column_of(d): _latency_cell(cells.get(d)) for d in datasets})
        draws = next((r["draws"] for r in cells.values() if r.get("draws")), None)
        if draws:
            draw_cells = {column_of(d): _draws_cell(cells.get(d)) for d in datasets}
            rows.append({"row": f"{row}, {draws} draws", "model": model} | draw_cells)
    even = [r for r in chosen if ROWS[r["row"]][1] == "uniform"]
    for title, key in (("tokens per batch", "tokens_per_batch"), ("passes per batch", "passes_per_batch")):
        for model in dict.fromkeys(r["model"] for r in even):
            sizes = {r["dataset"]: f"{r[key]:.1f}" for r in even if r["model"] == model}
            rows.append({"row": title, "model": model} | {column_of(d): sizes.get(d, "-") for d in datasets})
    return pd.DataFrame(rows)


def _latency_cell(record: dict[str, Any] | None) -> str:
    if record is None:
        return "-"
    text = f"{1e3 * record['latency_s']:.3f}"
    if record["row"] == "vanilla_even" or record["saving_low"] is None:
        return text
    interval = Interval(100 * record["saving_low"], 100 * record["saving_high"])
    return f"{text} ({100 * record['saving']:+.1f} % {brackets(interval)[0]})"


def _draws_cell(record: dict[str, Any] | None) -> str:
    if record is None or not record.get("draws"):
        return "-"
    low, median, high = (100 * record[f"saving_draws_{which}"] for which in ("low", "median", "high"))
    return f"{median:+.1f} % {brackets(Interval(low, high))[0]}"


ACCURACY_METHOD = (
    f"in square brackets: {100 * CONFIDENCE:.0f} % intervals over items, Wilson's (1927); of a mean over several "
    "datasets by a bootstrap of 5000 resamples within each"
)
BATCH_METHOD = (
    f"{100 * CONFIDENCE:.0f} % intervals over batches of different items under the run's own channel draws (paired "
    "bootstrap of 2000 resamples, widened by Student's t for few batches): they cover other prompts, "
    "not other fading"
)


def accuracy_notes(runs: Sequence[ModelRun]) -> list[str]:
    """Lines under a table of accuracies: the method of its intervals, and which are missing and why."""
    missing = by_reason((why, f"{run.abbr} on {dataset}") for run in runs for dataset, why in run.no_items.items())
    return [ACCURACY_METHOD, *(f"no interval: {where}: {why}" for why, where in missing.items())]


def saving_notes(records: Sequence[dict[str, Any]]) -> list[str]:
    """Lines under a table of latencies: the method of its savings' intervals, and which are missing and why."""
    missing = by_reason((record["no_interval"], record["dataset"]) for record in records)
    lines = [f"no saving shown on {where}: {why}" for why, where in missing.items()]
    return [f"a saving's square brackets: {BATCH_METHOD}", *lines]
