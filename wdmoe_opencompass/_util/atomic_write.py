"""Files that are written whole or not at all, also where the process is killed or the disk is full."""

import os
import re
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from .file_names import file_name
from .utf8_text import clean_text

MAX_PREFIX_BYTES = 170  # of a temporary name: the rest is for host and process
MAX_HOST_LETTERS = 64


def write_whole(path: Path, *parts: bytes | memoryview | str) -> None:
    """Write a file under a temporary name, force it onto the disk, and rename it; OSError leaves what was there.

    parts: of its content, one after the other; text that UTF-8 cannot hold is replaced
    """
    host = socket.gethostname().replace(".", "-")[:MAX_HOST_LETTERS]
    temporary = path.parent / f"{_temporary_prefix(path)}.{host}.{os.getpid()}.tmp"
    try:
        with temporary.open("wb") as file:
            for part in parts:
                file.write(clean_text(part).encode() if isinstance(part, str) else part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _force_folder(path.parent)


def remove_torn_writes(path: Path) -> None:
    """Remove temporary files of processes that died while writing this file; none may be writing it now."""
    name = re.compile(rf"{re.escape(_temporary_prefix(path))}\.[^.]*\.[0-9]+\.tmp", re.DOTALL)
    with suppress(OSError):
        for entry in os.listdir(path.parent):
            if name.fullmatch(entry):
                (path.parent / entry).unlink(missing_ok=True)


def _temporary_prefix(path: Path) -> str:
    return file_name("." + path.name, "", MAX_PREFIX_BYTES)


def files_of(folder: Path, patterns: Iterable[str]) -> dict[Path, tuple[int, int]]:
    """-> the files of a folder with matching names, each with numbers that change when it is written again."""
    paths = [path for pattern in patterns for path in folder.glob(pattern) if path.is_file()]
    return {path: (path.stat().st_ino, path.stat().st_ctime_ns) for path in paths}


def _force_folder(folder: Path) -> None:
    """Force the renamed entry onto the disk too; some shared file systems do not let folders be opened."""
    try:
        entry = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(entry)
    except OSError:
        pass
    finally:
        os.close(entry)
