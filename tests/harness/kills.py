"""Runs that are killed at random moments, started again, and compared with one that was not."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmengine.config import Config

from tests.conftest import ROOT, command, environment
from wdmoe_opencompass.trace.format import read_trace
from wdmoe_opencompass.trace.recording import read_recording

CONFIG = ROOT / "tests" / "harness" / "eval_kills.py"
TABLES = (".json", ".csv", ".md", ".tex")
NO_TABLES = ("origin.json", "manifest.json", "reproduce.md")  # these and summary_TIME.* carry time or command
MEASURED = ("speed.json", "speed.csv", "speed.md", "speed.tex", "speed_records.json")  # no two runs take equally long
LEFTOVERS = ("*.part", "tmp_*", ".*.lock", ".*.tmp")
DEADLINE_S = 300.0
KILLED = ("a task", "the runner", "all")
WAYS = ("kill", "kill and tear the last write", "terminate")


@dataclass
class Outcome:
    """How a run that was killed ended: moment of the kill, tasks complete, items lost or counted twice, all equal."""

    how: str
    is_complete: bool = False
    items_lost: int = 0
    items_twice: int = 0
    is_equal: bool = False


# -- the inference task, as its runner starts it ---------------------------------------------------------------------
def dumped_task(folder, datasets=None):
    """A task with Algorithm 1 on every dataset, or on these; -> (its config file, its folder of predictions)."""
    config = Config.fromfile(str(CONFIG), format_python_code=False)
    model = next(model for model in config.models if model.wdmoe.policy == "wlr")
    folder.mkdir(parents=True)
    chosen = [dataset for dataset in config.datasets if datasets is None or dataset.abbr in datasets]
    task = Config(dict(models=[model], datasets=[chosen], work_dir=str(folder / "run")))
    task.dump(folder / "task.py")
    return folder / "task.py", folder / "run" / "predictions" / model.abbr


def start_task(task):
    return subprocess.Popen(
        [sys.executable, "-m", "wdmoe_opencompass.harness.infer_task", str(task)],
        cwd=ROOT,
        env=environment(task.parent / "hf"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )


def undisturbed_task(folder):
    """-> (its folder of predictions, seconds from the first batch to the end)."""
    task, predictions = dumped_task(folder)
    process = start_task(task)
    wait_until(lambda: traces_begun(predictions) or process.poll() is not None)
    began = time.monotonic()
    assert process.wait() == 0
    return predictions, time.monotonic() - began


def killed_task(dumped, reference, active_s, chance):
    """A task that is killed once at a random moment after its first batch, then started again; -> Outcome.

    dumped: what `dumped_task` gave; configs are read by the main thread alone.
    """
    task, predictions = dumped
    how = chance.choice(WAYS)
    moment_s = killed_at(task, predictions, active_s, how, chance)
    if "tear" in how:
        tear_last_write(predictions, chance)
    complete = start_task(task).wait() == 0
    return outcome(f"{how} after {moment_s:.2f} s", complete, predictions, reference)


def killed_at(task, predictions, active_s, how, chance):
    """Start a task and kill it; -> after how many seconds. One that had ended before is no kill: it is run again."""
    moment_s = chance.uniform(0, active_s)
    process = start_task(task)
    wait_until(lambda: traces_begun(predictions) or process.poll() is not None)
    time.sleep(moment_s)
    process.send_signal(signal.SIGTERM if how == "terminate" else signal.SIGKILL)
    if process.wait() < 0:  # ended by a signal
        return moment_s
    shutil.rmtree(predictions.parent.parent)
    return killed_at(task, predictions, active_s, how, chance)


def traces_begun(predictions):
    return predictions.exists() and any(predictions.glob("*.trace.*"))


def tear_last_write(predictions, chance):
    """What a machine that fails leaves: the file that was written last lacks its end."""
    files = [path for path in predictions.iterdir() if path.is_file() and path.stat().st_size]
    if files:
        last = max(files, key=lambda path: path.stat().st_mtime_ns)
        os.truncate(last, chance.randrange(last.stat().st_size))


def outcome(how, complete, predictions, reference):
    """Compare a folder of predictions with that of an undisturbed run, file by file."""
    found = Outcome(how, complete, is_equal=True)
    for expected in sorted(reference.glob("*.json")):
        path = predictions / expected.name
        if not path.exists():
            found.items_lost += len(json.loads(expected.read_text()))
            found.is_equal = False
            continue
        ours, theirs = (json.loads(file.read_text()) for file in (path, expected))
        found.items_lost += len(theirs.keys() - ours.keys())
        traces = [read_trace(file.with_suffix(".trace.safetensors")) for file in (path, expected)]
        runs = [times_run(trace) for trace in traces]
        found.items_lost += int(np.maximum(runs[1] - runs[0], 0).sum())
        found.items_twice += int(np.maximum(runs[0] - runs[1], 0).sum())
        same = all(np.array_equal(traces[0].arrays[name], traces[1].arrays[name]) for name in traces[1].arrays)
        found.is_equal &= ours == theirs and same and traces[0].metadata == traces[1].metadata
        recordings = [read_recording(file.with_suffix(".routing.safetensors")) for file in (path, expected)]
        first, second = (dict(vars(recording)) for recording in recordings)
        found.is_equal &= first.pop("metadata") == second.pop("metadata")
        found.is_equal &= all(np.array_equal(first[name], second[name]) for name in second)
    leftovers = [path for pattern in LEFTOVERS for path in predictions.glob(pattern)]
    found.is_complete &= not leftovers
    return found


def times_run(trace):
    """-> [items] how often each item of a dataset is in its trace."""
    last = int((trace.first_item + trace.items).max(initial=0))
    run = np.zeros(max(last, 1), dtype=int)
    for first, items in zip(trace.first_item, trace.items):
        run[first : first + items] += 1
    return run


# -- the opencompass command ------------------------------------------------------------------------------------------
def undisturbed_command(work_dir):
    """-> (time-stamped folder, seconds that it took)."""
    began = time.monotonic()
    assert start_command(work_dir).wait() == 0
    return run_folder(work_dir), time.monotonic() - began


def start_command(work_dir, *options):
    work_dir.parent.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        command(CONFIG, work_dir, *options),
        cwd=ROOT,
        env=environment(work_dir.parent / "hf"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def killed_command(work_dir, reference, took_s, how, chance):
    """A run of which something is killed once at a random moment, started again with -r; -> Outcome.

    how: one of KILLED
    """
    process = start_command(work_dir)
    wait_until(lambda: run_folder(work_dir) is not None or process.poll() is not None)
    moment_s = chance.uniform(0.1, 0.95) * took_s
    time.sleep(moment_s)
    if how == "a task":
        wait_until(lambda: tasks_of(process.pid) or process.poll() is not None)
    tasks = tasks_of(process.pid)
    if process.poll() is not None or (how == "a task" and not tasks):  # it had ended before: no kill
        process.wait()
        shutil.rmtree(work_dir)
        return killed_command(work_dir, reference, took_s, how, chance)
    if how == "all":
        os.killpg(process.pid, signal.SIGKILL)
    elif how == "a task":
        os.kill(chance.choice(tasks), signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    complete = start_command(work_dir, "-r").wait() == 0
    folder = run_folder(work_dir)
    found = [
        outcome(f"{how} killed after {moment_s:.0f} s", complete, folder / "predictions" / file.name, file)
        for file in sorted((reference / "predictions").iterdir())
    ]
    every = Outcome(found[0].how, all(part.is_complete for part in found))
    every.items_lost, every.items_twice = (
        sum(getattr(part, n) for part in found) for n in ("items_lost", "items_twice")
    )
    every.is_equal = all(part.is_equal for part in found) and not different_tables(folder, reference)
    return every


def tasks_of(session):
    """Processes of a session that are a task of ours."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                is_ours = os.getsid(int(entry.name)) == session
            except OSError:
                continue
            if is_ours and words[1:2] == [b"-m"]:
                found.append(int(entry.name))
    return found


def different_tables(folder, reference):
    """-> names of tables that are not byte for byte the reference's, but for the runs' folders."""
    names = {path.name for run in (folder, reference) for path in (run / "summary").iterdir() if path.suffix in TABLES}
    names = {name for name in names if name not in NO_TABLES + MEASURED and not name.startswith("summary_")}
    return sorted(name for name in names if table(folder, name) != table(reference, name))


def table(folder, name):
    path = folder / "summary" / name
    return path.read_text().replace(str(folder), "RUN").replace(folder.name, "RUN") if path.exists() else None


def run_folder(work_dir):
    folders = sorted(path for path in work_dir.glob("*") if path.is_dir()) if work_dir.exists() else []
    return folders[-1] if folders else None


def wait_until(condition):
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def chances(count, seed):
    """One source of random moments per trial, so that trials may run in parallel."""
    return [random.Random(f"{seed}-{number}") for number in range(count)]
