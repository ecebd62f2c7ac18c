import ast
import builtins
import inspect
from argparse import Namespace
from pathlib import Path

import pytest
from mmengine.config import Config
from opencompass.registry import MODELS
from opencompass.utils.run import get_config_from_arg

from tests.conftest import ROOT
from wdmoe_opencompass.harness.settings import parse_settings
from wdmoe_opencompass.testbed.lab_file import Testbed, write_testbed

CONFIGS = ROOT / "eval_configs"
ALL = sorted(CONFIGS.rglob("*.py"))
RUNNABLE = sorted(CONFIGS.glob("eval_*.py"))
MODEL_PARTS = sorted((CONFIGS / "models").glob("*.py"))


def name(path):
    return path.stem


def accepted(cls):
    """Names of the arguments that a class or its bases take; `None` where it takes any."""
    return {parameter for base in cls.__mro__ for parameter in inspect.signature(base.__init__).parameters}


@pytest.mark.parametrize("path", ALL, ids=name)
def test_no_config_calls_what_it_imports(path):
    """OpenCompass reads configs lazily: an imported name is a placeholder, and calling it fails without a message."""
    known = {*dir(builtins), "read_base"}
    for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Name):
            assert call.func.id in known
        else:
            assert isinstance(call.func, ast.Attribute)
            assert call.func.attr in ("items", "values", "keys")


@pytest.mark.parametrize("path", RUNNABLE, ids=name)
def test_every_runnable_config_loads_and_all_its_classes_resolve(path):
    config = Config.fromfile(path, format_python_code=False)
    for section in (config.infer, config.eval):
        for part in (section.partitioner, section.runner, section.runner.task):
            assert inspect.isclass(part.type)
    assert "WdmoeInferTask" in str(config.infer.runner.task.type)
    assert "WdmoeSummarizer" in str(config.summarizer.type)
    for dataset in config.datasets:
        assert inspect.isclass(dataset.type)
        assert inspect.isclass(dataset.eval_cfg.evaluator.type)
    abbrs = [model.abbr for model in config.models]
    assert len(set(abbrs)) == len(abbrs)


@pytest.mark.parametrize("path", MODEL_PARTS, ids=name)
def test_classes_arguments_profiles_and_policies_of_every_model_are_real(path, tmp_path):
    for model in Config.fromfile(path, format_python_code=False).models:
        given = model.to_dict()
        cls = MODELS.get(given.pop("type"))
        run_only = {"abbr", "run_cfg", "batch_size", "max_out_len"}
        assert set(given) - run_only <= accepted(cls)
        if "wdmoe" in given:
            settings = given["wdmoe"]
            if not Path(settings.get("calibration") or "setup.cfg").exists():  # the user makes it: `wdmoe calibrate`
                settings["calibration"] = "quickstart/quickstart.calibration.safetensors"
            if settings.get("testbed"):  # the user starts it: `wdmoe testbed up`
                settings["testbed"] = str(tmp_path / "lab.yaml")
                devices = [dict(name=f"d{k}", address=f"127.0.0.1:{k + 1}", experts=[k]) for k in range(4)]
                write_testbed(tmp_path / "lab.yaml", Testbed(devices=devices))
            parse_settings(settings)


def test_parts_compose_by_config_dir_on_the_command_line():
    for part in MODEL_PARTS:
        arguments = dict(
            config=None,
            config_dir=str(CONFIGS),
            models=[part.stem],
            datasets=["ARC_c_ppl_a450bd"],
            summarizer="wdmoe_paper",
            accelerator=None,
            custom_dataset_path=None,
            dataset_num_runs=1,
        )
        config = get_config_from_arg(Namespace(**arguments))
        own = Config.fromfile(part, format_python_code=False).models
        assert [model.abbr for model in config.models] == [model.abbr for model in own]
        assert "WdmoeSummarizer" in str(config.summarizer.type)


def test_the_paper_s_config_names_the_eight_benchmarks_and_one_mmlu():
    config = Config.fromfile(CONFIGS / "eval_wdmoe_mixtral_8x7b_instruct.py", format_python_code=False)
    subjects = [d.abbr for d in config.datasets if d.abbr.startswith("lukaemon_mmlu_")]
    others = [d.abbr for d in config.datasets if d.abbr not in subjects]
    assert others == ["piqa", "ARC-e", "ARC-c", "openai_humaneval", "gsm8k", "BoolQ", "mbpp"]
    (group,) = config.summarizer.summary_groups
    assert (group.name, sorted(group.subsets)) == ("mmlu", sorted(subjects))
    assert [model.wdmoe.policy for model in config.models] == ["top_k", "wlr"]


@pytest.mark.parametrize("kind", ["instruct", "instruct_chat"])
def test_mixtral_runs_64_sequences_per_pass_but_for_mmlu_s_longest_subjects(kind):
    config = Config.fromfile(CONFIGS / f"eval_wdmoe_mixtral_8x7b_{kind}.py", format_python_code=False)
    assert {model.batch_size for model in config.models} == {64}
    own = {d.abbr: d.infer_cfg.inferencer.batch_size for d in config.datasets if "batch_size" in d.infer_cfg.inferencer}
    assert set(own.values()) == {16}
    assert len(own) == 7
    assert all(abbr.startswith("lukaemon_mmlu_") for abbr in own)
    other = Config.fromfile(CONFIGS / "eval_wdmoe_qwen3_30b_a3b.py", format_python_code=False)
    assert not any("batch_size" in d.infer_cfg.inferencer for d in other.datasets)
