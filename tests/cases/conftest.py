"""One OpenCompass run with faults in it is shared by the tests of this folder."""

import fcntl
import os

import pytest

from tests.conftest import opencompass

FAULTS = "tests/cases/eval_faults.py"


@pytest.fixture(scope="session")
def faulty_run(tmp_path_factory):
    """(time-stamped folder, printed text) of a run of `eval_faults.py`; only to be read."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (base / "faults.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        output = base / "faults" / "output.txt"
        if not output.exists():
            (base / "faults").mkdir()
            folder, text = opencompass(FAULTS, base / "faults" / "outputs")
            output.write_text(f"{folder}\n{text}")
        folder, _, text = output.read_text().partition("\n")
        return base / "faults" / "outputs" / os.path.basename(folder), text
