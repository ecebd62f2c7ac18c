"""What an interruption leaves behind is taken away, sealed or gone on with; never counted twice, never guessed."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import ConfigDict

from tests.builders.trace_blocks import block, journal, metadata
from tests.testbed.synthetic import random_loads, times_block, times_metadata, trace_beside
from wdmoe_opencompass.errors import WdmoeError
from wdmoe_opencompass.harness.partitioner import WdmoeNaivePartitioner, WdmoeNumWorkerPartitioner
from wdmoe_opencompass.run.lock import exclusive
from wdmoe_opencompass.run.recovery import (
    keep_answers,
    redo_stale_results,
    redo_unfinished,
    sibling,
    whole_answers,
)
from wdmoe_opencompass.trace.format import Journal, join, read_trace, write_trace
from wdmoe_opencompass.trace.times import TimesJournal, join_times, read_times

GEN, PPL = dict(type="GenInferencer"), dict(type="opencompass.openicl.icl_inferencer.PPLInferencer")
MOE, ON_A_TESTBED = dict(wdmoe=dict()), dict(wdmoe=dict(testbed="lab.yaml"))
GENERATED = {str(n): dict(origin_prompt="p", prediction="a") for n in range(8)}
RANKED = {str(n): {"label: A": {}, "label: B": {}, "prediction": "A"} for n in range(4)}


def dataset(name, inferencer=GEN):
    return ConfigDict(abbr=name, reader_cfg=dict(), infer_cfg=dict(inferencer=inferencer))


@pytest.fixture
def files(tmp_path):
    """-> predictions, results, sealed trace, journal: paths of one dataset."""
    predictions = tmp_path / "predictions" / "d.json"
    predictions.parent.mkdir()
    results = tmp_path / "results.json"
    results.write_text("{}")
    sealed, growing = (predictions.with_name(f"d.trace.{suffix}") for suffix in ("safetensors", "part"))
    return predictions, results, sealed, growing


def seal(path, *blocks):
    write_trace(path, join(metadata(), list(blocks)))


def grow(path, *blocks):
    journal = Journal(path, metadata())
    journal.resume(0)
    for of_batch in blocks:
        journal.append(of_batch)


def test_what_is_whole_stays(files):
    predictions, results, sealed, _ = files
    for answers, inferencer, second in ((GENERATED, GEN, 4), (RANKED, PPL, 0)):  # once, or once per possible answer
        predictions.write_text(json.dumps(answers))
        seal(sealed, block(0), block(second))
        assert redo_unfinished(predictions, results, MOE, dataset("d", inferencer)) is None
        assert predictions.exists()
        assert sealed.exists()
        assert results.exists()


def test_what_is_not_there_is_nobodys_business(files):
    predictions, results, _, growing = files
    grow(growing, block(0))
    assert redo_unfinished(predictions, results, MOE, dataset("d")) is None
    assert growing.exists()


@pytest.mark.parametrize("content", ["", '{"0": {"prediction": "a"', "[]", '{"0"\udc80'])
def test_torn_predictions_are_run_again(files, content):
    predictions, results, _, growing = files
    predictions.write_bytes(content.encode(errors="surrogateescape"))
    grow(growing, block(0), block(4))
    assert "torn" in redo_unfinished(predictions, results, MOE, dataset("d"))
    assert predictions.with_name("d.json.unfinished").exists()
    assert not predictions.exists()
    assert not results.exists()
    assert growing.exists()  # the answers next to it may go on from there


def test_a_journal_that_has_all_items_is_sealed(files):
    predictions, results, sealed, growing = files
    predictions.write_text(json.dumps(GENERATED))
    grow(growing, block(0), block(4))
    assert redo_unfinished(predictions, results, MOE, dataset("d")) is None
    assert read_trace(sealed).items.tolist() == [4, 4]
    assert not growing.exists()
    assert predictions.exists()


@pytest.mark.parametrize("lacks", ["everything", "a batch", "the end of the file", "another dataset's", "twice"])
def test_predictions_without_all_their_counts_are_run_again(files, lacks):
    predictions, results, sealed, growing = files
    predictions.write_text(json.dumps(GENERATED))
    if lacks == "a batch":
        grow(growing, block(0))
    elif lacks == "the end of the file":
        seal(sealed, block(0), block(4))
        sealed.write_bytes(sealed.read_bytes()[:-4])
    elif lacks == "another dataset's":
        seal(sealed, block(0))
    elif lacks == "twice":
        seal(sealed, block(0), block(0))
    assert redo_unfinished(predictions, results, MOE, dataset("d"))
    assert not predictions.exists()
    assert not sealed.exists()
    assert not results.exists()


def test_the_journal_of_these_predictions_counts_more_than_an_older_trace(files):
    predictions, results, sealed, growing = files
    predictions.write_text(json.dumps(GENERATED))
    seal(sealed, block(0), block(4))
    older = sealed.read_bytes()
    changed = block(0)
    changed["device_load"] = changed["device_load"] * 0
    grow(growing, changed, block(4))
    assert redo_unfinished(predictions, results, MOE, dataset("d")) is None
    assert sealed.read_bytes() != older
    assert not growing.exists()


def test_whole_files_of_another_version_are_left_alone(files):
    predictions, results, sealed, _ = files
    predictions.write_text(json.dumps(GENERATED))
    write_trace(sealed, join(metadata(format_version=4), [block(0), block(4)]))
    assert redo_unfinished(predictions, results, MOE, dataset("d")) is None
    assert predictions.exists()


def test_inferencers_that_run_items_as_they_like_keep_their_predictions(files):
    predictions, results, sealed, _ = files
    predictions.write_text(json.dumps(GENERATED))
    seal(sealed, block(0), block(4), block(0), block(4), block(0))
    assert redo_unfinished(predictions, results, MOE, dataset("d", dict(type="ChatInferencer"))) is None
    seal(sealed, block(0), block(0))
    assert redo_unfinished(predictions, results, MOE, dataset("d", dict(type="ChatInferencer")))


def test_a_torn_journal_is_not_sealed_whatever_its_inferencer(files):
    predictions, results, sealed, growing = files
    predictions.write_text(json.dumps(GENERATED))
    grow(growing, block(0), block(4), block(0))
    growing.write_bytes(growing.read_bytes()[:-5])
    assert "torn" in redo_unfinished(predictions, results, MOE, dataset("d", dict(type="ChatInferencer")))
    assert not sealed.exists()


def test_a_journal_of_another_version_is_no_trace_of_predictions(files):
    predictions, results, _, growing = files
    predictions.write_text(json.dumps(GENERATED))
    older = Journal(growing, metadata(format_version=4))
    older.resume(0)
    assert "format_version must be 7" in redo_unfinished(predictions, results, MOE, dataset("d"))
    assert not predictions.exists()


def test_predictions_of_other_items_of_the_dataset_are_run_again(files):
    predictions, results, sealed, _ = files
    predictions.write_text(json.dumps(GENERATED))
    write_trace(sealed, join(metadata(test_range="[0:8]"), [block(0), block(4)]))
    of_these, of_others = dataset("d"), dataset("d")
    of_these.reader_cfg.test_range, of_others.reader_cfg.test_range = "[0:8]", "[8:16]"
    assert redo_unfinished(predictions, results, MOE, of_these) is None
    assert "is of test_range '[0:8]', not '[8:16]'" in redo_unfinished(predictions, results, MOE, of_others)


@pytest.mark.parametrize("left", ["sealed", "journal"])
@pytest.mark.parametrize("error", [OSError(errno.ESTALE, "stale"), PermissionError(errno.EACCES, "no"), MemoryError()])
def test_what_cannot_be_read_now_is_left_as_it_is(files, monkeypatch, left, error):
    predictions, results, sealed, growing = files
    predictions.write_text(json.dumps(GENERATED))
    seal(sealed, block(0), block(4)) if left == "sealed" else grow(growing, block(0), block(4))
    opened = os.open

    def fail(path, *others, **more):
        if Path(path) in (sealed, growing):
            raise error
        return opened(path, *others, **more)

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(WdmoeError, match="cannot be read"):
        redo_unfinished(predictions, results, MOE, dataset("d"))
    with pytest.raises(WdmoeError, match="cannot be read"):
        Journal(growing, metadata()).resumable(8) if left == "journal" else read_trace(sealed)
    assert predictions.exists()
    assert results.exists()
    assert (sealed if left == "sealed" else growing).exists()


def test_answers_that_other_inferencers_would_go_on_from_are_taken_away(files):
    predictions, *_ = files
    other = predictions.with_name("tmp_d.json")
    other.write_text("{}")
    keep_answers(predictions, [])
    assert not other.exists()


def test_a_model_without_experts_needs_no_trace(files):
    predictions, results, *_ = files
    predictions.write_text(json.dumps(GENERATED))
    assert redo_unfinished(predictions, results, dict(), dataset("d")) is None


@pytest.mark.parametrize("left", ["sealed", "journal", "torn", "nothing", "of other passes"])
def test_measured_times_are_sealed_or_measured_again(files, left):
    predictions, results, sealed, _ = files
    loads = [random_loads(number) for number in range(2)]
    times = join_times(times_metadata(), [times_block(4 * n, load) for n, load in enumerate(loads)])
    write_trace(sealed, trace_beside(times))
    predictions.write_text(json.dumps(GENERATED))
    growing = TimesJournal(sibling(predictions, ".times.part"), times.metadata)
    growing.resume(0)
    for number in range(1 if left == "of other passes" else 2):
        growing.append(times_block(4 * number, loads[number]))
    if left == "sealed":
        growing.seal(sibling(predictions, ".times.safetensors"))
    elif left == "torn":
        growing.path.write_bytes(growing.path.read_bytes()[:-3])
    elif left == "nothing":
        growing.path.unlink()
    why = redo_unfinished(predictions, results, ON_A_TESTBED, dataset("d"))
    assert predictions.exists() == (left in ("sealed", "journal")) == (why is None), why
    if why is None:
        assert np.array_equal(read_times(sibling(predictions, ".times.safetensors")).tokens, times.tokens)
    assert growing.path.exists() == (left in ("torn", "of other passes"))


def test_a_torn_journal_that_the_config_no_longer_asks_for_is_removed(files):
    predictions, results, sealed, _ = files
    predictions.write_text(json.dumps(GENERATED))
    seal(sealed, block(0), block(4))
    journals = [sibling(predictions, suffix) for suffix in (".routing.part", ".times.part")]
    for path in journals:
        path.write_bytes(b"torn")
    assert redo_unfinished(predictions, results, MOE, dataset("d")) is None
    assert predictions.exists()
    assert not any(path.exists() for path in journals)


def test_a_whole_journal_that_the_config_no_longer_asks_for_is_sealed(files):
    predictions, results, sealed, _ = files
    loads = [random_loads(number) for number in range(2)]
    times = join_times(times_metadata(), [times_block(4 * n, load) for n, load in enumerate(loads)])
    write_trace(sealed, trace_beside(times))
    predictions.write_text(json.dumps(GENERATED))
    growing = TimesJournal(sibling(predictions, ".times.part"), times.metadata)
    growing.resume(0)
    for number in range(2):
        growing.append(times_block(4 * number, loads[number]))
    assert redo_unfinished(predictions, results, MOE, dataset("d")) is None
    assert np.array_equal(read_times(sibling(predictions, ".times.safetensors")).tokens, times.tokens)
    assert not growing.path.exists()


def test_what_dying_processes_were_writing_is_removed_and_nothing_else(files):
    predictions, results, *_ = files
    torn = [predictions.with_name(f".{name}.host.7.tmp") for name in ("d.trace.part", "d.trace.safetensors")]
    others = [predictions.with_name(f".{name}.host.7.tmp") for name in ("d.x.trace.part", "e.trace.part")]
    for path in (*torn, *others):
        path.write_text("x")
    redo_unfinished(predictions, results, MOE, dataset("d"))
    assert [path.exists() for path in (*torn, *others)] == [False, False, True, True]


@pytest.mark.parametrize("processes", [2, "2", None])
def test_several_processes_per_task_are_refused(tmp_path, processes):
    models = [ConfigDict(abbr="m", wdmoe=dict(), run_cfg=dict(num_procs=processes))]
    with pytest.raises(SystemExit, match=f"m: run_cfg num_procs must be 1, got {processes}"):
        WdmoeNaivePartitioner(out_dir=str(tmp_path)).partition(
            model_dataset_combinations=[dict(models=models, datasets=[dataset("d")])],
            work_dir=str(tmp_path),
            out_dir=str(tmp_path / "predictions"),
            add_cfg={},
        )


def test_results_that_are_torn_or_older_than_the_predictions_are_evaluated_again(files):
    predictions, results, *_ = files
    predictions.write_text("{}")
    later = predictions.stat().st_mtime_ns + 10**9
    os.utime(results, ns=(later, later))
    redo_stale_results(predictions, results)
    assert results.exists()
    os.utime(predictions, ns=(later + 1, later + 1))
    redo_stale_results(predictions, results)
    assert not results.exists()
    results.write_text('{"accuracy": 5')
    redo_stale_results(predictions, results)
    assert not results.exists()


def answers_file(predictions, count, tail=""):
    lines = [json.dumps({"idx": n, "prediction": "x\u2028y"}, ensure_ascii=False) + "\n" for n in range(count)]
    partial = predictions.with_name("tmp_d.jsonl")
    partial.write_text("".join(lines) + tail)
    return partial


def test_answers_up_to_a_torn_line_are_kept_at_whole_batches(files):
    """OpenCompass itself throws all of them away: here one line is torn, and all hold a Unicode line end."""
    from opencompass.openicl.icl_inferencer.icl_base_inferencer import GenInferencerOutputHandler

    predictions, *_, growing = files
    partial = answers_file(predictions, 6, '{"idx": 6, "pred')
    grow(growing, block(0), block(4), block(8))
    answers = whole_answers(predictions)
    assert len(answers) == 6
    first = Journal(growing, metadata()).resumable(len(answers))
    assert first == 4
    keep_answers(predictions, answers[:first])
    restored = GenInferencerOutputHandler().restore_from_jsonl(str(predictions.parent), partial.name)
    assert [restored[n]["prediction"] for n in range(4)] == ["x\u2028y"] * 4


@pytest.mark.parametrize("blocks", [[], [block(4)], [block(0), block(8)]])
def test_only_batches_that_follow_each_other_can_be_gone_on_with(files, blocks):
    *_, growing = files
    grow(growing, *blocks)
    assert Journal(growing, metadata()).resumable(100) == (4 if blocks and blocks[0]["first_item"][0] == 0 else 0)


@pytest.mark.parametrize("other", [dict(policy="top_k"), dict(perplexity="exact")])
def test_a_journal_of_other_settings_is_not_gone_on_with(tmp_path, other):
    grow(tmp_path / "d.trace.part", block(0))
    assert journal(tmp_path, **other).resumable(4) == 0


def test_no_answers_leave_no_file(files):
    predictions, *_ = files
    partial = answers_file(predictions, 3)
    keep_answers(predictions, [])
    assert not partial.exists()
    assert whole_answers(predictions) == []


# -- one process at a time -------------------------------------------------------------------------------------------
HOLD = """
import sys, time
from pathlib import Path
from wdmoe_opencompass.run.lock import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_dataset_is_run_by_one_process_and_free_when_that_is_killed(files):
    predictions, *_ = files
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(predictions)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(WdmoeError, match=f"process {other.pid} on .* is running this dataset"),
            exclusive(predictions),
        ):
            pass
    finally:
        other.kill()
        other.wait()
    with exclusive(predictions):
        assert predictions.with_name(".d.json.lock").exists()
    assert not predictions.with_name(".d.json.lock").exists()


