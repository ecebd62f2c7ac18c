"""Make a recording of a router from somebody else's arrays (NPZ) or lines (JSON Lines). NumPy only.

Neither is trusted: what breaks a rule is a TraceError, and so is what recorders are known to get wrong.
"""

import io
import json
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from .._util.bounded_read import read_regular
from .._util.checksummed_safetensors import MAX_BYTES
from ..errors import NotReadableNowError, TraceError, shown, unknown_name
from .recording import MAX_EXPERTS, RECORDING_VERSION, Recording, RecordingMetadata, new_recording

# name -> (axes, the kinds of NumPy dtype it may have)
ARRAYS: dict[str, tuple[tuple[str, ...], str]] = {
    "expert_index": (("tokens", "layers", "k"), "iu"),
    "weights": (("tokens", "layers", "k"), "f"),
    "probabilities": (("tokens", "layers", "experts"), "f"),
    "sequence": (("tokens",), "iu"),
    "position": (("tokens",), "iu"),
    "prompt_length": (("sequences",), "iu"),
}
SIZES = ("num_experts", "hidden_size", "ffn_size")
REQUIRED = ("expert_index", "sequence", "position", "prompt_length")
LINE_KEYS = ("sequence", "position", "layer", "expert_index", "weights", "probabilities")
HEADER_KEYS = ("prompt_length", *SIZES)
MAX_LINES_BYTES = 1 << 30  # of JSON Lines, which take many times their size in memory
MAX_NUMBER = (1 << 31) - 1
MIN_REPEATED_ROWS = 16  # rows of equal routing that follow each other: no model does that
SAME_SUM = 1e-2  # weights whose sums over the top-k differ by less are normalised; half precision rounds so far
BROKEN = (
    *(ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error, MemoryError, OverflowError),
    *(RecursionError, NotImplementedError, RuntimeError, AttributeError, IndexError, SyntaxError),
)


def import_recording(
    path: Path,
    model: str | None = None,
    dataset: str | None = None,
    num_experts: int | None = None,
    hidden_size: int | None = None,
    ffn_size: int | None = None,
) -> Recording:
    """Read `FILE.npz` or `FILE.jsonl` as a recording; TraceError in one sentence where it breaks a rule.

    model, dataset: names; by default the file's. The sizes: where the file does not hold them.

    A router with recorded probabilities is a softmax; of any other it is not known. It normalises where the weights of
    all tokens have the same sum.
    """
    readers = {".npz": _read_npz, ".jsonl": _read_lines}
    if path.suffix not in readers:
        raise TraceError(f"{path}: must be a .npz or a .jsonl file")
    arrays, sizes = readers[path.suffix](path)
    given = dict(num_experts=num_experts, hidden_size=hidden_size, ffn_size=ffn_size)
    if "probabilities" in arrays:
        sizes.setdefault("num_experts", arrays["probabilities"].shape[2])
    for name, value in given.items():
        if value is not None and sizes.setdefault(name, value) != value:
            raise TraceError(f"{path}: {name} is {sizes[name]} there, but --{name.replace('_', '-')} says {value}")
        if name not in sizes:
            raise TraceError(f"{path}: {name} is missing; put it into the file, or give --{name.replace('_', '-')}")
    _check_sizes(path, arrays, sizes)
    _check_numbers(path, arrays, sizes["num_experts"])
    _check_weighted(path, arrays)
    arrays = _in_order(path, arrays)
    _check_repeated_rows(path, arrays)
    _, layers, k = arrays["expert_index"].shape
    metadata = RecordingMetadata(
        format_version=RECORDING_VERSION,
        source="import",
        model=model or path.stem,
        dataset=dataset or path.stem,
        layers=layers,
        top_k=k,
        router_is_softmax=True if "probabilities" in arrays else None,
        router_normalises="weights" in arrays and _has_equal_sums(arrays["weights"]),
        has_weights="weights" in arrays,
        has_probabilities="probabilities" in arrays,
        num_experts=sizes["num_experts"],
        hidden_size=sizes["hidden_size"],
        ffn_size=sizes["ffn_size"],
    )
    return new_recording(path, metadata, arrays)


