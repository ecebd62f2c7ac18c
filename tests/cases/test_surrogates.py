"""Text that UTF-8 cannot hold, wherever it comes from, is replaced and said, and nothing else is lost."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wdmoe_opencompass._util.atomic_write import write_whole
from wdmoe_opencompass._util.utf8_text import clean_text, clean_value, count_surrogates
from wdmoe_opencompass.errors import WdmoeError
from wdmoe_opencompass.harness.encodable_answers import encodable_answers, make_encodable
from wdmoe_opencompass.report.formats import write_json
from wdmoe_opencompass.report.html.page import write_page
from wdmoe_opencompass.report.publication import manifest
from wdmoe_opencompass.run.failures import sentence

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=20)  # surrogates too
LONE = st.text(st.characters(categories=["Cs"]), max_size=5)


@given(ANY_TEXT | LONE, LONE)
def test_every_text_can_be_written_and_nothing_else_changes(text, lone):
    for value in (text, text + lone, lone + text):
        changed = clean_text(value)
        changed.encode()
        kept = "".join(letter for letter in value if not "\ud800" <= letter <= "\udfff")
        assert [c for c in changed if c in kept] or not kept
        if kept == value:
            assert changed is value


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("\ud800", "\ufffd"),
        ("a\udfffb", "a\ufffdb"),
        ("\ud83d\ude00", "\U0001f600"),  # two halves of one letter
        ("\ude00\ud83d", "\ufffd\ufffd"),  # the wrong way round
        ("\ud83d\ud83d\ude00", "\ufffd\U0001f600"),
        ("é算\U0001f600\x00\ufeff", "é算\U0001f600\x00\ufeff"),
        ("\ufeff\ud800", "\ufeff\ufffd"),  # a byte order mark is a letter here
        ("", ""),
        ("x\udc80\udcff", "x\ufffd\ufffd"),  # bytes of a file name that is not UTF-8
        ("\udbff\udfff", "\U0010ffff"),
    ],
)
def test_a_lone_half_is_replaced(text, right):
    assert clean_text(text) == right
    assert clean_value({text: [text, 1, None, (text,)]}) == {right: [right, 1, None, (right,)]}


def test_files_are_written_whole(tmp_path):
    write_whole(tmp_path / "a.txt", "x\ud800y", b"\xff")
    assert (tmp_path / "a.txt").read_bytes() == b"x\xef\xbf\xbdy\xff"
    write_json(tmp_path / "b.json", ["model \ud83d: failed"])
    assert (tmp_path / "b.json").read_bytes().decode() == '[\n "model \\ufffd: failed"\n]\n'
    write_whole(tmp_path / "c.failed.txt", sentence(ValueError("no \udcff here")) + "\n")
    assert (tmp_path / "c.failed.txt").read_text(encoding="utf-8") == "ValueError: no \ufffd here\n"


class Model:
    def __init__(self, answers):
        self.answers = answers

    def generate(self, inputs, max_out_len, **others):
        return self.answers


@pytest.mark.parametrize("answers", [["a", "b\ud800", "\udfff"], [["a", "\ud800"], ["b", "c"]], ["\udbff"]])
def test_answers_are_replaced_before_they_are_written(answers):
    """A batch of answers, also of several samples per prompt; said once a batch."""
    said = []
    model = Model(answers)
    for _ in range(2):  # the task of the next dataset takes the same model
        encodable_answers(model, said.append)
    given_back = model.generate(["x"], max_out_len=3)
    json.dumps(given_back, ensure_ascii=False).encode()
    assert given_back == clean_value(answers) != answers
    (sentence,) = said
    assert sentence.startswith(f"{count_surrogates(answers)} of the answers of this batch held text that UTF-8")


def test_sound_answers_stay_the_objects_that_they_were():
    said = []
    model = Model(["a", "\U0001f600"])
    encodable_answers(model, said.append)
    assert model.generate([], 1) is model.answers
    assert said == []


@pytest.mark.parametrize(
    ("text", "is_rewritten"),
    [
        (r'{"0": {"prediction": "\ud800"}}', True),
        (r'{"0": {"prediction": "a", "origin_prompt": [{"role": "\uDFFF"}]}}', True),
        (r'{"0": {"prediction": "\ud83d\ude00"}}', False),  # one letter
        (r'{"0": {"prediction": "\\ud800"}}', False),  # a backslash and a word
        (r'{"0": {"prediction": "é"}}', False),
        (r'{"0": {"prediction": "\ud800"', False),  # torn: somebody else says so
    ],
)
def test_predictions_that_others_left_are_mended_before_they_are_scored(tmp_path, caplog, text, is_rewritten):
    path = tmp_path / "d.json"
    path.write_text(text, encoding="utf-8")
    make_encodable(path)
    assert (path.read_text(encoding="utf-8") != text) is is_rewritten
    assert ("U+FFFD replaces it" in caplog.text) is is_rewritten
    if is_rewritten:
        assert json.loads(path.read_bytes()) == clean_value(json.loads(text))


def test_the_page_of_such_predictions_is_written_and_says_so(faulty_run, tmp_path):
    """After predictions were changed by hand, page and manifest are whole."""
    run = shutil.copytree(faulty_run[0], tmp_path / "run")
    path = next(path for path in sorted(run.glob("predictions/*/*.json")) if "gold" in path.read_text())
    answers = json.loads(path.read_bytes())
    for answer in answers.values():
        answer["prediction"] = "half \ud83d of it"
    path.write_text(json.dumps(answers))
    written, page = write_page(run)
    text = written.read_text(encoding="utf-8")
    assert "half \ufffd of it" in text
    assert any("hold lone surrogates" in sentence for sentence in page.left_out)
    assert f"predictions/{path.parent.name}/{path.name}" in manifest(run)


def test_an_error_with_such_text_is_one_sentence(capsys):
    from wdmoe_opencompass.cli.console import print_error

    print_error(WdmoeError("no file \ud800"))
    assert capsys.readouterr().err == "error: no file \\ud800\n"
