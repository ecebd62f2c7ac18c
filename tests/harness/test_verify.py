"""What `wdmoe verify` finds: ten falsifications of a run, cheap ones without an evaluation, and the run as it was."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from opencompass.registry import build_from_cfg

from tests.conftest import ROOT, environment
from wdmoe_opencompass import load_profile
from wdmoe_opencompass.errors import WdmoeError
from wdmoe_opencompass.harness.verify.compare import compare, first_difference
from wdmoe_opencompass.harness.verify.inputs import changed_files, unfinished_files, unfit_inputs
from wdmoe_opencompass.harness.verify.recompute import recompute
from wdmoe_opencompass.harness.verify.verdict import Run
from wdmoe_opencompass.report.publication import manifest
from wdmoe_opencompass.trace.format import RoutingTrace, read_trace, write_trace

VANILLA, WDMOE = "quickstart-vanilla-hf", "quickstart-wdmoe-hf"
TABLE_2 = "summary/table_2_latency_layer_per_batch_all"


@pytest.fixture
def run(small_run, tmp_path):
    """A copy to falsify."""
    return shutil.copytree(small_run, tmp_path / "outputs" / small_run.name)


@pytest.fixture(scope="module")
def again(small_run, tmp_path_factory):
    """The folder where the untouched run was computed again."""
    work = tmp_path_factory.mktemp("again")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for name, value in environment(work / "hf").items():
            patch.setenv(name, value)
        return recompute(Run.open(small_run), work)


def trace_path(run, model, task):
    return run / "predictions" / model / f"{task}_small.trace.safetensors"


def change_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, indent=1) + "\n")


def rewrite(path, metadata=None, **arrays):
    """Replace a trace by a valid sealed file with other content."""
    trace = read_trace(path)
    write_trace(path, RoutingTrace(trace.metadata.model_copy(update=metadata or {}), trace.arrays | arrays))


def write_manifest(run):
    """What a careful forger does last."""
    (run / "summary" / "manifest.json").write_text(json.dumps(manifest(run)))


def found_in(mismatches):
    return {mismatch.file: mismatch for mismatch in mismatches}


def other_answer(run):
    def change(predictions):
        right = json.loads((run / "results" / VANILLA / "qs_arith_small.json").read_text())["details"]
        number = next(n for n, detail in enumerate(right) if detail["correct"])
        predictions[str(number)]["prediction"] = "The answer is -1"

    change_json(run / "predictions" / VANILLA / "qs_arith_small.json", change)


def other_count(run):
    """A token that device 0 never got, everywhere where device 1 got one."""
    path = trace_path(run, WDMOE, "qs_program")
    trace = read_trace(path)
    moved = (trace.device_load[..., 1] > 0).astype(np.int32)
    arrays = {}
    for name in ("device_load", "expert_evaluations"):
        arrays[name] = trace.arrays[name].copy()
        arrays[name][..., 0] += moved
        arrays[name][..., 1] -= moved
    rewrite(path, **arrays)


def other_cell(run):
    path = run / f"{TABLE_2}.csv"
    lines = path.read_text().splitlines()
    row = next(n for n, line in enumerate(lines) if line.startswith("both,"))
    lines[row] = lines[row].replace(".", ".0", 1)
    path.write_text("\n".join(lines) + "\n")


def other_accuracy(run):
    change_json(run / "summary" / "accuracy.json", lambda records: records[0].update(value=99.0))


def other_result(run):
    change_json(run / "results" / WDMOE / "qs_choice_small.json", lambda result: result.update(accuracy=100.0))


# -- caught without an evaluation ------------------------------------------------------------------------------------
def removed_item(run):
    change_json(run / "predictions" / WDMOE / "qs_arith_small.json", lambda predictions: predictions.pop("11"))


def swapped_traces(run):
    first, second = (trace_path(run, VANILLA, task) for task in ("qs_twoway", "qs_yesno"))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def other_profile_in_config(run):
    (config,) = (run / "configs").glob("*.py")
    config.write_text(config.read_text().replace("paper_8_devices", "testbed_4_devices"))


def other_profile_in_trace(run):
    path = trace_path(run, VANILLA, "qs_choice")
    profile = read_trace(path).metadata.profile
    rewrite(path, dict(profile=profile.model_copy(update=dict(total_bandwidth_hz=2e8))))


def scored_otherwise(run):
    rewrite(trace_path(run, WDMOE, "qs_arith"), dict(perplexity="exact"))


def deleted_trace(run):
    trace_path(run, WDMOE, "qs_program").unlink()


def trace_of_the_other_model(run):
    shutil.copy(trace_path(run, VANILLA, "qs_program"), trace_path(run, WDMOE, "qs_program"))


def its_name_changed_too(run):
    trace_of_the_other_model(run)
    rewrite(trace_path(run, WDMOE, "qs_program"), dict(model=WDMOE))


def torn_predictions(run):
    path = run / "predictions" / WDMOE / "qs_choice_small.json"
    path.write_text(path.read_text()[:100])


def journal_left(run):
    (run / "predictions" / WDMOE / "qs_choice_small.trace.part").write_bytes(b"")


def impossible_count(run):
    path = trace_path(run, WDMOE, "qs_program")
    rewrite(path, device_load=read_trace(path).device_load + 1)


@pytest.mark.parametrize(
    ("falsify", "file", "words"),
    [
        (
            removed_item,
            f"{WDMOE}/qs_arith_small.trace.safetensors",
            "the routing trace has other items than the predictions",
        ),
        (swapped_traces, f"{VANILLA}/qs_twoway_small.trace.safetensors", "with dataset qs_yesno_small, not qs_twoway"),
        (swapped_traces, f"{VANILLA}/qs_yesno_small.trace.safetensors", "with dataset qs_twoway_small, not qs_yesno"),
        (other_profile_in_config, f"{WDMOE}/qs_choice_small.trace.safetensors", "with channel profile of hash"),
        (other_profile_in_trace, f"{VANILLA}/qs_choice_small.trace.safetensors", "that of its profile, got"),
        (deleted_trace, f"{WDMOE}/qs_program_small.trace.safetensors", "no such file"),
        (trace_of_the_other_model, f"{WDMOE}/qs_program_small.trace.safetensors", f"with model {VANILLA}, not {WDMOE}"),
        (its_name_changed_too, f"{WDMOE}/qs_program_small.trace.safetensors", "with policy top_k, not wlr"),
        (scored_otherwise, f"{WDMOE}/qs_arith_small.trace.safetensors", "with perplexity exact, not stock"),
        (torn_predictions, f"{WDMOE}/qs_choice_small.json", "torn"),
        (journal_left, f"{WDMOE}/qs_choice_small.trace.part", "never sealed"),
        (impossible_count, f"{WDMOE}/qs_program_small.trace.safetensors", "counts in its trace contradict each other"),
    ],
)
def test_predictions_and_traces_that_do_not_belong_together_are_named(run, falsify, file, words):
    falsify(run)
    write_manifest(run)
    opened = Run.open(run)
    found = found_in([*unfinished_files(opened), *unfit_inputs(opened)])
    assert words in str(found[f"predictions/{file}"])
    assert len(found) <= {other_profile_in_config: 10, swapped_traces: 4}.get(falsify, 2)  # 4: their recordings too


def test_the_journal_of_a_dataset_that_failed_is_no_fault(run):
    """Its cells are empty with the reason, which is compared; to continue would not mend it."""
    predictions = run / "predictions" / WDMOE
    journal_left(run)
    assert list(unfinished_files(Run.open(run)))
    (predictions / "qs_choice_small.failed.txt").write_text("AssertionError: Index 99999 is out of range of 4\n")
    assert not list(unfinished_files(Run.open(run)))


def test_a_journal_of_a_part_that_no_table_is_of_is_no_fault(run):
    (run / "predictions" / WDMOE / "qs_choice_small_0.trace.part").write_bytes(b"")
    assert not list(unfinished_files(Run.open(run)))


@pytest.mark.parametrize("falsify", [other_answer, other_count, other_cell, other_accuracy, other_result])
def test_the_manifest_tells_what_was_changed(run, falsify):
    assert not list(changed_files(Run.open(run)))
    falsify(run)
    (mismatch,) = changed_files(Run.open(run))
    assert "in manifest.json" in mismatch.expected
    assert (run / mismatch.file).exists()


def test_a_file_that_the_manifest_does_not_list_or_that_is_gone_is_named(run):
    (run / "results" / VANILLA / "more.json").write_text("{}")
    (run / "summary" / "items.json").unlink()
    found = found_in(changed_files(Run.open(run)))
    assert found[f"results/{VANILLA}/more.json"].expected == "not listed in manifest.json"
    assert found["summary/items.json"].found == "no such file"
    assert len(found) == 2


def test_last_digits_may_differ_as_they_do_between_machines_and_no_others():
    for name, text in (("a.json", '{{"latency_s": {}, "n": 12}}'), ("a.md", "| {} | 12 |"), ("a.html", "[{},3]")):
        here = text.format(0.060082971150505655)
        assert first_difference(name, text.format(0.06008297115050566), here) == []
        assert first_difference(name, text.format(0.0600829711), here) == []
        assert first_difference(name, text.format(0.0600831), here)
    assert first_difference("a.json", '{"a": 0.5}', '{"a": 0.49999999999999994}') == []
    assert first_difference("a.md", "| 18.797 |", "| 18.798 |")
    assert first_difference("a.json", '{"n": 12}', '{"n": 13}')
    assert first_difference("a.json", '{"n":12}', '{"n": 12}') == [
        ("the same values in another text", "the text as it is written")
    ]


# -- caught by computing again ---------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_run_computed_again_matches(small_run, again):
    opened = Run.open(small_run)
    assert not [*unfinished_files(opened), *unfit_inputs(opened), *changed_files(opened)]
    compared, mismatches = compare(opened, again)
    assert not mismatches
    assert compared > 70


@pytest.mark.slow
def test_changed_results_and_tables_are_named_with_both_values(run, again):
    for falsify in (other_cell, other_accuracy, other_result):
        falsify(run)
    (run / "summary" / "figure_7_ablation.png").unlink()
    opened = Run.open(run)
    assert not list(unfit_inputs(opened))
    found = found_in(compare(opened, again)[1])
    assert set(found) == {
        f"{TABLE_2}.csv",
        "summary/accuracy.json",
        f"results/{WDMOE}/qs_choice_small.json",
        "summary/figure_7_ablation.png",
    }
    assert found["summary/accuracy.json"].found == "[0].value: 99.0"
    assert found["summary/accuracy.json"].expected == "100.0"
    assert found[f"results/{WDMOE}/qs_choice_small.json"].found == "accuracy: 100.0"
    assert "both," in found[f"{TABLE_2}.csv"].expected


@pytest.mark.slow
def test_the_command_names_what_only_a_new_evaluation_can_tell(run, tmp_path):
    """The forger rewrote the manifest; tables that follow from the changed answer and counts are named."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert verify(run, tmp_path).returncode == 0
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for falsify in (other_answer, other_count, other_cell):
        falsify(run)
    write_manifest(run)
    done = verify(run, tmp_path, "--json")
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert not answer["matches"]
    found = {mismatch["file"]: mismatch for mismatch in answer["mismatches"]}
    assert found[f"results/{VANILLA}/qs_arith_small.json"]["found"] != ""
    for name in ("accuracy.json", "latency.json", "provenance.json", "table_1_accuracy.md", "main_tables.md"):
        assert f"summary/{name}" in found
    assert f"{TABLE_2}.csv" in found
    assert f"results/{WDMOE}/qs_program_small.json" not in found