def _read_npz(path: Path) -> tuple[dict[str, NDArray], dict[str, int]]:
    blob = read_regular(path, MAX_BYTES, TraceError, NotReadableNowError)
    try:
        archive = zipfile.ZipFile(io.BytesIO(blob))
        members = {member.filename: member for member in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise TraceError(f"{path}: holds an array twice")
        if sum(member.file_size for member in members.values()) > MAX_BYTES:
            raise TraceError(f"{path}: its arrays must hold at most {MAX_BYTES} bytes")
        read: dict[str, NDArray] = {}
        for filename, member in members.items():
            name = filename.removesuffix(".npy")
            if name not in ARRAYS and name not in SIZES:
                raise TraceError(f"{path}: {unknown_name('array', name, [*ARRAYS, *SIZES])}")
            read[name] = _read_npy(path, name, archive.read(member))
    except TraceError:
        raise
    except BROKEN:
        raise TraceError(f"{path}: not a readable .npz file") from None
    _check_names(path, read)
    sizes = {name: _whole_number(path, name, read.pop(name)) for name in SIZES if name in read}
    return read, sizes


def _read_npy(path: Path, name: str, content: bytes) -> NDArray:
    """-> the array of a member of an NPZ file, whose header is not trusted with how much memory to set aside."""
    stream = io.BytesIO(content)
    major, _ = npy.read_magic(stream)
    read_header = {1: npy.read_array_header_1_0, 2: npy.read_array_header_2_0}[major]
    shape, is_fortran, dtype = read_header(stream)
    if dtype.kind not in "iuf" or dtype.hasobject:
        raise TraceError(f"{path}: array {name} must hold numbers, got {shown(str(dtype))}")
    if math.prod(shape) * dtype.itemsize != len(content) - stream.tell():
        raise TraceError(f"{path}: array {name} does not hold the {shape} numbers that it says")
    array = np.frombuffer(content, dtype, offset=stream.tell())
    return array.reshape(shape, order="F" if is_fortran else "C")


def _check_names(path: Path, arrays: dict[str, NDArray]) -> None:
    for name in REQUIRED:
        if name not in arrays:
            raise TraceError(f"{path}: array {name} is missing; it must hold {', '.join(REQUIRED)}")
    if "probabilities" in arrays and "weights" not in arrays:
        raise TraceError(f"{path}: array weights is missing; with probabilities it says what the model makes of them")
    lengths: dict[str, int] = {}
    for name, (axes, kinds) in ARRAYS.items():
        if name not in arrays:
            continue
        array = arrays[name]
        if array.ndim != len(axes) or array.dtype.kind not in kinds:
            kind = "whole numbers" if kinds == "iu" else "floating-point numbers"
            raise TraceError(
                f"{path}: array {name} must be {kind} [{', '.join(axes)}], got {array.dtype} {list(array.shape)}"
            )
        for axis, length in zip(axes, array.shape, strict=True):
            if lengths.setdefault(axis, length) != length:
                raise TraceError(
                    f"{path}: array {name} has {length} {axis}, another array {lengths[axis]}: all must have the same"
                )
    for axis in ("tokens", "layers", "k", "sequences"):
        if not lengths[axis]:
            raise TraceError(f"{path}: holds no {axis}")


def _whole_number(path: Path, name: str, array: NDArray) -> int:
    if array.size != 1 or array.dtype.kind not in "iu":
        raise TraceError(f"{path}: {name} must be one whole number, got {array.dtype} {list(array.shape)}")
    return int(array.reshape(()))


def _read_lines(path: Path) -> tuple[dict[str, NDArray], dict[str, int]]:
    """The first line holds what belongs to all (HEADER_KEYS), every other one token in one layer (LINE_KEYS)."""
    lines = read_regular(path, MAX_LINES_BYTES, TraceError, NotReadableNowError).split(b"\n")
    header = _object(path, 1, lines[0], HEADER_KEYS)
    if "prompt_length" not in header:
        raise TraceError(f"{path}: line 1 must be an object with prompt_length, a list with one number per sequence")
    rows = [_object(path, number, line, LINE_KEYS) for number, line in enumerate(lines[1:], 2) if line.strip()]
    if not rows:
        raise TraceError(f"{path}: holds no tokens; line 2 and on must be one token in one layer each")
    names = [name for name in LINE_KEYS if name in rows[0]]
    columns = {name: _column(path, name, rows) for name in names}
    for name in ("sequence", "position", "layer", "expert_index"):
        if name not in columns:
            raise TraceError(f"{path}: line 2: {name} is missing")
    columns["prompt_length"] = _array(path, "prompt_length", header["prompt_length"])
    sizes = {}
    for name in SIZES:
        if name in header:
            sizes[name] = _whole_number(path, name, _array(path, name, header[name]))
    arrays = _by_layer(path, columns)
    _check_names(path, arrays)
    return arrays, sizes


def _object(path: Path, number: int, line: bytes, known: tuple[str, ...]) -> dict[str, Any]:
    try:
        read = json.loads(line)
    except (ValueError, RecursionError):
        raise TraceError(f"{path}: line {number} is not JSON") from None
    if not isinstance(read, dict):
        raise TraceError(f"{path}: line {number} must be an object, got {shown(read)}")
    for key in read:
        if key not in known:
            raise TraceError(f"{path}: line {number}: {unknown_name('key', key, known)}")
    return read


def _column(path: Path, name: str, rows: list[dict[str, Any]]) -> NDArray:
    for number, row in enumerate(rows, 2):
        if (name in row) != (name in rows[0]):
            raise TraceError(f"{path}: key {name} is in some lines and missing in others, at token line {number}")
    return _array(path, name, [row[name] for row in rows])


def _array(path: Path, name: str, values: Any) -> NDArray:
    """-> a JSON value as an array of numbers; TraceError for anything else in it, and for lists of several lengths."""
    try:
        array = np.array(values)
        if array.dtype.kind not in "iuf" or (array.dtype.kind in "iu" and array.size and abs(array).max() > MAX_NUMBER):
            raise ValueError
    except (ValueError, TypeError, OverflowError, MemoryError):
        raise TraceError(f"{path}: {name} must be numbers, and lists of the same length in every line") from None
    is_float = name in ARRAYS and ARRAYS[name][1] == "f"
    return array.astype(np.float64) if is_float else array


def _by_layer(path: Path, columns: dict[str, NDArray]) -> dict[str, NDArray]:
    """-> arrays [tokens, layers, ...] of lines; TraceError where the layers disagree about their tokens."""
    for name in ("sequence", "position", "layer"):
        if columns[name].ndim != 1 or columns[name].dtype.kind not in "iu":
            raise TraceError(f"{path}: {name} must be one whole number in every line")
    layer = columns.pop("layer")
    order = np.argsort(layer, kind="stable")
    number, start = np.unique(layer[order], return_index=True)
    if number[0] != 0 or (np.diff(number) != 1).any():
        raise TraceError(f"{path}: layers must be numbered 0, 1, 2, ..., got {shown(number.tolist())}")
    rows = np.split(order, start[1:])
    tokens = [list(zip(columns["sequence"][r].tolist(), columns["position"][r].tolist())) for r in rows]
    for other, own in enumerate(tokens):
        if own != tokens[0]:
            raise TraceError(f"{path}: layers disagree about their tokens: {_difference(tokens[0], other, own)}")
    stacked = {name: array for name, array in columns.items() if name in ARRAYS and ARRAYS[name][0][1:]}
    return (
        columns
        | {name: np.stack([array[r] for r in rows], axis=1) for name, array in stacked.items()}
        | {name: columns[name][rows[0]] for name in ("sequence", "position")}
    )


def _difference(first: list[tuple[int, int]], other: int, own: list[tuple[int, int]]) -> str:
    in_first, in_own = set(first), set(own)
    lacking = [token for token in first if token not in in_own]
    added = [token for token in own if token not in in_first]
    for tokens, has, lacks in ((lacking, 0, other), (added, other, 0)):
        if tokens:
            sequence, position = tokens[0]
            return (
                f"layer {has} has the token at position {position} of sequence {sequence}, layer {lacks} does not "
                f"({len(tokens)} such tokens)"
            )
    return f"layer {other} has them in another order, or another number of times, than layer 0"


def _check_sizes(path: Path, arrays: dict[str, NDArray], sizes: dict[str, int]) -> None:
    for name, most in (("num_experts", MAX_EXPERTS), ("hidden_size", MAX_NUMBER), ("ffn_size", MAX_NUMBER)):
        if not 1 <= sizes[name] <= most:
            raise TraceError(f"{path}: {name} must be from 1 to {most}, got {sizes[name]}")
    if "probabilities" in arrays and arrays["probabilities"].shape[2] != sizes["num_experts"]:
        raise TraceError(
            f"{path}: array probabilities has {arrays['probabilities'].shape[2]} experts, num_experts says "
            f"{sizes['num_experts']}"
        )
    if arrays["expert_index"].shape[2] > sizes["num_experts"]:
        raise TraceError(f"{path}: a token has {arrays['expert_index'].shape[2]} experts of {sizes['num_experts']}")


def _check_numbers(path: Path, arrays: dict[str, NDArray], num_experts: int) -> None:
    limits = dict(sequence=len(arrays["prompt_length"]), expert_index=num_experts)
    for name, (axes, kinds) in ARRAYS.items():
        if name not in arrays:
            continue
        array = arrays[name]
        if kinds == "f":
            bad = ~(np.isfinite(array) & (array >= 0) & (array <= np.finfo(np.float32).max))
            rule = "finite and >= 0"
        else:
            most = limits.get(name, MAX_NUMBER + 1)
            bad = (array < 0) | (array >= most)
            rule = f"from 0 to {most - 1}"
        if bad.any():
            where = tuple(int(n) for n in np.argwhere(bad)[0])
            place = ", ".join(
                f"{axis.removesuffix('s')} {n}" for axis, n in zip(axes, where, strict=True) if axis != "k"
            )
            raise TraceError(
                f"{path}: array {name} must be {rule} throughout, got {array[where]} at {place} ({int(bad.sum())} such "
                "numbers)"
            )


def _check_weighted(path: Path, arrays: dict[str, NDArray]) -> None:
    """Refuse rows that a recorder set aside and never filled: no router gives all of its top-k the weight 0."""
    if "weights" not in arrays:
        return
    is_zero = ~arrays["weights"].any(axis=2)
    if is_zero.any():
        token, layer = np.argwhere(is_zero)[0]
        raise TraceError(
            f"{path}: array weights must be > 0 for at least one expert of every token and layer, got only 0 at token "
            f"{token}, layer {layer} ({int(is_zero.sum())} such rows)"
        )


def _in_order(path: Path, arrays: dict[str, NDArray]) -> dict[str, NDArray]:
    """-> the arrays with sequences one after the other; TraceError where positions do not ascend within one."""
    types = dict(expert_index=np.int16, weights=np.float32, probabilities=np.float32)
    order = np.argsort(arrays["sequence"], kind="stable")
    sorted_arrays = {
        name: np.ascontiguousarray(array if name == "prompt_length" else array[order], types.get(name, np.int32))
        for name, array in arrays.items()
    }
    sequence, position = (sorted_arrays[name].astype(np.int64) for name in ("sequence", "position"))
    tokens = sequence << 32 | position
    distinct, count = np.unique(tokens, return_counts=True)
    if len(distinct) < len(tokens):
        first = int(distinct[count > 1][0])
        repeated = len(tokens) - len(distinct)
        raise TraceError(
            f"{path}: {repeated} of {len(tokens)} rows are repeated: position {first & MAX_NUMBER} of "
            f"sequence {first >> 32} is there {int(count[count > 1][0])} times; leave out what a recorder writes while "
            "its engine warms up"
        )
    if (np.diff(tokens) < 0).any():
        row = int(np.argmax(np.diff(tokens) < 0))
        raise TraceError(
            f"{path}: positions must ascend within a sequence, got {position[row]}, then {position[row + 1]} in "
            f"sequence {sequence[row]}"
        )
    return sorted_arrays


def _check_repeated_rows(path: Path, arrays: dict[str, NDArray]) -> None:
    """Refuse what a recorder wrote while its engine warmed up: the same routing, bit for bit, row after row."""
    sequence = arrays["sequence"]
    equal = np.ones(len(sequence) - 1, dtype=bool)
    for name in ("expert_index", "weights"):
        if name in arrays:
            array = arrays[name].reshape(len(sequence), -1)
            equal &= (array[1:] == array[:-1]).all(axis=1)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], equal.astype(np.int8), [0]])))
    starts, rows = edges[::2], edges[1::2] - edges[::2] + 1
    long = rows >= MIN_REPEATED_ROWS
    if long.any():
        start = int(starts[long][0])
        raise TraceError(
            f"{path}: {int(rows[long].sum())} of {len(sequence)} rows are repeated: from position "
            f"{arrays['position'][start]} of sequence {sequence[start]} on, {int(rows[long][0])} rows have the same "
            "routing in every layer; leave out what a recorder writes while its engine warms up"
        )


def _has_equal_sums(weights: NDArray[np.float32]) -> bool:
    sums = weights.sum(axis=2, dtype=np.float64)
    return bool(sums.max() - sums.min() <= SAME_SUM * sums.max())
