"""A run's results and tables, computed again in another folder by OpenCompass itself."""

import shutil
import subprocess
import sys
from pathlib import Path

from ..._util.file_names import files_below
from ...errors import WdmoeError
from ...report.summary_files import MANIFEST_FILE
from ...run.files import read_whole
from ..sections import EVAL, part_of
from .verdict import Run

RECOMPUTED = "recomputed"  # how the run is called in the folder where it is computed again


def recompute(run: Run, work: Path) -> Path:
    """-> the folder below `work` where a fresh process evaluated the run's predictions and wrote its tables again.

    WdmoeError where it could not.
    """
    folder = work / RECOMPUTED
    shutil.copytree(run.folder / "predictions", folder / "predictions")
    options = ["--mode", "eval", "-r", RECOMPUTED, "-w", str(work)]
    results = files_below(run.folder / "results", ".json")
    if results and not any("details" in (read_whole(path) or {}) for path in results):  # by default there are
        options += ["--dump-eval-details", "False"]
    # -P: as with the `opencompass` command, this folder's modules do not shadow the installed ones
    command = [sys.executable, "-P", "-m", "opencompass.cli.main", str(_config_for(run, work)), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if not (folder / "summary" / MANIFEST_FILE).exists():
        lines = done.stdout.strip().splitlines() or ["no output"]
        raise WdmoeError(f"{run.folder}: OpenCompass could not evaluate it again: {lines[-1][:300]}")
    return folder


def _config_for(run: Run, work: Path) -> Path:
    """The run's config, but evaluated on this machine and reported nowhere."""
    path = work / "config.py"
    runner = part_of(run.config, EVAL, "runner")
    is_local = str(runner.get("type", "LocalRunner")).rpartition(".")[2] == "LocalRunner"
    if is_local and "station_path" not in run.config:
        shutil.copy(run.config_file, path)
        return path
    changed = run.config.copy()
    changed.pop("station_path", None)
    if not is_local:
        changed["eval"]["runner"] = dict(
            type="opencompass.runners.LocalRunner", max_num_workers=2, task=runner.get("task")
        )
    changed.dump(path)
    return path
