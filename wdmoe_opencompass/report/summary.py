"""All tables of a run, written into its `summary/` folder."""

from collections.abc import Sequence
from pathlib import Path

from ..files import write_whole
from ..routing.trace import PHASES
from .compare import BATCHES_FILE, ITEMS_FILE, batch_records, item_records
from .differences import difference_notes, difference_records, difference_table
from .events import write_events
from .figures import save_figure
from .frontier import FRONTIER, draw_frontier, frontier_notes, frontier_records, frontier_table, frontier_text
from .paper import NO_COMPARISON, paper_comparison
from .paper import TEXT as COMPARISON_TEXT
from .tables import (
    DATASETS_FILE,
    GROUPS_FILE,
    MAIN_TABLES_FILE,
    MISSING_FILE,
    OPTIMISED,
    SCOPES,
    ModelRun,
    accuracy_notes,
    accuracy_records,
    datasets_of,
    footnote,
    latency_cells,
    missing_cells,
    origin_records,
    profile_line,
    saving_notes,
    table_1,
    table_2,
    write_json,
    write_table,
)
from .testbed import write_testbed

MAIN = ("table_1_accuracy", "table_2_latency_pass_per_batch_all")  # the two that are printed
COMPARISON, DIFFERENCES = "paper_comparison", "differences"
FRONTIER_RECORDS_FILE = "frontier_records.json"
LATENCY_TEXT = (
    "attention waiting latency in ms, Eq. (11) summed over the MoE layers of a forward pass, mean per {per}, "
    "phase: {phase}, bandwidth scope: {scope}, allocation: uniform or {method} (Eq. 19-21); in brackets the saving "
    "against vanilla_even, with its interval. Base station compute is neglected, as in the paper. Selection was made "
    "under the run's own profile."
)
ACCURACY_TEXT = (
    "accuracy in % as OpenCompass's evaluators score it; active experts and dropped assignments count real tokens "
    "only, over all MoE layers, mean over the datasets."
)
DIFFERENCE_TEXT = (
    "accuracy of each model beside the vanilla model of the same weights and channel profile, item by item"
)


def write_report(runs: Sequence[ModelRun], benchmarks: Sequence[str], folder: Path) -> list[str]:
    """Write all tables into `folder` (a run's `summary/`); -> the two main tables as text for the screen.

    benchmarks: the tables' columns, each a dataset or a group of the runs.
    missing.json lists the cells that a failed task left empty, each with its reason; main_tables.md holds the answer;
    items.json and batches.json what `wdmoe compare` pairs with another run. Where a testbed's measured times lie beside
    the traces in `predictions/`, its tables and Figure 10 are written too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "origin.json", origin_records(runs))
    write_json(folder / GROUPS_FILE, next((run.groups for run in runs), {}))
    write_json(folder / DATASETS_FILE, datasets_of(runs))
    write_json(folder / "accuracy.json", accuracy_records(runs))
    write_json(folder / ITEMS_FILE, item_records(runs))
    cells = latency_cells(runs)
    records = [record for record, _ in cells]
    public = [{key: value for key, value in record.items() if key != "base"} for record in records]
    write_json(folder / "latency.json", public)
    write_json(folder / BATCHES_FILE, batch_records(cells))
    notes = footnote(runs, ACCURACY_TEXT) + accuracy_notes(runs)
    printed = [write_table(folder / "table_1_accuracy", table_1(runs, benchmarks), notes)]
    for scope in SCOPES:
        for per in ("pass", "batch"):
            for phase in ("all", *PHASES):
                table = table_2(records, benchmarks, scope, per, phase)
                text = LATENCY_TEXT.format(per=per, phase=phase, scope=scope, method=OPTIMISED)
                name = f"table_2_latency_{scope}_per_{per}_{phase}"
                chosen = [r for r in records if (r["scope"], r["per"], r["phase"]) == (scope, per, phase)]
                shown = write_table(folder / name, table, footnote(runs, text) + saving_notes(chosen))
                if (scope, per, phase) == ("pass", "batch", "all"):
                    printed.append(shown)
    differences = difference_records(runs, benchmarks)
    write_json(folder / "accuracy_differences.json", differences)
    if differences:
        notes = footnote(runs, DIFFERENCE_TEXT) + difference_notes(runs, benchmarks)
        write_table(folder / DIFFERENCES, difference_table(differences), notes)
        printed.append(f"which differences from vanilla are more than chance: {folder / DIFFERENCES}.md\n")
    frontier = frontier_records(runs, benchmarks, cells)
    write_json(folder / FRONTIER_RECORDS_FILE, frontier)
    if len(frontier) > 1:
        text = frontier_text(benchmarks)
        write_table(folder / FRONTIER, frontier_table(frontier), footnote(runs, text) + frontier_notes())
        save_figure(draw_frontier(frontier, benchmarks), folder / FRONTIER, profile_line(runs))
        printed.append(f"accuracy against latency, every model: {folder / FRONTIER}.md and .png\n")
    comparison = paper_comparison(runs, records)
    if not comparison.empty:
        notes = footnote(runs, COMPARISON_TEXT[0]) + COMPARISON_TEXT[1:] + accuracy_notes(runs)
        write_table(folder / COMPARISON, comparison, notes)
    printed.append(f"{NO_COMPARISON if comparison.empty else f'ours beside the paper: {folder / COMPARISON}.md'}\n")
    printed += write_testbed(runs, benchmarks, folder.parent / "predictions", folder)
    printed += write_events(folder.parent / "predictions", folder)
    write_json(folder / MISSING_FILE, missing_cells(runs))
    write_whole(folder / MAIN_TABLES_FILE, "\n".join(printed))
    return printed
