"""Datasets that share an eval task share nothing else: each has its score, or its own reason."""

import json
import os
import re
from pathlib import Path

import pytest
from mmengine.config import Config, ConfigDict
from opencompass.utils import dataset_abbr_from_cfg

from tests.cases.conftest import FAULTS
from tests.conftest import ROOT
from wdmoe_opencompass.harness import eval_task
from wdmoe_opencompass.harness.eval_task import NO_PREDICTIONS, NotScored, WdmoeEvalTask
from wdmoe_opencompass.run.failures import MAX_REASON, note_failure, read_failure
from wdmoe_opencompass.run.recovery import redo_stale_results
from wdmoe_opencompass.run.run_progress import RunWatch

MODELS = ("[a] vanilla ~x^2", "b|wdmoe\\y<z>")
REASONS = {  # of the shared run
    "no file": "quickstart/data/nowhere",
    "bad": "Index 99999 is out of range",
    "raising": "KeyError: 'no such [answer] | key'",
    "killed": "SIGKILL",
    "nan": "its correlation is NaN",
    "infinity": "its perplexity is Infinity",
    "bool": "its score is '87.5 %'",
    "halfright": "its score is 1234.5",
}
SOUND = ("good|1", "good^2\\x", "[good]")


# -- the shared run --------------------------------------------------------------------------------------------------
def test_every_failed_dataset_has_its_own_reason_and_no_other_has_one(faulty_run):
    folder = Path(faulty_run[0])
    missing = json.loads((folder / "summary" / "missing.json").read_text())
    for model in MODELS:
        lines = {line.removeprefix(f"{model}, ").partition(": ")[0]: line for line in missing if line.startswith(model)}
        assert set(lines) == set(REASONS)
        for dataset, reason in REASONS.items():
            assert reason in lines[dataset]
            assert sum(other in lines[dataset] for other in REASONS.values()) == 1
    notes = json.loads((folder / "summary" / "table_1_accuracy.json").read_text())["notes"]
    assert {f"empty: {line}" for line in missing} <= set(notes)


def test_sound_datasets_are_scored_next_to_those_that_fail(faulty_run):
    folder = Path(faulty_run[0])
    records = json.loads((folder / "summary" / "accuracy.json").read_text())
    scored = {
        (record["model"], record["dataset"]): record["value"] for record in records if record["metric"] == "accuracy"
    }
    datasets = {dataset_abbr_from_cfg(cfg) for cfg in Config.fromfile(ROOT / FAULTS)["datasets"]}
    assert datasets > {*SOUND, *REASONS}
    assert set(scored) == {(model, dataset) for model in MODELS for dataset in datasets - set(REASONS)}
    for model, dataset in ((model, dataset) for model in MODELS for dataset in SOUND):
        value = scored[model, dataset]
        answers = json.loads((folder / "predictions" / model / f"{dataset}.json").read_text())
        pairs = [(answer["prediction"], answer["gold"]) for answer in answers.values()]
        right = sum(last_number(prediction) == last_number(gold) for prediction, gold in pairs)
        assert value == pytest.approx(100 * right / 6)


def last_number(text):
    """What the quickstart's answers end with: a number, or a choice's letter."""
    return re.findall(r"[0-9]+|^[A-D]$", text)[-1:]


def test_watch_tells_the_same_reasons(faulty_run):
    found = RunWatch(Path(faulty_run[0])).look(0.0)
    assert found.has_ended
    lines = {(line.model, line.dataset): line for line in found.datasets}
    for model in MODELS:
        for dataset, reason in REASONS.items():
            line = lines[model, dataset]
            assert reason in str(line.reason)
            assert line.accuracy is None
            is_scored = dataset in ("nan", "infinity", "bool", "halfright")
            assert line.state == ("finished" if is_scored else "failed")
        assert {lines[model, dataset].state for dataset in SOUND} == {"finished"}
        assert all(lines[model, dataset].accuracy is not None for dataset in SOUND)


