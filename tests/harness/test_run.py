import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from pytest import approx

from tests.builders.small_run import MODELS, TASKS, opencompass_viz, trace_of
from tests.conftest import ROOT, SMALL, command, environment, opencompass
from tests.waiting import until
from wdmoe_opencompass import load_profile
from wdmoe_opencompass.replay import replay


def records(folder, name):
    return json.loads((folder / "summary" / f"{name}.json").read_text())


def test_every_model_and_dataset_leaves_predictions_and_a_trace(small_run):
    for model in MODELS:
        for task in TASKS:
            trace = trace_of(small_run, model, task)
            labels = {"qs_choice": 4, "qs_twoway": 2, "qs_yesno": 2}.get(task, 1)
            assert trace.items.sum() == 12 * labels
            assert trace.first_item.tolist() == [0, 4, 8] * labels
            assert (small_run / "predictions" / model / f"{task}_small.json").exists()
    assert not list(small_run.rglob("*.trace.part"))


def test_a_run_leaves_its_page(small_run):
    page = (small_run / "summary" / "report.html").read_text()
    assert "summary/report.html" in records(small_run, "manifest")
    facts = json.loads(re.search(r'id="facts">(.*?)</script>', page)[1])
    assert facts["problems"] == facts["missing"] == []
    items = json.loads(re.search(r'id="item-data">(.*?)</script>', page)[1])
    assert [(dataset["dataset"], dataset["count"], len(dataset["items"])) for dataset in items["datasets"]] == [
        (f"{task}_small", 12, 12) for task in TASKS
    ]


def test_vanilla_loads_of_each_layer_sum_to_k_times_the_real_tokens(small_run):
    for task in TASKS:
        trace = trace_of(small_run, MODELS[0], task)
        assert (trace.device_load.sum(axis=2) == 2 * trace.tokens[:, None]).all()
        assert (trace.assignments == trace.assignments_before).all()


def test_perplexity_tokens_are_those_of_the_tokenizer(small_run):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "quickstart" / "model")
    predictions = json.loads((small_run / "predictions" / MODELS[0] / "qs_choice_small.json").read_text())
    tokens = 0
    for item in predictions.values():
        for label in "ABCD":
            tokens += len(tokenizer(item[f"label: {label}"]["testing input"])["input_ids"])
    assert trace_of(small_run, MODELS[0], "qs_choice").tokens.sum() == tokens


def test_wdmoe_drops_and_every_token_keeps_an_expert(small_run):
    for task in TASKS:
        trace = trace_of(small_run, MODELS[1], task)
        assert (trace.assignments >= trace.tokens[:, None]).all()
        assert (trace.assignments < trace.assignments_before).any()


def test_accuracy_records_are_what_opencompass_scored(small_run):
    scored = {(r["model"], r["dataset"], r["metric"]): r["value"] for r in records(small_run, "accuracy")}
    for model in MODELS:
        for task in TASKS:
            result = json.loads((small_run / "results" / model / f"{task}_small.json").read_text())
            metric = "score" if task == "qs_program" else "accuracy"
            assert scored[model, f"{task}_small", metric] == result[metric]
    assert all(v == 2 for (model, _, m), v in scored.items() if model == MODELS[0] and m == "active_experts_per_token")
    assert all(0 < v < 0.5 for (model, _, m), v in scored.items() if model == MODELS[1] and m == "share_dropped")


def test_right_and_wrong_items_agree_with_the_accuracy(small_run):
    scored = {(r["model"], r["dataset"]): r for r in records(small_run, "accuracy") if r["items"]}
    vectors = records(small_run, "items")
    assert {(vector["model"], vector["dataset"]) for vector in vectors} == {
        (m, f"{t}_small") for m in MODELS for t in TASKS
    }
    for vector in vectors:
        record = scored[vector["model"], vector["dataset"]]
        assert len(vector["right"]) == record["items"] == 12
        assert record["value"] == approx(100 * vector["right"].count("1") / 12)
        assert record["low"] < record["value"] + 1e-9 < record["high"] + 2e-9
    differences = records(small_run, "accuracy_differences")
    assert [row["benchmark"] for row in differences] == [*(f"{t}_small" for t in TASKS), "mean of 5 benchmarks"]
    values = [scored[model, "qs_arith_small"]["value"] for model in MODELS]
    assert differences[TASKS.index("qs_arith")]["difference"] == approx(values[1] - values[0])
    assert "significant: McNemar" in (small_run / "summary" / "differences.md").read_text()


