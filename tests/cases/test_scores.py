"""A score is a finite number of percent, or its cell is empty and says why; all else that is written holds."""

import io
import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import ConfigDict
from opencompass.summarizers import DefaultSummarizer

from tests.builders.frontier_runs import BENCHMARKS, runs
from wdmoe_opencompass.errors import WdmoeError
from wdmoe_opencompass.harness.summarizer import WdmoeSummarizer
from wdmoe_opencompass.report.compare import comparison_table, notes_of
from wdmoe_opencompass.report.formats import json_text
from wdmoe_opencompass.report.items import ItemResults, item_results
from wdmoe_opencompass.report.summary import write_report
from wdmoe_opencompass.run.scores import FIRST_METRICS, NO_METRICS, main_score

pytestmark = pytest.mark.usefixtures("no_picture")
ODD = [  # results, why there is no accuracy
    ({}, "gave no number"),
    ({"correlation": math.nan}, "no finite number: its correlation is NaN"),
    ({"correlation": "NaN"}, "no finite number: its correlation is NaN"),
    ({"perplexity": math.inf}, "its perplexity is Infinity"),
    ({"accuracy": "-Infinity"}, "its accuracy is -Infinity"),
    ({"score": math.nan, "f1": 50.0}, "its score is NaN"),  # models are not compared by different metrics
    ({"score": None, "f1": 50.0}, "its score is None"),
    ({"score": "87.5 %", "f1": 50.0}, "its score is '87.5 %'"),
    ({"accuracy": True}, "its accuracy is True"),
    ({"passed": True}, "gave no number, passed is True"),
    ({"passed": False, "text": "x" * 10_000}, "gave no number, passed is False"),
    ({"score": 1234.5}, "its score is 1234.5"),
    ({"score": -0.5}, "its score is -0.5"),
    ({"accuracy": 10**400}, "its accuracy is Infinity"),
    ({"score": {"a": 1}, "details": [1]}, "gave no number"),
    ({"accuracy": [50.0], "f1": 20.0}, "its accuracy is [50.0]"),  # an array, as a results file holds it
    ({"f1": 20.0, "score": {"part": 5}, "accuracy": 50.0}, "its score is {'part': 5}"),
    ({"bp": 0.9, "type": "GEN"}, "gave no number"),
    ({"error": "no\nconnection"}, "the evaluation failed: no connection"),
    ({"error": {"code": 5}, "accuracy": 50.0}, "the evaluation failed: {'code': 5}"),
]


@pytest.mark.parametrize(("result", "reason"), ODD)
def test_what_is_no_accuracy_says_why(result, reason):
    score = main_score(result)
    assert score.percent is None
    assert reason in score.why_not
    assert len(score.why_not) < 600


@pytest.mark.parametrize(
    ("result", "metric", "percent"),
    [
        ({"accuracy": 0}, "accuracy", 0.0),
        ({"accuracy": 100.0}, "accuracy", 100.0),
        ({"passed": True, "ratio": 12.5}, "ratio", 12.5),
        ({"note": "fine", "pass": 3}, "pass", 3.0),
        ({"f1": 20.0, "parts": {"part": 5}, "accuracy": 50.0}, "accuracy", 50.0),
        ({"details": {"0": {}}, "bp": 1.0, "bleu": 31.2}, "bleu", 31.2),
    ],
)
def test_what_is_one_is_taken_as_opencompass_takes_it(result, metric, percent):
    score = main_score(result)
    assert (score.metric, score.percent, score.why_not) == (metric, percent, None)


VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers()))
NAMES = st.one_of(st.sampled_from((*FIRST_METRICS, *NO_METRICS, "details", "error")), st.text())


@given(result=st.dictionaries(NAMES, VALUES))
def test_any_result_is_an_accuracy_or_a_reason(result):
    score = main_score(json.loads(json.dumps(result)))
    assert (score.percent is None) != (score.why_not is None)
    if score.percent is not None:
        assert -1e-6 <= score.percent <= 100 + 1e-6
        assert isinstance(result[score.metric], int | float)
        assert not isinstance(result[score.metric], bool)


DETAILS = st.recursive(
    st.one_of(VALUES, st.fixed_dictionaries({"correct": VALUES}), st.fixed_dictionaries({"programs": VALUES})),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=4)),
)


@given(details=DETAILS, percent=st.floats(0, 100))
def test_any_details_tell_the_items_or_a_reason(details, percent):
    try:
        items = item_results(json.loads(json.dumps(dict(details=details))), "accuracy", percent)
    except WdmoeError:  # any other exception fails
        return
    assert abs(100 * items.right.mean() - percent) < 0.01