# -- one task of a sound dataset, a bad one, and a sound one ---------------------------------------------------------
def config(folder, evaluator, **eval_cfg):
    """Three datasets in one task; the one in the middle is scored by `evaluator`."""

    def dataset(name, kind, **others):
        return dict(
            abbr=name,
            type="opencompass.datasets.ARCDataset",
            path="quickstart/data/choice.jsonl",
            name="ARC-Challenge",
            reader_cfg=dict(
                input_columns=["question", "textA", "textB", "textC", "textD"],
                output_column="answerKey",
                test_range="[:4]",
            ),
            eval_cfg=dict(evaluator=dict(type=f"tests.cases.odd_evaluators.{kind}Evaluator"), **others),
        )

    datasets = [dataset("first", "Sound"), dataset("odd", evaluator, **eval_cfg), dataset("last", "Sound")]
    for dataset in datasets:
        path = folder / "predictions" / "m" / f"{dataset['abbr']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        answers = {str(number): dict(prediction="A", origin_prompt="?") for number in range(4)}
        path.write_text(json.dumps(answers))
    return Config(
        dict(models=[dict(abbr="m", type="x", path="x")], datasets=[datasets], work_dir=str(folder))
        | dict(eval=dict(runner=dict(task=dict(dump_details=True))))
    )


def results(folder, name):
    return folder / "results" / "m" / f"{name}.json"


def strict(path):
    """The content of a JSON file that holds no NaN or infinity."""
    return json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} in {path}"))


@pytest.fixture(autouse=True)
def in_the_root():
    """Dataset paths are relative to the project's root."""
    from tests.conftest import ROOT

    before = os.getcwd()
    os.chdir(ROOT)
    yield
    os.chdir(before)


FAILING = {
    "Raising": "KeyError: 'no such [answer] | key'",
    "Silent": "RuntimeError",
    "Textless": "Textless: it has no text",
    "Surrogate": "ValueError: half a sign \ufffd, and more",
    "Long": "AssertionError: answers: xxx",
    "Exiting": "SystemExit: no licence",
    "Vanishing": "the process of its evaluator ended with exit code 0 and left no score",
    "Killed": "ended by SIGKILL",
    "Crashing": "ended by SIGSEGV",
    "NoResult": "AttributeError: 'NoneType' object has no attribute",
    "Circular": "RecursionError",
    "NoSuch": "",
}


@pytest.mark.parametrize("evaluator", FAILING)
def test_an_evaluator_that_fails_harms_its_own_dataset_alone(tmp_path, evaluator):
    cfg = config(tmp_path, evaluator)
    with pytest.raises(NotScored, match="not scored: m/odd: ") as told:
        WdmoeEvalTask(cfg).run_or_raise(in_children=True)
    assert FAILING[evaluator] in str(told.value)
    assert "m/first" not in str(told.value)
    assert not results(tmp_path, "odd").exists()
    reason = read_failure(results(tmp_path, "odd"))
    assert FAILING[evaluator] in reason
    assert len(reason) < MAX_REASON + 100
    assert "\n" not in reason
    for name in ("first", "last"):
        assert 0 <= strict(results(tmp_path, name))["accuracy"] <= 100
        assert read_failure(results(tmp_path, name)) is None


def test_only_what_was_not_scored_is_scored_when_started_again(tmp_path):
    cfg = config(tmp_path, "Killed")
    with pytest.raises(NotScored):
        WdmoeEvalTask(cfg).run_or_raise(in_children=True)
    scored = {name: results(tmp_path, name).stat().st_mtime_ns for name in ("first", "last")}
    cfg["datasets"][0][1]["eval_cfg"]["evaluator"]["type"] = "tests.cases.odd_evaluators.SoundEvaluator"
    WdmoeEvalTask(cfg).run_or_raise(in_children=True)  # mended, and started again
    assert read_failure(results(tmp_path, "odd")) is None
    assert strict(results(tmp_path, "odd"))["accuracy"] == strict(results(tmp_path, "last"))["accuracy"]
    assert scored == {name: results(tmp_path, name).stat().st_mtime_ns for name in scored}  # not again


