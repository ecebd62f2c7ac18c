"""Values of a config that nothing can use are found by `wdmoe plan`, before hours of inference."""

import json
import shutil

import pytest
from mmengine.config import Config

from tests.conftest import ROOT, SMALL
from wdmoe_opencompass.errors import WdmoeError
from wdmoe_opencompass.harness.plan.make import make_plan
from wdmoe_opencompass.harness.sections import wrong_parts


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """-> function: the plan of the small config, of one dataset and model, after `change` has been applied to it."""
    monkeypatch.chdir(ROOT)

    def plan(change):
        cfg = Config.fromfile(SMALL, format_python_code=False)
        cfg.datasets = [cfg.datasets[3]]
        cfg.models = cfg.models[:1]
        change(cfg)
        cfg.dump(tmp_path / "eval_changed.py")
        return make_plan(tmp_path / "eval_changed.py")

    return plan


def put(*keys_and_value):
    """-> a change: put a value where these keys lead."""
    *keys, last, value = keys_and_value

    def change(cfg):
        for key in keys:
            cfg = cfg[key]
        cfg[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (put("infer", 5), "infer must be a dict, got 5"),
        (put("eval", [1]), "eval must be a dict, got [1]"),
        (put("infer", "runner", "task", "x"), "infer.runner.task must be a dict, got 'x'"),
        (put("eval", "partitioner", "N"), "eval.partitioner must be a dict, got 'N'"),
        (put("summarizer", 5), "summarizer must be a dict, got 5"),
        (put("models", 0, "batch_size", "4"), "models[0].batch_size must be a whole number of at least 1, got '4'"),
        (put("models", 0, "batch_size", 0), "models[0].batch_size must be a whole number of at least 1, got 0"),
        (put("models", 0, "max_out_len", -4), "models[0].max_out_len must be a whole number of at least 1, got -4"),
        (put("models", 0, "max_seq_len", True), "models[0].max_seq_len must be a whole number of at least 1, got True"),
        (put("models", 0, "model_kwargs", 5), "models[0].model_kwargs must be a dict, got 5"),
        (put("models", 0, "run_cfg", 3), "models[0].run_cfg must be a dict, got 3"),
        (put("models", 0, "run_cfg", "num_gpus", -1), "run_cfg.num_gpus must be a whole number of at least 0, got -1"),
        (put("models", 0, "stop_words", "\n"), "models[0].stop_words must be a list of texts, got '\\n'"),
        (put("models", 0, "path", 5), "models[0].path must be a text, got 5"),
        (put("datasets", 0, "infer_cfg", 5), "datasets[0].infer_cfg must be a dict, got 5"),
        (
            put("datasets", 0, "infer_cfg", "inferencer", "max_out_len", 0),
            "datasets[0].infer_cfg.inferencer.max_out_len must be a whole number of at least 1, got 0",
        ),
    ],
)
def test_a_value_of_the_wrong_kind_is_one_sentence(planned, change, sentence):
    with pytest.raises(WdmoeError) as error:
        planned(change)
    assert str(error.value).endswith(sentence)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (put("eval_cfg", "evaluator", dict(type="NoSuchEvaluator")), "evaluator.type is 'NoSuchEvaluator'"),
        (put("eval_cfg", "evaluator", dict(type="no_such.Thing")), "ModuleNotFoundError: No module named 'no_such'"),
        (put("eval_cfg", "pred_postprocessor", dict(type="nosuch")), "pred_postprocessor.type is 'nosuch'"),
        (put("eval_cfg", "dataset_postprocessor", dict(type="no_such.f")), "dataset_postprocessor.type is 'no_such.f'"),
        (put("eval_cfg", {}), "eval_cfg must have an evaluator=dict(type=...)"),
    ],
)
def test_what_scores_the_answers_is_looked_for(planned, change, sentence):
    plan = planned(lambda cfg: change(cfg.datasets[0]))
    (problem,) = plan.problems
    assert problem.startswith("quickstart/data/arith: its answers cannot be scored: ")
    assert sentence in problem


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(num_beams=0), "ZeroDivisionError"),
        (dict(no_such_argument=1), "['no_such_argument']"),
        (dict(do_sample=True, temperature=0.0), "strictly positive"),
        (dict(bad_words_ids=[]), "bad_words_ids"),
        (dict(repetition_penalty=-1), "strictly positive"),
        (dict(top_k=-1, do_sample=True), "strictly positive"),
    ],
)
def test_generation_settings_are_tried(planned, settings, sentence):
    (problem,) = planned(put("models", 0, "generation_kwargs", settings)).problems
    assert "cannot be used" in problem
    assert sentence in problem


@pytest.mark.parametrize(
    "settings",
    [
        dict(num_beams=3, num_return_sequences=2),
        dict(do_sample=True, temperature=0.7, top_p=0.9, num_return_sequences=2),
        dict(stop_strings=["x"]),
        dict(repetition_penalty=1.2, no_repeat_ngram_size=3),
        dict(bad_words_ids=[[1000]], suppress_tokens=[1023]),
        dict(min_new_tokens=4),
        dict(eos_token_id=[3, 5]),
    ],
)
def test_generation_settings_that_work_are_no_problem(planned, settings):
    assert planned(put("models", 0, "generation_kwargs", settings)).problems == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (put("eval", "partitioner", "no_such", 1), "eval.partitioner.no_such is no argument of"),
        (put("infer", "partitioner", "no_such", 1), "infer.partitioner.no_such is no argument of"),
        (put("eval", "runner", "max_workers", 4), "eval.runner.max_workers is no argument of LocalRunner; it takes"),
        (put("eval", "runner", "max_num_workers", 0), "eval.runner.max_num_workers must be a whole number"),
        (put("infer", "runner", "max_num_workers", "2"), "infer.runner.max_num_workers must be a whole number"),
    ],
)
def test_arguments_that_opencompass_would_refuse_after_the_inference_are_named(change, sentence):
    cfg = Config.fromfile(ROOT / SMALL, format_python_code=False)
    assert wrong_parts(cfg) == []
    change(cfg)
    (problem,) = wrong_parts(cfg)
    assert sentence in problem


@pytest.mark.parametrize("top_k", [0, 9])
def test_experts_per_token_are_as_many_as_there_are(planned, tmp_path, top_k):
    folder = shutil.copytree(ROOT / "quickstart" / "model", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | dict(num_experts_per_tok=top_k)))
    problems = planned(put("models", 0, "path", str(folder))).problems
    assert any(
        f"num_experts_per_tok in its config.json must be from 1 to 8, got {top_k}" in problem for problem in problems
    )


def test_an_empty_quantization_config_is_one_sentence(planned, tmp_path):
    folder = shutil.copytree(ROOT / "quickstart" / "model", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | dict(quantization_config={})))
    problems = planned(put("models", 0, "path", str(folder))).problems
    assert any("its quantization_config cannot be applied" in problem for problem in problems)
