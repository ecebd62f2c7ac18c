"""`wdmoe predict`."""

from pathlib import Path
from typing import Annotated

import typer

from .._util.given_paths import check_run_folder
from ..errors import TraceError, WdmoeError
from .console import Progress, print_aside, print_json, print_markdown
from .options import CHECK_FAILED, PROFILE_HELP, AsJson, Format, Formatted, format_of, open_profile, profile_names

EXAMPLES = (
    "wdmoe predict outputs/testbed/TIME --profile measured.yaml",
    "wdmoe predict outputs/testbed/TIME --layers > layers.csv",
)


def predict_command(
    run_folder: Annotated[Path, typer.Argument(help="Time-stamped folder of a run on a testbed.")],
    profile: Annotated[
        str | None,
        typer.Option(
            help=f"{PROFILE_HELP} It must have the run's devices; default: the run's own.",
            autocompletion=profile_names,
        ),
    ] = None,
    form: Formatted = None,
    layers: Annotated[bool, typer.Option("--layers", help="Print every layer of every pass instead, as CSV.")] = False,
    as_json: AsJson = False,
) -> None:
    """Predicted next to measured waiting latency of a testbed's run, from its traces and the times next to them."""
    from ..report.formats import format_table
    from ..report.predictions import prediction_notes, prediction_records, prediction_table
    from ..report.runs import measured_runs, runs_from_traces

    form = format_of(form, as_json)
    if layers and form is not None:
        raise WdmoeError("--layers prints CSV, so it excludes --format and --json")
    check_run_folder(run_folder)
    chosen = None if profile is None else open_profile(profile)
    with Progress("predicting"):
        measured = measured_runs(runs_from_traces(run_folder), run_folder / "predictions")
        records, rows = prediction_records(measured, chosen)
    reasons = [f"{run.run.abbr}, {dataset}: {why}" for run in measured for dataset, why in run.missing.items()]
    if not records:
        raise TraceError("; ".join(reasons) or f"{run_folder}: no measured times next to its traces; no testbed ran it")
    if layers:
        print(rows.to_csv(index=False, lineterminator="\n"), end="")
    elif form == Format.json:
        print_json(dict(predictions=records, notes=prediction_notes(measured, chosen)))
    else:
        text = format_table(prediction_table(records), prediction_notes(measured, chosen), (form or Format.md).value)
        print_markdown(text) if form is None else print(text, end="")
    for reason in reasons:
        print_aside(f"empty: {reason}")
    if reasons:
        raise typer.Exit(CHECK_FAILED)