def test_latency_records_hold_four_rows_and_equal_a_replay(small_run):
    latency = records(small_run, "latency")
    assert {r["row"] for r in latency} == {"vanilla_even", "selection_only", "allocation_only", "both"}
    for record in latency:
        trace = trace_of(small_run, record["model"], record["dataset"].removesuffix("_small"))
        replayed = replay(trace, load_profile("paper_8_devices"), record["allocation"], record["scope"])
        assert record["latency_s"] == approx(replayed.mean_s(record["per"], record["phase"]))
        assert (record["saving"] > 0) == (record["row"] != "vanilla_even")
    decoding = {r["dataset"] for r in latency if r["phase"] == "decode"}
    assert decoding == {"qs_arith_small", "qs_program_small"}


def test_requests_and_speed_are_in_tables_report_and_page(small_run, wdmoe):
    waits = {(wait["row"], wait["dataset"]): wait for wait in records(small_run, "request_records")}
    assert len(waits) == 4 * len(TASKS)
    for (row, _), wait in waits.items():
        assert wait["requests"] == 12
        assert 0 < wait["latency_p50_s"] <= wait["latency_p90_s"] <= wait["latency_p99_s"]
        assert row == "vanilla_even" or wait["latency_p50_s"] < waits["vanilla_even", wait["dataset"]]["latency_p50_s"]
    speeds = {(speed["model"], speed["dataset"]): speed for speed in records(small_run, "speed_records")}
    assert set(speeds) == {(model, f"{task}_small") for model in MODELS for task in TASKS}
    for (_, dataset), speed in speeds.items():
        assert speed["prompts"] == speed["prompts_measured"] > 0
        assert speed["seconds_per_item"] > 0 < speed["prefill_tokens_per_s"]
        assert (speed["decode_tokens_per_s"] is None) == (dataset not in ("qs_arith_small", "qs_program_small"))
        assert (speed["batch_sizes"], speed["dtype"]) == ([4], "float32")
    assert not any(".speed." in str(model["files"]) for model in records(small_run, "provenance")["models"])
    page = (small_run / "summary" / "report.html").read_text()
    tables = json.loads(re.search(r'id="facts">(.*?)</script>', page)[1])["tables"]
    assert {"requests", "speed"} <= set(tables)
    done = wdmoe("report", small_run)
    assert "Waiting latency of single requests, simulated" in done.stdout
    assert "Speed of the run, measured wall-clock" in done.stdout
    as_json = json.loads(wdmoe("report", small_run, "--json").stdout)
    assert as_json["requests"]["rows"] == records(small_run, "requests")["rows"]
    assert as_json["speed"]["rows"] == records(small_run, "speed")["rows"]


def test_tables_stand_in_all_formats_and_name_their_origin(small_run):
    summary = small_run / "summary"
    for name in ("table_1_accuracy", "table_2_latency_layer_per_batch_all", "table_2_latency_layer_per_pass_decode"):
        for ending in ("md", "csv", "tex", "json"):
            text = (summary / f"{name}.{ending}").read_text()
            assert "paper_8_devices" in text
            assert "seed 0" in text
            assert "5.23" in text
            assert "qs" in text
    assert "Eq. (11)" in (summary / "table_2_latency_layer_per_batch_all.md").read_text()
    assert records(small_run, "missing") == []


def test_figures_stand_beside_the_tables(small_run):
    for name in ("figure_5_bandwidth", "figure_6_benchmarks", "figure_7_ablation", "figure_8_expert_pairs"):
        assert (small_run / "summary" / f"{name}.png").stat().st_size > 10_000
        assert (small_run / "summary" / f"{name}.pdf").exists()


def results_of(folder):
    return {name: records(folder, name) for name in ("accuracy", "latency")}


def kill_group(process):
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def has_part_of_its_answers(folder):
    for path in folder.rglob("tmp_qs_*.jsonl"):
        with contextlib.suppress(FileNotFoundError):  # its dataset has just been finished
            if 4 <= path.read_text().count("\n") < 12:
                return True
    return False


