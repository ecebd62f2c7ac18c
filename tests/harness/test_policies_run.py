"""Every policy through the `opencompass` command, and the frontier of them."""

import json

import pytest
from mmengine.config import Config
from typer.testing import CliRunner

from tests.conftest import ROOT, opencompass
from wdmoe_opencompass.cli import app
from wdmoe_opencompass.harness.eval_task import WdmoeEvalTask
from wdmoe_opencompass.harness.partitioner import SharedProcessPartitioner
from wdmoe_opencompass.selection import POLICIES
from wdmoe_opencompass.trace.format import read_trace

SLICE = ROOT / "tests" / "harness" / "eval_policies_slice.py"


def test_every_policy_is_in_the_config():
    config = Config.fromfile(ROOT / "eval_configs" / "eval_policies.py", format_python_code=False)
    assert {model.wdmoe.policy for model in config.models} == set(POLICIES)


@pytest.mark.parametrize(("tasks", "models_of_tasks"), [(1, [[0, 1, 2]]), (2, [[0, 2], [1]]), (5, [[0], [1], [2]])])
def test_models_are_dealt_out_over_the_processes(tmp_path, tasks, models_of_tasks):
    models = [dict(abbr=f"m{number}") for number in range(3)]
    datasets = [dict(abbr=name) for name in ("a", "b")]
    done = tmp_path / "m1" / "a.json"
    done.parent.mkdir()
    done.write_text("{}")
    partitioner = SharedProcessPartitioner(out_dir=str(tmp_path), tasks=tasks)
    found = partitioner.partition([dict(models=models, datasets=datasets)], work_dir="w", out_dir=str(tmp_path))
    assert [[model["abbr"] for model in task["models"]] for task in found] == [
        [f"m{number}" for number in numbers] for numbers in models_of_tasks
    ]
    for task in found:
        for model, own in zip(task["models"], task["datasets"], strict=True):
            assert [dataset["abbr"] for dataset in own] == (["b"] if model["abbr"] == "m1" else ["a", "b"])


def test_a_model_that_cannot_be_scored_leaves_the_others_alone(tmp_path, monkeypatch):
    scored = []

    def score(task):
        scored.append((task.model_cfg["abbr"], task.dataset_cfg["abbr"]))
        if scored[-1] == ("m0", "a"):
            raise FileNotFoundError("no predictions")

    monkeypatch.setattr(WdmoeEvalTask, "_score", score)
    dataset = dict(eval_cfg=dict(evaluator=dict(type="AccEvaluator")), reader_cfg=dict(output_column="x"))
    config = dict(
        models=[dict(abbr=f"m{number}", type="x", path="x") for number in range(2)],
        datasets=[[dataset | dict(abbr=name, type="x", path="x") for name in ("a", "b")]] * 2,
        work_dir=str(tmp_path),
    )
    with pytest.raises(RuntimeError, match="not scored: m0/a: FileNotFoundError: no predictions"):
        WdmoeEvalTask(Config(config)).run_or_raise()
    assert scored == [("m0", "a"), ("m0", "b"), ("m1", "a"), ("m1", "b")]
    assert "wdmoe_opencompass.harness.eval_task x.py" in WdmoeEvalTask(Config(config)).get_command("x.py", "{task_cmd}")


@pytest.fixture(scope="module")
def policies_run(tmp_path_factory):
    folder, output = opencompass(SLICE, tmp_path_factory.mktemp("policies") / "outputs")
    assert (folder / "summary" / "frontier_records.json").exists(), output[-5000:]
    return folder


@pytest.mark.slow
def test_one_run_puts_every_policy_on_the_frontier(policies_run):
    records = {
        record["model"]: record for record in json.loads((policies_run / "summary/frontier_records.json").read_text())
    }
    assert json.loads((policies_run / "summary" / "missing.json").read_text()) == []
    models = Config.fromfile(SLICE, format_python_code=False).models
    assert set(records) == {model.abbr for model in models}
    for model in models:
        record = records[model.abbr]
        assert record["accuracy_low"] <= record["accuracy"] <= record["accuracy_high"]
        assert record["latency_ratio_low"] <= record["latency_ratio"] <= record["latency_ratio_high"]
        assert record["kept_share"] == 1 or model.wdmoe.policy != "top_k"
    vanilla = records["quickstart-vanilla-hf"]
    assert vanilla["latency_ratio_even"] == pytest.approx(1)
    assert any(record["on_front"] for record in records.values())
    assert (policies_run / "summary" / "frontier.png").stat().st_size > 10_000
    answer = CliRunner().invoke(app, ["frontier", str(policies_run)])
    assert answer.exit_code == 0
    assert all(model.abbr in answer.output for model in models)
    assert "significant: McNemar" in answer.output


@pytest.mark.slow
def test_a_quantised_payload_costs_answers_as_fewer_bits_save_time(policies_run):
    records = {
        record["model"]: record for record in json.loads((policies_run / "summary/frontier_records.json").read_text())
    }
    plain = records["quickstart-vanilla-hf"]
    for bits in (8, 4):
        rounded = records[f"quickstart-vanilla-quantised-{bits}-bit-hf"]
        assert rounded["policy"] == f"top_k, {bits}-bit payload"
        assert rounded["latency_ratio_even"] < 1.5 * bits / 16 * plain["latency_ratio_even"]
    predictions = {
        name: (policies_run / "predictions" / f"quickstart-{name}-hf" / "qs_arith_40.json").read_text()
        for name in ("vanilla", "vanilla-quantised-4-bit")
    }
    assert predictions["vanilla"] != predictions["vanilla-quantised-4-bit"]
    trace = read_trace(policies_run / "predictions/quickstart-vanilla-quantised-4-bit-hf/qs_arith_40.trace.safetensors")
    assert trace.metadata.quantise_payload
    assert (trace.device_load == trace.device_load_before).all()
