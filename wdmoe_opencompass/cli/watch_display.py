"""How `wdmoe watch` shows a snapshot of a run: as JSON, as plain text, or rendered on a terminal."""

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

from ..run.dataset_progress import EVEN, FAILED, FINISHED, INTERRUPTED, OPTIMAL, RUNNING, WAITING, DatasetProgress
from ..run.run_progress import RunProgress
from .console import align, is_terminal, print_event, render

COLOURS = {WAITING: "dim", RUNNING: "cyan", INTERRUPTED: "yellow", FAILED: "red", FINISHED: "green"}
URGENCY = (RUNNING, FAILED, INTERRUPTED, WAITING, FINISHED)
HEADS = tuple(DatasetProgress("", "", WAITING).cells())
TO_LEFT = ("model", "dataset", "state")
FIRST_TO_GO = ("elapsed", OPTIMAL, EVEN, "dropped (%)")  # on a screen too small for them
EXPLANATION = (
    "waiting: attention waiting latency, Eq. (11), mean over the batches so far, for the run's own selection, channel "
    "profile and draw; one bandwidth split per forward pass"
)


@contextmanager
def display(as_json: bool, once: bool) -> Iterator[Any]:
    """-> the function that shows one snapshot."""
    if as_json:
        yield lambda found: print_event(record(found))
    elif not is_terminal(sys.stdout):
        yield lambda found: print(plain(found), flush=True)
    elif once:
        yield lambda found: Console().print(table(found, Console().width))
    else:
        with Live(console=Console(), auto_refresh=False) as live:
            yield lambda found: live.update(_on_screen(found, live.console), refresh=True)


def record(found: RunProgress) -> dict[str, Any]:
    """One snapshot as JSON; times in seconds, shares from 0 to 1, accuracy in percent."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    return dict(time=now, has_ended=found.has_ended, datasets=[asdict(dataset) for dataset in found.datasets])


def plain(found: RunProgress) -> str:
    """One snapshot as text without colours: a table in aligned columns, then the reasons."""
    rows = [[_printable(cell) for cell in dataset.cells().values()] for dataset in found.datasets]
    lines = [align([HEADS, *rows], [name not in TO_LEFT for name in HEADS])]
    return "\n".join([*lines, *map(_printable, _notes(found)), _summary(found)])


def table(found: RunProgress, width: int, most_lines: int | None = None) -> Text:
    """One snapshot for a terminal; where it has fewer lines, what runs or went wrong comes first."""
    shown = _table_of(found.datasets, width)
    reasons, below = _notes(found), [_summary(found), EXPLANATION]
    if most_lines is not None:
        left = most_lines - _lines(below, width)
        reasons = _fitting_reasons(reasons, width, left // 3)
        left = max(1, left - _lines(reasons, width))
        if _height(shown) > left:
            urgent = sorted(found.datasets, key=lambda dataset: URGENCY.index(dataset.state))
            heads = _side_by_side_heads(urgent, width)
            numbers = range(1, len(urgent) + 1)  # of rows
            kept = bisect_right(numbers, left - 1, key=lambda rows: _height(_table_of(urgent[:rows], width, heads)))
            shown = _table_of(urgent[: max(1, kept)], width, heads)
            lacking = dict(lines=len(urgent) - max(1, kept), columns=len(HEADS) - len(heads))
            more = " and ".join(f"{count} more {what}" for what, count in lacking.items() if count)
            below.insert(0, f"{more} do not fit; --once shows all")
    below = [*reasons, *below]
    return Text("\n").join([shown, *(Text(_printable(line)) for line in below)])


def _on_screen(found: RunProgress, screen: Console) -> Text:
    """What stays on the screen when the run has ended may be longer than it; what changes may not."""
    return table(found, screen.width, None if found.has_ended else screen.height)


def _table_of(datasets: Sequence[DatasetProgress], width: int, heads: Sequence[str] = HEADS) -> Text:
    rows = [[_printable(dataset.cells()[head]) for head in heads] for dataset in datasets]
    return render(
        heads, rows, [head not in TO_LEFT for head in heads], width, [COLOURS[dataset.state] for dataset in datasets]
    )


def _side_by_side_heads(datasets: Sequence[DatasetProgress], width: int) -> list[str]:
    """The columns that fit side by side, where there is no room for a second table below."""
    heads = list(HEADS)
    for least_needed in FIRST_TO_GO:
        if sum(line.startswith("─") for line in _table_of(datasets, width, heads).plain.splitlines()) == 1:
            break
        heads.remove(least_needed)
    return heads


def _fitting_reasons(reasons: Sequence[str], width: int, most_lines: int) -> list[str]:
    kept = len(reasons)
    while kept and _lines(reasons[:kept], width) + (kept < len(reasons)) > most_lines:
        kept -= 1
    left_out = len(reasons) - kept
    return [*reasons[:kept], *([f"{left_out} more reasons do not fit; --once shows all"] if left_out else [])]


def _lines(texts: Sequence[str], width: int) -> int:
    """How many lines of a terminal the texts take; unbroken words may add one to each."""
    return sum(-(-len(text) // max(1, width)) + (len(text) > width) for text in texts)


def _height(text: Text) -> int:
    return text.plain.count("\n") + 1


def _notes(found: RunProgress) -> list[str]:
    return [f"{line.model}/{line.dataset}: {line.state}: {line.reason}" for line in found.datasets if line.reason]


def _summary(found: RunProgress) -> str:
    return f"{datetime.now():%H:%M:%S}: {found.counts()}{'; the run has ended' if found.has_ended else ''}"


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
