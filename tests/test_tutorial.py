"""The tutorial says what happens: its blocks are run in their order, and what it says they print is there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment

TUTORIAL = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\S+\.py)\n")
NEEDED = ("channel_profiles", "eval_configs", "quickstart")  # of the project's folder, where a reader works


def blocks():
    return [(kind, content) for kind, content in BLOCK.findall(TUTORIAL.read_text())]


def script_of(commands):
    """A shell script; variables that earlier blocks set are known in later ones, as in a terminal."""
    return (
        "set -eo pipefail\n[ -f .variables ] && . ./.variables\n"
        + commands
        + "\nset | grep ^RUN= > .variables || true\n"
    )


@pytest.mark.slow
def test_every_block_of_the_tutorial_works_and_prints_what_it_says(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    for name in NEEDED:
        (folder / name).symlink_to(ROOT / name)
    binaries = Path(sys.executable).parent
    variables = environment(tmp_path / "hf") | {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    printed = ""
    kinds = set()
    for kind, content in blocks():
        kinds.add(kind)
        file = FILE.match(content)
        if kind == "text":
            for line in content.splitlines():
                assert line in printed, f"the tutorial says that {line!r} is printed, not:\n{printed[-3000:]}"
            continue
        if file:
            (folder / file[1]).write_text(content)
            continue
        program = ["bash", "-c", script_of(content)] if kind == "sh" else [sys.executable, "-c", content]
        done = subprocess.run(
            program, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        printed = done.stdout
        assert done.returncode == 0, f"{content}\n{printed[-5000:]}"
    assert kinds == {"sh", "python", "text"}
