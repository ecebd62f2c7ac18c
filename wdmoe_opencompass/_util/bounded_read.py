"""Bounded read of an untrusted file."""

import errno
import os
import stat
from pathlib import Path

from ..errors import WdmoeError

NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO)
NOT_BLOCKING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)  # a pipe without a writer is not waited for


def read_regular(
    path: Path | str, most_bytes: int, error: type[WdmoeError], not_now: type[WdmoeError] | None = None
) -> bytes:
    """-> what a file holds; `error` in one sentence where it cannot be read, is no regular file or holds too much.

    not_now: raised instead if the file may be sound and only this read failed: memory, permissions, a disk
    """
    not_now = not_now or error
    size = 0
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | NOT_BLOCKING), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise error(f"{path}: cannot be read: must be a regular file")
            size = os.fstat(file.fileno()).st_size
            content = file.read(size + 1) if size <= most_bytes else b""  # as many bytes are set aside beforehand
    except OSError as reason:
        kind = error if reason.errno in NO_FILE else not_now
        raise kind(f"{path}: cannot be read: {reason.strerror}") from None
    except ValueError:  # a zero byte in the path
        raise error(f"{str(path)!r}: cannot be read: no path of a file") from None
    except MemoryError:
        raise not_now(f"{path}: cannot be read: {size} bytes do not fit into memory") from None
    if max(size, len(content)) > most_bytes:
        raise error(f"{path}: must hold at most {most_bytes} bytes, got {max(size, len(content))}")
    return content
