"""Read a growing journal of a routing trace next to the run that writes it: each time only what is new."""

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from numpy.typing import NDArray

from .._util.bounded_read import NOT_BLOCKING
from .format import Journal, RoutingTrace, join
from .journal import FRAME_BYTES

GROUP_BYTES = 8 << 20  # of blocks that are given out together: what a long journal takes in memory


class JournalTail:
    """The blocks of a journal, each once; nothing is written, no lock is taken.

    A block that is torn, or not yet whole, is waited for. If a resumed run wrote the journal again, all
    of it is new: `began_again` says so once, and the caller starts over.
    """

    def __init__(self, path: Path):
        self.path = path
        self._forget()

    def _forget(self) -> None:
        self._file: tuple[int, int] | None = None  # device and inode
        self._position = 0  # the end of the last whole frame
        self._last: tuple[int, bytes] | None = None  # where that frame is, and its head
        self._journal: Journal | None = None  # with its metadata, once they were read
        self._blocks = 0
        self._items_before = 0  # what was given out last

    def began_again(self) -> bool:
        """Whether what was given out so far is no longer the beginning of the journal."""
        try:
            with self._open() as file:
                if self._file is None or self._goes_on(file):
                    return False
        except OSError:
            return False  # sealed, or not begun
        self._forget()
        return True

    def new_traces(self) -> Iterator[RoutingTrace]:
        """-> the batches since the last call, a few MB of them at a time; none where there is no journal.

        Raises TraceError where the journal is of another format version or its counts break a rule.
        """
        try:
            file = self._open()
        except OSError:
            return
        with file:
            if self._file is not None and not self._goes_on(file):
                return  # written again just now: `began_again` will tell
            self._file = _identity(file)
            group: list[dict[str, NDArray]] = []
            size = 0
            for frame in self._new_frames(file):
                if self._journal is None:
                    self._journal = Journal.of_frame(self.path, frame)
                    continue
                group.append(self._journal.block(self._blocks, frame))
                self._blocks += 1
                size += len(frame)
                if size > GROUP_BYTES:
                    yield self._join(group)
                    group, size = [], 0
            if group:
                yield self._join(group)

    def _join(self, group: list[dict[str, NDArray]]) -> RoutingTrace:
        assert self._journal is not None
        assert self._journal.metadata is not None
        trace = replace(join(self._journal.metadata, group), items_before_first=self._items_before)
        self._items_before += int(trace.items.sum())
        return trace

    def _open(self) -> BinaryIO:
        file = os.fdopen(os.open(self.path, os.O_RDONLY | NOT_BLOCKING), "rb")
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise OSError(f"{self.path}: must be a regular file")
        return file

    def _goes_on(self, file: BinaryIO) -> bool:
        """Whether the file begins with what was read before: the same file, not shorter, its last known frame there."""
        if _identity(file) != self._file or os.fstat(file.fileno()).st_size < self._position:
            return False
        if self._last is None:
            return True
        file.seek(self._last[0])
        return file.read(FRAME_BYTES) == self._last[1]

    def _new_frames(self, file: BinaryIO) -> Iterator[bytes]:
        end = os.fstat(file.fileno()).st_size
        while self._position + FRAME_BYTES <= end:
            file.seek(self._position)
            head = file.read(FRAME_BYTES)
            length = int.from_bytes(head[:8], "little")
            if self._position + FRAME_BYTES + length > end:
                return  # not yet whole, or torn
            frame = file.read(length)
            if hashlib.sha256(frame).digest() != head[8:]:
                return
            self._last = (self._position, head)
            self._position += FRAME_BYTES + length
            yield frame


def _identity(file: BinaryIO) -> tuple[int, int]:
    entry = os.fstat(file.fileno())
    return entry.st_dev, entry.st_ino
