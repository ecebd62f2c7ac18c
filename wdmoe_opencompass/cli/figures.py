"""`wdmoe figures`."""

from pathlib import Path
from typing import Annotated

import typer

from .._util.given_paths import check_run_folder
from ..errors import WdmoeError
from .console import Progress, print_json
from .options import AsJson

EXAMPLES = ("wdmoe figures outputs/quickstart/TIME",)


def figures_command(
    run_folder: Annotated[Path, typer.Argument(help="OpenCompass's time-stamped folder.")],
    as_json: AsJson = False,
) -> None:
    """Draw Figures 5 to 8 of the paper from a run's traces into its summary folder, as PNG and PDF."""
    from ..report.figures import write_figures
    from ..report.publication import list_in_manifest
    from ..report.runs import benchmarks_of, runs_from_traces

    check_run_folder(run_folder)
    runs = runs_from_traces(run_folder)
    benchmarks = benchmarks_of([dataset for run in runs for dataset in run.traces], runs[0].groups)
    try:
        with Progress("drawing figures", 1) as progress:
            written = write_figures(runs, benchmarks, run_folder / "summary", progress.advance)
            list_in_manifest(run_folder, written)
    except OSError as error:
        raise WdmoeError(f"{run_folder / 'summary'}: cannot be written: {error.strerror}") from None
    if as_json:
        print_json(dict(written=[str(path) for path in written]))
        return
    for path in written:
        print(path)
