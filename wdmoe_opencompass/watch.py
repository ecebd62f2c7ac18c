"""`wdmoe watch`: the lines of a run, in another terminal or on another machine that sees its folder."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .harness.progress import FAILED, FINISHED, INTERRUPTED, RUNNING, WAITING, DatasetProgress
from .harness.run_progress import RunProgress, RunWatch

COLOURS = {WAITING: "dim", RUNNING: "cyan", INTERRUPTED: "yellow", FAILED: "red", FINISHED: "green"}
MOST_URGENT = (RUNNING, FAILED, INTERRUPTED, WAITING, FINISHED)
LINES_AROUND = 10  # of a terminal: head of the table, notes
EXPLANATION = (
    "waiting: attention waiting latency, Eq. (11), mean over the batches so far, for the run's own selection, channel "
    "profile and draw; one bandwidth split per forward pass"
)


def watch_command(
    run_folder: Annotated[Path, typer.Argument(help="OpenCompass's time-stamped folder of a run.")],
    once: Annotated[bool, typer.Option("--once", help="Look once, do not wait for the end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON per look.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 5.0,
) -> None:
    """Show how far a run is: prompts, accuracy, dropped assignments, waiting latency, and the time left.

    Reads the run's folder only, and ends with the run: exit code 0 if all datasets are finished, 1 if one failed, was
    interrupted or was never begun. With --once: 1 if one failed or was interrupted.
    """
    watch = RunWatch(run_folder)
    try:
        with _display(as_json, once) as show:
            while True:
                found = watch.look(time.time())
                show(found)
                if once or found.has_ended:
                    break
                time.sleep(interval)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if found.is_broken if once else not found.is_finished:
        raise typer.Exit(1)


@contextmanager
def _display(as_json: bool, once: bool) -> Iterator[Any]:
    """-> what shows one look."""
    if as_json:
        yield lambda found: print(json.dumps(record(found), allow_nan=False), flush=True)
    elif not sys.stdout.isatty():
        yield lambda found: print(plain(found), flush=True)
    elif once:
        yield lambda found: Console().print(*table(found, len(found.datasets)))
    else:
        with Live(console=Console(), auto_refresh=False) as live:
            yield lambda found: live.update(_grid(found, live.console.height - LINES_AROUND), refresh=True)


def record(found: RunProgress) -> dict[str, Any]:
    """One look as JSON; times in seconds, shares from 0 to 1, accuracy in percent."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    return dict(time=now, has_ended=found.has_ended, datasets=[asdict(one) for one in found.datasets])


def plain(found: RunProgress) -> str:
    """One look as text without colours: a table with tabs, then the reasons."""
    rows = [list(one.cells().values()) for one in found.datasets]
    head = [list(found.datasets[0].cells())] if found.datasets else []
    lines = ["\t".join(map(_printable, row)) for row in [*head, *rows]]
    return "\n".join([*lines, *map(_printable, _notes(found)), _summary(found)])


def table(found: RunProgress, most_rows: int) -> tuple[Table, Text]:
    """One look for a terminal; where it has fewer rows, what runs or went wrong comes first."""
    chosen = found.datasets
    if len(chosen) > most_rows:
        chosen = sorted(chosen, key=lambda one: MOST_URGENT.index(one.state))[: max(1, most_rows)]
    drawn = Table(box=None, pad_edge=False, collapse_padding=True)
    for name in DatasetProgress("", "", WAITING).cells():
        head = name.replace(", ", ",\n").replace(" (", "\n(").replace(" per ", " per\n")
        is_name = name in ("model", "dataset")  # what gives way where the terminal is narrow
        justify: Literal["left", "right"] = "left" if is_name or name == "state" else "right"
        drawn.add_column(head, justify=justify, no_wrap=not is_name, overflow="fold")
    for one in chosen:
        cells = [Text(_printable(cell)) for cell in one.cells().values()]
        drawn.add_row(*cells, style=COLOURS[one.state])
    left_out = len(found.datasets) - len(chosen)
    more = [f"{left_out} more lines do not fit; --once shows all"] if left_out else []
    return drawn, Text("\n".join(map(_printable, [*_notes(found), *more, _summary(found), EXPLANATION])))


def _grid(found: RunProgress, most_rows: int) -> Table:
    grid = Table.grid()
    for part in table(found, max(1, most_rows - len(_notes(found)))):
        grid.add_row(part)
    return grid


def _notes(found: RunProgress) -> list[str]:
    return [f"{one.model}/{one.dataset}: {one.state}: {one.reason}" for one in found.datasets if one.reason]


def _summary(found: RunProgress) -> str:
    return f"{datetime.now():%H:%M:%S}: {found.counts()}{'; the run has ended' if found.has_ended else ''}"


def _printable(text: str) -> str:
    return "".join(one if one.isprintable() else " " for one in text)
