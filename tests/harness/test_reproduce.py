"""`summary/reproduce.md` followed to the letter in a copy of a run's folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import environment


@pytest.mark.slow
def test_the_commands_give_the_same_cells_in_a_copy(small_run, tmp_path):
    """In a shell in the copy, line by line, all but the installation of packages."""
    copy = shutil.copytree(small_run, tmp_path / "elsewhere" / "run")
    lines = [line.strip() for line in (copy / "summary" / "reproduce.md").read_text().splitlines()]
    lines = [line for line in lines if line.startswith(("(cd", "wdmoe", "opencompass"))]
    assert len(lines) == 7
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(lines)],
        cwd=copy, capture_output=True, text=True, env=environment(tmp_path / "hf") | dict(PATH=programs),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (new,) = (copy / "NEW_RUN").iterdir()
    for name in ("accuracy", "latency", "missing"):
        assert json.loads((new / "summary" / f"{name}.json").read_text()) == json.loads(
            (small_run / "summary" / f"{name}.json").read_text()
        )
    assert "files of results and tables match" in done.stdout
