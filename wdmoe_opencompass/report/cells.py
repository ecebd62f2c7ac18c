"""Escape cells and notes for CSV, Markdown, LaTeX and figures, so that names are shown as plain text."""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

import pandas as pd

from ..errors import visible

MAX_LABEL_LETTERS = 45

LATEX_LETTER = r"\wdmoeletter"  # of letters that pdfLaTeX's own fonts lack
LATEX_PREAMBLE = (
    "% letters that pdfLaTeX's fonts lack are printed as [U+...], their number in Unicode; with XeLaTeX or LuaLaTeX",
    rf"% and a font that has them, \newcommand{{{LATEX_LETTER}}}[2]{{#2}} in the preamble prints the letters",
    rf"\providecommand{{{LATEX_LETTER}}}[2]{{[U+#1]}}",
)
LATEX = {sign: f"\\{sign}" for sign in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "^": r"\^{}",  # the accent over nothing: \textasciicircum may ask for a font that is not installed
    "~": r"\~{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\`{}",
    '"': r"{\char34}",  # bare, babel may take it for a shorthand
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "±": r"$\pm$",
    "µ": r"$\mu$",
    "°": r"$^{\circ}$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "→": r"$\to$",
    "…": r"\ldots{}",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{EN DASH}": "--",
    "\N{EM DASH}": "---",
    "ß": r"\ss{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "œ": r"\oe{}",
    "Œ": r"\OE{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
}
ACCENTS = {  # in the fonts that LaTeX takes by itself
    "\N{COMBINING GRAVE ACCENT}": "`",
    "\N{COMBINING ACUTE ACCENT}": "'",
    "\N{COMBINING CIRCUMFLEX ACCENT}": "^",
    "\N{COMBINING TILDE}": "~",
    "\N{COMBINING DIAERESIS}": '"',
    "\N{COMBINING MACRON}": "=",
    "\N{COMBINING DOT ABOVE}": ".",
    "\N{COMBINING BREVE}": "u",
    "\N{COMBINING CARON}": "v",
    "\N{COMBINING RING ABOVE}": "r",
    "\N{COMBINING DOUBLE ACUTE ACCENT}": "H",
    "\N{COMBINING CEDILLA}": "c",
    "\N{COMBINING DOT BELOW}": "d",
}


def latex_row(cells: Sequence[str]) -> str:
    """One row of a tabular."""
    row = " & ".join(map(latex_text, cells)) + r" \\"
    return "{}" + row if row.startswith(("[", "*")) else row  # else the row before would take it for its argument


def latex_text(text: str) -> str:
    """Plain text as LaTeX's, for pdfLaTeX with its own fonts and for any other; see LATEX_PREAMBLE."""
    letters = unicodedata.normalize("NFC", visible(text))
    pairs = zip(letters, f"{letters} "[1:], strict=True)
    return "".join(
        _latex_letter(letter) + ("{}" if letter == after and letter in "-'," else "") for letter, after in pairs
    )


def _latex_letter(letter: str) -> str:
    if letter in LATEX:
        return LATEX[letter]
    if letter.isascii():
        return letter
    base, *marks = list(unicodedata.normalize("NFD", letter))
    if len(marks) == 1 and base.isascii() and base.isalpha() and marks[0] in ACCENTS:
        return f"\\{ACCENTS[marks[0]]}{{{base}}}"
    return f"{LATEX_LETTER}{{{ord(letter):04X}}}{{{letter}}}"


MARKDOWN = re.compile(
    r"""\\(?=[!-/:-@\[-`{-~])           # a backslash, where it would escape
    | [`|~$]
    | \*(?!\)|\Z)                       # but not the mark of a significant difference
    | (?<![^\W_])_+ | _+(?![^\W_])      # not within a word
    | <(?=[A-Za-z/!?])                  # HTML
    | &(?=\#?\w+;)
    | \](?=[(\[:]) | \[(?=\^)           # a link or a footnote""",
    re.VERBOSE,
)


def markdown_cell(text: str) -> str:
    """Plain text as a cell of a Markdown table."""
    return MARKDOWN.sub(lambda found: "".join(f"\\{sign}" for sign in found[0]), visible(text))


def markdown_note(text: str) -> str:
    """A note as a line of Markdown; its own Markdown is kept."""
    return re.sub(r"<(?=[A-Za-z/!?])", r"\\<", visible(text))


def csv_field(value: Any) -> str:
    """A value as a field of CSV, quoted where a reader might misread it."""
    text = "" if pd.isna(value) else str(value)
    needs_quotes = re.search(r'[",#\r\n]', text) or text != text.strip()
    return '"' + text.replace('"', '""') + '"' if needs_quotes else text


def figure_text(text: str, max_letters: int | None = MAX_LABEL_LETTERS) -> str:
    """Plain text for matplotlib, which reads a dollar as mathematics; long labels are shortened in the middle.

    Letters that its font lacks are shown by their number in Unicode, as LATEX_LETTER does.
    """
    shown = "".join(letter if _has_shape(letter) else f"[U+{ord(letter):04X}]" for letter in visible(text))
    if max_letters is not None and len(shown) > max_letters:
        half = (max_letters - 1) // 2
        shown = f"{shown[:half]}…{shown[-half:]}"
    shown = shown.replace("$", r"\$")
    return f" {shown}" if shown[:1] in ("", "_") else shown  # which a legend would leave out


@cache
def _has_shape(letter: str) -> bool:
    return letter.isascii() or ord(letter) in _letters_of_font()


@cache
def _letters_of_font() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties())).get_charmap())