def verify(run, tmp_path, *options):
    return subprocess.run(
        [Path(sys.executable).with_name("wdmoe"), "verify", run, *options],
        cwd=ROOT,
        env=environment(tmp_path / "hf"),
        capture_output=True,
        text=True,
    )


def test_what_is_no_finished_run_gets_one_sentence(run, tmp_path):
    with pytest.raises(WdmoeError, match="no predictions in it"):
        Run.open(tmp_path)
    (config,) = (run / "configs").glob("*.py")
    config.write_text("models = [")
    with pytest.raises(WdmoeError, match="line 1: SyntaxError"):
        Run.open(run)
    config.unlink()
    with pytest.raises(WdmoeError, match=r"no configs/\*.py in it"):
        Run.open(run)


# -- what the tables say ---------------------------------------------------------------------------------------------
def test_every_table_says_where_it_comes_from(small_run):
    summary = small_run / "summary"
    whole = json.loads((summary / "provenance.json").read_text())
    listed = json.loads((summary / "manifest.json").read_text())
    tables = [json.loads(path.read_text()) for path in summary.glob("*.json")]
    blocks = [table["provenance"] for table in tables if isinstance(table, dict) and "rows" in table]
    assert len(blocks) >= 14
    assert all(block["models"] == whole["models"] for block in blocks)
    assert {(b["scope"], b["per"], b["phase"]) for b in blocks if "scope" in b} >= {("layer", "pass", "decode")}
    for model in whole["models"]:
        assert model["weights"] == "quickstart/model"
        assert model["dtype"] == "float32"
        for files in model["files"].values():
            assert all(listed[name] == digest for name, digest in files.items())
    assert whole["models"][1]["parameters"]["theta"] == 0.5
    assert [model["couples_tokens"] for model in whole["models"]] == [False, True]
    assert whole["notes"] == []
    for form in ("md", "csv", "tex"):
        text = (summary / f"table_1_accuracy.{form}").read_text()
        assert all(model["files_sha256"][:12] in text for model in whole["models"])


