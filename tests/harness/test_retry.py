"""A run in which something failed, started again: what failed is repeated, what is finished stays as it is."""

import json

import pytest

from tests.conftest import opencompass

CONFIG = """
from mmengine.config import read_base
from opencompass.openicl.icl_inferencer import GenInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import FixKRetriever
from opencompass.tasks import OpenICLEvalTask

with read_base():
    from wdmoe_opencompass.eval_configs.datasets.quickstart import quickstart_datasets as _all
    from wdmoe_opencompass.eval_configs.models.wdmoe_quickstart import models
    from wdmoe_opencompass.eval_configs.runners.wdmoe_local import eval, infer
    from wdmoe_opencompass.eval_configs.summarizers.wdmoe import summarizer

eval["runner"]["task"]["type"] = OpenICLEvalTask
_reader = dict(_all[3]["reader_cfg"], test_range="[:6]")
_shots = dict(
    ice_template=dict(type=PromptTemplate, template="Question: {{question}}\\nAnswer: {{answer}}\\n"),
    prompt_template=dict(type=PromptTemplate, template="</E>Question: {{question}}\\nAnswer:", ice_token="</E>"),
    retriever=dict(type=FixKRetriever, fix_id_list=[0, {shot}]),
    inferencer=dict(type=GenInferencer, max_out_len=8),
)
_evaluator = dict(evaluator=dict(type="tests.cases.odd_evaluators.{evaluator}Evaluator"))
datasets = [
    dict(_all[3], abbr="shots", infer_cfg=_shots, reader_cfg=_reader),
    dict(_all[3], abbr="scored", eval_cfg=_evaluator, reader_cfg=_reader),
    dict(_all[3], abbr="sound", reader_cfg=_reader),
]
"""


def summary(folder, name):
    return json.loads((folder / "summary" / f"{name}.json").read_text())


def written(folder):
    """When each file of predictions and results was written; without what failed starts leave."""
    paths = [path for part in ("predictions", "results") for path in (folder / part).rglob("*") if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for path in paths
        if not path.name.endswith((".failed.txt", ".part"))
    }


@pytest.mark.slow
def test_only_what_failed_is_repeated(tmp_path):
    """With the stock eval task in the config, which our partitioners replace."""
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(shot=99999, evaluator="Killed"))
    folder, output = opencompass(config, tmp_path / "outputs")
    models = {line.partition(", ")[0] for line in summary(folder, "missing")}
    assert len(models) == 2, output[-3000:]
    reasons = {line.partition(", ")[2] for line in summary(folder, "missing")}
    assert len(reasons) == 2
    assert any(line.startswith("shots: ") and "99999 is out of range" in line for line in reasons)
    assert any(line.startswith("scored: the evaluation failed: ") and "SIGKILL" in line for line in reasons)
    assert "OpenCompass's own table" not in output
    first = written(folder)
    assert {name for name in first if name.startswith("results")} == {f"results/{m}/sound.json" for m in models}

    again, output = opencompass(config, tmp_path / "outputs", "-r")  # nothing was mended: the same, and no more
    assert again == folder
    assert {line.partition(", ")[2] for line in summary(folder, "missing")} == reasons
    assert written(folder) == first

    config.write_text(CONFIG.format(shot=1, evaluator="Sound"))
    _, output = opencompass(config, tmp_path / "outputs", "-r")
    assert summary(folder, "missing") == [], output[-3000:]
    last = written(folder)
    assert {name: last[name] for name in first} == first
    new = {name for name in last if name not in first and name.endswith(".json")}
    assert new == {f"results/{m}/{name}.json" for m in models for name in ("shots", "scored")} | {
        f"predictions/{m}/shots.json" for m in models
    }
    assert not list(folder.rglob("*.failed.txt"))
