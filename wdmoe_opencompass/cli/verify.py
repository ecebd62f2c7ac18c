"""`wdmoe verify`."""

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .._util.given_paths import check_run_folder
from .console import Progress, print_json
from .options import CHECK_FAILED, AsJson

EXAMPLES = ("wdmoe verify outputs/quickstart/TIME",)


def verify_command(
    run_folder: Annotated[Path, typer.Argument(help="Time-stamped folder of a finished run.")],
    as_json: AsJson = False,
) -> None:
    """Compute every result and table again from predictions and traces; exit code 1 if one does not match.

    Runs the run's own config and evaluators, as OpenCompass did; call it from the folder where the run was started, so
    that relative data paths hold. The run itself is only read.
    """
    check_run_folder(run_folder)
    with (
        Progress(f"computing {run_folder} again"),
        redirect_stdout(io.StringIO()),  # OpenCompass prints a lot on import
        redirect_stderr(io.StringIO()),
    ):
        from ..harness.verify.run import verify

        verdict = verify(run_folder)
    matches = not verdict.mismatches
    if as_json:
        print_json(asdict(verdict) | dict(matches=matches))
    else:
        for sentence in [*map(str, verdict.mismatches), *(f"note: {note}" for note in verdict.notes)]:
            print(sentence)
        print(
            f"{run_folder}: all {verdict.compared} files of results and tables match"
            if matches
            else f"{run_folder}: {len(verdict.mismatches)} mismatches"
        )
    if not matches:
        raise typer.Exit(CHECK_FAILED)
