"""One OpenCompass run is shared by all tests that need one."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tiny tensors only lose by more threads

import pytest

from tests import examples

examples.load_hypothesis_profile()  # before a test module is imported: its decorators read it

ROOT = Path(__file__).parent.parent
SMALL = "tests/harness/eval_small.py"


def pytest_collection_modifyitems(items):
    functions = {
        item.function for item in items if getattr(getattr(item, "function", None), "is_hypothesis_test", False)
    }
    for function in functions:
        examples.multiply_examples(function)


def command(config, work_dir, *options):
    opencompass = Path(sys.executable).with_name("opencompass")
    return [str(opencompass), str(config), "-w", str(work_dir), *options]


def environment(home):
    kept = {k: v for k, v in os.environ.items() if k != "COMPASS_DATA_CACHE"}
    return kept | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def opencompass(config, work_dir, *options):
    """Run the command in a fresh process from the repository's root; -> (time-stamped folder, output)."""
    work_dir = Path(work_dir)
    done = subprocess.run(
        command(config, work_dir, *options),
        cwd=ROOT,
        env=environment(work_dir.parent / "hf"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    folders = sorted(path for path in work_dir.iterdir() if path.is_dir())
    assert folders, done.stdout
    return folders[-1], done.stdout


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """Time-stamped folder of a finished run: vanilla and WDMoE on 12 items of each quickstart task; only to be read.

    Processes that test at the same time share it: the first that needs it runs it, the others wait. Its tasks run in
    the process of `opencompass`, which is imported once instead of five times; what it printed is `text` above the
    work folder.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (base / "small.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = list((base / "small").glob("outputs/*/summary/latency.json"))
        if found:
            return found[0].parent.parent
        (base / "small").mkdir()
        folder, output = opencompass(SMALL, base / "small" / "outputs", "--debug")
        (base / "small" / "text").write_text(output)
        assert (folder / "summary" / "latency.json").exists(), output[-5000:]
        return folder


@pytest.fixture
def wdmoe(capsys, monkeypatch):
    """-> function from words to what the `wdmoe` command does with them, in this process, without a network."""
    from tests.command_line import in_this_process

    monkeypatch.delenv("COMPASS_DATA_CACHE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return lambda *words: in_this_process(capsys, words)


@pytest.fixture
def no_picture(monkeypatch):
    """The frontier's picture, which takes longer than all tables, is drawn and not saved."""
    monkeypatch.setattr("wdmoe_opencompass.report.summary.save_figure", lambda *_: [])
