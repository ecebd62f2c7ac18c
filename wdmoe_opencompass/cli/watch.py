"""`wdmoe watch`: the lines of a run, in another terminal or on another machine that sees its folder."""

import time
from pathlib import Path
from typing import Annotated

import typer

from .._util.given_paths import check_run_folder
from .options import CHECK_FAILED, JsonLines

EXAMPLES = ("wdmoe watch outputs/quickstart/TIME", "wdmoe watch outputs/quickstart/TIME --once --json")


def watch_command(
    run_folder: Annotated[Path, typer.Argument(help="OpenCompass's time-stamped folder of a run.")],
    once: Annotated[bool, typer.Option("--once", help="Look once, do not wait for the end.")] = False,
    as_json: JsonLines = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 5.0,
) -> None:
    """Show how far a run is: prompts, accuracy, dropped assignments, waiting latency, and the time left.

    Reads the run's folder only, and ends with the run: exit code 0 if all datasets are finished, 1 if one failed, was
    interrupted or was never begun. With --once: 1 if one failed or was interrupted.
    """
    from ..run.run_progress import RunWatch
    from .watch_display import display

    check_run_folder(run_folder)
    watch = RunWatch(run_folder)
    with display(as_json, once) as show:
        while True:
            found = watch.look(time.time())
            show(found)
            if once or found.has_ended:
                break
            time.sleep(interval)
    if found.is_broken if once else not found.is_finished:
        raise typer.Exit(CHECK_FAILED)
