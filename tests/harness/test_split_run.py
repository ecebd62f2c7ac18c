"""One real run with a group of datasets, a dense baseline, split datasets and a channel profile of one's own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pytest import approx

from tests.conftest import ROOT, SMALL, environment, opencompass
from wdmoe_opencompass.replay import replay
from wdmoe_opencompass.trace.format import RoutingTrace, read_trace, write_trace

pytestmark = pytest.mark.slow
MODELS = ["quickstart-vanilla-hf", "quickstart-wdmoe-hf"]
GROUP = dict(name="group", subsets=["split_choice", "split_yesno", "not in this config"])
DATASETS = {"qs_choice_small": "split_choice", "qs_yesno_small": "split_yesno"}


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    """-> (folder of config and profile, time-stamped folder of the run): 12 items in parts of 5, fading per pass."""
    from mmengine.config import Config

    folder = tmp_path_factory.mktemp("split")
    profile = (ROOT / "channel_profiles" / "paper_8_devices.yaml").read_text()
    assert "coherence: run" in profile
    (folder / "lab.yaml").write_text(profile.replace("coherence: run", "coherence: pass"))
    Config.fromfile(ROOT / SMALL, format_python_code=False).dump(folder / "small.py")  # types by name: changeable
    config = Config.fromfile(folder / "small.py", format_python_code=False)
    config.datasets = [d | dict(abbr=DATASETS[d.abbr]) for d in config.datasets if d.abbr in DATASETS]
    for model in config.models:
        model.wdmoe.profile = str(folder / "lab.yaml")
    config.models.append(dense_model(folder / "dense", config.models[0]))
    config.summarizer.summary_groups = [GROUP]
    config.infer.partitioner = dict(
        type="opencompass.partitioners.NumWorkerPartitioner",
        num_worker=1,
        num_split=3,
        min_task_size=5,
        force_rebuild=True,
        dataset_size_path="",
    )
    config.dump(folder / "eval_split.py")
    run, output = opencompass(folder / "eval_split.py", folder / "outputs")
    assert (run / "summary" / "latency.json").exists(), output[-5000:]
    return folder, run


def dense_model(path, moe):
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(path)
    AutoTokenizer.from_pretrained(moe.path).save_pretrained(path)
    kept = {key: value for key, value in moe.items() if key != "wdmoe"}
    return kept | dict(type="opencompass.models.HuggingFaceBaseModel", abbr="dense-hf", path=str(path), max_seq_len=512)


def viz(setup, tmp_path, change=lambda copy: None, groups=()):
    """A changed copy of the run, summarised again."""
    from mmengine.config import Config

    folder, run = setup
    copy = tmp_path / "outputs" / run.name
    shutil.copytree(run, copy)
    change(copy)
    config = Config.fromfile(folder / "eval_split.py", format_python_code=False)
    config.summarizer.summary_groups = [GROUP, *groups]
    config.dump(tmp_path / "eval_split.py")
    opencompass(tmp_path / "eval_split.py", copy.parent, "-r", copy.name, "--mode", "viz")
    return copy


def records(folder, name):
    return json.loads((folder / "summary" / f"{name}.json").read_text())


def part_traces(run, model, dataset):
    return [read_trace(path) for path in sorted((run / "predictions" / model).glob(f"{dataset}_?.trace.safetensors"))]


def test_all_parts_are_read_as_one_dataset(setup):
    _, run = setup
    assert records(run, "missing") == []
    parts = part_traces(run, MODELS[0], "split_choice")
    assert [int((trace.first_item + trace.items).max()) for trace in parts] == [5, 5, 2]
    assert sum(int(trace.items.sum()) for trace in parts) == 4 * 12


@pytest.mark.parametrize("per", ["pass", "batch"])
def test_latency_of_a_split_dataset_and_of_a_group_meets_the_draws_of_each_part(setup, per):
    _, run = setup
    for name, datasets in (("split_yesno", ["split_yesno"]), ("group", list(DATASETS.values()))):
        for model, row in zip(MODELS, ("vanilla_even", "selection_only")):
            traces = [trace for dataset in datasets for trace in part_traces(run, model, dataset)]
            waits = [replay(trace, trace.metadata.profile, "uniform", "pass").waiting_latency_s for trace in traces]
            count = sum(len(trace.items) if per == "batch" else len(trace.tokens) for trace in traces)
            where = dict(row=row, dataset=name, scope="pass", per=per, phase="all")
            (found,) = [r for r in records(run, "latency") if all(r[key] == value for key, value in where.items())]
            assert found["latency_s"] == approx(sum(wait.sum() for wait in waits) / count)


def test_requests_and_speed_of_a_split_dataset_are_those_of_all_its_parts(setup):
    _, run = setup
    for record in records(run, "request_records"):
        names = list(DATASETS.values()) if record["dataset"] == "group" else [record["dataset"]]
        traces = [trace for name in names for trace in part_traces(run, record["model"], name)]
        waits = []
        for trace in traces:
            replayed = replay(trace, trace.metadata.profile, record["allocation"], "layer").waiting_latency_s
            items = range(int((trace.first_item + trace.items).max()))
            covers = [(trace.first_item <= item) & (item < trace.first_item + trace.items) for item in items]
            waits += [replayed[here].sum() for here in covers]  # a pass a batch: ranked by perplexity
        assert record["requests"] == len(waits) == 12 * len(names)
        assert record["latency_p90_s"] == approx(np.percentile(waits, 90))
    speeds = {(record["model"], record["dataset"]): record for record in records(run, "speed_records")}
    assert {dataset for _, dataset in speeds} == {"group", *DATASETS.values()}
    prompts = {record["dataset"]: (record["prompts_measured"], record["prompts"]) for record in speeds.values()}
    assert prompts == dict(split_choice=(48, 48), split_yesno=(24, 24), group=(72, 72))


def test_wdmoe_watch_shows_parts_below_their_dataset_and_a_dense_model_without_latency(setup):
    _, run = setup
    wdmoe = Path(sys.executable).with_name("wdmoe")
    done = subprocess.run([wdmoe, "watch", run, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {(record["model"], record["dataset"]): record for record in json.loads(done.stdout)["datasets"]}
    whole, *parts = (found[MODELS[0], f"split_choice{ending}"] for ending in ("", "_0", "_1", "_2"))
    assert [(record["items"], record["prompts_done"], record["prompts"]) for record in parts] == [
        (5, 20, 20),
        (5, 20, 20),
        (2, 8, 8),
    ]
    assert (whole["items"], whole["prompts_done"], whole["batches"]) == (12, 48, 0)
    assert whole["accuracy"] is not None
    for record, trace in zip(parts, part_traces(run, MODELS[0], "split_choice")):
        replayed = replay(trace, trace.metadata.profile, "uniform", "pass")
        assert record["waiting_latency_s_per_batch"]["uniform"] == approx(replayed.mean_s("batch", "all"))
    dense = found["dense-hf", "split_yesno_2"]
    assert (dense["state"], dense["prompts_done"], dense["share_dropped"]) == ("finished", 4, None)


def test_a_group_is_one_column_and_its_accuracy_the_mean_that_was_scored(setup):
    _, run = setup
    table = records(run, "table_1_accuracy")
    assert [key for key in table["rows"][0] if key in ("group", *DATASETS.values())] == ["group"]
    assert any("2 of its 3 datasets" in note for note in table["notes"])
    for row in table["rows"]:
        results = [json.loads((run / "results" / row["model"] / f"{d}.json").read_text()) for d in DATASETS.values()]
        assert float(row["group"].split()[0]) == approx(sum(r["accuracy"] for r in results) / 2, abs=0.005)


def test_a_stock_dense_model_has_accuracy_and_no_latency(setup):
    _, run = setup
    assert {r["dataset"] for r in records(run, "accuracy") if r["model"] == "dense-hf"} == {"group", *DATASETS.values()}
    assert {r["model"] for r in records(run, "latency")} == set(MODELS)
    assert not list((run / "predictions" / "dense-hf").glob("*.trace*"))


def test_figures_of_the_folder_alone_have_one_panel_per_benchmark(setup):
    from wdmoe_opencompass.report.figures import figure_7
    from wdmoe_opencompass.report.runs import benchmarks_of, runs_from_traces

    runs = runs_from_traces(setup[1])
    columns = benchmarks_of([dataset for model_run in runs for dataset in model_run.traces], runs[0].groups)
    assert columns == ["group"]
    assert [panel.get_title() for panel in figure_7(runs, columns).axes] == ["group"]


def test_a_dataset_of_two_groups_counts_in_both_and_weighted_groups_stay_in_opencompass_own_table(setup, tmp_path):
    overlap = dict(name="overlap", subsets=["split_yesno"])
    weighted = GROUP | dict(name="weighted", weights=dict(split_choice=1, split_yesno=3))
    copy = viz(setup, tmp_path, groups=[overlap, weighted])
    columns = [name for name in records(copy, "table_1_accuracy")["rows"][0] if name not in ("model", "policy")]
    assert columns[:2] == ["group", "overlap"]
    assert "weighted" not in columns
    assert "| overlap |" in max((copy / "summary").glob("summary_*.md")).read_text()


def test_versions_are_those_that_ran_not_those_that_summarise(setup, tmp_path):
    def ran_with_another_torch(copy):
        for path in copy.glob("predictions/*/*.trace.safetensors"):
            trace = read_trace(path)
            older = trace.metadata.model_copy(update=dict(versions=trace.metadata.versions | dict(torch="2.12.0")))
            write_trace(path, RoutingTrace(older, trace.arrays))
        for name in ("paper_comparison.md", "testbed_events.md", ".latency.json.host.7.tmp", "my_notes.md"):
            (copy / "summary" / name).write_text("of an earlier summary")

    copy = viz(setup, tmp_path, ran_with_another_torch)
    assert records(copy, "versions")["packages"]["torch"] == "2.12.0"
    assert "\ntorch==2.12.0\n" in (copy / "summary" / "requirements.txt").read_text()
    names = {path.name for path in (copy / "summary").iterdir()}
    assert not names & {"paper_comparison.md", "testbed_events.md", ".latency.json.host.7.tmp"}  # not written again
    assert {"my_notes.md", "table_1_accuracy.md", "report.html"} <= names
    assert all((copy / path).exists() for path in records(copy, "manifest"))


def test_the_published_folder_needs_neither_profile_file_nor_weights(setup, tmp_path):
    folder, run = setup
    copy = tmp_path / "outputs" / run.name
    shutil.copytree(run, copy)
    before = {name: records(run, name) for name in ("accuracy", "latency", "missing")}
    (config,) = (copy / "configs").glob("*.py")
    shutil.rmtree(copy / "summary")
    away = folder.with_name("away")
    folder.rename(away)
    try:
        opencompass(config, copy.parent, "-r", copy.name, "--mode", "viz")
    finally:
        away.rename(folder)
    assert {name: records(copy, name) for name in before} == before
    lines = (copy / "summary" / "reproduce.md").read_text().splitlines()
    replays = [line.split()[1:] for line in lines if line.startswith("    wdmoe replay")]
    assert len(replays) == 2
    for words in replays:
        arguments = [path for word in words for path in (sorted(copy.glob(word)) if "*" in word else [word])]
        command = [Path(sys.executable).with_name("wdmoe"), *map(str, arguments)]
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        recorded = part_traces(copy, MODELS[0], "split_choice")[0].metadata.profile_hash[:12]
        assert f"(hash {recorded})" in next(line for line in done.stdout.splitlines() if "replayed under" in line)


def test_parts_that_do_not_cover_the_dataset_are_an_empty_cell_with_the_reason(setup, tmp_path):
    def lose_parts(copy):
        vanilla, wdmoe = (copy / "predictions" / model for model in MODELS)
        for path in (*vanilla.glob("split_yesno_1.*"), *wdmoe.glob("split_yesno_2.*")):  # one inside, and the last
            path.unlink()
        (vanilla / "split_yesno_1.failed.txt").write_text("ValueError: the disk is full\n")
        for model in MODELS:
            (copy / "results" / model / "split_yesno.json").unlink()

    copy = viz(setup, tmp_path, lose_parts)
    missing = records(copy, "missing")
    assert f"{MODELS[0]}, split_yesno: ValueError: the disk is full" in missing
    assert any(f"{MODELS[1]}, split_yesno: " in cell and "one may be missing" in cell for cell in missing)
    assert {f"{model}, group: no mean without split_yesno" for model in MODELS} <= set(missing)
    assert {r["dataset"] for r in records(copy, "latency")} == {"split_choice"}


def test_parts_whose_score_is_no_number_keep_their_latencies(setup, tmp_path):
    """They were scored together, so none is missing; only the accuracy is no number."""

    def score_nothing(copy):
        for model in MODELS:
            (copy / "results" / model / "split_yesno.json").write_text('{"correlation": "NaN"}')

    copy = viz(setup, tmp_path, score_nothing)
    cells = [cell for cell in records(copy, "missing") if ", split_yesno: " in cell]
    assert len(cells) == len(MODELS)
    assert all(cell.endswith("the evaluation gave no finite number: its correlation is NaN") for cell in cells)
    assert {r["dataset"] for r in records(copy, "latency")} == {r["dataset"] for r in records(setup[1], "latency")}


def test_the_tables_say_where_parts_cut_the_batches_of_a_policy_that_couples_tokens(setup):
    """Parts of 5 items, batches of 4: Algorithm 1 sees other tokens together than in one piece, top-k does not care."""
    _, run = setup
    notes = json.loads((run / "summary" / "provenance.json").read_text())["notes"]
    assert len([note for note in notes if "its fading changes within a run" in note]) == len(MODELS)
    (note,) = [note for note in notes if "its policy weighs" in note]
    assert note.startswith(f"{MODELS[1]}: its policy weighs the tokens of a forward pass together, and split_choice, ")
    assert note in (run / "summary" / "table_2_latency_layer_per_batch_all.md").read_text()


@pytest.mark.slow
def test_a_split_run_with_a_dense_model_matches_when_computed_again(setup):
    folder, run = setup
    done = subprocess.run(
        [Path(sys.executable).with_name("wdmoe"), "verify", run],
        cwd=ROOT,
        env=environment(folder / "hf"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