@pytest.mark.slow
def test_a_killed_run_started_again_gives_the_same_tables(small_run, tmp_path):
    """Killed while answers of a generation task are partly on disk: the trace goes on, no batch counts twice."""
    process = subprocess.Popen(
        command(SMALL, tmp_path / "outputs"),
        cwd=ROOT,
        env=environment(tmp_path / "hf"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until(lambda: has_part_of_its_answers(tmp_path) or process.poll() is not None, 900)
        assert process.poll() is None, "no generation was under way"
    finally:
        kill_group(process)
    assert list(tmp_path.rglob("*.trace.part"))
    folder, output = opencompass(SMALL, tmp_path / "outputs", "-r")
    assert len(list((tmp_path / "outputs").iterdir())) == 1
    assert results_of(folder) == results_of(small_run), output[-3000:]


@pytest.mark.slow
def test_tasks_in_processes_of_their_own_leave_the_same_traces(small_run, tmp_path):
    """The shared run is started with `--debug`, and its tasks with it in one process."""
    config = ROOT / "tests" / "harness" / "eval_one_task.py"
    folder, output = opencompass(config, tmp_path / "outputs")
    logs = "".join(path.read_text() for path in (folder / "logs" / "infer").rglob("*.out"))
    assert logs.count("progress: ") >= len(MODELS)
    assert (folder / "summary" / "latency.json").exists(), output[-3000:]
    for model in MODELS:
        ours, theirs = trace_of(folder, model, "qs_arith"), trace_of(small_run, model, "qs_arith")
        assert ours.metadata == theirs.metadata
        assert all((ours.arrays[name] == theirs.arrays[name]).all() for name in ours.arrays)


@pytest.mark.slow
def test_a_failed_task_leaves_a_named_empty_cell(small_run, tmp_path):
    """The stock task leaves no trace, a dataset without file fails: the table says both, the rest is complete."""
    folder = tmp_path / "run"
    shutil.copytree(small_run, folder)
    vanilla = folder / "predictions" / MODELS[0]
    (vanilla / "qs_choice_small.trace.safetensors").unlink()
    (vanilla / "qs_arith_small.json").unlink()
    (vanilla / "qs_arith_small.trace.safetensors").unlink()
    (vanilla / "qs_arith_small.failed.txt").write_text("ValueError: the disk is full\n")
    (folder / "results" / MODELS[0] / "qs_arith_small.json").unlink()
    done = opencompass_viz(folder)
    missing = records(folder, "missing")
    assert any("qs_choice_small: no routing trace: the stock infer task ran" in cell for cell in missing), done
    assert f"{MODELS[0]}, qs_arith_small: ValueError: the disk is full" in missing
    assert len(missing) == 2


@pytest.mark.slow
def test_the_run_folder_alone_is_enough_to_publish(small_run, tmp_path):
    """Copied elsewhere, it gives tables, figures and replays, and its manifest names every file as it is."""
    folder = tmp_path / "published"
    shutil.copytree(small_run, folder)
    manifest = records(folder, "manifest")
    for name, digest in manifest.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert {name.split("/")[0] for name in manifest} == {"configs", "predictions", "results", "summary"}
    assert records(folder, "versions")["packages"]["transformers"] == version("transformers")
    assert "2411.06681" in (folder / "summary" / "CITATION.bib").read_text()
    assert f"numpy=={version('numpy')}" in (folder / "summary" / "requirements.txt").read_text()
    commands = [
        line.split("#")[0].split()[1:]
        for line in (folder / "summary" / "reproduce.md").read_text().splitlines()
        if line.startswith(("    wdmoe report", "    wdmoe figures", "    wdmoe replay"))
    ]
    assert len(commands) == 4
    for command_line in commands:
        arguments = [path for word in command_line for path in (sorted(folder.glob(word)) if "*" in word else [word])]
        done = subprocess.run(
            [Path(sys.executable).with_name("wdmoe"), *map(str, arguments)], cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        ("report RUN", {"table_1_accuracy", "table_2_latency_layer_per_batch_all", "requests", "speed"}),
        ("compare RUN RUN", {"rows", "notes"}),
        ("frontier RUN", {"rows", "notes", "provenance"}),
        ("figures RUN", {"written"}),
        pytest.param("verify RUN", {"matches", "mismatches", "compared", "notes"}, marks=pytest.mark.slow),
    ],
)
def test_every_command_on_a_run_prints_one_json_document(small_run, tmp_path, monkeypatch, wdmoe, words, keys):
    monkeypatch.chdir(ROOT)
    run = shutil.copytree(small_run, tmp_path / "outputs" / small_run.name)  # some commands write into it
    done = wdmoe(*words.replace("RUN", str(run)).split(), "--json")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == keys


def test_two_runs_can_be_compared(small_run, wdmoe):
    done = wdmoe("compare", small_run, small_run, "--format", "json")
    rows = json.loads(done.stdout)["rows"]
    assert len(rows) == 2 * len(TASKS) + 4 * len(TASKS)
    for row in rows:
        if row["quantity"] == "accuracy (%)":
            assert row["B - A"].startswith("+0.00 [")
            assert (row["McNemar p"], row["significant"]) == ("1.000", "no")
        else:  # 12 items in batches of 4 are too few
            assert (row["B - A"], row["B / A"]) == ("-", "-")


@pytest.mark.parametrize("form", ["csv", "tex", "json"])
def test_report_prints_both_tables_in_the_format_asked_for(small_run, wdmoe, form):
    done = wdmoe("report", small_run, "--format", form)
    assert done.returncode == 0
    assert done.stdout.count("quickstart-wdmoe-hf") >= 3