@pytest.mark.parametrize(
    ("evaluator", "accuracy"), [("Wandering", 50.0), ("OddDetails", 100.0), ("Nan", None), ("Infinity", None)]
)
def test_a_score_is_kept_whatever_its_evaluator_did_besides(tmp_path, evaluator, accuracy):
    WdmoeEvalTask(config(tmp_path, evaluator)).run_or_raise(in_children=True)
    assert strict(results(tmp_path, "odd")).get("accuracy") == accuracy
    assert "accuracy" in strict(results(tmp_path, "last"))


def test_keys_that_json_has_none_for_are_text_and_the_score_is_kept(tmp_path):
    WdmoeEvalTask(config(tmp_path, "OddKeys")).run_or_raise(in_children=True)
    found = strict(results(tmp_path, "odd"))
    right = {"NaN": 1, "3": 2, "(1, 2)": 3, "Infinity": 4, "null": 5, "7": 6, "true": 7}
    assert (found["accuracy"], found["per"], found["array"]) == (50.0, right, [right, "NaN"])


def test_halves_of_letters_in_a_result_are_replaced_and_logged(tmp_path, monkeypatch):
    said = []
    task = WdmoeEvalTask(config(tmp_path, "HalfLetters"))
    monkeypatch.setattr(task.logger, "warning", said.append)
    task.run_or_raise()
    found = strict(results(tmp_path, "odd"))
    assert (found["accuracy"], found["metric \ufffd"], found["text"]) == (50.0, 25.0, "\ufffd")
    assert found["nested"] == {"text \ufffd": ["a\ufffdb", "\U0001f600"], "names": ["\ufffd"]}
    assert [text for text in said if "U+FFFD replaces it" in text] == [
        f"{results(tmp_path, 'odd')}: its metrics or details held text that UTF-8 cannot hold (lone surrogates); "
        "U+FFFD replaces it"
    ]


def test_a_post_processor_that_raises_is_named(tmp_path):
    process = dict(type="tests.cases.odd_evaluators.raising_postprocessor")
    with pytest.raises(NotScored, match=r"m/odd: IndexError: no answer in 'A'$"):
        WdmoeEvalTask(config(tmp_path, "Sound", pred_postprocessor=process)).run_or_raise(in_children=True)
    assert results(tmp_path, "last").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"0": 5}', '{"1": {"prediction": "A"}}', "\udcff"])
def test_predictions_that_are_torn_are_named_and_harm_no_other(tmp_path, content):
    cfg = config(tmp_path, "Sound")
    path = tmp_path / "predictions" / "m" / "odd.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(NotScored, match=r"not scored: m/odd: [A-Za-z]+(Error|Exception)"):
        WdmoeEvalTask(cfg).run_or_raise(in_children=True)
    assert results(tmp_path, "last").exists()


@pytest.mark.parametrize("parts", [[0], [0, 1], [0, 2], [0, 1, 2], [1]])
def test_parts_are_scored_together_or_not_at_all(tmp_path, parts):
    cfg = config(tmp_path, "AnswersAlone")
    whole = tmp_path / "predictions" / "m" / "odd.json"
    whole.unlink()
    for part, answers in ((0, 2), (1, 1), (2, 1)):
        if part in parts:
            content = {str(number): dict(prediction="A", origin_prompt="?") for number in range(answers)}
            (whole.parent / f"odd_{part}.json").write_text(json.dumps(content))
    if parts == [0, 1, 2]:
        WdmoeEvalTask(cfg).run_or_raise(in_children=True)
        assert strict(results(tmp_path, "odd"))["accuracy"] == 100.0
        return
    reason = NO_PREDICTIONS if 0 not in parts else "its parts have answers to [23] of its 4 items: one is missing"
    with pytest.raises(NotScored, match=f"m/odd: {reason}"):
        WdmoeEvalTask(cfg).run_or_raise(in_children=True)
    assert not results(tmp_path, "odd").exists()


