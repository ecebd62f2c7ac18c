"""Cells that are code: names of models and datasets stay text in LaTeX, Markdown, CSV and figures."""

import csv
import io
import itertools
import re
import subprocess
import unicodedata
import warnings

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tests.builders.hostile_names import MODELS, NAMES
from tests.debian import UnavailableError, require
from wdmoe_opencompass.errors import visible
from wdmoe_opencompass.report.cells import LATEX_LETTER, figure_text, latex_text
from wdmoe_opencompass.report.figures import panel_grid, save_figure
from wdmoe_opencompass.report.formats import format_table
from wdmoe_opencompass.report.runs import ModelRun
from wdmoe_opencompass.report.tables import OWN_COLUMNS, table_1

CODE = (
    *NAMES,
    *MODELS,
    "a^b ~ c\\d",
    "\\input{/etc/passwd}",
    "\\end{tabular}",
    "{unclosed",
    "closed}",
    "100 % $x$ #1 & _ <z>|`\"'",
    "*star",
    "[optional] \\\\[2em]",
    "--- -- ``'' ,, ?` !`",
    "a\nb\tc\x1b[0m\x7f\u202e\u2028",
    "naïve Ångström Łódź ŝ ǖ ﬁ ø ß",
    "αβ ελληνικά кириллица עברית 한국어 🙂 e\u0301\u0323",
    "% \\n",
    "x" * 225,
    "^^41 ^^M",
    "",
    " ",
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def table_of(names):
    return pd.DataFrame(
        [{"model": name, **dict.fromkeys(names, "1.00 [0.5, 1.5] (+0.10 [0.0, 0.2] *)")} for name in names]
    )


# -- LaTeX -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def pdflatex(tmp_path_factory):
    try:
        require(["pdflatex"], ["texlive-latex-base"])
    except UnavailableError as reason:
        pytest.skip(str(reason))

    def compiled(text, *before):
        """-> what TeX says of a document of this text; AssertionError where it stops."""
        folder = tmp_path_factory.mktemp("tex")
        lines = [r"\documentclass{article}", *before, r"\begin{document}", text, r"\end{document}"]
        (folder / "paper.tex").write_text("\n".join(lines))
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-draftmode", "paper.tex"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
        assert done.returncode == 0, done.stdout[-2000:]
        return (folder / "paper.log").read_text(errors="replace")

    return compiled


@pytest.mark.parametrize("before", [[], [r"\usepackage[T1]{fontenc}"], [r"\usepackage[utf8]{inputenc}"]])
def test_a_table_of_such_names_compiles(pdflatex, before):
    log = pdflatex(
        format_table(table_of(CODE[:8]), [*CODE], "tex") + format_table(table_of(CODE[8:]), [], "tex"), *before
    )
    assert "Missing character" not in log


def test_the_tables_of_a_run_compile(pdflatex, faulty_run):
    folder, _ = faulty_run
    pdflatex("\n\n".join(path.read_text() for path in sorted((folder / "summary").glob("*.tex"))))


def test_each_sign_of_ascii_can_be_printed(pdflatex):
    signs = "".join(map(chr, range(33, 127)))
    assert "Missing character" not in pdflatex(latex_text(signs))
    assert "Missing character" not in pdflatex(" ".join(map(latex_text, signs * 2)))


@given(text=texts)
def test_no_sign_of_latex_is_left_bare(text):
    escaped = latex_text(text)
    assert "\n" not in escaped
    bare = escaped
    for command in (r"\textbackslash{}", r"\textless{}", r"\textgreater{}", r"\textbar{}", r"{\char34}"):
        bare = bare.replace(command, "")
    bare = re.sub(r"""\\[`'^~"=.uvrHcd]\{[A-Za-z]?\}""", "", bare)
    for sign in "&%$#_{}":
        bare = bare.replace(f"\\{sign}", "")
    assert not set(bare) & set('&%#_"<>|')
    assert bare.count("{") == bare.count("}")
    beyond_ascii = [letter for letter in escaped if not letter.isascii()]
    assert len(beyond_ascii) == escaped.count(LATEX_LETTER)  # each in the command that names it


def test_letters_that_pdflatex_lacks_are_named():
    text = format_table(pd.DataFrame([{"model": "算"}]), [], "tex")
    assert r"\wdmoeletter{7B97}{算}" in text
    assert r"\providecommand{\wdmoeletter}[2]{[U+#1]}" in text
    assert "providecommand" not in format_table(pd.DataFrame([{"model": "é & ö"}]), [], "tex")


def test_a_row_that_begins_with_a_bracket_is_no_argument_of_the_row_before():
    lines = format_table(pd.DataFrame([{"model": "a"}, {"model": "[a]"}, {"model": "*"}]), [], "tex").splitlines()
    assert lines[4:7] == [r"a \\", r"{}[a] \\", r"{}* \\"]


def test_plain_tables_are_as_they_were():
    table = pd.DataFrame([{"model": "wdmoe-hf", "arc_c": "62.33 [51.2, 72.0] (+1.00 [-1.0, +3.0] *)", "n": "-"}])
    assert format_table(table, ["p < 0.05 of `x`"], "md") == (
        "| model | arc_c | n |\n|---|---|---|\n"
        "| wdmoe-hf | 62.33 [51.2, 72.0] (+1.00 [-1.0, +3.0] *) | - |\n\n- p < 0.05 of `x`\n"
    )
    assert format_table(table, ["a"], "csv") == "# a\n" + table.to_csv(index=False)
    assert r"wdmoe-hf & 62.33 [51.2, 72.0] (+1.00 [-1.0, +3.0] *) & - \\" in format_table(table, [], "tex")


# -- Markdown and CSV ------------------------------------------------------------------------------------------------
def cells_of_markdown(text):
    """-> the text of each cell as a reader of the rendered page sees it, row by row."""
    tokens = MarkdownIt("gfm-like", dict(linkify=False)).parse(text)
    cells = [cell for head, cell in itertools.pairwise(tokens) if head.type in ("th_open", "td_open")]
    return ["".join(map(shown_of, cell.children)) for cell in cells]


def shown_of(token):
    return token.content if token.type in ("text", "text_special") else f"<{token.type}>"


@given(name=texts, other=texts)
def test_a_markdown_cell_shows_what_it_was_made_from(name, other):
    table = pd.DataFrame([[name, other]], columns=["a", "b"])
    found = cells_of_markdown(format_table(table, [], "md"))
    assert [" ".join(cell.split()) for cell in found] == [
        "a",
        "b",
        *(" ".join(visible(n).split()) for n in (name, other)),
    ]


def test_a_note_stays_on_its_line_and_holds_no_html():
    text = format_table(pd.DataFrame([{"model": "a"}]), ["a\n# b <script>x</script> `code`"], "md")
    assert text.splitlines()[-1] == r"- a\n# b \<script>x\</script> `code`"
    assert format_table(pd.DataFrame([{"model": "a"}]), ["a\nb"], "csv").splitlines()[0] == r"# a\nb"


@given(rows=st.lists(st.tuples(texts, texts), min_size=1, max_size=3), heads=st.tuples(texts, texts))
def test_csv_is_read_back_as_it_was_written(rows, heads):
    text = format_table(pd.DataFrame(rows, columns=[*heads]), ["a\nnote"], "csv")
    lines = list(csv.reader(io.StringIO(text.partition("\n")[2], newline="")))
    assert lines == [list(row) for row in (heads, *rows)]


def test_a_reader_that_skips_comments_loses_no_cell():
    text = format_table(pd.DataFrame([{"model": "a#b", "算术_é%&#$~^": "1"}]), ["note"], "csv")
    read = pd.read_csv(io.StringIO(text), comment="#")
    assert list(read.columns) == ["model", "算术_é%&#$~^"]
    assert read.iloc[0, 0] == "a#b"


def test_a_dataset_called_like_a_column_has_its_own():
    accuracies = {name: ("accuracy", 10.0 * number) for number, name in enumerate(OWN_COLUMNS)}
    run = ModelRun("m", "top_k", ("w", "p"), accuracies=accuracies)
    row = table_1([run], OWN_COLUMNS).iloc[0]
    assert (row["model"], row["policy"]) == ("m", "top_k")
    assert [row[f"{name} (benchmark)"] for name in OWN_COLUMNS] == [f"{10.0 * n:.2f}" for n in range(len(OWN_COLUMNS))]


# -- figures ---------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_names_are_drawn_as_text(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure, panels = panel_grid(len(CODE))
        for panel, name in zip(panels, CODE, strict=True):
            panel.plot([1], [1], label=figure_text(name))
            panel.set(title=figure_text(name))
            assert len(panel.legend().get_texts()) == 1
        save_figure(figure, tmp_path / "figure.of.names", "note $x_$ 算")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.of.names.pdf", "figure.of.names.png"]


@given(text=texts)
def test_a_figure_s_text_is_drawn_by_any_font_and_is_no_mathematics(text):
    shown = figure_text(text * 9)
    assert len(shown) <= 60
    assert shown.count("$") == shown.count("\\$")
    assert not shown.startswith("_")
    assert all(unicodedata.category(letter)[0] != "C" for letter in shown)
