"""The files of a run except its traces: predictions, results, reasons of failures, notes on progress."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from .._util.file_names import dataset_file

FAILURE_SUFFIX = ".failed.txt"


def progress_file(run_folder: Path, model: str, name: str) -> Path:
    """-> the file of a task's StartNote."""
    return dataset_file(run_folder / "progress", model, name, ".json")


def read_whole(path: Path) -> dict[str, Any] | None:
    """-> the content of a predictions or results file of OpenCompass; None if it is torn, or another file."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def read_if_there(path: Path) -> dict[str, Any] | None:
    """As `read_whole`; None also if there is no such file, or it cannot be read now."""
    with suppress(OSError):
        return read_whole(path)
    return None


def line_count(path: Path) -> int | None:
    """-> lines of a file that is being written; None if there is none."""
    with suppress(OSError):
        return path.read_bytes().count(b"\n")
    return None


def changed_s(path: Path) -> float | None:
    """-> when a file was last changed, seconds since 1970; None if there is none."""
    with suppress(OSError):
        return os.stat(path).st_mtime
    return None


def version_of(path: Path) -> tuple[int, int, int] | None:
    """-> a value that changes whenever the file does; None if there is none."""
    with suppress(OSError):
        entry = os.stat(path)
        return entry.st_ino, entry.st_size, entry.st_mtime_ns
    return None
