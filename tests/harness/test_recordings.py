"""Recordings that runs leave of their routers, and policies run on them again without the model."""

import json
import shutil

import numpy as np
import pytest

from tests.builders.small_run import MODELS, TASKS, trace_of
from wdmoe_opencompass.errors import TraceError
from wdmoe_opencompass.routing.route import route_recording
from wdmoe_opencompass.run.recovery import redo_unfinished
from wdmoe_opencompass.trace.format import JOURNAL_SUFFIX, read_trace
from wdmoe_opencompass.trace.recording import check_of_trace, read_recording, write_recording

PERPLEXITY = ["qs_choice", "qs_twoway", "qs_yesno"]  # the same passes whatever is dropped
LATER_LAYERS = 0.1  # of the loads: what the quickstart does otherwise in later layers, where they saw drops


def recording_path(folder, model, task):
    return folder / "predictions" / model / f"{task}_small.routing.safetensors"


def routed_again(folder, model, task, like):
    """The recording of a model's run, routed by the policy of another's trace."""
    recording = read_recording(recording_path(folder, model, task))
    own = like.metadata
    return route_recording(recording, own.policy, own.policy_parameters, own.profile)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("task", TASKS)
def test_a_recording_routed_by_the_runs_policy_is_the_runs_trace(small_run, model, task):
    """Count by count: `top_k` on vanilla's, and `wlr` on its own, where later layers saw what it had dropped."""
    trace = trace_of(small_run, model, task)
    routed = routed_again(small_run, model, task, trace)
    for name, array in trace.arrays.items():
        assert np.array_equal(routed.arrays[name], array), name
    recording = read_recording(recording_path(small_run, model, task))
    check_of_trace(recording, trace)
    assert (task in PERPLEXITY) == bool(recording.is_prompt.all())
    assert len(recording.prompt_length) == trace.items.sum()


@pytest.mark.parametrize("task", PERPLEXITY)
def test_wlr_on_vanillas_recording_is_its_run_in_the_first_layer_and_near_in_later_ones(small_run, task):
    run = trace_of(small_run, MODELS[1], task)
    routed = routed_again(small_run, MODELS[0], task, run)
    for name in ("device_load", "device_load_before", "assignments", "expert_evaluations"):
        assert np.array_equal(routed.arrays[name][:, 0], run.arrays[name][:, 0]), name
    loads, own = (np.sum(trace.device_load[:, 1:], axis=0) for trace in (routed, run))
    distance = np.abs(loads - own).sum() / own.sum()
    print(f"{task}: later layers' loads differ by {distance:.4f}")
    assert 0 < distance < LATER_LAYERS


def test_the_command_gives_what_the_runs_tables_say(small_run, wdmoe):
    path = recording_path(small_run, MODELS[0], "qs_arith")
    answer = json.loads(wdmoe("route", path, "--policy", "top_k", "--scope", "pass", "--json").stdout)
    rows = {row["row"]: row["latency_s"] for row in answer["rows"]}
    records = json.loads((small_run / "summary" / "latency.json").read_text())
    for row in ("vanilla_even", "allocation_only"):
        wanted = dict(row=row, dataset="qs_arith_small", scope="pass", per="pass", phase="all")
        (own,) = (record["latency_s"] for record in records if wanted.items() <= record.items())
        assert rows[row] == pytest.approx(own, rel=1e-6)


def test_other_batches_are_formed_on_request(small_run):
    recording = read_recording(recording_path(small_run, MODELS[0], "qs_arith"))
    trace = trace_of(small_run, MODELS[0], "qs_arith")
    routed = route_recording(recording, "top_k", {}, trace.metadata.profile, batch_size=12)
    assert routed.items.tolist() == [12]
    assert routed.tokens.sum() == trace.tokens.sum()
    assert np.array_equal(routed.device_load.sum(axis=0), trace.device_load.sum(axis=0))


def finished(small_run, tmp_path, record_routing=True):
    """-> (predictions, results, configs) of a copy of a finished dataset; its config asks for a recording."""
    source = small_run / "predictions" / MODELS[0]
    folder = tmp_path / "predictions" / MODELS[0]
    folder.mkdir(parents=True)
    for path in source.glob("qs_arith_small.*"):
        shutil.copy(path, folder)
    model = dict(wdmoe=dict(profile="paper_8_devices", record_routing=record_routing))
    dataset = dict(
        reader_cfg=dict(test_range="[0:12]"), infer_cfg=dict(inferencer=dict(type="opencompass.GenInferencer"))
    )
    return folder / "qs_arith_small.json", tmp_path / "results.json", model, dataset


def test_a_finished_dataset_is_left_alone(small_run, tmp_path):
    arguments = finished(small_run, tmp_path)
    assert redo_unfinished(*arguments) is None
    assert recording_path(tmp_path, MODELS[0], "qs_arith").exists()


def test_a_dataset_whose_recording_is_missing_torn_or_of_other_passes_is_run_again(small_run, tmp_path):
    for number, break_it in enumerate(
        (
            lambda path: path.unlink(),
            lambda path: path.write_bytes(path.read_bytes()[:-9]),
            lambda path: shutil.copy(recording_path(small_run, MODELS[0], "qs_program"), path),
            lambda path: shutil.copy(recording_path(small_run, MODELS[1], "qs_arith"), path),
        )
    ):
        arguments = finished(small_run, tmp_path / str(number))
        path = recording_path(tmp_path / str(number), MODELS[0], "qs_arith")
        break_it(path)
        assert redo_unfinished(*arguments) is not None
        assert not arguments[0].exists()
        assert not path.exists()
        arguments = finished(small_run, tmp_path / f"{number} not asked for", record_routing=False)
        break_it(recording_path(tmp_path / f"{number} not asked for", MODELS[0], "qs_arith"))
        assert redo_unfinished(*arguments) is None


def test_a_recording_of_fewer_tokens_is_not_of_the_trace(small_run):
    trace = trace_of(small_run, MODELS[0], "qs_arith")
    recording = read_recording(recording_path(small_run, MODELS[0], "qs_arith"))
    names = ("expert_index", "weights", "probabilities", "sequence", "position")
    short = type(recording)(
        **{
            name: getattr(recording, name)[:-1] if name in names else getattr(recording, name)
            for name in recording.__dataclass_fields__
        }
    )
    with pytest.raises(TraceError, match="the recording of the router is not of the passes of its trace"):
        check_of_trace(short, trace)


def test_no_journal_is_left(small_run):
    assert not list(small_run.rglob("*.part"))
    assert not list(small_run.rglob(f"*{JOURNAL_SUFFIX}"))


def test_a_recording_of_another_version_says_so(small_run, tmp_path):
    recording = read_recording(recording_path(small_run, MODELS[0], "qs_arith"))
    other = recording.metadata.model_copy(update=dict(format_version=99))
    write_recording(
        tmp_path / "x",
        type(recording)(
            other, **{name: getattr(recording, name) for name in recording.__dataclass_fields__ if name != "metadata"}
        ),
    )
    with pytest.raises(TraceError, match="format_version must be 1, got 99"):
        read_recording(tmp_path / "x")
    assert read_trace(small_run / "predictions" / MODELS[0] / "qs_arith_small.trace.safetensors")
