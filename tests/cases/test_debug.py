"""Under `--debug` tasks run in the process of `opencompass`: one that fails ends neither it nor the tasks after it."""

import json
import logging
import sys

import pytest
from mmengine.config import Config, ConfigDict
from opencompass.runners import LocalRunner

from tests.conftest import ROOT
from wdmoe_opencompass.harness import command, eval_task, infer_task
from wdmoe_opencompass.run.failures import noted_failure

OURS = "wdmoe_opencompass.harness"
INFER = dict(
    prompt_template=dict(type="opencompass.openicl.icl_prompt_template.PromptTemplate", template="{question}"),
    retriever=dict(type="opencompass.openicl.icl_retriever.ZeroRetriever"),
    inferencer=dict(type="opencompass.openicl.icl_inferencer.GenInferencer", max_out_len=1),
)


def task(folder, model, *datasets):
    """A task of a model and datasets, each given by its name, its file, and its evaluator."""

    def dataset(name, path, evaluator):
        columns = ["question", "textA", "textB", "textC", "textD"]
        return dict(
            abbr=name,
            type="opencompass.datasets.ARCDataset",
            path=f"quickstart/data/{path}.jsonl",
            name="ARC-Challenge",
            reader_cfg=dict(input_columns=columns, output_column="answerKey", test_range="[:4]"),
            infer_cfg=INFER,
            eval_cfg=dict(evaluator=dict(type=f"tests.cases.odd_evaluators.{evaluator}Evaluator")),
        )

    models = [dict(abbr=model.lower(), type=f"tests.cases.odd_models.{model}", path=".", batch_size=4, max_out_len=1)]
    return Config(dict(models=models, datasets=[[dataset(*arguments) for arguments in datasets]], work_dir=str(folder)))


def launch(kind, tasks):
    return LocalRunner(task=ConfigDict(type=f"{OURS}.{kind}"), debug=True).launch(tasks)


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    sound = ("sound", "choice", "Sound")
    return [
        task(tmp_path / "run", "Raising", sound),
        task(tmp_path / "run", "Exiting", sound),
        task(tmp_path / "run", "Answering", ("x" * 300, "choice", "Sound")),
        task(tmp_path / "run", "Answering", ("no file", "nowhere", "Sound"), ("odd", "choice", "Raising")),
        task(tmp_path / "run", "Answering", sound),
    ]


def test_tasks_after_one_that_fails_are_run_and_scored(tmp_path, tasks, caplog):
    caplog.set_level(logging.ERROR)
    for kind in ("infer_task.WdmoeInferTask", "eval_task.WdmoeEvalTask"):
        assert len(launch(kind, [Config(task._cfg_dict) for task in tasks])) == len(tasks)
    predictions, results = tmp_path / "run" / "predictions", tmp_path / "run" / "results"
    assert len(json.loads((predictions / "answering" / "sound.json").read_text())) == 4
    assert 0 <= json.loads((results / "answering" / "sound.json").read_text())["accuracy"] <= 100
    assert noted_failure(predictions / "raising" / "sound.json") == "RuntimeError: no weights"
    assert noted_failure(predictions / "exiting" / "sound.json") == "SystemExit: no licence"
    assert "nowhere.jsonl" in noted_failure(predictions / "answering" / "no file.json")
    assert noted_failure(results / "answering" / "odd.json") == "KeyError: 'no such [answer] | key'"
    assert {path.name for path in results.rglob("*.json")} == {"sound.json"}


@pytest.mark.parametrize(("number", "code"), [(0, 1), (1, "no licence"), (2, 2), (3, 2), (4, None)])
def test_a_process_of_its_own_ends_with_an_exit_code(tmp_path, tasks, monkeypatch, number, code):
    tasks[number].dump(tmp_path / "task.py")
    monkeypatch.setattr(sys, "argv", ["task", str(tmp_path / "task.py")])
    for module in (command, eval_task):
        monkeypatch.setattr(module, "end_with_the_runner", lambda: None)
    if code is None:
        infer_task.main()
        return
    with pytest.raises(RuntimeError if code == 1 else SystemExit) as ended:
        infer_task.main()
    assert code == 1 or ended.value.code == code
