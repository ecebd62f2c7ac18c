"""All tables of a run, written into its `summary/` folder."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from .._util.atomic_write import write_whole
from ..allocation import SCOPE_LABELS, SCOPE_MEANING
from ..trace.format import PHASES
from . import summary_files as names
from .compare import batch_records, identity_records, item_records
from .differences import cell_notes, difference_notes, difference_records, difference_table
from .fading import add_draws, draw_notes
from .figures import save_figure
from .formats import write_json, write_table
from .frontier import (
    draw_frontier,
    frontier_notes,
    frontier_records,
    frontier_table,
    frontier_text,
    left_out_notes,
    scored_benchmarks,
)
from .metrics import metric_notes
from .paper import COMPARED, NO_COMPARISON, adapter_notes, paper_comparison
from .paper import TEXT as COMPARISON_TEXT
from .provenance import footnote, origin_records, profile_line, provenance
from .records import OPTIMISED, SCOPES, accuracy_records, latency_cells
from .requests import LOCKSTEP, NO_QUEUE, SCOPE, request_records, request_table
from .requests import TEXT as REQUESTS_TEXT
from .runs import ModelRun, datasets_of, missing_cells, not_compared_notes
from .speed import TEXT as SPEED_TEXT
from .speed import speed_notes, speed_records, speed_table
from .tables import accuracy_notes, saving_notes, table_1, table_2
from .testbed_events import write_events
from .testbed_tables import write_testbed

LATENCY_TEXT = (
    "attention waiting latency in ms, Eq. (11) summed over the MoE layers of a forward pass, mean per {per}, "
    "phase: {phase}, bandwidth scope: {scope}, {meaning}; allocation: uniform or {method} (Eq. 19-21); in brackets the "
    "saving against vanilla_even, with its interval. Base station compute is neglected, as in the paper. Selection was "
    "made under the run's own profile."
)
MEAN_TEXT = {
    "batch": "a batch is one call of `generate` or `get_ppl` with all its forward passes; the paper's batch is one "
    "forward pass: compare the tables per pass with its Table II",
    "pass": "what the paper's Table II calls a batch is one forward pass",
}
ACCURACY_TEXT = (
    "accuracy in % as OpenCompass's evaluators score it; active experts and dropped assignments count real tokens "
    "only, over all MoE layers, mean over the datasets."
)
DIFFERENCE_TEXT = "accuracy of each model against the vanilla model that differs in the policy alone, item by item"


def write_report(runs: Sequence[ModelRun], benchmarks: Sequence[str], folder: Path) -> list[str]:
    """Write all tables into `folder` (a run's `summary/`); -> the two main tables as text for the screen.

    benchmarks: the tables' columns, each a dataset or a group of the runs.
    missing.json lists the cells that stay empty, each with its reason; main_tables.md holds the answer; provenance.json
    where the numbers of all of them come from, which is also in the JSON of each table; items.json and batches.json
    what `wdmoe compare` pairs with another run. Where the traces in `predictions/` have a testbed's measured times, its
    tables and Figure 10 are written too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    origin = provenance(runs)
    write_json(folder / names.PROVENANCE_FILE, origin)
    write_json(folder / "origin.json", origin_records(runs))
    write_json(folder / names.GROUPS_FILE, next((run.groups for run in runs), {}))
    write_json(folder / names.DATASETS_FILE, datasets_of(runs))
    write_json(folder / "accuracy.json", accuracy_records(runs))
    write_json(folder / names.ITEMS_FILE, item_records(runs))
    write_json(folder / names.IDENTITY_FILE, identity_records(runs))
    cells = latency_cells(runs)
    records = [record for record, _ in cells]
    add_draws(runs, records)
    public = [{k: value for k, value in record.items() if k not in ("vanilla", "not_compared")} for record in records]
    write_json(folder / "latency.json", public)
    write_json(folder / names.BATCHES_FILE, batch_records(cells))
    differences = difference_records(runs, benchmarks)
    notes = footnote(runs, ACCURACY_TEXT) + accuracy_notes(runs) + cell_notes(differences)
    notes += metric_notes(runs) + not_compared_notes(runs, benchmarks)
    lines = [write_table(folder / "table_1_accuracy", table_1(runs, benchmarks, differences), notes, origin)]
    lines.append(_write_latency_tables(runs, benchmarks, records, folder))
    lines += _write_requests(runs, benchmarks, folder)
    lines += _write_speed(runs, benchmarks, folder)
    write_json(folder / "accuracy_differences.json", differences)
    if differences:
        notes = footnote(runs, DIFFERENCE_TEXT) + difference_notes(runs, benchmarks) + metric_notes(runs)
        write_table(folder / names.DIFFERENCES, difference_table(differences), notes, origin)
        lines.append(f"which differences from vanilla are more than chance: {folder / names.DIFFERENCES}.md\n")
    scored = scored_benchmarks(runs, benchmarks)
    frontier = frontier_records(runs, scored, cells)
    write_json(folder / names.FRONTIER_RECORDS_FILE, frontier)
    if len(frontier) > 1:
        quality = frontier[0]["quality"]
        notes = footnote(runs, frontier_text(scored, quality)) + frontier_notes(quality)
        notes += left_out_notes(benchmarks, scored) + metric_notes(runs) + not_compared_notes(runs, benchmarks)
        write_table(folder / names.FRONTIER, frontier_table(frontier), notes, provenance(runs, **names.SHOWN))
        save_figure(draw_frontier(frontier, scored), folder / names.FRONTIER, profile_line(runs))
        lines.append(f"{quality} against latency, every model: {folder / names.FRONTIER}.md and .png\n")
    comparison = paper_comparison(runs, records)
    if comparison.empty:
        lines.append(f"{NO_COMPARISON}\n")
    else:
        notes = footnote(runs, COMPARISON_TEXT[0]) + COMPARISON_TEXT[1:] + accuracy_notes(runs) + metric_notes(runs)
        notes += adapter_notes(runs)
        write_table(folder / names.COMPARISON, comparison, notes, provenance(runs, **COMPARED))
        lines.append(f"ours next to the paper: {folder / names.COMPARISON}.md\n")
    lines += write_testbed(runs, benchmarks, folder.parent / "predictions", folder)
    lines += write_events(folder.parent / "predictions", folder, runs)
    write_json(folder / names.MISSING_FILE, missing_cells(runs))
    write_whole(folder / names.MAIN_TABLES_FILE, "\n".join(lines))
    return lines


def _write_requests(runs: Sequence[ModelRun], benchmarks: Sequence[str], folder: Path) -> list[str]:
    """Write what single requests wait; -> a sentence for the screen, or nothing without traces."""
    records = request_records(runs)
    write_json(folder / names.REQUEST_RECORDS_FILE, records)
    if not records:
        return []
    notes = [*footnote(runs, REQUESTS_TEXT), LOCKSTEP, NO_QUEUE]
    write_table(
        folder / names.REQUESTS,
        request_table(records, benchmarks),
        notes,
        provenance(runs, scope=SCOPE, per="request", phase="all"),
    )
    return [f"waiting latency of single requests, percentiles: {folder / names.REQUESTS}.md\n"]


def _write_speed(runs: Sequence[ModelRun], benchmarks: Sequence[str], folder: Path) -> list[str]:
    """Write the measured wall-clock, which differs from run to run; -> a sentence for the screen, or nothing."""
    records = speed_records(runs, folder.parent / "predictions")
    write_json(folder / names.SPEED_RECORDS_FILE, records)
    if not records:
        return []
    notes = footnote(runs, SPEED_TEXT) + speed_notes(records)
    write_table(folder / names.SPEED, speed_table(records, benchmarks), notes, provenance(runs))
    return [f"measured speed of the run (wall-clock, not simulated): {folder / names.SPEED}.md\n"]


def _write_latency_tables(
    runs: Sequence[ModelRun], benchmarks: Sequence[str], records: Sequence[dict[str, Any]], folder: Path
) -> str:
    """Write Table II in every scope, per pass and per batch, of every phase; -> the one that is printed."""
    printed = ""
    for scope, per, phase in product(SCOPES, ("pass", "batch"), ("all", *PHASES)):
        where = dict(scope=scope, per=per, phase=phase)
        chosen = [record for record in records if where.items() <= record.items()]
        labelled = where | dict(scope=SCOPE_LABELS[scope], meaning=SCOPE_MEANING[scope])
        notes = footnote(runs, LATENCY_TEXT.format(**labelled, method=OPTIMISED))
        notes += [MEAN_TEXT[per], *saving_notes(chosen), *draw_notes(runs, chosen)]
        table, name = table_2(records, benchmarks, scope, per, phase), f"table_2_latency_{scope}_per_{per}_{phase}"
        text = write_table(folder / name, table, notes, provenance(runs, **where))
        printed = text if where == names.SHOWN else printed
    return printed
