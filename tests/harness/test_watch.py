"""`wdmoe watch` and the line of a task: every number against the whole journal's, and nothing twice or too early."""

import fcntl
import hashlib
import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from pytest import approx
from rich.console import Console
from tqdm import tqdm

from tests import command_line
from tests.builders.trace_blocks import block, journal, metadata
from tests.conftest import ROOT, SMALL, command, environment
from tests.waiting import PATIENCE_S, until
from wdmoe_opencompass.cli.watch_display import table
from wdmoe_opencompass.errors import WdmoeError
from wdmoe_opencompass.harness.progress_line import INTERVAL, live_line, prompts_of
from wdmoe_opencompass.replay import replay
from wdmoe_opencompass.run import dataset_progress as progress_module
from wdmoe_opencompass.run.dataset_progress import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    RUNNING,
    WAITING,
    DatasetProgress,
    DatasetWatch,
    StartNote,
    spent_s,
)
from wdmoe_opencompass.run.lock import exclusive, holder
from wdmoe_opencompass.run.run_progress import RunProgress, RunWatch
from wdmoe_opencompass.run.scores import FIRST_METRICS, NO_METRICS, main_score
from wdmoe_opencompass.trace.format import Journal, join, read_trace
from wdmoe_opencompass.trace.journal_tail import JournalTail

MODEL, DENSE = "tiny", "dense"
STAMP = "20260101_000000"
CONFIG = """
datasets=[
    dict(abbr='d', eval_cfg=dict(evaluator=dict(type='opencompass.openicl.icl_evaluator.AccEvaluator')), path='x'),
    dict(abbr='e', eval_cfg=dict(evaluator=dict(type='x.Other'), pred_postprocessor=dict(type='y')), path='x'),
    ]
models=[
    dict(abbr='tiny', wdmoe=dict(policy='wlr', profile='paper_8_devices'), type=print('never run')),
    dict(abbr='dense', path='x', type='y'),
    ]
work_dir='somewhere'
"""


