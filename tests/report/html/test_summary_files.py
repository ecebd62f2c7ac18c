"""A damaged summary folder is one sentence that names file and key, never a traceback or half a page."""

import json
import re
import shutil

import pytest

from tests.report.html.synthetic import write_run
from wdmoe_opencompass.errors import WdmoeError
from wdmoe_opencompass.report.html.page import make_page
from wdmoe_opencompass.report.summary_files import MAIN, SHAPES, WRITE_AGAIN, read_summary

FILES = (*SHAPES, *(f"{name}.json" for name in MAIN), "frontier.json", "differences.json")
AGAIN = f"; {WRITE_AGAIN}"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("damaged") / "20260101_000000", sizes={"choice": (2, 1)})


@pytest.fixture
def folder(run, tmp_path):
    return shutil.copytree(run, tmp_path / run.name)


@pytest.mark.parametrize("name", FILES)
def test_what_the_summarizer_writes_is_taken_as_it_is(run, name):
    path = run / "summary" / name
    assert read_summary(run, name) == json.loads(path.read_text())


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("provenance.json", {}, "key packages is missing"),
        ("groups.json", 5, "must be an object, got 5"),
        ("groups.json", {"mmlu": "choice"}, "mmlu must be a valid array, got 'choice'"),
        ("datasets.json", {}, "must be a valid array, got {}"),
        ("accuracy.json", [1, 2], "[0] must be a mapping, got 1"),
        ("latency.json", [{"a": 1}], "key [0].row is missing"),
        ("frontier.json", {"rows": []}, "key notes is missing"),
        ("items.json", [dict(model="m", dataset="d", right=[1])], "[0].right must be a valid string, got [1]"),
    ],
)
def test_a_damaged_file_is_one_sentence(folder, wdmoe, name, content, sentence):
    path = folder / "summary" / name
    path.write_text(json.dumps(content))
    done = wdmoe("report", str(folder), "--html")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {path}: {sentence}{AGAIN}\n")
    assert not (folder / "summary" / "report.html").exists()


def test_a_key_inside_a_file_is_named(folder):
    path = folder / "summary" / "provenance.json"
    content = json.loads(path.read_text())
    content["models"][1]["files"] = 5
    path.write_text(json.dumps(content))
    with pytest.raises(WdmoeError) as caught:
        make_page(folder)
    assert str(caught.value) == f"{path}: models[1].files must be an object, got 5{AGAIN}"


@pytest.mark.parametrize("content", ["5", "{", "[]", '{"a": 1}'])
def test_a_damaged_manifest_is_one_sentence_and_left_alone(folder, wdmoe, content):
    path = folder / "summary" / "manifest.json"
    path.write_text(content)
    done = wdmoe("report", str(folder), "--html")
    sentence = f"error: {path}: must be a JSON object of file names and SHA-256{AGAIN}\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", sentence)
    assert path.read_text() == content


@pytest.mark.parametrize("text", [b"", b"\xff", b"[NaN]", b"[1e999]", b'["\\ud800"]', b"[" * 5000 + b"]" * 5000])
def test_what_no_page_can_hold_is_not_json(folder, text):
    path = folder / "summary" / "missing.json"
    path.write_bytes(text)
    with pytest.raises(WdmoeError, match=r"missing\.json: not JSON; write the summary again"):
        make_page(folder)


@pytest.mark.parametrize("name", ["accuracy.json", "latency.json", "provenance.json", "frontier_records.json"])
def test_a_page_is_made_without_any_one_key_or_the_key_is_named(folder, name):
    path = folder / "summary" / name
    whole = json.loads(path.read_text())
    record = (whole["models"] if name == "provenance.json" else whole)[0]
    for key, value in list(record.items()):
        for damage in (lambda: record.pop(key), lambda: record.update({key: {"x": [None]}})):  # noqa: B023
            damage()
            path.write_text(json.dumps(whole))
            try:
                make_page(folder)
            except WdmoeError as reason:
                assert re.search(rf"\[0\]\.{key}[ .]", str(reason))  # noqa: PT017
            record[key] = value
