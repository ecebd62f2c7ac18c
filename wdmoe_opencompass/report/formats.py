"""Tables and records as files: CSV, Markdown, LaTeX and JSON."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from .._util.atomic_write import write_whole
from .._util.json_values import map_values
from .._util.utf8_text import clean_value
from ..errors import visible
from .cells import LATEX_LETTER, LATEX_PREAMBLE, csv_field, latex_row, markdown_cell, markdown_note
from .statistics import Interval

FORMATS = ("md", "csv", "tex", "json")


def write_table(path: Path, table: pd.DataFrame, notes: list[str], origin: dict[str, Any]) -> str:
    """Write a table with its notes as `path`, in all FORMATS; -> the Markdown.

    origin: what `provenance.provenance` gives, for the JSON; the notes tell it in the other formats.
    """
    for form in FORMATS:
        write_whole(path.parent / f"{path.name}.{form}", format_table(table, notes, form, origin))
    return format_table(table, notes, "md")


def format_table(table: pd.DataFrame, notes: list[str], form: str, origin: dict[str, Any] | None = None) -> str:
    """A table and its notes as text of one of FORMATS."""
    cells = [list(table.columns), *table.astype(str).values.tolist()]
    if form == "json":
        content = dict(rows=table.to_dict("records"), notes=notes) | (dict(provenance=origin) if origin else {})
        return json_text(content)
    if form == "csv":
        rows: list[Sequence[Any]] = [list(table.columns), *table.itertuples(index=False, name=None)]
        lines = [",".join(map(csv_field, row)) for row in rows]
        return "".join(f"{line}\n" for line in [*(f"# {visible(note)}" for note in notes), *lines])
    if form == "tex":
        return _latex(cells, notes)
    bars = ["| " + " | ".join(map(markdown_cell, row)) + " |" for row in cells]
    bars.insert(1, "|" + "---|" * len(table.columns))
    return "\n".join(bars) + "\n\n" + "".join(f"- {markdown_note(note)}\n" for note in notes)


def _latex(cells: list[list[str]], notes: list[str]) -> str:
    head, *body = map(latex_row, cells)
    letters = LATEX_PREAMBLE if any(LATEX_LETTER in row for row in (head, *body)) else ()
    table = [
        r"\begin{tabular}{" + "l" * len(cells[0]) + "}",
        r"\hline",
        head,
        r"\hline",
        *body,
        r"\hline",
        r"\end{tabular}",
    ]
    return "\n".join([*(f"% {visible(note)}" for note in notes), *letters, *table]) + "\n"


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON."""
    write_whole(path, json_text(content))


def json_text(content: Any) -> str:
    """Indented JSON that any program reads: it has no number for NaN and infinity, so null is used for both."""
    return json.dumps(map_values(clean_value(content), _finite), indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def by_reason(found: Iterable[tuple[Any, str]]) -> dict[Any, str]:
    """[reason, name] -> reason -> the names that have it, joined by commas; None is no reason."""
    names: dict[Any, list[str]] = {}
    for reason, name in found:
        if reason is not None:
            names.setdefault(reason, []).append(name)
    return {reason: ", ".join(dict.fromkeys(of)) for reason, of in names.items()}


def brackets(interval: Interval | None, number: str = "{:.1f}") -> list[str]:
    """-> one text `[low, high]`, or none."""
    return [f"[{number.format(interval.low)}, {number.format(interval.high)}]"] if interval else []


def difference_cell(value: float, interval: Interval | None, number: str = "{:.2f}") -> str:
    """A difference with its interval; without one it is not shown."""
    signed = "{:+" + number[2:]
    return f"{signed.format(value)} {brackets(interval, signed)[0]}" if interval else "-"
