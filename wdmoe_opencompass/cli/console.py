"""What the `wdmoe` command shows: tables, JSON, sentences, progress. Only this module decides how.

One rule: a terminal gets tables that fit its width, anything else plain text in aligned columns. `--json` prints one
JSON document on standard output and nothing else there; errors and progress go to standard error in any case. rich
respects NO_COLOR and TERM=dumb, and is imported only where it renders.
"""

import csv
import json
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TextIO

from ..errors import visible

if TYPE_CHECKING:
    from rich.text import Text

Record = Mapping[str, Any]
QUIET_S = 1.0  # work that takes less shows no progress


def print_json(document: Record) -> None:
    """One JSON document; a number that is not finite is a bug, not output (ValueError)."""
    print(json.dumps(document, indent=1, allow_nan=False))


def print_event(event: Record) -> None:
    """One JSON object on one line, flushed: the output of a command that runs until it is stopped."""
    print(json.dumps(event, allow_nan=False), flush=True)


def print_csv(records: Sequence[Record]) -> None:
    """Records with the same keys as CSV with a header."""
    writer = csv.DictWriter(sys.stdout, list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)


def print_table(records: Sequence[Record]) -> None:
    """Records with the same keys as a table; floats with six significant digits."""
    if not records:
        print("nothing to show")
        return
    columns = list(records[0])
    cells = [[_cell(value) for value in record.values()] for record in records]
    to_right = [_are_numbers([record[column] for record in records]) for column in columns]
    if is_terminal(sys.stdout):
        from rich.console import Console

        screen = Console()
        screen.print(render(columns, cells, to_right, screen.width))
    else:
        print(align([columns, *cells], to_right))


def align(rows: Sequence[Sequence[str]], to_right: Sequence[bool]) -> str:
    """Rows of cells as lines of columns, two spaces apart; to_right: [columns] whether a column ends at its right."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(to_right))]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(row, widths, to_right)
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def print_markdown(text: str) -> None:
    """A Markdown document: rendered on a terminal with tables laid out by `render`, else as it is."""
    if not is_terminal(sys.stdout):
        print(text, end="" if text.endswith("\n") else "\n")
        return
    from rich.console import Console, ConsoleOptions
    from rich.markdown import Markdown, TableElement
    from rich.text import Text

    class Table(TableElement):
        def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
            assert self.header is not None
            assert self.header.row is not None
            rows = [self.header.row, *(self.body.rows if self.body is not None else [])]
            heads, *cells = [[cell.content.plain for cell in row.cells] for row in rows]
            to_right = [all(map(_reads_as_number, column)) for column in zip(*cells, strict=True)]
            yield render(heads, cells, to_right, options.max_width)

    class Document(Markdown):
        elements: ClassVar = {**Markdown.elements, "table_open": Table}

    Console().print(Document(text))


def print_error(sentence: object) -> None:
    """One line on standard error; a line break inside becomes a space."""
    print(f"error: {visible(' '.join(str(sentence).split()))}", file=sys.stderr)


def print_aside(sentence: str) -> None:
    """A note on standard error, so that standard output stays clean for pipes and JSON."""
    print("\n".join(map(visible, sentence.split("\n"))), file=sys.stderr)


def is_terminal(stream: TextIO) -> bool:
    """Whether tables and progress may be rendered there; FORCE_COLOR concerns colour only."""
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def render(
    heads: Sequence[str],
    cells: Sequence[Sequence[str]],
    to_right: Sequence[bool],
    width: int,
    styles: Sequence[str] = (),
) -> "Text":
    """A table for a terminal of that width, for rich to print; every table on a terminal comes from here.

    cells: [rows, columns]; to_right: [columns] whether a column ends at its right; styles: [rows] as rich names them.
    """
    from rich.text import Text

    from .table_layout import layout

    lines = [Text(*line) for line in layout(heads, cells, to_right, width, styles)]  # Text: a bracket is no markup
    return Text("\n", overflow="fold").join(lines)


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _are_numbers(values: Sequence[Any]) -> bool:
    """Whether a column holds numbers; some may be missing."""
    known = [value for value in values if value is not None]
    return bool(known) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)


def _reads_as_number(text: str) -> bool:
    return text == "-" or re.fullmatch(r"[-+]?\d+(\.\d+)?(e[-+]\d+)?", text) is not None


class Progress:
    """A bar on standard error for work longer than a second; none if standard error is no terminal.

    title: what is being done. total: units of work, counted by `advance`; None if unknown, then the bar only moves.
    Standard error may be redirected meanwhile: the bar stays on the stream it began on.
    """

    def __init__(self, title: str, total: float | None = None):
        self.title, self.total = title, total
        self.done = 0.0
        self.bar: Any = None
        self.ended = False
        self.changing = threading.Lock()
        self.timer: threading.Timer | None = None

    def __enter__(self) -> "Progress":
        self.stream = sys.stderr
        if is_terminal(self.stream):
            self.timer = threading.Timer(QUIET_S, self._show)
            self.timer.daemon = True
            self.timer.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with self.changing:
            self.ended = True
            if self.timer is not None:
                self.timer.cancel()
            if self.bar is not None:
                self.bar.stop()

    def advance(self, share: float) -> None:
        """Add a share of one unit of work."""
        with self.changing:
            self.done += share
            if self.bar is not None:
                self.bar.update(self.bar.task_ids[0], completed=self.done)

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import Progress as Bar

        with self.changing:
            if self.ended:
                return
            self.bar = Bar(
                console=Console(file=self.stream), transient=True, redirect_stdout=False, redirect_stderr=False
            )
            self.bar.add_task(self.title, total=self.total, completed=self.done)
            self.bar.start()