TASK = """
import os, time
from wdmoe_opencompass.harness.command import end_with_the_runner
end_with_the_runner()
open("pid", "w").write(str(os.getpid()))
time.sleep(60)
"""
RUNNER = """
import subprocess, sys
subprocess.run(f"{sys.argv[1]} task.py", shell=True, text=True)  # as OpenCompass's LocalRunner starts a task
"""


def test_runner_that_is_killed_takes_its_task_with_it(tmp_path):
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "runner.py").write_text(RUNNER)
    process = subprocess.Popen([sys.executable, str(tmp_path / "runner.py"), sys.executable], cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pid = int((tmp_path / "pid").read_text())
    time.sleep(0.2)
    process.kill()
    process.wait()
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


# -- partitioners ----------------------------------------------------------------------------------------------------
def combination():
    models = [ConfigDict(abbr="m", wdmoe=dict())]
    return [dict(models=models, datasets=[dataset(name) for name in ("d", "e")])]


def test_torn_datasets_are_partitioned_anew(tmp_path):
    folder = tmp_path / "predictions" / "m"
    folder.mkdir(parents=True)
    for name in ("d", "e"):
        (folder / f"{name}.json").write_text(json.dumps(GENERATED) if name == "d" else '{"0": ')
    seal(folder / "d.trace.safetensors", block(0), block(4))
    tasks = WdmoeNaivePartitioner(out_dir=str(tmp_path / "predictions"), n=10).partition(
        model_dataset_combinations=combination(),
        work_dir=str(tmp_path),
        out_dir=str(tmp_path / "predictions"),
        add_cfg={},
    )
    assert [[d["abbr"] for d in task["datasets"][0]] for task in tasks] == [["e"]]


def test_parts_of_another_split_are_run_again(tmp_path, monkeypatch):
    """Two workers finished the second half; three workers go on: its items are now in the second and third part."""
    folder = tmp_path / "predictions" / "m"
    folder.mkdir(parents=True)
    (folder / "d_1.json").write_text(json.dumps(dict(list(GENERATED.items())[:4])))
    write_trace(folder / "d_1.trace.safetensors", join(metadata(dataset="d_1", test_range="[6:12]"), [block(0)]))

    def parts_left(workers):
        partitioner = WdmoeNumWorkerPartitioner(
            out_dir=str(tmp_path / "predictions"),
            num_worker=workers,
            min_task_size=1,
            dataset_size_path="",
            batch_size=2,
        )
        monkeypatch.setattr(partitioner, "get_size", lambda dataset: 10)
        tasks = partitioner.partition(
            model_dataset_combinations=[combination()[0] | dict(datasets=[dataset("d")])],
            work_dir=str(tmp_path),
            out_dir=str(tmp_path / "predictions"),
            add_cfg={},
        )
        return sorted((d["abbr"], d["reader_cfg"]["test_range"]) for task in tasks for d in task["datasets"][0])

    assert parts_left(2) == [("d_0", "[0:6]")]
    assert parts_left(3) == [("d_0", "[0:4]"), ("d_1", "[4:8]"), ("d_2", "[8:12]")]
    assert (folder / "d_1.json.unfinished").exists()


@pytest.mark.parametrize(("size", "parts", "steps"), [(100, 3, [40, 40, 20]), (12, 3, [8, 4]), (8, 2, [8])])
def test_splits_fall_on_multiples_of_the_batch_size(tmp_path, monkeypatch, size, parts, steps):
    partitioner = WdmoeNumWorkerPartitioner(
        out_dir=str(tmp_path), num_worker=parts, min_task_size=1, dataset_size_path="", batch_size=8
    )
    monkeypatch.setattr(partitioner, "get_size", lambda dataset: size)
    ranges = [part["reader_cfg"]["test_range"] for part in partitioner.split_dataset(combination()[0]["datasets"][0])]
    firsts = [int(test_range[1:-1].split(":")[0]) for test_range in ranges]
    assert [b - a for a, b in zip(firsts, [*firsts[1:], size])] == steps
    assert partitioner.min_task_size == 1
