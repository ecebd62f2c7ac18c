"""Tables that fit a terminal's width."""

import pytest

from wdmoe_opencompass.cli.table_layout import fold, layout


def texts(*table):
    return [line.text for line in layout(*table)]


@pytest.mark.parametrize(
    "number",
    ["1.33245e-08", "-12", "1000/1000", "2026-11-25", "[-4.70, -2.08]", "[-4.7, -2.1] *)", "16.7 %", "word"],
)
def test_a_number_is_never_broken(number):
    assert fold(number, 1) == [number]


def test_names_are_folded_after_a_sign_and_text_between_words():
    assert fold("quickstart-wdmoe_8bit-hf", 12) == ["quickstart-", "wdmoe_8bit-", "hf"]
    assert fold("data/ARC/ARC-e", 9) == ["data/ARC/", "ARC-e"]
    assert fold("15.658 (+16.7 % [15.9, 17.4])", 16) == ["15.658 (+16.7 %", "[15.9, 17.4])"]


def test_what_fits_is_one_table():
    assert layout(["name", "n"], [["a", "1.5"], ["long", "20"]], [False, True], 80, ["red", "dim"]) == [
        ("name    n", "bold"),
        ("────  ───", "dim"),
        ("a     1.5", "red"),
        ("long   20", "dim"),
    ]


def test_what_does_not_fit_goes_into_blocks_that_repeat_what_a_row_is_about():
    heads = ["model", "dataset", "one", "two", "three"]
    rows = [[f"model-{k}", f"d_{k}", "123456789", "234567890", "345678901"] for k in range(4)]
    lines = texts(heads, rows, [False, False, True, True, True], 30)
    assert lines[:3] == [
        "model    dataset        one",
        "───────  ───────  ─────────",
        "model-0  d_0      123456789",
    ]
    assert [line.split() for line in lines if line.startswith("model ")] == [["model", "dataset", h] for h in heads[2:]]
    assert len(lines) == 3 * (2 + 4) + 2


def test_names_are_folded_where_that_saves_a_block():
    heads = ["model", "one", "two"]
    rows = [["quickstart-vanilla-hf", "1", "2"], ["short", "3", "4"], *([["x", "5", "6"]] * 20)]
    assert texts(heads, rows, [False, True, True], 22)[2:6] == [
        "quickstart-     1    2",
        "vanilla-hf",
        "",
        "short           3    4",
    ]


def test_prose_gets_the_width_that_is_left():
    lines = texts(["check", "found"], [["memory", "a word " * 10], *([["disk", "fine"]] * 4)], [False, False], 30)
    assert max(map(len, lines)) <= 30
    assert lines[2:5] == [
        "memory  a word a word a word a",
        "        word a word a word a",
        "        word a word a word a",
    ]
    assert lines[-4:] == ["disk    fine"] * 4


@pytest.mark.parametrize("width", [1, 7, 20])
def test_where_no_table_fits_rows_are_lists_with_whole_numbers(width):
    rows = [["model-a", "1.5e-08"], ["model-b", "2.5e-08"]] * 3
    lines = texts(["model", "transfers_per_token_layer"], rows, [False, True], width)
    assert [line.split()[-1] for line in lines if "e-08" in line] == ["1.5e-08", "2.5e-08"] * 3


def test_tables_without_rows_or_columns():
    assert texts(["a"], [], [False], 80) in (["a", "─"], [])
    assert texts([], [], [], 80) == []
