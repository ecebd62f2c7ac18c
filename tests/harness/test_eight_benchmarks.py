import json
import os
import signal
import subprocess
import time

import pytest

from tests.conftest import ROOT, command, environment
from wdmoe_opencompass.trace.format import read_trace

DATA = ROOT.parent / "shared" / "benchmarks"
CONFIG = "tests/harness/eval_eight_benchmarks.py"
BENCHMARKS = {"mmlu", "piqa", "ARC-e", "ARC-c", "openai_humaneval", "gsm8k", "BoolQ", "mbpp"}
MODELS = ("quickstart-vanilla-hf", "quickstart-wdmoe-hf")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="the slices of the real benchmarks are not on this machine"),
]


def run(tmp_path, *options, **popen):
    settings = environment(tmp_path / "hf") | {"COMPASS_DATA_CACHE": os.path.relpath(DATA, ROOT)}
    arguments = command(CONFIG, tmp_path / "outputs", *options)
    return subprocess.Popen(arguments, cwd=ROOT, env=settings, text=True, stderr=subprocess.STDOUT, **popen)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("eight")
    output, _ = run(tmp_path, stdout=subprocess.PIPE).communicate()
    (folder,) = (tmp_path / "outputs").iterdir()
    assert (folder / "summary" / "missing.json").exists(), output[-3000:]
    return folder


def records(folder, name):
    return json.loads((folder / "summary" / f"{name}.json").read_text())


def test_every_benchmark_has_accuracy_and_all_four_rows_of_latency(folder):
    assert records(folder, "missing") == []
    scored = {(r["model"], r["dataset"]) for r in records(folder, "accuracy")}
    assert {(model, benchmark) for model in MODELS for benchmark in BENCHMARKS} <= scored
    waits = {(r["row"], r["dataset"]) for r in records(folder, "latency") if r["latency_s"] > 0}
    rows = ("vanilla_even", "selection_only", "allocation_only", "both")
    assert {(row, benchmark) for row in rows for benchmark in BENCHMARKS} <= waits


def test_every_accuracy_has_an_interval_from_its_items(folder):
    accuracies = [
        r for r in records(folder, "accuracy") if r["metric"] not in ("active_experts_per_token", "share_dropped")
    ]
    assert all(r["low"] - 1e-9 <= r["value"] <= r["high"] + 1e-9 for r in accuracies)
    assert {r["dataset"]: r["items"] for r in accuracies}["openai_humaneval"] == 8
    compared = {r["benchmark"] for r in records(folder, "accuracy_differences")}
    assert compared == BENCHMARKS | {"mean of 8 benchmarks"}


def test_programs_are_executed_and_only_the_slice_counts(folder):
    for model in MODELS:
        result = json.loads((folder / "results" / model / "openai_humaneval.json").read_text())
        assert set(result) == {"humaneval_pass@1", "details"}
        assert len(result["details"]) == 8
        result = json.loads((folder / "results" / model / "mbpp.json").read_text())
        assert sum(result[kind] for kind in ("pass", "timeout", "failed", "wrong_answer")) == 8


def test_each_benchmark_was_cut_to_eight_items(folder):
    trace = read_trace(folder / "predictions" / MODELS[0] / "gsm8k.trace.safetensors")
    assert trace.items.sum() == 8
    trace = read_trace(folder / "predictions" / MODELS[0] / "lukaemon_mmlu_anatomy.trace.safetensors")
    assert trace.items.sum() == 4 * 8


def test_killed_in_the_middle_and_started_again_it_gives_equal_tables(folder, tmp_path):
    process = run(tmp_path, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 1800
    while process.poll() is None and time.monotonic() < deadline:
        if len(list(tmp_path.glob("outputs/*/predictions/*/*.json"))) >= 5:
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = list(tmp_path.glob("outputs/*/predictions/*/*.json"))
    assert 5 <= len(done) < 2 * (len(BENCHMARKS) + 3), "killed too early or too late"
    output, _ = run(tmp_path, "-r", stdout=subprocess.PIPE).communicate()
    (again,) = (tmp_path / "outputs").iterdir()
    for name in ("accuracy", "latency", "missing"):
        assert records(again, name) == records(folder, name), output[-3000:]
