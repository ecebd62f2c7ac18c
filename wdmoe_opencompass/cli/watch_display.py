"""How `wdmoe watch` shows a look at a run: as JSON, as plain text, or drawn on a terminal."""

import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ..console import aligned, drawn, is_terminal, print_event
from ..harness.progress import FAILED, FINISHED, INTERRUPTED, RUNNING, WAITING, DatasetProgress
from ..harness.run_progress import RunProgress

COLOURS = {WAITING: "dim", RUNNING: "cyan", INTERRUPTED: "yellow", FAILED: "red", FINISHED: "green"}
MOST_URGENT = (RUNNING, FAILED, INTERRUPTED, WAITING, FINISHED)
TO_LEFT = ("model", "dataset", "state")
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
        yield lambda found: Console().print(table(found, Console().width))
    else:
        with Live(console=Console(), auto_refresh=False) as live:
            yield lambda found: live.update(table(found, *live.console.size), refresh=True)


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


def table(found: RunProgress, width: int, most_lines: int | None = None) -> Text:
    """One look for a terminal; where it has fewer lines, what runs or went wrong comes first."""
    shown = _table_of(found.datasets, width)
    below = [*_notes(found), _summary(found), EXPLANATION]
    if most_lines is not None:
        most_lines = max(1, most_lines - sum(-(-len(line) // width) for line in below))
    if most_lines is not None and _height(shown) > most_lines:
        urgent = sorted(found.datasets, key=lambda one: MOST_URGENT.index(one.state))
        heights = range(1, len(urgent))  # of so many rows
        fitting = bisect_right(heights, most_lines - 1, key=lambda rows: _height(_table_of(urgent[:rows], width)))
        kept = max(1, fitting)
        shown = _table_of(urgent[:kept], width)
        if kept < len(urgent):
            below.insert(-2, f"{len(urgent) - kept} more lines do not fit; --once shows all")
    return Text("\n").join([shown, *(Text(_printable(line)) for line in below)])


def _table_of(datasets: Sequence[DatasetProgress], width: int) -> Text:
    heads = list(DatasetProgress("", "", WAITING).cells())
    rows = [[_printable(cell) for cell in one.cells().values()] for one in datasets]
    to_right = [head not in TO_LEFT for head in heads]
    return drawn(heads, rows, to_right, width, [COLOURS[one.state] for one in datasets])


def _height(text: Text) -> int:
    return text.plain.count("\n") + 1


def _notes(found: RunProgress) -> list[str]:
    return [f"{one.model}/{one.dataset}: {one.state}: {one.reason}" for one in found.datasets if one.reason]


def _summary(found: RunProgress) -> str:
    return f"{datetime.now():%H:%M:%S}: {found.counts()}{'; the run has ended' if found.has_ended else ''}"


def _printable(text: str) -> str:
    return "".join(one if one.isprintable() else " " for one in text)
