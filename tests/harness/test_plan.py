import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, SMALL, environment
from wdmoe_opencompass.errors import WdmoeError
from wdmoe_opencompass.harness.plan import make_plan
from wdmoe_opencompass.routing.trace import read_trace

DATA = ROOT.parent / "shared" / "benchmarks"
TOKENS_TOLERANCE = 0.05  # 16 of up to 250 items are counted, here 12 of 12
QUICKSTART = "eval_configs/eval_quickstart.py"
PPL_TASKS = ("qs_choice", "qs_twoway", "qs_yesno")


def plan(config, home, *options, **variables):
    return subprocess.run(
        [Path(sys.executable).with_name("wdmoe"), "plan", config, *options],
        cwd=ROOT,
        env=environment(home) | variables,
        capture_output=True,
        text=True,
    )


def changed(tmp_path, lines, base="eval_quickstart"):
    """A config beside the shipped ones' copy, with lines added."""
    import shutil

    folder = tmp_path / "eval_configs"
    shutil.copytree(ROOT / "eval_configs", folder)
    path = folder / f"{base}.py"
    path.write_text(path.read_text() + lines)
    return path


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    done = plan(QUICKSTART, tmp_path_factory.mktemp("hf"), "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_quickstart_can_work_and_its_items_are_those_of_its_files(quickstart):
    assert quickstart["can_work"]
    assert quickstart["problems"] == []
    lines = {
        "choice": "choice.jsonl",
        "yesno": "yesno.jsonl",
        "twoway": "twoway/dev.jsonl",
        "arith": "arith/test.jsonl",
    }
    items = {one["dataset"]: one["items"] for one in quickstart["datasets"]}
    for name, file in lines.items():
        text = (ROOT / "quickstart" / "data" / file).read_text()
        assert items[f"qs_{name}"] == len(text.splitlines())


def test_parameters_and_memory_are_those_of_the_loaded_model(quickstart):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(ROOT / "quickstart" / "model")
    for one in quickstart["models"]:
        assert one["parameters"] == model.num_parameters()
        assert one["weights_gb"] == pytest.approx(4 * model.num_parameters() / 1e9)


def test_passes_tokens_and_trace_sizes_are_those_of_a_real_run(small_run, tmp_path):
    planned = json.loads(plan(SMALL, tmp_path, "--json").stdout)["models"][0]
    files = list((small_run / "predictions" / planned["model"]).glob("*.trace.safetensors"))
    traces = [read_trace(path) for path in files]
    prefill = sum(int(trace.is_phase("prefill").sum()) for trace in traces)
    decode = sum(int(trace.is_phase("decode").sum()) for trace in traces)
    assert planned["prefill_passes"] == prefill
    assert 0 < decode <= planned["decode_passes"]
    prompt_tokens = sum(int(trace.tokens[trace.is_phase("prefill")].sum()) for trace in traces)
    assert planned["prompt_tokens"] == pytest.approx(prompt_tokens, rel=TOKENS_TOLERANCE)
    arrays = sum(array.nbytes for trace in traces for array in trace.arrays.values())
    per_pass = sum(array.nbytes for array in traces[0].arrays.values() if len(array) == len(traces[0].batch))
    unused = (planned["decode_passes"] - decode) * per_pass / len(traces[0].batch)
    assert 1e6 * planned["trace_mb"] == pytest.approx(arrays + unused, rel=0.03)


def test_a_missing_dataset_file_is_named_with_its_place(tmp_path):
    config = changed(
        tmp_path, '\nfor one in datasets:\n    if one["abbr"] == "qs_arith":\n        one["path"] = "no/arith"\n'
    )
    done = plan(config, tmp_path / "hf")
    assert done.returncode == 1
    (problem,) = [line for line in done.stderr.splitlines() if line.startswith("problem:")]
    assert problem.startswith(f"problem: qs_arith: missing {ROOT / 'no' / 'arith'}")
    assert "this run cannot work" in done.stdout


def test_absent_weights_are_named_with_the_command_that_fetches_them(tmp_path):
    done = plan("eval_configs/eval_ablation.py", tmp_path, "--json")
    assert done.returncode == 1
    problems = json.loads(done.stdout)["problems"]
    assert any("no weights here: hf download mistralai/Mixtral-8x7B-Instruct-v0.1" in one for one in problems)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ('\nmodels[0]["wdmoe"]["profile"] = "paper_8"\n', "did you mean 'paper_8_devices'"),
        ('\nmodels[0]["batch_padding_"] = 1\n', "unknown argument batch_padding_"),
        ('\nmodels[1]["run_cfg"]["num_gpus"] = 99\n', "a task needs 99 GPUs (run_cfg.num_gpus)"),
        ('\ninfer["runner"]["task"]["type"] = "OpenICLInferTask"\n', "infer.runner.task.type is not WdmoeInferTask"),
        ('\nsummarizer = dict(type="DefaultSummarizer")\n', "summarizer.type is not WdmoeSummarizer"),
    ],
)
def test_what_would_break_the_run_is_said_before(lines, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    problems = make_plan(changed(tmp_path, lines)).problems
    assert any(sentence in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("text", "sentence"), [(None, "no such config file"), ("models = [", "cannot be loaded"), ("x = 1", "needs a list")]
)
def test_a_config_that_cannot_be_read_gets_one_sentence(text, sentence, tmp_path):
    config = tmp_path / "mine.py"
    if text is not None:
        config.write_text(text)
    with pytest.raises(WdmoeError, match=sentence):
        make_plan(config)


@pytest.mark.skipif(not DATA.is_dir(), reason="the slices of the real benchmarks are not on this machine")
def test_stock_benchmarks_are_found_in_the_data_folder(tmp_path):
    config = ROOT / "tests" / "harness" / "eval_eight_benchmarks.py"
    done = plan(config, tmp_path, "--json", COMPASS_DATA_CACHE=str(DATA))
    answer = json.loads(done.stdout)
    assert answer["can_work"], answer["problems"]
    assert {one["items"] for one in answer["datasets"]} == {8}
    assert all(math.isfinite(one["letters_per_prompt"]) for one in answer["datasets"])
