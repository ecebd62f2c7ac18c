"""Tables as lines of text that fit the width of a terminal, and stay readable in a narrow one.

No number is broken or cut, and a name is folded only after a hyphen, an underscore or a slash. Columns that do not fit
go into further blocks below, each of which begins with the columns that say what a row is about (model, dataset, ...);
of few rows each can be a list of `name  value` instead. Of these layouts the one with the fewest lines is taken.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import NamedTuple

from rich.cells import cell_len

# What a row is about, in our tables; everything before the last of them, such as a swept value, belongs to it.
KEYS = frozenset(("quantity", "model", "dataset", "benchmark", "row", "device", "layer", "placement", "name", "check"))
GAP = "  "
MIN_FOLDED = 10  # columns that a name is folded to at least
MAX_AS_LISTS = 3  # rows; more are better compared as a table, if one fits

# An interval and its mark, a percentage: never folded at their spaces.
_NUMBERS = re.compile(r"\[[-+\d., ]+\](?: \*)?|(?<=\d) %")
_INSIDE = re.compile(r"(?<=\w[-_/])(?<!\d[eE]-)(?!(?<=\d[-/])\d)(?=\w)")  # not 1e-08, not 3/12
_GLUE = "\0"


class Line(NamedTuple):
    """A line of a table; style: as rich names it."""

    text: str
    style: str


class _Block(NamedTuple):
    columns: list[int]
    widths: list[int]


def layout(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    to_right: Sequence[bool],
    width: int,
    styles: Sequence[str] = (),
) -> list[Line]:
    """A table as lines of at most `width` columns, longer only where a single word is.

    to_right: [columns] whether a column ends at its right; styles: [rows] as rich names them.
    """
    styles = styles or [""] * len(rows)
    keys = list(range(max((k for k, head in enumerate(heads) if head in KEYS), default=-1) + 1))
    layouts = []
    for may_fold in (set[int](), set(keys), set(range(len(heads)))):
        blocks = _blocks(heads, rows, keys, may_fold, width)
        if blocks is not None:
            layouts.append(_render(heads, rows, to_right, styles, blocks))
    if not layouts or len(rows) <= MAX_AS_LISTS:
        layouts.append(_as_lists(heads, rows, styles, width))
    return min(layouts, key=len)


def pieces(text: str) -> list[list[str]]:
    """A cell's words, each as the parts between which it may be folded."""
    glued = _NUMBERS.sub(lambda found: found[0].replace(" ", _GLUE), text)
    return [[part.replace(_GLUE, " ") for part in _INSIDE.split(word)] for word in glued.split()]


def fold(text: str, width: int) -> list[str]:
    """A cell as lines of at most `width` columns, longer only where a part that cannot be folded is."""
    if cell_len(text) <= width:
        return [text]
    lines = [""]
    for word in pieces(text):
        for number, part in enumerate(word):
            joint = " " if lines[-1] and number == 0 else ""
            if lines[-1] and cell_len(lines[-1] + joint + part) > width:
                lines.append(part)
            else:
                lines[-1] += joint + part
    return lines


def _longest_piece(text: str) -> int:
    return max((cell_len(part) for word in pieces(text) for part in word), default=0)


def _blocks(
    heads: Sequence[str], rows: Sequence[Sequence[str]], keys: Sequence[int], may_fold: set[int], width: int
) -> list[_Block] | None:
    """The columns by block with the width of each; None where the keys leave no room for some column."""
    whole, least = [], []
    for k, head in enumerate(heads):
        cells = {row[k] for row in rows}
        longest = max(map(cell_len, cells), default=0)
        whole.append(max(longest, cell_len(head)))
        if k in may_fold:
            longest = min(longest, max(MIN_FOLDED, *map(_longest_piece, cells)) if cells else 0)
        least.append(max(longest, _longest_piece(head)))
    blocks, left = [], [k for k in range(len(heads)) if k not in keys]
    while True:
        chosen = list(keys)
        while left and _width([least[k] for k in [*chosen, left[0]]]) <= width:
            chosen.append(left.pop(0))
        if (left and len(chosen) == len(keys)) or _width([least[k] for k in chosen]) > width:
            return None
        blocks.append(_Block(chosen, _share_width(width, [least[k] for k in chosen], [whole[k] for k in chosen])))
        if not left:
            return blocks


def _width(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _share_width(width: int, least: Sequence[int], whole: Sequence[int]) -> list[int]:
    """What each column gets of the width: all of it that it needs, or as much as any other that needs more."""
    widths = list(least)
    for cap in range(1, max(whole, default=0) + 1):
        wider = [max(low, min(high, cap)) for low, high in zip(least, whole, strict=True)]
        if _width(wider) > width:
            break
        widths = wider
    return widths


def _render(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    to_right: Sequence[bool],
    styles: Sequence[str],
    blocks: Sequence[_Block],
) -> list[Line]:
    lines: list[Line] = []
    for columns, widths in blocks:
        right = [to_right[k] for k in columns]
        head = _side_by_side([fold(heads[k], width) for k, width in zip(columns, widths)], widths, right, at_end=True)
        body = [
            _side_by_side([fold(row[k], width) for k, width in zip(columns, widths)], widths, right) for row in rows
        ]
        lines += [Line("", "")] * bool(lines)
        lines += [Line(text, "bold") for text in head]
        lines.append(Line(GAP.join("─" * width for width in widths), "dim"))
        lines += _join_rows(body, styles)
    return lines


def _side_by_side(
    cells: Sequence[list[str]], widths: Sequence[int], to_right: Sequence[bool], at_end: bool = False
) -> list[str]:
    """Cells of several lines as the lines of one row; at_end: aligned at their last lines."""
    height = max(map(len, cells), default=0)
    padded = [[""] * (height - len(cell)) + cell if at_end else cell for cell in cells]
    return [
        GAP.join(_pad(text, width, right) for text, width, right in zip(texts, widths, to_right)).rstrip()
        for texts in zip_longest(*padded, fillvalue="")
    ]


def _pad(text: str, width: int, to_right: bool) -> str:
    spaces = " " * (width - cell_len(text))
    return spaces + text if to_right else text + spaces


def _as_lists(heads: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str], width: int) -> list[Line]:
    first = max(map(cell_len, heads), default=0)
    widths = [first, max(1, width - first - len(GAP))]
    body = [
        [
            line
            for head, cell in zip(heads, row, strict=True)
            for line in _side_by_side([[head], fold(cell, widths[1])], widths, [False, False])
        ]
        for row in rows
    ]
    return _join_rows(body, styles)


def _join_rows(body: Iterable[list[str]], styles: Sequence[str]) -> list[Line]:
    """The lines of all rows; an empty one before and after a row of several."""
    lines: list[Line] = []
    height = 1
    for texts, style in zip(body, styles, strict=True):
        lines += [Line("", "")] * (bool(lines) and max(height, len(texts)) > 1)
        lines += [Line(text, style) for text in texts]
        height = len(texts)
    return lines
