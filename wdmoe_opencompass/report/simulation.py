"""Table II of the paper next to a simulation on synthetic routing, and the folder that a simulation leaves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from .._util.file_names import dataset_file
from ..allocation import SCOPE_LABELS, SCOPE_MEANING
from ..errors import TraceError
from ..trace.format import SEALED_SUFFIX, write_trace
from .formats import write_table
from .paper import BENCHMARKS, TABLE_2
from .provenance import origin_notes, provenance
from .routed import routed_rows, write_summary
from .runs import ModelRun

if TYPE_CHECKING:
    from ..simulation.run import SimulatedBenchmark

SIMULATION = "simulation"
HEADING = "Table II of the paper and a simulation on synthetic routing: latency per forward pass (ms), savings (%)"
FITTED_TO_TABLE_2 = ("nearest distance", "farthest distance", "the generator's weight outside the top-2")
CHOSEN_BY_ORDER = ("FLOP/s", "the default batch size, 64")
CELLS = sum(len(latencies) for latencies in TABLE_2.values())
NOTES = (
    "synthetic routing: router outputs are drawn from a model of Mixtral-8x7B-Instruct's router, its top-2 fitted to "
    "published statistics; no language model ran (docs/reconstruction.md)",
    f"fitted to the {CELLS} cells of Table II: {len(FITTED_TO_TABLE_2)} values ({', '.join(FITTED_TO_TABLE_2)}); "
    f"chosen by their order, not fitted: {len(CHOSEN_BY_ORDER)} ({', '.join(CHOSEN_BY_ORDER)}); distances and FLOP/s "
    "are those of profile paper_8_devices",
    "ours: mean attention waiting latency of one forward pass, Eq. (11) summed over 32 layers, base station's compute "
    "neglected; a batch of Table II is taken to be one forward pass",
    "difference = ours - paper; savings are relative to vanilla_even, in percentage points",
)


def simulation_notes(runs: Sequence[ModelRun], scope: str) -> list[str]:
    """Lines under the comparison: what it shows, what was fitted to it, its scope, and where its numbers come from."""
    return [*NOTES, f"scope {SCOPE_LABELS[scope]}: {SCOPE_MEANING[scope]}", *origin_notes(runs)]


def simulation_records(found: Sequence[SimulatedBenchmark], scope: str) -> list[dict[str, Any]]:
    """One record per row of Table II and benchmark: ours, the paper's, the difference; the same of the savings."""
    names = list(BENCHMARKS)
    records = []
    for simulated in found:
        column = names.index(simulated.name)
        for row in routed_rows(simulated.vanilla, simulated.selected, scope):
            ours_ms, paper_ms = 1e3 * row["latency_s"], TABLE_2[row["row"]][column]
            record = dict(benchmark=simulated.name, row=row["row"])
            record |= dict(ours_ms=ours_ms, paper_ms=paper_ms, difference_ms=ours_ms - paper_ms)
            if row["row"] != "vanilla_even":
                ours, paper = 100 * row["saving"], 100 * (1 - paper_ms / TABLE_2["vanilla_even"][column])
                record |= dict(saving_percent=ours, paper_saving_percent=paper, difference_points=ours - paper)
            records.append(record)
    return sorted(records, key=lambda record: list(TABLE_2).index(record["row"]))


def mean_savings(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Row -> mean over the benchmarks of ours and the paper's saving in percent, and their difference in points."""
    means = {}
    for row in list(TABLE_2)[1:]:
        mine = [record for record in records if record["row"] == row]
        ours, paper = (
            sum(record[key] for record in mine) / len(mine) for key in ("saving_percent", "paper_saving_percent")
        )
        means[row] = dict(ours_percent=ours, paper_percent=paper, difference_points=ours - paper)
    return means


def simulation_rows(records: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """The records as text: `ours | paper | difference` of latencies and of savings."""
    rows = []
    for record in records:
        row = {"row": record["row"], "benchmark": record["benchmark"]}
        row |= _cells("ms", record["ours_ms"], record["paper_ms"], record["difference_ms"])
        if "saving_percent" in record:
            values = record["saving_percent"], record["paper_saving_percent"], record["difference_points"]
            row |= _cells("saving %", *values)
        else:
            row |= dict.fromkeys(_cells("saving %", 0, 0, 0), "-")
        rows.append(row)
    return rows


def _cells(unit: str, ours: float, paper: float, difference: float) -> dict[str, str]:
    return {f"ours {unit}": f"{ours:.1f}", f"paper {unit}": f"{paper:.1f}", f"difference {unit}": f"{difference:+.1f}"}


def check_folder(folder: Path) -> None:
    """Raise TraceError where a folder already holds the traces of a run or of another simulation."""
    if (folder / "predictions").exists():
        raise TraceError(f"{folder}: holds traces already; give a new folder")


def write_simulation(
    folder: Path, found: Sequence[SimulatedBenchmark], records: Sequence[dict[str, Any]], scope: str
) -> None:
    """Write traces into a folder in the layout of a run, its tables, figures and page, and the comparison."""
    for simulated in found:
        for trace in (simulated.vanilla, simulated.selected):
            names = trace.metadata.model, trace.metadata.dataset
            path = dataset_file(folder / "predictions", *names, SEALED_SUFFIX)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_trace(path, trace)
    write_summary(folder)
    runs = simulation_runs(found)
    notes = [HEADING, *simulation_notes(runs, scope)]
    where = provenance(runs, scope=SCOPE_LABELS[scope])
    write_table(folder / "summary" / SIMULATION, pd.DataFrame(simulation_rows(records)), notes, where)


def simulation_runs(found: Sequence[SimulatedBenchmark]) -> list[ModelRun]:
    """The two models of a simulation, as the tables take them."""
    runs = []
    for traces in ([simulated.vanilla for simulated in found], [simulated.selected for simulated in found]):
        metadata = traces[0].metadata
        base = (metadata.weights, metadata.profile_hash)
        of_dataset = {trace.metadata.dataset: [trace] for trace in traces}
        batch_size = metadata.batch_size
        runs.append(ModelRun(metadata.model, metadata.routing, base, traces=of_dataset, batch_size=batch_size))
    return runs
