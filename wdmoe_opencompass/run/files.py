"""The files of a run besides its traces: predictions, results, reasons of a failure, notes of what was begun."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from .._util.file_names import dataset_file

FAILURE_SUFFIX = ".failed.txt"


def progress_file(run_folder: Path, model: str, name: str) -> Path:
    """Where a task notes what it begins."""
    return dataset_file(run_folder / "progress", model, name, ".json")


def read_whole(path: Path) -> dict[str, Any] | None:
    """-> a predictions or results file of OpenCompass; None where it is torn, or not one."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def read_if_there(path: Path) -> dict[str, Any] | None:
    """As `read_whole`; None also where there is no such file, or it cannot be read now."""
    with suppress(OSError):
        return read_whole(path)
    return None


def line_count(path: Path) -> int | None:
    """-> lines of a file that is being written; None where there is none."""
    with suppress(OSError):
        return path.read_bytes().count(b"\n")
    return None


def changed_s(path: Path) -> float | None:
    """-> when a file was changed last, seconds since 1970; None where there is none."""
    with suppress(OSError):
        return os.stat(path).st_mtime
    return None


def version_of(path: Path) -> tuple[int, int, int] | None:
    """-> what changes whenever a file does; None where there is none."""
    with suppress(OSError):
        entry = os.stat(path)
        return entry.st_ino, entry.st_size, entry.st_mtime_ns
    return None
