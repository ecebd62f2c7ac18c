"""How our tasks are started, run, and ended with their runner.

OpenCompass's own tasks name their file as the command, which would start the stock task.
"""

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from mmengine.config import Config

from .._util.tolerant_stdout import make_stdout_tolerant
from ..errors import WdmoeError
from ..run.failures import sentence

LOOK_AFTER_RUNNER_S = 1.0
SHELLS = ("sh", "dash", "bash", "zsh", "ksh")


def module_command(module: str, cfg_path: str, template: str) -> str:
    """-> the shell command that runs a module on a dumped task config, in one process."""
    sys.path.append(os.getcwd())
    return template.format(task_cmd=f"{sys.executable} -m {module} {cfg_path}")


def run_dumped(description: str, run: Callable[[Config], None]) -> None:
    """Run the dumped task config that the command line names; a WdmoeError becomes one sentence and exit code 2."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("config")
    end_with_the_runner()
    make_stdout_tolerant()
    try:
        run(Config.fromfile(parser.parse_args().config))
    except (WdmoeError, OSError) as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        raise SystemExit(2) from None


def end_with_the_runner() -> None:
    """On Linux: a runner that is killed takes its tasks with it, else they would go on during the next run."""
    parent = os.getppid()
    runner = _parent_of(parent) if _name_of(parent) in SHELLS else None  # some shells exec the task
    if _name_of(parent) is not None:
        threading.Thread(target=_end_without, args=(parent, runner), daemon=True).start()


def _end_without(parent: int, runner: int | None) -> None:
    while os.getppid() == parent and (runner is None or _parent_of(parent) == runner):
        time.sleep(LOOK_AFTER_RUNNER_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _name_of(process: int) -> str | None:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return None


def _parent_of(process: int) -> int | None:
    """None where the system does not tell."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None