def test_a_dataset_without_predictions_keeps_the_reason_of_its_inference(tmp_path):
    cfg = config(tmp_path, "Sound")
    (tmp_path / "predictions" / "m" / "odd.json").unlink()
    with pytest.raises(NotScored, match=f"m/odd: {NO_PREDICTIONS}"):
        WdmoeEvalTask(cfg).run_or_raise(in_children=True)
    assert read_failure(results(tmp_path, "odd")) is None
    assert results(tmp_path, "last").exists()


def test_without_children_exceptions_and_exits_are_told_too(tmp_path, monkeypatch):
    """On platforms that cannot fork safely, and under --debug."""
    monkeypatch.setattr(eval_task, "CAN_FORK", False)
    for number, evaluator in enumerate(("Raising", "Exiting", "Surrogate")):
        with pytest.raises(NotScored, match=r"m/odd: [A-Za-z]+(Error|Exit): "):
            WdmoeEvalTask(config(tmp_path / str(number), evaluator)).run_or_raise(in_children=True)
        assert results(tmp_path / str(number), "last").exists()


# -- what is evaluated again ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("content", "is_kept"),
    [
        ('{"accuracy": 50.0}', True),
        ('{"correlation": "NaN"}', True),  # it would be NaN again
        ('{"correlation": NaN}', True),
        ('{"error": "no connection"}', False),
        ('{"accuracy": 5', False),
        ("{}", True),  # what its evaluator gave
        ("[1]", False),
        ("null", False),
        ("0", False),
        ("", False),
        ("\udcff", False),
    ],
)
def test_only_what_has_no_score_is_evaluated_again(tmp_path, content, is_kept):
    predictions, scored = tmp_path / "d.json", tmp_path / "r.json"
    predictions.write_text("{}")
    scored.write_bytes(content.encode("utf-8", "surrogateescape"))
    os.utime(predictions, (1.0, 1.0))
    redo_stale_results(predictions, scored)
    assert scored.exists() == is_kept


@pytest.mark.parametrize(
    "content", ["{}", '{"details": {}}', '{"accuracy": true}', "[1]", "null", '""', "0", "", "{", '{"error": "x"}']
)
@pytest.mark.parametrize("names", [("d",), ("d_0", "d_1")])
def test_watch_promises_an_evaluation_only_where_there_is_one(tmp_path, names, content):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "20260101_000000_1.py").write_text(
        "models = [dict(abbr='m', type='x', path='x')]\ndatasets = [dict(abbr='d', type='x', path='x')]\n"
    )
    for folder in ("predictions", "results"):
        (tmp_path / folder / "m").mkdir(parents=True)
    for name in names:
        (tmp_path / "predictions" / "m" / f"{name}.json").write_text('{"0": {"prediction": "A"}}')
        os.utime(tmp_path / "predictions" / "m" / f"{name}.json", (1.0, 1.0))
    results(tmp_path, "d").write_text(content)
    shown = RunWatch(tmp_path).look(0.0).datasets[0]
    redo_stale_results(tmp_path / "predictions" / "m" / "d.json", results(tmp_path, "d"))
    if results(tmp_path, "d").exists():
        assert shown.state == "finished"
        assert "the evaluation gave no number" in shown.reason
    elif content.startswith('{"error'):
        assert shown.state == "failed"
        assert "the evaluation failed: x" in shown.reason
    elif names == ("d",):
        assert "torn: started again with -r, it is evaluated again" in shown.reason
    else:
        assert shown.state == "waiting"
    assert shown.accuracy is None


def test_a_reason_of_an_earlier_start_is_no_reason_of_this_one(tmp_path):
    note_failure(tmp_path / "r.json", "killed")
    redo_stale_results(tmp_path / "d.json", tmp_path / "r.json")
    assert read_failure(tmp_path / "r.json") is None


def test_a_task_config_names_nothing_that_the_stock_task_would_not_take(tmp_path):
    command = WdmoeEvalTask(config(tmp_path, "Sound")).get_command("x.py", "{task_cmd}")
    assert re.search(r"-m wdmoe_opencompass\.harness\.eval_task x\.py$", command)
    assert isinstance(WdmoeEvalTask(config(tmp_path, "Sound")).dataset_cfgs[0][0], ConfigDict)
