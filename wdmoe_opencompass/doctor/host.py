"""OpenCompass as it will be started: its command, and a fresh process that imports the plugin."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from ..errors import pip_install
from .finding import Finding, ok, problem

IMPORTS = "import opencompass.cli.main, wdmoe_opencompass.harness.infer_task, wdmoe_opencompass.harness.summarizer"
IMPORT_S = 300.0


def check_command() -> list[Finding]:
    """Whether `opencompass` on PATH is this environment's: another one's would not know the plugin."""
    here = Path(sys.executable).parent
    found = shutil.which("opencompass")
    if found is None:
        if not (here / "opencompass").exists():
            fix = pip_install("opencompass")
        else:
            fix = f"source {here / 'activate'}" if (here / "activate").exists() else f"export PATH={here}:$PATH"
        return [problem("opencompass", "no command opencompass on PATH", fix)]
    if belongs_here(Path(found)):
        return [ok("opencompass", found)]
    fix = f"put this environment first: export PATH={here}:$PATH"
    return [problem("opencompass", f"{found} belongs to another Python than this one, {sys.executable}", fix)]


def belongs_here(script: Path) -> bool:
    """Whether a console script runs by this Python: it is next to it, or its first line names it."""
    if script.parent.resolve() == Path(sys.executable).parent.resolve():
        return True
    try:
        first = script.read_bytes().split(b"\n", 1)[0]
    except OSError:
        return False
    return first.startswith(b"#!") and first[2:].strip() == os.fsencode(sys.executable)


def check_import() -> list[Finding]:
    """Import OpenCompass and the plugin in a fresh process, as the `opencompass` command does before every task.

    -P: as with the command, the current folder's modules do not shadow the installed ones.
    """
    command = [sys.executable, "-P", "-c", IMPORTS]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=IMPORT_S)
    except subprocess.TimeoutExpired:
        fix = "look at what holds it: python -X importtime -c 'import opencompass'"
        return [problem("import", f"OpenCompass and the plugin did not import within {IMPORT_S:.0f} s", fix)]
    if done.returncode == 0:
        return [ok("import", "a fresh process imports OpenCompass and the plugin")]
    said = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1][:300]
    fix = "install it where OpenCompass is: pip install -c constraints.txt -e '.[opencompass]'"
    return [problem("import", f"a fresh process cannot import OpenCompass and the plugin: {said}", fix)]