def test_mixed_traces_leave_their_cells_empty_and_say_why(run, monkeypatch):
    """One kind of mixture per dataset and model."""
    versions = read_trace(trace_path(run, VANILLA, "qs_choice")).metadata.versions
    parameters = read_trace(trace_path(run, WDMOE, "qs_twoway")).metadata.policy_parameters
    other = load_profile("near_far_8_devices")
    faults = {
        (VANILLA, "qs_choice"): (dict(weights="other/model"), "with weights other/model, not quickstart/model"),
        (VANILLA, "qs_twoway"): (dict(dataset="qs_yesno_small"), "with dataset qs_yesno_small, not qs_twoway_small"),
        (VANILLA, "qs_yesno"): (dict(versions=versions | dict(wdmoe_opencompass="0.0.1")), "version 0.0.1, most of"),
        (WDMOE, "qs_choice"): (dict(policy="bottleneck"), "with policy bottleneck, not wlr"),
        (WDMOE, "qs_twoway"): (dict(policy_parameters=parameters | dict(theta=0.7)), "with policy parameters"),
        (WDMOE, "qs_yesno"): (dict(top_k=3), "with top-k 3, most of the run's with 2"),
        (WDMOE, "qs_arith"): (dict(profile=other, profile_hash=other.content_hash), "with channel profile of hash"),
        (WDMOE, "qs_program"): (dict(format_version=2), "format_version must be"),
    }  # fmt: skip
    for (model, task), (change, _) in faults.items():
        rewrite(trace_path(run, model, task), change)
    config = Run.open(run).config
    config["work_dir"] = str(run)
    monkeypatch.setattr("wdmoe_opencompass.harness.summarizer.write_figures", lambda *others: [])
    build_from_cfg(config["summarizer"] | dict(config=config)).summarize()
    missing = json.loads((run / "summary" / "missing.json").read_text())
    note = (run / f"{TABLE_2}.md").read_text()
    for (model, task), (_, words) in faults.items():
        (cell,) = [cell for cell in missing if cell.startswith(f"{model}, {task}_small: ")]
        assert words in cell
        assert f"empty: {cell}" in note
    assert len(missing) == len(faults)
    latency = {
        (record["model"], record["dataset"]) for record in json.loads((run / "summary" / "latency.json").read_text())
    }
    assert latency == {(VANILLA, "qs_arith_small"), (VANILLA, "qs_program_small")}
    accuracy = json.loads((run / "summary" / "accuracy.json").read_text())
    assert not [record for record in accuracy if (record["model"], record["dataset"]) == (WDMOE, "qs_choice_small")]
