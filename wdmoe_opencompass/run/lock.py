"""One process at a time writes a dataset: a runner that was killed may leave its task running."""

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .._util.file_names import hidden_beside
from ..errors import WdmoeError

LOG = logging.getLogger(__name__)
POLL_S = 0.5


class DatasetIsRunningError(WdmoeError):
    """Another process writes a dataset."""


@contextmanager
def exclusive(predictions: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a dataset's lock, a file next to its predictions; DatasetIsRunningError, naming the holder, if it is held.

    wait_s: how long to wait for it: a task that was killed may still be dying.

    Where the file system knows no locks, a warning says so and there is none.
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
            with suppress(OSError):  # a full disk: nobody will learn whose lock it is
                os.ftruncate(entry, 0)
                os.pwrite(entry, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            return entry
        os.close(entry)  # its last owner took it away meanwhile


def _is_still_there(path: Path, entry: int) -> bool:
    try:
        return os.stat(path).st_ino == os.fstat(entry).st_ino
    except OSError:
        return False


def holder(predictions: Path) -> str | None:
    """-> who holds a dataset's lock, for somebody who only looks; None where nobody does.

    Raises OSError where the file system does not tell. A free lock is shared for a moment: who wants it then waits for
    it as for any other, so this is only for datasets without predictions, whose task does wait.
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
    return hidden_beside(predictions, ".json.lock")
