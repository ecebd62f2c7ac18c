"""How `wdmoe watch` shows a look at a run: as JSON, as plain text, or drawn on a terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import Any, Literal

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..console import aligned, is_terminal, print_event
from ..harness.progress import FAILED, FINISHED, INTERRUPTED, RUNNING, WAITING, DatasetProgress
from ..harness.run_progress import RunProgress

COLOURS = {WAITING: "dim", RUNNING: "cyan", INTERRUPTED: "yellow", FAILED: "red", FINISHED: "green"}
MOST_URGENT = (RUNNING, FAILED, INTERRUPTED, WAITING, FINISHED)
TO_LEFT = ("model", "dataset", "state")
LINES_AROUND = 10  # of a terminal: head of the table, notes
EXPLANATION = (
    "waiting: attention waiting latency, Eq. (11), mean over the batches so far, for the run's own selection, channel "
    "profile and draw; one bandwidth split per forward pass"
)


@contextmanager
def display(as_json: bool, once: bool) -> Iterator[Any]:
    """-> what shows one look."""
    if as_json:
        yield lambda found: print_event(record(found))
    elif not is_terminal(sys.stdout):
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
    """One look as text without colours: a table in aligned columns, then the reasons."""
    names = list(DatasetProgress("", "", WAITING).cells())
    rows = [[_printable(cell) for cell in one.cells().values()] for one in found.datasets]
    lines = [aligned([names, *rows], [name not in TO_LEFT for name in names])]
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
        justify: Literal["left", "right"] = "left" if name in TO_LEFT else "right"
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
