"""What the files of a run share: named arrays under metadata, and the journal that grows by a block per finished batch.

A journal is its metadata, then a safetensors block per batch, each after its length and SHA-256. A torn last block is
recognised by its checksum and forgotten. When the dataset is done the journal is sealed: joined into one safetensors
file that states its own SHA-256, written under a temporary name and renamed. Neither is trusted when it is read: what
breaks a rule is a TraceError.
"""

import hashlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from .._util.atomic_write import write_whole
from .._util.bounded_read import read_regular
from .._util.checksummed_safetensors import BROKEN, MAX_BYTES, check_version
from ..channel.profile import first_error
from ..errors import NotReadableNowError, TraceError, show

FRAME_BYTES = 8 + 32  # before a block: its length and SHA-256
Arrays = dict[str, tuple[str, tuple[str, ...]]]  # name -> (dtype, axes after the first)
Count = Annotated[int, Field(ge=0, lt=1 << 31, strict=True)]


class FileMetadata(BaseModel):
    """Where a file's arrays come from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    readable_versions: ClassVar[tuple[int, ...]]  # the one that is written last

    def sizes(self) -> dict[str, int]:
        """Length of every named axis."""
        raise NotImplementedError

    def tables(self) -> tuple[Arrays, ...]:
        """The file's arrays; those of one table have equally many rows."""
        raise NotImplementedError

    @classmethod
    def parse(cls, path: Path, text: str) -> Self:
        """Read a file's metadata; TraceError where it is not readable, of another version or breaks a rule."""
        check_version(path, text, cls.readable_versions)
        try:
            metadata = cls.model_validate_json(text)
        except ValidationError as error:
            first = first_error(error)
            key = ".".join(map(str, first["loc"]))
            raise TraceError(f"{path}: metadata {key[:200]}: {first['msg'][:1000]}") from None
        sizes = metadata.sizes()
        for name, (_, axes) in ((name, array) for table in metadata.tables() for name, array in table.items()):
            if math.prod(sizes[axis] for axis in axes) > MAX_BYTES:  # of a single row
                raise TraceError(f"{path}: metadata: array {name} would be beyond the {MAX_BYTES} bytes of a file")
        return metadata


Metadata = TypeVar("Metadata", bound=FileMetadata)
Content = TypeVar("Content")


class NamedArrays:
    """Arrays by name, each of which is an attribute too."""

    arrays: dict[str, NDArray]

    def __getattr__(self, name: str) -> NDArray:
        try:
            return self.__dict__["arrays"][name]
        except KeyError:
            raise AttributeError(name) from None


COUNTED_BY = {"batch": "first_item", "sequence": "prompt_length"}  # numbers that go on from block to block


def join_arrays(metadata: FileMetadata, blocks: Iterable[dict[str, NDArray]]) -> dict[str, NDArray]:
    """The arrays of consecutive blocks of batches, one after the other; numbers of COUNTED_BY are counted on."""
    sizes = metadata.sizes()
    types = {name: array for table in metadata.tables() for name, array in table.items()}
    arrays = {name: [np.zeros((0, *(sizes[axis] for axis in axes)), dtype)] for name, (dtype, axes) in types.items()}
    counted = dict.fromkeys(COUNTED_BY, 0)
    for block in blocks:
        for name, array in block.items():
            arrays[name].append(array + counted[name] if name in counted else array)
        counted = {name: number + len(block.get(COUNTED_BY[name], ())) for name, number in counted.items()}
    return {name: np.concatenate(parts).astype(types[name][0], copy=False) for name, parts in arrays.items()}


def check_arrays(source: Path | str, metadata: FileMetadata, arrays: dict[str, NDArray]) -> None:
    """Raise TraceError unless the arrays are those of the metadata's tables, of their types, shapes and ranges.

    Nothing is negative, infinite or not a number; `batch` ascends.
    """
    sizes, tables = metadata.sizes(), metadata.tables()
    for table in tables:
        rows = None
        for name, (dtype, axes) in table.items():
            if name not in arrays:
                raise TraceError(f"{source}: array {name} is missing")
            expected = tuple(sizes[axis] for axis in axes)
            array = arrays[name]
            rows = len(array) if rows is None and array.ndim else rows
            if array.dtype != dtype or array.shape != (rows, *expected):
                raise TraceError(
                    f"{source}: array {name} must be {dtype} [{rows}, {expected}], got {array.dtype} {array.shape}"
                )
            _check_range(source, name, array)
    for name in arrays:
        if not any(name in table for table in tables):
            raise TraceError(f"{source}: array {show(name)} does not belong there")
    batch = arrays.get("batch", np.zeros(0, np.int32))
    if len(batch) and (batch[-1] >= len(arrays["first_item"]) or (batch[1:] < batch[:-1]).any()):
        raise TraceError(f"{source}: batch numbers are out of range, or do not ascend")


def _check_range(source: Path | str, name: str, array: NDArray) -> None:
    if array.dtype.kind == "f":
        if not (np.isfinite(array) & (array >= 0)).all():
            raise TraceError(f"{source}: array {name} must be finite and >= 0 throughout")
    elif array.size and array.min() < 0:
        raise TraceError(f"{source}: array {name} must be >= 0 throughout, got {array.min()}")


