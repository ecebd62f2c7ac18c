"""Messages between base station and devices: matrices as bytes, checked before they are used."""

import struct
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import TestbedError
from ..routing.payload import vector_scale
from . import wire_pb2

Tokens: Any = wire_pb2.Tokens  # type: ignore[attr-defined]
Sums: Any = wire_pb2.Sums  # type: ignore[attr-defined]
Now: Any = wire_pb2.Now  # type: ignore[attr-defined]
Nothing: Any = wire_pb2.Nothing  # type: ignore[attr-defined]
Holding: Any = wire_pb2.Holding  # type: ignore[attr-defined]
Vectors: Any = wire_pb2.Vectors  # type: ignore[attr-defined]

SERVICE = "wdmoe.testbed.Experts"
COMPUTE, PING, HELLO = (f"/{SERVICE}/{name}" for name in ("Compute", "Ping", "Hello"))
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
WHOLE = {16: np.int16, 8: np.int8, 4: np.int8}
CHANGED = "the checksum is wrong: bytes were changed on the way"
OVERHEAD_BYTES = 4096  # of a message without its tokens: far more than names, numbers and HTTP/2 headers take


class WireError(TestbedError):
    """A message breaks a rule, which the text names."""


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a type in a message, such as `float32`; WireError for a type that cannot be sent."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise WireError(f"values of type {name} cannot be sent; known: {', '.join(DTYPES)}")
    return name


def pack(vectors: Tensor, bits: int | None = None) -> Any:
    """Pack vectors into a message.

    vectors: [rows, values] float. bits: per value, rounded as routing.payload.Payload does; None, or no fewer bits than
    the type has: in their own type. Returns: a Vectors message.
    """
    vectors = vectors.detach().contiguous().cpu()
    message = Vectors(rows=len(vectors), dtype=dtype_name(vectors.dtype))
    if bits is None or torch.finfo(vectors.dtype).bits <= bits:
        message.values = raw(vectors)
    else:
        scale = vector_scale(vectors, bits)
        whole = torch.round(vectors.float() / scale).numpy().astype(WHOLE[bits])
        message.bits, message.scale = bits, raw(scale)
        message.values = (_nibbles(whole) if bits == 4 else whole).tobytes()
    message.crc32 = zlib.crc32(message.scale, zlib.crc32(message.values))
    return message


def check_of_tokens(tokens: Any) -> int:
    """CRC-32 of a message of tokens without the values, which have another."""
    numbers = struct.pack("<QII", tokens.number, tokens.layer, tokens.sums_bits)
    parts = (numbers, tokens.pair_token, tokens.pair_expert, tokens.pair_weight, tokens.weight_dtype.encode())
    return _check(tokens.hidden, parts)


def check_of_sums(sums: Any) -> int:
    """CRC-32 of a reply without the values, which have another."""
    times = (sums.received_at, sums.queue_s, sums.compute_s, sums.answered_at)
    return _check(sums.sums, (struct.pack("<QQ4d", sums.number, sums.session, *times),))


def _check(vectors: Any, parts: tuple[bytes, ...]) -> int:
    crc = zlib.crc32(struct.pack("<III", vectors.rows, vectors.bits, vectors.crc32) + vectors.dtype.encode())
    for part in parts:
        crc = zlib.crc32(struct.pack("<Q", len(part)) + part, crc)
    return crc


def unpack(message: Any, values: int, dtype: torch.dtype) -> Tensor:
    """Unpack a message of `pack`.

    message: Vectors. values: per row, as expected. dtype: as expected.
    Returns: [rows, values] of this type, rounded. Raises WireError if the message does not fit or has changed.
    """
    rows, bits = message.rows, message.bits
    if message.dtype != dtype_name(dtype):
        raise WireError(f"dtype must be {dtype_name(dtype)}, got {message.dtype[:20]!r}")
    if bits not in (0, *WHOLE):
        raise WireError(f"bits must be 0, 4, 8 or 16, got {bits}")
    row_bytes = bytes_per_row(values, dtype, bits or None) - (4 if bits else 0)
    if rows < 1 or len(message.values) != rows * row_bytes or len(message.scale) != (4 * rows if bits else 0):
        raise WireError(
            f"{rows} rows of {values} values need {rows * row_bytes} bytes (and {4 * rows if bits else 0} of scale), "
            f"got {len(message.values)} (and {len(message.scale)})"
        )
    if zlib.crc32(message.scale, zlib.crc32(message.values)) != message.crc32:
        raise WireError(CHANGED)
    if not bits:
        vectors = from_raw(message.values, dtype).view(rows, values)
    else:
        whole = np.frombuffer(message.values, WHOLE[bits] if bits != 4 else np.uint8).reshape(rows, -1)
        whole = _from_nibbles(whole, values) if bits == 4 else whole
        scale = from_raw(message.scale, torch.float32)[:, None]
        vectors = (torch.from_numpy(whole.astype(np.float32)) * scale).to(dtype)
    if not bool(torch.isfinite(vectors).all()):
        raise WireError("values must be finite, got infinity or not-a-number")
    return vectors


def bytes_per_row(values: int, dtype: torch.dtype, bits: int | None) -> int:
    """Bytes of a vector in a message, including its scale."""
    own = torch.finfo(dtype).bits
    if bits is None or own <= bits:
        return values * own // 8
    return (values * bits + 7) // 8 + 4


def raw(tensor: Tensor) -> bytes:
    """-> the bytes of a tensor. tensor: [...] of any type."""
    return tensor.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes()


def from_raw(content: bytes, dtype: torch.dtype) -> Tensor:
    """Copy bytes into a tensor.

    content: of the values. dtype: their type.
    Returns: [values]. Raises WireError if the bytes are not a whole number of values.
    """
    if len(content) % torch.empty(0, dtype=dtype).element_size():
        raise WireError(f"{len(content)} bytes are no whole number of values of type {dtype}")
    return torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)


def _nibbles(whole: np.ndarray) -> np.ndarray:
    """[rows, values] numbers of -7 to 7 -> [rows, values / 2 rounded up] two per byte, the first in the low bits."""
    shifted = (whole + 8).astype(np.uint8)
    if shifted.shape[1] % 2:
        shifted = np.pad(shifted, ((0, 0), (0, 1)))
    return shifted[:, ::2] | (shifted[:, 1::2] << 4)


def _from_nibbles(packed: np.ndarray, values: int) -> np.ndarray:
    both = np.stack([packed & 15, packed >> 4], axis=2).reshape(len(packed), -1)
    return both[:, :values].astype(np.int8) - 8
