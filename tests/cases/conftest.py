"""One OpenCompass run with faults in it is shared by the tests of this folder."""

import fcntl
import os
import subprocess

import pytest

from tests.conftest import ROOT, command, environment

FAULTS = "tests/cases/eval_faults.py"
IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ


def pytest_collection_modifyitems(items):
    """In one process, the run goes on while tests that do not need it are tried."""
    if not IS_WORKER:
        items.sort(key=lambda item: "faulty_run" in item.fixturenames)


def start(base):
    """-> the process of the run; its work folder and text are below `base`."""
    base.mkdir()
    with (base / "text").open("w") as text:
        return subprocess.Popen(
            command(FAULTS, base / "outputs"),
            cwd=ROOT,
            env=environment(base / "hf"),
            stdout=text,
            stderr=subprocess.STDOUT,
        )


@pytest.fixture(scope="session", autouse=True)
def early_run(request, tmp_path_factory):
    """The run's process in one process of pytest; None where no test needs it, or workers share it."""
    if IS_WORKER or not any("faulty_run" in item.fixturenames for item in request.session.items):
        yield None
        return
    process = start(tmp_path_factory.getbasetemp() / "faults")
    yield process
    process.kill()
    process.wait()


@pytest.fixture(scope="session")
def faulty_run(tmp_path_factory, early_run):
    """(time-stamped folder, printed text) of a run of `eval_faults.py`; only to be read."""
    base = tmp_path_factory.getbasetemp()
    if early_run is not None:
        early_run.wait()
        return found(base / "faults")
    base = base.parent
    with (base / "faults.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / "faults").exists():
            start(base / "faults").wait()
    return found(base / "faults")


def found(base):
    """-> what `faulty_run` returns."""
    text = (base / "text").read_text()
    folders = sorted((base / "outputs").glob("*/"))
    assert folders, text
    return folders[-1], text