class BlockJournal(ABC, Generic[Metadata, Content]):
    """The growing part of a file: its metadata, then one block per finished batch; safe to continue after a kill.

    kind: of its metadata; contents: what it is a journal of, in words; suffix, sealed_suffix: how its name ends, and
    that of what it becomes
    """

    kind: type[Metadata]
    contents: ClassVar[str]
    suffix: ClassVar[str]
    sealed_suffix: ClassVar[str]

    def __init__(self, path: Path, metadata: Metadata | None = None):
        self.path = path
        self.metadata = metadata

    def resumable(self, first_item: int) -> int:
        """-> the last item, not after `first_item`, at which `resume` can go on: the end of a batch of this run."""
        written, blocks = self._read_or_nothing()
        end = 0
        for block in blocks if written == self.metadata else []:
            first, items = int(block["first_item"].min()), int(block["items"].sum())
            if first != end or end + items > first_item:
                break
            end += items
        return end

    def resume(self, first_item: int) -> None:
        """Keep only whole blocks of items before `first_item` and of this very run; forget all others.

        `first_item` is where the inference goes on: a batch without kept answers is redone, and must not be
        counted twice. Raises TraceError where answers are kept and their counts are not.
        """
        written, blocks = self._read_or_nothing()
        kept = [block for block in blocks if _end(block) <= first_item]
        if written != self.metadata:
            kept = []
        done = sum(int(block["items"].sum()) for block in kept)
        if done != first_item:
            raise TraceError(
                f"{self.path}: the trace knows {done} of the {first_item} items already answered; "
                "delete this dataset's predictions (tmp_*.jsonl too) to run it again with a trace"
            )
        assert self.metadata is not None
        frames = [_frame(self.metadata.model_dump_json().encode()), *(_frame(_pack(block)) for block in kept)]
        write_whole(self.path, b"".join(frames))

    def append(self, block: dict[str, NDArray]) -> None:
        """Add one finished batch; `resume` must have been called."""
        with self.path.open("ab") as file:
            file.write(_frame(_pack(block)))
            file.flush()
            os.fsync(file.fileno())

    def seal(self, path: Path) -> Content:
        """Join all blocks into a sealed file at `path` and remove the journal; -> what it holds."""
        joined = self.read()
        self._write(path, joined)
        self.path.unlink(missing_ok=True)
        return joined

    def is_torn(self) -> bool:
        """Whether something follows the last whole block."""
        content = read_regular(self.path, MAX_BYTES, TraceError, NotReadableNowError)
        return sum(FRAME_BYTES + len(frame) for frame in _frames(content)) != len(content)

    def read(self) -> Content:
        """-> what all whole blocks hold; TraceError where there is no readable journal."""
        metadata, blocks = self._read()
        if metadata is None:
            raise TraceError(f"{self.path}: not a journal of {self.contents}, or torn")
        return self._join(metadata, blocks)

    @classmethod
    def of_frame(cls, path: Path, frame: bytes) -> Self:
        """-> the journal with this first frame; TraceError where it is not readable or breaks the schema."""
        journal = cls(path)
        journal.metadata = journal._metadata_of(frame)
        return journal

    def block(self, number: int, frame: bytes) -> dict[str, NDArray]:
        """-> the arrays of a block; the metadata must be known. TraceError where they break a rule."""
        assert self.metadata is not None
        return self._block(number, frame, self.metadata)

    def _read_or_nothing(self) -> tuple[Metadata | None, list[dict[str, NDArray]]]:
        """What cannot be read, or was written by another version, is no start to go on from."""
        try:
            return self._read()
        except NotReadableNowError:
            raise
        except TraceError:
            return None, []

    def _read(self) -> tuple[Metadata | None, list[dict[str, NDArray]]]:
        if not os.path.lexists(self.path):
            return None, []
        frames = list(_frames(read_regular(self.path, MAX_BYTES, TraceError, NotReadableNowError)))
        if not frames:
            return None, []
        metadata = self._metadata_of(frames[0])
        return metadata, [self._block(number, frame, metadata) for number, frame in enumerate(frames[1:])]

    def _block(self, number: int, frame: bytes, metadata: Metadata) -> dict[str, NDArray]:
        source = f"{self.path}, block {number}"
        try:
            block = load_arrays(frame)
        except BROKEN:
            raise TraceError(f"{source}: its arrays are not readable") from None
        self._check_block(source, metadata, block)
        if not len(block["first_item"]):
            raise TraceError(f"{source}: must hold a batch, got none")
        return block

    def _metadata_of(self, frame: bytes) -> Metadata:
        try:
            return self.kind.parse(self.path, frame.decode())
        except UnicodeDecodeError:
            raise TraceError(f"{self.path}: its metadata is not readable") from None

    @staticmethod
    @abstractmethod
    def _check_block(source: str, metadata: Metadata, block: dict[str, NDArray], /) -> None: ...

    @staticmethod
    @abstractmethod
    def _join(metadata: Metadata, blocks: list[dict[str, NDArray]], /) -> Content: ...

    @staticmethod
    @abstractmethod
    def _write(path: Path, joined: Content, /) -> None: ...


def _end(block: dict[str, NDArray]) -> int:
    """-> the number of the first item after a block's."""
    return int((block["first_item"].astype(np.int64) + block["items"]).max())


def _pack(block: dict[str, NDArray]) -> bytes:
    return save_arrays({name: np.ascontiguousarray(array) for name, array in block.items()})


def _frame(blob: bytes) -> bytes:
    return len(blob).to_bytes(8, "little") + hashlib.sha256(blob).digest() + blob


def _frames(content: bytes) -> Iterator[bytes]:
    position = 0
    while position + FRAME_BYTES <= len(content):
        length = int.from_bytes(content[position : position + 8], "little")
        start = position + FRAME_BYTES
        blob = content[start : start + length]
        if hashlib.sha256(blob).digest() != content[position + 8 : start]:
            return  # torn: nothing after it can be trusted
        yield blob
        position = start + length
