"""`wdmoe simulate`: the paper's Table II without a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._util.given_paths import check_out_folder
from ..errors import WdmoeError, unknown_name
from .console import Progress, print_json, print_table
from .options import PROFILE_HELP, SCOPE_NAMES, AsJson, Scope, open_profile, profile_names
from .route import policy_arguments

if TYPE_CHECKING:
    from ..simulation.run import SimulatedBenchmark, Simulation

EXAMPLES = (
    "wdmoe simulate",
    "wdmoe simulate --benchmarks ARC-C,PIQA --batch-size 32 --json",
    "wdmoe simulate --policy bottleneck --profile my_lab.yaml --out simulated",
)
BATCH_SIZE = 64  # sequences per forward pass: the order that fits row one of Table II (docs/reconstruction.md)
MAX_BATCH_SIZE, MAX_SEED = 1024, 10**18


def simulate_command(
    profile: Annotated[str, typer.Option(help=PROFILE_HELP, autocompletion=profile_names)] = "paper_8_devices",
    batch_size: Annotated[
        int, typer.Option(min=1, max=MAX_BATCH_SIZE, help="Sequences per forward pass, of every benchmark.")
    ] = BATCH_SIZE,
    policy: Annotated[str, typer.Option(help="Name of a selection policy.")] = "wlr",
    parameters: Annotated[str, typer.Option(help="Policy parameters other than the defaults, as JSON.")] = "{}",
    scope: Scope = "layer",
    seed: Annotated[
        int,
        typer.Option(min=0, max=MAX_SEED, help="Seed of the synthetic routing; the profile has its own for fading."),
    ] = 0,
    benchmarks: Annotated[
        str | None, typer.Option(help="Names as in the paper, separated by commas. Default: all eight.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="New folder for traces, tables, Figures 5 to 8 and page, as in a run.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compute Table II of the paper on synthetic routing with Mixtral-8x7B's sizes: no model, no GPU.

    Router outputs are drawn from a model of Mixtral's router, fitted to published top-2 statistics. A drop does not
    change what later layers see, and there are no answers, so no accuracy.
    """
    from ..report.simulation import check_folder, simulation_records, write_simulation
    from ..simulation.run import Simulation, available_cores, simulate

    names = _names(benchmarks)
    if scope not in SCOPE_NAMES:
        raise WdmoeError(unknown_name("scope", scope, SCOPE_NAMES))
    simulation = Simulation(open_profile(profile), policy, policy_arguments(parameters), batch_size, seed)
    if out is not None:
        check_out_folder(out)
        check_folder(out)
    with Progress("simulating", len(names)) as progress:
        found = simulate(simulation, names, available_cores(), progress.advance)
        records = simulation_records(found, scope)
        if out is not None:
            write_simulation(out, found, records, scope)
    if as_json:
        print_json(_answer(simulation, scope, found, records) | (dict(out=str(out)) if out else {}))
    else:
        _show(simulation, scope, found, records)
        if out is not None:
            print(f"traces, tables, figures and page: {out}")


def _names(text: str | None) -> list[str]:
    from ..simulation.benchmarks import BENCHMARKS

    if text is None:
        return list(BENCHMARKS)
    given = [name.strip() for name in text.split(",")]
    for name in given:
        if name not in BENCHMARKS:
            raise WdmoeError(unknown_name("--benchmarks: benchmark", name, BENCHMARKS))
    return [name for name in BENCHMARKS if name in given]


def _answer(
    simulation: Simulation, scope: str, found: Sequence[SimulatedBenchmark], records: list[dict[str, Any]]
) -> dict[str, Any]:
    from ..allocation import SCOPE_LABELS
    from ..report.provenance import provenance
    from ..report.simulation import CHOSEN_BY_ORDER, FITTED_TO_TABLE_2, NOTES, mean_savings, simulation_runs

    return dict(
        routing="synthetic",
        policy=simulation.policy,
        policy_parameters={
            name: _as_json(value) for name, value in found[0].selected.metadata.policy_parameters.items()
        },
        batch_size=simulation.batch_size,
        scope=scope,
        seed=simulation.seed,
        kept_share=_kept_share(found),
        cells=records,
        mean_savings=mean_savings(records),
        notes=list(NOTES),
        fitted_to_table_2=FITTED_TO_TABLE_2,
        chosen_by_order=CHOSEN_BY_ORDER,
        provenance=provenance(simulation_runs(found), scope=SCOPE_LABELS[scope]),
    )


def _as_json(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _kept_share(found: Sequence[SimulatedBenchmark]) -> dict[str, float]:
    return {
        benchmark.name: float(benchmark.selected.assignments.sum() / benchmark.selected.assignments_before.sum())
        for benchmark in found
    }


def _show(
    simulation: Simulation, scope: str, found: Sequence[SimulatedBenchmark], records: list[dict[str, Any]]
) -> None:
    from ..report.simulation import HEADING, mean_savings, simulation_notes, simulation_rows, simulation_runs

    print(f"{HEADING}\n")
    print_table(simulation_rows(records))
    print("\nmean saving over the benchmarks")
    rows = mean_savings(records).items()
    print_table([dict(row=row) | {key: round(value, 1) for key, value in means.items()} for row, means in rows])
    kept = [f"{100 * share:.0f}" for share in sorted(_kept_share(found).values())]
    share = kept[0] if kept[0] == kept[-1] else f"{kept[0]} to {kept[-1]}"
    print(f"\n{simulation.policy} keeps {share} % of the assignments")
    if simulation.policy != "wlr":
        print("the paper's rows selection_only and both are of Algorithm 1, wlr")
    for note in simulation_notes(simulation_runs(found), scope):
        print(note)
