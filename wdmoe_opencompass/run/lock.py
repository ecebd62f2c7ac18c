"""Only one process at a time writes a dataset: a killed runner may leave its task running."""

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .._util.file_names import hidden_sibling
from ..errors import WdmoeError

LOG = logging.getLogger(__name__)
POLL_S = 0.5


class DatasetIsRunningError(WdmoeError):
    """Another process writes a dataset."""


@contextmanager
def exclusive(predictions: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a dataset's lock, a file next to its predictions; DatasetIsRunningError, naming the holder, if it is held.

    wait_s: how long to wait for it: a killed task may still be ending.

    A file system without locks gives a warning, and no lock.
    """
    path = lock_file(predictions)
    entry = _acquire(path, time.monotonic() + wait_s)
    try:
        yield
    finally:
        if entry is not None:
            path.unlink(missing_ok=True)
            os.close(entry)


def _acquire(path: Path, until: float) -> int | None:
    while True:
        entry = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(entry, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(entry, 200, 0).decode(errors="replace")
            os.close(entry)
            if time.monotonic() < until:
                time.sleep(POLL_S)
                continue
            raise DatasetIsRunningError(
                f"{path}: {owner or 'another process'} is running this dataset; wait for it or end it, then start "
                "again with -r"
            ) from None
        except OSError as error:
            LOG.warning("%s: no lock: %s; do not run this dataset twice at once", path, error.strerror)
            os.close(entry)
            return None
        if _is_still_there(path, entry):
            with suppress(OSError):  # a full disk: the holder stays unnamed
                os.ftruncate(entry, 0)
                os.pwrite(entry, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            return entry
        os.close(entry)  # its last owner has removed it meanwhile


def _is_still_there(path: Path, entry: int) -> bool:
    try:
        return os.stat(path).st_ino == os.fstat(entry).st_ino
    except OSError:
        return False


def holder(predictions: Path) -> str | None:
    """-> who holds a dataset's lock, for an observer; None if nobody does.

    Raises OSError if the file system does not say. A free lock is shared for a moment, and a task that wants it then
    waits. Tasks wait only for datasets without predictions, so use it only for those.
    """
    try:
        entry = os.open(lock_file(predictions), os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(entry, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(entry, 200, 0).decode(errors="replace") or "another process"
    finally:
        os.close(entry)
    return None


def lock_file(predictions: Path) -> Path:
    """`DATASET.json` -> `.DATASET.json.lock`."""
    return hidden_sibling(predictions, ".json.lock")
