"""A disk that is full, and a folder that is read-only: a sentence, earlier results intact, and a run that goes on."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager

import pytest

from tests.builders.small_run import opencompass_viz
from tests.conftest import ROOT, environment
from tests.harness.kills import dumped_task, outcome, undisturbed_task


def mounted(*words):
    return subprocess.run(["mount", *words], capture_output=True, text=True)


def cannot_mount(folder):
    """Why a file system in memory cannot be mounted; None where it can."""
    if os.geteuid() != 0:
        return "only root may mount a small disk"
    tried = mounted("-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder))
    if tried.returncode:
        return f"a small disk cannot be mounted: {tried.stderr.strip()}"
    subprocess.run(["umount", str(folder)], check=True)
    return None


@contextmanager
def disk(folder, size):
    folder.mkdir(parents=True, exist_ok=True)
    why = cannot_mount(folder)
    if why:
        pytest.skip(why)
    assert not mounted("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)).returncode
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def run_task(task):
    return subprocess.run(
        [sys.executable, "-m", "wdmoe_opencompass.harness.infer_task", str(task)],
        cwd=ROOT,
        env=environment(task.parent / "hf"),
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_room(tmp_path):
    reference, _ = undisturbed_task(tmp_path / "reference")
    needed = sum(path.stat().st_size for path in reference.iterdir())
    task, predictions = dumped_task(tmp_path / "full")
    run = tmp_path / "full" / "run"
    with disk(run, needed // 2):
        done = run_task(task)
        assert done.returncode == 2
        assert "No space left on device; finished work is kept" in done.stdout + done.stderr
        assert "\nerror: " in done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        finished = {path.name: path.read_bytes() for path in predictions.glob("*.json")}
        assert len(finished) < len(list(reference.glob("*.json")))
        assert not mounted("-o", f"remount,size={10 * needed}", str(run)).returncode
        assert run_task(task).returncode == 0
        assert all((predictions / name).read_bytes() == content for name, content in finished.items())
        found = outcome("full disk", True, predictions, reference)
        assert (found.is_complete, found.items_lost, found.items_twice, found.is_equal) == (True, 0, 0, True)


@pytest.mark.slow
def test_read_only_folder_is_one_sentence_and_its_tables_stay(small_run, tmp_path):
    run = tmp_path / "outputs"
    with disk(run, "200m"):
        subprocess.run(["cp", "-a", str(small_run), str(run)], check=True)
        folder = run / small_run.name
        before = {path.name: path.read_bytes() for path in (folder / "summary").iterdir()}
        assert not mounted("-o", "remount,ro", str(run)).returncode
        output = opencompass_viz(folder)
        assert "Read-only file system" in output
        assert {path.name: path.read_bytes() for path in (folder / "summary").iterdir()} == before
        json.loads((folder / "summary" / "latency.json").read_text())