@pytest.fixture
def run(tmp_path):
    """A run's folder as it is when OpenCompass has just started."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / f"{STAMP}_7.py").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def folder(run):
    path = run / "predictions" / MODEL
    path.mkdir(parents=True)
    return path


def grown(folder, blocks, first=0, **changes):
    growing = journal(folder, **changes)
    growing.resume(4 * first)
    for number in range(first, blocks):
        growing.append(block(4 * number, seed=number))
    return growing


def snapshots(run, now_s=None):
    found = RunWatch(run).look(time.time() if now_s is None else now_s)
    return {(dataset.model, dataset.dataset): dataset for dataset in found.datasets}


def agrees(found, blocks, methods=("uniform", "optimal")):
    """Against the trace that the same blocks give at once."""
    whole = join(metadata(), blocks)
    assert found.prompts_done == whole.items.sum()
    assert found.batches == len(blocks)
    assert found.share_dropped == approx(1 - whole.assignments.sum() / whole.assignments_before.sum())
    assert found.waiting_latency_s_per_batch == {
        method: approx(replay(whole, whole.metadata.profile, method, "layer").mean_s("batch", "all"))
        for method in methods
    }


# -- the journal -----------------------------------------------------------------------------------------------------
def test_each_block_is_given_out_once_and_a_torn_one_when_it_is_whole(tmp_path):
    growing = grown(tmp_path, 2)
    tail = JournalTail(growing.path)
    assert [trace.first_item.tolist() for trace in tail.new_traces()] == [[0, 4]]
    assert list(tail.new_traces()) == []
    before = growing.path.read_bytes()
    growing.append(block(8, seed=2))
    after = growing.path.read_bytes()
    for cut in (len(before) + 3, len(before) + 41, len(after) - 1):
        growing.path.write_bytes(after[:cut])
        assert list(tail.new_traces()) == []
        assert not tail.began_again()
    damaged = bytearray(after)
    damaged[-1] ^= 1
    growing.path.write_bytes(damaged)
    assert list(tail.new_traces()) == []
    growing.path.write_bytes(after)
    (new,) = tail.new_traces()
    assert np.array_equal(new.device_load, block(8, seed=2)["device_load"])


def test_only_new_bytes_are_read(tmp_path, monkeypatch):
    growing = grown(tmp_path, 5)
    tail = JournalTail(growing.path)
    list(tail.new_traces())
    size = growing.path.stat().st_size
    growing.append(block(20))
    read = []

    def opened(self, original=JournalTail._open):
        file = original(self)
        plain = file.read
        return type("Counting", (), {
            "read": lambda self, count: read.append(count) or plain(count),
            "seek": file.seek, "fileno": file.fileno, "close": file.close,
            "__enter__": lambda self: self, "__exit__": lambda self, *error: file.close(),
        })()  # fmt: skip

    monkeypatch.setattr(JournalTail, "_open", opened)
    assert not tail.began_again()
    assert len(list(tail.new_traces())) == 1
    assert sum(read) <= growing.path.stat().st_size - size + 2 * 40


def test_a_long_journal_is_given_out_in_pieces(tmp_path, monkeypatch):
    growing = grown(tmp_path, 6)
    monkeypatch.setattr("wdmoe_opencompass.trace.journal_tail.GROUP_BYTES", 2 * growing.path.stat().st_size // 7)
    pieces = list(JournalTail(growing.path).new_traces())
    assert len(pieces) > 1
    assert [first for piece in pieces for first in piece.first_item.tolist()] == [0, 4, 8, 12, 16, 20]
    assert [before for piece in pieces for before in piece.items_before.tolist()] == [0, 4, 8, 12, 16, 20]


# -- one dataset -----------------------------------------------------------------------------------------------------
def test_numbers_of_a_running_dataset_are_those_of_a_replay_of_all_its_batches(run, folder):
    watch = DatasetWatch(run, MODEL, "d")
    StartNote(items=12, prompts=24, first_prompt=0, started_s=1000.0).write(watch.begun)
    growing = grown(folder, 1)
    with exclusive(folder / "d.json"):
        for blocks in (1, 3, 4):
            for number in range(int(watch._totals.batches), blocks):
                if number:
                    growing.append(block(4 * number, seed=number))
            os.utime(growing.path, (1010.0, 1010.0))
            found = watch.look(1012.0)
            agrees(found, [block(4 * n, seed=n) for n in range(blocks)])
            assert (found.state, found.items, found.prompts) == (RUNNING, 12, 24)
            assert f"process {os.getpid()} on" in found.reason
            assert found.elapsed_s == 12
            left = 24 - 4 * blocks
            assert found.remaining_s == approx(10 / (4 * blocks) * left - 2)


def test_a_run_that_goes_on_counts_nothing_twice_and_times_only_its_own_batches(run, folder):
    watch = DatasetWatch(run, MODEL, "d")
    grown(folder, 3)
    StartNote(items=20, prompts=20, first_prompt=0, started_s=1000.0).write(watch.begun)
    os.utime(folder / "d.trace.part", (1030.0, 1030.0))
    killed = watch.look(5000.0)
    assert (killed.state, killed.prompts_done, killed.elapsed_s, killed.remaining_s) == (INTERRUPTED, 12, 30, None)
    assert spent_s(run, MODEL, "d") == 30
    again = grown(folder, 3, first=2)  # the third batch is done again
    StartNote(items=20, prompts=20, first_prompt=8, started_s=6000.0, earlier_s=30.0).write(watch.begun)
    os.utime(folder / "d.trace.part", (6005.0, 6005.0))
    with exclusive(folder / "d.json"):
        found = watch.look(6006.0)
        agrees(found, [block(4 * n, seed=n) for n in range(3)])
        assert (found.elapsed_s, found.remaining_s) == (36, approx(5 / 4 * 8 - 1))
        grown(folder, 1)  # a perplexity dataset begins at its first prompt again
        agrees(watch.look(6006.0), [block(0)])
    assert again.path.exists()


def test_a_journal_of_equal_beginning_is_told_from_one_that_grew(run, folder):
    watch = DatasetWatch(run, MODEL, "d")
    grown(folder, 2)
    watch.look(0.0)
    grown(folder, 3)  # again, and longer than before
    agrees(watch.look(0.0), [block(4 * n, seed=n) for n in range(3)])


def test_a_finished_dataset_keeps_its_numbers_and_is_not_computed_again(run, folder, monkeypatch):
    watch = DatasetWatch(run, MODEL, "d", is_matched=True)
    growing = grown(folder, 3)
    watch.look(0.0)
    begun = StartNote(items=12, prompts=12, first_prompt=0, started_s=1.0, took_s=75.0)
    begun.write(watch.begun)
    watch.predictions.write_text(json.dumps({str(n): dict(prediction=n % 2, gold=str(n % 3)) for n in range(12)}))
    growing.seal(folder / "d.trace.safetensors")
    monkeypatch.setattr(progress_module, "replay", None)
    found = watch.look(0.0)
    monkeypatch.undo()
    blocks = [block(4 * n, seed=n) for n in range(3)]
    agrees(found, blocks)
    assert (found.state, found.elapsed_s, found.metric) == (FINISHED, 75, "accuracy")
    assert found.accuracy == approx(100 * 4 / 12)  # 0, 1, 6 and 7: n % 2 is n % 3
    watch.results.parent.mkdir(parents=True)
    watch.results.write_text(json.dumps(dict(bp=1, type="x", other=3, score=41.5, details=[])))
    found = watch.look(0.0)
    assert (found.metric, found.accuracy) == ("score", 41.5)
    agrees(DatasetWatch(run, MODEL, "d").look(0.0), blocks)  # one who looks for the first time
    watch.results.write_text(json.dumps(dict(error="no space")))
    assert (watch.look(0.0).state, watch.look(0.0).reason) == (FAILED, "the evaluation failed: no space")


def test_accuracy_is_shown_only_where_equal_answers_are_the_score(run, folder):
    for name in "de":
        (folder / f"{name}.json").write_text(json.dumps({"0": dict(prediction="A", gold="A")}))
    found = snapshots(run)
    assert found[MODEL, "d"].accuracy == 100
    assert found[MODEL, "e"].accuracy is None
    (folder / "d.json").write_text(json.dumps({"0": dict(prediction="A")}))
    assert snapshots(run)[MODEL, "d"].accuracy is None


def test_a_finished_run_keeps_its_accuracies_when_copying_changes_the_times_of_its_files(run, folder):
    results = run / "results" / MODEL / "e.json"
    results.parent.mkdir(parents=True)
    results.write_text(json.dumps(dict(score=41.5)))
    (folder / "e.json").write_text(json.dumps({"0": dict(prediction="A", gold="A")}))
    os.utime(results, (1.0, 1.0))  # older than the predictions: of those before
    assert snapshots(run)[MODEL, "e"].accuracy is None
    (run / "summary").mkdir()
    (run / "summary" / f"summary_{STAMP}.txt").write_text("")  # written after all evaluation
    assert snapshots(run)[MODEL, "e"].accuracy == 41.5
    (run / "configs" / "20260102_000000_7.py").write_text(CONFIG)  # started again, and not yet summed up
    assert snapshots(run)[MODEL, "e"].accuracy is None


def test_states_are_told_apart_from_the_files(run, folder):
    assert {dataset.state for dataset in snapshots(run).values()} == {WAITING}
    predictions = folder / "d.json"
    with exclusive(predictions):
        assert snapshots(run)[MODEL, "d"].state == RUNNING
        assert holder(predictions) is not None
    assert holder(predictions) is None
    StartNote(items=1, prompts=1, first_prompt=0, started_s=1.0).write(run / "progress" / MODEL / "d.json")
    assert snapshots(run)[MODEL, "d"].state == INTERRUPTED
    (folder / "d.failed.txt").write_text("No space\nleft\n")
    assert (snapshots(run)[MODEL, "d"].state, snapshots(run)[MODEL, "d"].reason) == (FAILED, "No space left")
    os.utime(folder / "d.failed.txt", (1.0, 1.0))  # of a try before
    assert snapshots(run)[MODEL, "d"].state == INTERRUPTED
    predictions.write_text('{"0": {"pred')
    assert "torn" in snapshots(run)[MODEL, "d"].reason
    predictions.write_text('{"0": {}}')
    assert (snapshots(run)[MODEL, "d"].state, snapshots(run)[MODEL, "d"].reason) == (
        FINISHED,
        "there is no routing trace of these predictions",
    )


def test_looking_does_not_take_the_lock_from_the_task_that_wants_it(run, folder):
    lock = folder / ".d.json.lock"
    lock.write_text("process 1 on gone")  # of a task that was killed
    assert snapshots(run)[MODEL, "d"].state == WAITING
    with exclusive(folder / "d.json"):
        snapshots(run)
        with pytest.raises(BlockingIOError), lock.open() as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_where_the_file_system_knows_no_locks_fresh_files_are_a_running_dataset(run, folder, monkeypatch):
    grown(folder, 1)

    def none(*arguments):
        raise OSError("no locks")

    monkeypatch.setattr(progress_module, "holder", none)
    assert snapshots(run)[MODEL, "d"].state == RUNNING
    assert snapshots(run, time.time() + 1000)[MODEL, "d"].state == INTERRUPTED


def test_a_dense_model_is_known_by_the_answers_it_left(run):
    folder = run / "predictions" / DENSE
    folder.mkdir(parents=True)
    with exclusive(folder / "d.json"):
        found = snapshots(run)[DENSE, "d"]
        assert (found.state, found.prompts_done, found.share_dropped) == (RUNNING, None, None)
        StartNote(items=5, prompts=5, first_prompt=0, started_s=time.time()).write(run / "progress" / DENSE / "d.json")
        (folder / "tmp_d.jsonl").write_text('{"idx": "0"}\n{"idx": "1"}\n{"idx')
        assert snapshots(run)[DENSE, "d"].prompts_done == 2
        assert snapshots(run)[DENSE, "d"].prompts == 5


def test_a_trace_of_another_version_costs_only_its_own_numbers(run, folder):
    path = grown(folder, 1).path
    frame = json.dumps(dict(format_version=3)).encode()
    path.write_bytes(len(frame).to_bytes(8, "little") + hashlib.sha256(frame).digest() + frame)
    found = snapshots(run)[MODEL, "d"]
    assert (found.prompts_done, found.share_dropped) == (None, None)
    assert "format_version must be 7, got 3" in found.reason


# -- a whole run -----------------------------------------------------------------------------------------------------
def test_parts_of_a_dataset_stand_below_it_and_it_is_finished_when_they_were_scored(run, folder):
    for number in range(2):
        grown(folder, number + 1)
        Journal(folder / "d.trace.part").seal(folder / f"d_{number}.trace.safetensors")
        (folder / f"d_{number}.json").write_text('{"0": {}}')
    found = snapshots(run)
    assert list(found)[:4] == [(MODEL, name) for name in ("d", "d_0", "d_1", "e")]
    assert (found[MODEL, "d"].state, found[MODEL, "d_1"].state) == (WAITING, FINISHED)
    assert found[MODEL, "d"].prompts_done == 12
    (run / "results" / MODEL).mkdir(parents=True)
    (run / "results" / MODEL / "d.json").write_text(json.dumps(dict(accuracy=50.0)))
    found = snapshots(run)[MODEL, "d"]
    assert (found.state, found.accuracy) == (FINISHED, 50)


def test_a_run_ends_when_all_is_scored_or_its_summary_stands_or_nothing_is_left_to_happen(run, folder):
    now = time.time()
    watch = RunWatch(run)
    assert not watch.look(now).has_ended
    for model in (MODEL, DENSE):
        for name in "de":
            path = run / "predictions" / model / f"{name}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text('{"0": {}}')
    found = watch.look(now)
    assert (found.has_ended, found.is_finished) == (False, True)  # still to be scored
    assert watch.look(now + 1000).has_ended  # nobody does
    for model in (MODEL, DENSE):
        (run / "results" / model).mkdir(parents=True)
        for name in "de":
            (run / "results" / model / f"{name}.json").write_text('{"accuracy": 1.0}')
    assert watch.look(now).has_ended
    (folder / "d.json").unlink()
    (folder / "d.failed.txt").write_text("why")
    found = watch.look(now)
    assert (found.has_ended, found.is_finished, found.is_broken) == (True, False, True)
    (folder / "e.json").unlink()
    assert not watch.look(now + 1000).has_ended  # one of them was not begun: it may wait for a machine
    (run / "summary").mkdir()
    (run / "summary" / f"summary_{STAMP}.txt").write_text("")
    assert watch.look(now).has_ended
    (run / "configs" / "20260102_000000_8.py").write_text(CONFIG)  # started again
    assert not watch.look(now).has_ended


@pytest.mark.parametrize(
    "content", ["models=[", "x=1", "models=[dict()]\ndatasets=[dict()]", "models=[1]\ndatasets=[2]"]
)
def test_what_is_no_config_of_a_run_is_one_sentence(run, content):
    (run / "configs" / f"{STAMP}_7.py").write_text(content)
    with pytest.raises(WdmoeError, match="not the config of a run"):
        RunWatch(run)


def test_metrics_are_chosen_as_opencompass_does():
    from opencompass.summarizers.default import METRIC_BLACKLIST, METRIC_WHITELIST

    assert list(FIRST_METRICS) == METRIC_WHITELIST
    assert list(NO_METRICS) == METRIC_BLACKLIST
    assert main_score(dict(accuracy=float("nan"))).percent is None


# -- the command -----------------------------------------------------------------------------------------------------
def test_the_command_prints_a_table_or_json_and_says_by_its_exit_code_how_it_went(run, folder, wdmoe):
    grown(folder, 2)
    (run / "predictions" / DENSE).mkdir()
    (run / "predictions" / DENSE / "d.failed.txt").write_text("a \x1b[31mred [bold] reason")
    done = wdmoe("watch", run, "--once")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].split()[:4] == ["model", "dataset", "state", "prompts"]
    assert lines[1].split()[:4] == [MODEL, "d", INTERRUPTED, "8/-"]
    assert "\x1b" not in done.stdout
    assert "[bold] reason" in done.stdout
    (run / "summary").mkdir()
    (run / "summary" / f"summary_{STAMP}.txt").write_text("")
    done = wdmoe("watch", run, "--json")
    (line,) = done.stdout.splitlines()
    answer = json.loads(line)
    assert (done.returncode, answer["has_ended"], len(answer["datasets"])) == (1, True, 4)
    assert DatasetProgress(**answer["datasets"][0]).prompts_done == 8
    done = wdmoe("watch", run / "predictions")
    assert (done.returncode, done.stdout) == (2, "")
    assert "not a run's folder" in done.stderr


def test_a_terminal_too_small_shows_what_runs_and_what_failed(run, folder):
    with exclusive(folder / "e.json"):
        (folder / "d.failed.txt").write_text("why")
        found = RunWatch(run).look(time.time())
    whole = table(found, 200).plain
    assert "do not fit" not in whole
    assert table(found, 200, whole.count("\n") + 1).plain == whole
    shown = table(found, 200, whole.count("\n")).plain
    assert "2 more lines do not fit" in shown
    assert shown.count("\n") < whole.count("\n")
    assert re.search("running.*\n.*failed", shown)
    assert "3 more lines do not fit" in table(found, 200, 1).plain


def test_many_reasons_leave_room_for_the_table():
    datasets = [DatasetProgress("m", f"d{k}", FAILED, "no space " * 20) for k in range(40)]
    shown = table(RunProgress(datasets, False), 80, 24).plain
    assert "more reasons do not fit" in shown
    assert re.search("more lines and . more columns do not fit", shown)
    assert re.search("m +d2 +failed", shown)
    screen = io.StringIO()
    Console(file=screen, width=80).print(table(RunProgress(datasets, False), 80, 24))
    assert screen.getvalue().count("\n") <= 24


@pytest.mark.parametrize("width", [80, 100, 160])
def test_a_narrow_terminal_gets_whole_names_and_numbers(width):
    names = [f"qs_{name}" for name in ("choice", "twoway", "yesno", "arith", "program")]
    waits = dict(uniform=0.018797, optimal=0.0156391)
    datasets = [
        DatasetProgress(model, name, FINISHED, None, 500, 1000, 1000, "accuracy", 96.8, 0.3126, 4, waits, 4.0)
        for model in ("quickstart-vanilla-hf", "quickstart-wdmoe-hf")
        for name in names
    ]
    lines = table(RunProgress(datasets, True), width).plain.splitlines()
    rows = lines[: next(k for k, line in enumerate(lines) if "finished;" in line)]
    assert max(map(len, rows)) <= width
    assert len(rows) < 3 * len(datasets)
    for line in datasets:
        found = " ".join(row for row in rows if row.split()[:2] == [line.model, line.dataset]).split()
        assert [cell for cell in found if cell not in (line.model, line.dataset)] == list(line.cells().values())[2:]


# -- the line of a task ----------------------------------------------------------------------------------------------
PPL, GEN = "opencompass.openicl.icl_inferencer.PPLInferencer", "GenInferencer"


@pytest.mark.parametrize(
    "infer_cfg, prompts",
    [
        (dict(inferencer=dict(type=GEN), prompt_template=dict(template="{q}")), 12),
        (dict(inferencer=dict(type=GEN, multiround=True)), None),
        (dict(inferencer=dict(type=PPL), prompt_template=dict(template={"A": "", "B": "", "C": ""})), 36),
        (dict(inferencer=dict(type=PPL), ice_template=dict(template={0: "", 1: ""})), 24),
        (
            dict(inferencer=dict(type=PPL, labels=["A", "B"], normalizing_str="x"), prompt_template=dict(template="")),
            48,
        ),
        (dict(inferencer=dict(type=PPL), prompt_template=dict(template="{q}")), None),
        (dict(inferencer=dict(type="x.CLPInferencer"), prompt_template=dict(template="{q}")), None),
    ],
)
def test_prompts_are_counted_as_the_inferencer_makes_them(infer_cfg, prompts):
    assert prompts_of(12, infer_cfg) == prompts


@contextmanager
def show(run, monkeypatch, every_s, methods=("uniform",)):
    monkeypatch.setenv(INTERVAL, str(every_s))
    watch = DatasetWatch(run, MODEL, "d", methods=methods)
    with live_line(watch, StartNote(items=12, prompts=12, first_prompt=0, started_s=time.time())):
        yield watch


def test_a_log_gets_whole_lines_beside_the_bar_of_opencompass(run, folder, monkeypatch, capfd):
    written = []

    def progress_lines():
        written.append(capfd.readouterr().err)
        return [line for line in re.split("[\r\n]+", "".join(written)) if line.startswith("progress: ")]

    with show(run, monkeypatch, 0.05) as watch:
        growing = grown(folder, 1)
        for number in tqdm(range(1, 3)):
            growing.append(block(4 * number, seed=number))
            until(lambda number=number: len(progress_lines()) >= number)
        assert StartNote.read(watch.begun).took_s is None
    assert StartNote.read(watch.begun).took_s > 0.05
    lines = progress_lines()
    assert len(lines) >= 3
    line_of = r"progress: tiny/d: (running|finished, elapsed \d:\d\d:\d\d), \d+/12 prompts"
    assert all(re.match(line_of, line) for line in lines)
    whole = join(metadata(), [block(4 * n, seed=n) for n in range(3)])
    mean_s = replay(whole, whole.metadata.profile, "uniform", "pass").mean_s("batch", "all")
    assert lines[-1].endswith(f"dropped, waiting {1000 * mean_s:.3f} ms per batch with an even split")


def test_a_display_that_fails_and_a_full_disk_leave_the_run_alone(run, folder, monkeypatch, caplog):
    def full(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(StartNote, "write", full)
    monkeypatch.setattr(DatasetWatch, "look_without_accuracy", lambda *arguments: 1 / 0)
    with caplog.at_level(logging.WARNING), show(run, monkeypatch, 0.02):
        until(lambda: "no line of progress" in caplog.text)
    assert "No space left on device" in caplog.text
    assert "no line of progress: ZeroDivisionError" in caplog.text


def test_a_machine_without_a_thread_to_spare_runs_on(run, folder, monkeypatch, caplog):
    def none(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    with show(run, monkeypatch, 0.02) as watch:
        pass
    assert StartNote.read(watch.begun).took_s is not None
    assert "can't start new thread" in caplog.text


def test_an_inference_that_fails_is_not_noted_as_done(run, folder, monkeypatch, capfd):
    with pytest.raises(ValueError), show(run, monkeypatch, 60) as watch:
        raise ValueError
    assert StartNote.read(watch.begun).took_s is None
    assert "finished" not in capfd.readouterr().err


def test_the_interval_0_shows_nothing(run, folder, monkeypatch, capfd):
    with show(run, monkeypatch, 0):
        grown(folder, 1)
    assert capfd.readouterr().err == ""


def test_on_a_terminal_the_line_changes_below_the_bar_of_opencompass(run, folder, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with show(run, monkeypatch, 0.05):
        growing = grown(folder, 1)
        for number in tqdm(range(1, 3), file=terminal):
            growing.append(block(4 * number, seed=number))
        until(lambda: "progress: tiny/d: running" in terminal.getvalue())
    text = terminal.getvalue()
    assert "progress: tiny/d: running" in text
    assert "100%" in text
    assert text.rstrip(" \r").splitlines()[-1].count("12/12 prompts") == 1


# -- a real run ------------------------------------------------------------------------------------------------------
def test_a_finished_run_shows_what_its_tables_say(small_run, wdmoe):
    done = wdmoe("watch", small_run, "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["has_ended"], len(answer["datasets"])) == (0, True, 10)
    accuracy, latency = (json.loads((small_run / "summary" / f"{n}.json").read_text()) for n in ("accuracy", "latency"))
    scored = {(r["model"], r["dataset"], r["metric"]): r["value"] for r in accuracy}
    for record in answer["datasets"]:
        key = record["model"], record["dataset"]
        assert record["accuracy"] == scored[(*key, record["metric"])]
        assert record["share_dropped"] == approx(scored[(*key, "share_dropped")])
        labels = {"qs_choice_small": 4, "qs_twoway_small": 2, "qs_yesno_small": 2}.get(record["dataset"], 1)
        assert (record["items"], record["prompts"], record["prompts_done"]) == (12, 12 * labels, 12 * labels)
        assert record["elapsed_s"] > 0
        rows = {
            r["allocation"]: r["latency_s"]
            for r in latency
            if (r["model"], r["dataset"], r["scope"], r["per"], r["phase"]) == (*key, "layer", "batch", "all")
        }
        assert record["waiting_latency_s_per_batch"] == {name: approx(rows[name]) for name in ("uniform", "optimal")}
    printed = (small_run.parent.parent / "text").read_text()
    for record in answer["datasets"]:
        assert f"progress: {record['model']}/{record['dataset']}: finished" in printed


@pytest.mark.slow
def test_a_run_is_watched_from_its_start_to_its_end(tmp_path):
    work = tmp_path / "outputs"
    process = subprocess.Popen(
        command(SMALL, work),
        cwd=ROOT,
        env=environment(tmp_path / "hf"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not list(work.glob("*/configs/*.py")):
            assert process.poll() is None
            time.sleep(0.05)
        (folder,) = work.iterdir()
        done = command_line.process("watch", folder, "--json", "--interval", "0.3")
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
    looks = [json.loads(line)["datasets"] for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert {record["state"] for record in looks[0]} <= {WAITING, RUNNING}  # the run may begin before the first look
    assert {record["state"] for record in looks[-1]} == {FINISHED}
    assert any(record["state"] == RUNNING and "process" in record["reason"] for look in looks for record in look)
    for number in range(10):
        done = [look[number]["prompts_done"] for look in looks]
        assert done == sorted(done)
    for path in folder.rglob("*.trace.safetensors"):
        last = next(
            record
            for record in looks[-1]
            if path.parent.name == record["model"] and path.name.startswith(record["dataset"])
        )
        assert last["prompts_done"] == read_trace(path).items.sum()
