"""A safetensors file with the SHA-256 of all its bytes, so that no change goes unnoticed.

The digest is in the file's own metadata; it is computed with 64 zeros there.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from ..errors import NotReadableNowError, OtherVersionError, TraceError, show
from .atomic_write import write_whole
from .bounded_read import read_regular

MAX_BYTES = 16 << 30  # reading a file takes twice its size in memory
MAX_HEADER_BYTES = 16 << 20
DIGEST_KEY = "sha256"
NO_DIGEST = b"0" * 64
DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')  # of no other text: in a string the quotes are escaped
BROKEN = (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError)


def write_sealed(path: Path, arrays: dict[str, NDArray], metadata: dict[str, str]) -> None:
    """Write a sealed file whole or not at all; TraceError where it would be too large to be read again."""
    blob = memoryview(_in_order(save_arrays(arrays, metadata=metadata | {DIGEST_KEY: NO_DIGEST.decode()})))
    stated = _digest_slice(blob)
    if len(blob) > MAX_BYTES or stated is None:
        raise TraceError(
            f"{path}: must hold at most {MAX_BYTES} bytes, {MAX_HEADER_BYTES} of them metadata, got {len(blob)}; "
            "split the dataset"
        )
    write_whole(path, blob[: stated.start], digest_of(blob, stated), blob[stated.stop :])


def _in_order(blob: bytes) -> bytes:
    """The same file with its metadata sorted: safetensors writes them in any order, equal content as other bytes."""
    data = 8 + int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8:data])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + blob[data:]


def read_sealed(
    path: Path, metadata_key: str, what: str, version: int | tuple[int, ...]
) -> tuple[str, dict[str, NDArray]]:
    """-> a sealed file's metadata as text, and its arrays.

    Raises TraceError where it is missing, too large, something else, of another version, torn or changed.
    """
    blob = read_regular(path, MAX_BYTES, TraceError, NotReadableNowError)
    try:
        text = header_of(blob)["__metadata__"][metadata_key]
        if not isinstance(text, str):
            raise TypeError
    except BROKEN:
        raise TraceError(f"{path}: not a {what}, or torn") from None
    check_version(path, text, version)
    stated = _digest_slice(blob)
    if stated is None:
        raise TraceError(f"{path}: not a {what}, or torn: it does not state its SHA-256")
    if digest_of(blob, stated) != blob[stated.start : stated.stop]:
        raise TraceError(f"{path}: not a {what}, or torn: its bytes do not have the SHA-256 that it states")
    try:
        return text, load_arrays(blob)
    except BROKEN:
        raise TraceError(f"{path}: not a {what}: its arrays are not readable") from None


def check_version(path: Path, text: str, version: int | tuple[int, ...]) -> None:
    """Raise TraceError where metadata is not readable, or says another format_version.

    version: the one that is read, or all of them, the one that is written last
    """
    readable = (version,) if isinstance(version, int) else version
    try:
        found = json.loads(text).get("format_version")
    except BROKEN:
        raise TraceError(f"{path}: its metadata is not readable") from None
    if found not in readable:
        raise OtherVersionError(
            f"{path}: format_version must be {readable[-1]}, got {show(found)}; run the evaluation again"
        )


def digest_of(blob: bytes | memoryview, stated: slice) -> bytes:
    """-> the hexadecimal SHA-256 of a file's bytes with zeros for the digest that it states."""
    view = memoryview(blob)
    digest = hashlib.sha256(view[: stated.start])
    digest.update(NO_DIGEST)
    digest.update(view[stated.stop :])
    return digest.hexdigest().encode()


def _header_bytes(blob: bytes | memoryview) -> bytes:
    length = int.from_bytes(blob[:8], "little")
    return bytes(blob[8 : 8 + length]) if length <= MAX_HEADER_BYTES else b""


def header_of(blob: bytes) -> Any:
    """-> the header of a safetensors file as JSON says it; one of BROKEN where there is none."""
    return json.loads(_header_bytes(blob).decode())


def _digest_slice(blob: bytes | memoryview) -> slice | None:
    found = list(DIGEST.finditer(_header_bytes(blob)))
    return slice(8 + found[0].start(1), 8 + found[0].end(1)) if len(found) == 1 else None