@pytest.mark.parametrize("details", [5, True, "right", {"²": {}}, {"0": 1}, [[]], {"0": {"correct": 0.5}}, {}, None])
def test_details_of_another_shape_are_no_traceback(details):
    with pytest.raises(WdmoeError, match="names no item right or wrong"):
        item_results(dict(details=details), "accuracy", 100.0)


@pytest.mark.parametrize(("percent", "says"), [(0.875, "87.5 %"), (0.88, "87.5 %"), (0.5, None), (87.0, None)])
def test_an_accuracy_that_is_the_share_of_right_items_is_called_a_fraction(percent, says):
    details = [dict(correct=number > 0, reference="A") for number in range(8)]
    with pytest.raises(WdmoeError, match="7 of its 8 items are marked right") as told:
        item_results(dict(accuracy=percent, details=details), "accuracy", percent)
    sentence = str(told.value)
    assert sentence.endswith(f"it looks like a fraction, for its items say {says}") == (says is not None)
    assert ("fraction" in sentence) == (says is not None)


def test_table_i_names_the_model_and_dataset_of_a_fraction(tmp_path):
    for model, accuracy in (("a", 0.875), ("b", 87.5)):
        (tmp_path / "results" / model).mkdir(parents=True)
        details = [dict(correct=number > 0) for number in range(8)]
        (tmp_path / "results" / model / "d.json").write_text(json.dumps(dict(accuracy=accuracy, details=details)))
    of_two_models(tmp_path).summarize(None, "20260101_000000")
    notes = json.loads((tmp_path / "summary" / "table_1_accuracy.json").read_text())["notes"]
    (note,) = [note for note in notes if "fraction" in note]
    assert note.startswith("no interval: a on d: 7 of its 8 items are marked right")
    assert note.endswith("it looks like a fraction, for its items say 87.5 %")


def test_one_right_item_of_two_hundred_is_no_fraction():
    details = [dict(correct=number == 0) for number in range(200)]
    assert item_results(dict(details=details), "accuracy", 0.5).right.sum() == 1


def test_an_item_without_a_reference_is_right_or_wrong_all_the_same():
    assert item_results(dict(details=[{"correct": True, "programs": [[]]}]), "accuracy", 100.0).right.all()


# -- OpenCompass's own table -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("first", "second", "cells"),
    [
        ('{"score": 50.0}', '{"score": "NaN"}', ["50.00", "nan"]),
        ('{"score": 50.0}', '{"score": NaN}', ["50.00", "nan"]),
        ('{"score": 50.0}', '{"accuracy": 25.0}', ["50.00", "nan"]),
        ('{"score": 50.0}', '{"error": "no connection"}', ["50.00", "-"]),
        ('{"score": 50.0}', '{"text": "fine"}', ["50.00", "-"]),
        ('{"score": "-Infinity"}', '{"score": "Infinity"}', ["-inf", "inf"]),
        ('{"score": 50.0}', None, ["50.00", "-"]),
    ],
)
def test_the_table_of_opencompass_is_written_whatever_the_models_scored(tmp_path, first, second, cells):
    for model, text in (("a", first), ("b", second)):
        (tmp_path / "results" / model).mkdir(parents=True)
        if text is not None:
            (tmp_path / "results" / model / "d.json").write_text(text)
    summarizer = of_two_models(tmp_path)
    summarizer._write_opencompass_table(None, "20260101_000000")
    row = (tmp_path / "summary" / "summary_20260101_000000.csv").read_text().splitlines()[1].split(",")
    assert row[0] == "d"
    assert row[2] == "score"
    assert row[4:] == cells
    assert [model["abbr"] for model in summarizer.model_cfgs] == ["a", "b"]


def of_two_models(folder, names=("a", "b")):
    infer = dict(inferencer=dict(type="GenInferencer"), prompt_template=dict(template="{q}"), retriever=dict(type="x"))
    dataset = dict(abbr="d", infer_cfg=infer)
    models = [dict(abbr=name, path="p", type="x") for name in names]
    return WdmoeSummarizer(ConfigDict(models=models, datasets=[dataset], work_dir=str(folder)))


def test_where_it_cannot_be_written_a_text_says_why(tmp_path, monkeypatch):
    def fail(self, *arguments):
        raise ZeroDivisionError("float division by zero")

    monkeypatch.setattr(DefaultSummarizer, "summarize", fail)
    (tmp_path / "summary").mkdir()
    of_two_models(tmp_path)._write_opencompass_table(None, "20260101_000000")
    text = (tmp_path / "summary" / "summary_20260101_000000.txt").read_text()
    assert text == "OpenCompass's own table could not be written: ZeroDivisionError: float division by zero\n"


