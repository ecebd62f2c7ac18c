"""The bytes of a file that anybody may have put there: a regular one, up to a size."""

import os
import stat
from pathlib import Path

from .errors import WdmoeError

NOT_BLOCKING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)  # a pipe without a writer is not waited for


def read_regular(path: Path | str, most_bytes: int, error: type[WdmoeError]) -> bytes:
    """-> what a file holds; `error` in one sentence where it cannot be read, is no regular file or holds too much."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | NOT_BLOCKING), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise error(f"{path}: cannot be read: must be a regular file")
            size = os.fstat(file.fileno()).st_size
            content = file.read(most_bytes + 1) if size <= most_bytes else b""
    except OSError as reason:
        raise error(f"{path}: cannot be read: {reason.strerror}") from None
    except ValueError:  # a zero byte in the path
        raise error(f"{str(path)!r}: cannot be read: no path of a file") from None
    except MemoryError:
        raise error(f"{path}: cannot be read: {size} bytes do not fit into memory") from None
    if max(size, len(content)) > most_bytes:
        raise error(f"{path}: must hold at most {most_bytes} bytes, got {max(size, len(content))}")
    return content