def test_the_reason_is_written_before_there_is_a_summary_folder(tmp_path, monkeypatch):
    def fail(self, *arguments):
        raise ZeroDivisionError("float division by zero")

    monkeypatch.setattr(DefaultSummarizer, "summarize", fail)
    of_two_models(tmp_path).summarize(None, "20260101_000000")
    written = {path.name for path in (tmp_path / "summary").iterdir()}
    assert {"summary_20260101_000000.txt", "table_1_accuracy.md", "missing.json", "main_tables.md"} <= written
    assert (tmp_path / "summary" / "manifest.json").exists()


def test_a_terminal_that_lacks_a_letter_of_a_name_costs_nothing(tmp_path, monkeypatch):
    screen = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", screen)
    of_two_models(tmp_path, ("vanill算", "b")).summarize(None, "20260101_000000")
    screen.flush()
    assert rb"vanill\u7b97" in screen.buffer.getvalue()
    assert (tmp_path / "summary" / "manifest.json").exists()
    assert (tmp_path / "summary" / "reproduce.md").exists()
    assert "vanill算" in (tmp_path / "summary" / "summary_20260101_000000.txt").read_text(encoding="utf-8")


# -- the tables of a run of which one benchmark has no score ---------------------------------------------------------
def without(benchmark, chosen):
    """The runs of the frontier's tests, of which some have no accuracy on a benchmark."""
    several = runs()
    for run in several:
        if run.abbr in chosen:
            run.accuracies.pop(benchmark, None)
            run.items.pop(benchmark, None)
            run.missing[benchmark] = "the evaluation gave no finite number: its accuracy is NaN"
    return several


def written(folder, several):
    write_report(several, BENCHMARKS, folder)
    strict = {
        path.name: json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))
        for path in folder.glob("*.json")
    }
    return SimpleNamespace(**{name.removesuffix(".json"): content for name, content in strict.items()})


def test_a_benchmark_that_no_model_is_scored_on_leaves_the_frontier_not_the_models(tmp_path):
    everybody = [run.abbr for run in runs()]
    whole, left = written(tmp_path / "a", runs()), written(tmp_path / "b", without(BENCHMARKS[0], everybody))
    assert [record["model"] for record in left.frontier_records] == [
        record["model"] for record in whole.frontier_records
    ]
    assert {tuple(record["benchmarks"]) for record in left.frontier_records} == {tuple(BENCHMARKS[1:])}
    for record in left.frontier_records:
        run = next(run for run in runs() if run.abbr == record["model"])
        assert record["accuracy"] == pytest.approx(np.mean([run.accuracies[name][1] for name in BENCHMARKS[1:]]))
    assert f"left out, because no model has an accuracy on it: {BENCHMARKS[0]}" in left.frontier["notes"]
    assert not any("left out, because" in note for note in whole.frontier["notes"])


def test_a_benchmark_that_one_model_is_not_scored_on_leaves_that_model_out(tmp_path):
    last = runs()[-1].abbr
    left = written(tmp_path, without(BENCHMARKS[0], [last]))
    assert last not in [record["model"] for record in left.frontier_records]
    assert {tuple(record["benchmarks"]) for record in left.frontier_records} == {tuple(BENCHMARKS)}


def test_no_scores_at_all_leave_latencies_and_no_frontier(tmp_path):
    several = runs()
    for benchmark in BENCHMARKS:
        for run in several:
            run.accuracies.pop(benchmark, None)
            run.items.pop(benchmark, None)
    left = written(tmp_path, several)
    assert left.frontier_records == []
    assert left.latency


def test_compare_reads_what_earlier_versions_wrote_and_does_not_send_in_a_circle():
    nan = dict(model="m", dataset="d", metric="correlation", value=math.nan)
    sound = dict(model="m", dataset="e", metric="accuracy", value=50.0)
    records = dict(accuracy=[nan, sound], latency=[], origin=[], items=[], batches=[], groups={})
    assert list(comparison_table(records, records)["benchmark"]) == ["e"]
    note = next(note for note in notes_of(records, records) if "items were answered right" in note)
    assert "its evaluators do not tell" in note


@given(st.recursive(VALUES, lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)), max_leaves=9))
def test_what_we_write_is_json(content):
    def nulled(value):
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, list):
            return [nulled(part) for part in value]
        return {key: nulled(part) for key, part in value.items()} if isinstance(value, dict) else value

    assert json.loads(json_text(content), parse_constant=lambda word: pytest.fail(word)) == nulled(content)


def test_items_that_are_half_right_have_no_interval_and_say_why():
    result = dict(score=50.0, details=[dict(correct=[0.5]) for _ in range(6)])
    with pytest.raises(WdmoeError, match="names no item right or wrong"):
        item_results(result, "score", 50.0)
    assert isinstance(item_results(dict(details=[dict(correct=[True])] * 2), "accuracy", 100.0), ItemResults)
