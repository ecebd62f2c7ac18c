"""Weights by their content: equal for the same tensors in one file or in many, whatever files and folders are called.

Each tensor is hashed with its name, type and shape; the digests are joined in the order of the names. Of a checkpoint
of at most MAX_WHOLE_BYTES every byte is read (`sha256:`). Reading 90 GB at every start would take minutes, so of a
larger one each tensor gives SAMPLED_BLOCKS blocks of BLOCK_BYTES, its first and last bytes among them, spread evenly
(`sha256-sampled:`). That sees other shapes, names and types, another training, a merged adapter, another rounding: what
changes a tensor nearly everywhere. It can miss a change of a few values in a tensor larger than 1 MiB.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from .._util.checkpoint_files import MAX_HEADER_BYTES, checkpoint_files, indexed_files
from ..errors import ModelError

MAX_WHOLE_BYTES = 8_000_000_000
SAMPLED_BLOCKS, BLOCK_BYTES = 16, 65536
CHUNK_BYTES = 1 << 22
MAX_THREADS = 4
ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")
ADAPTER_CONFIG = "adapter_config.json"
# Keys of adapter_config.json that say how it was trained or where its base is, not what it computes.
HARMLESS_ADAPTER_CONFIG = frozenset(
    (
        *("base_model_name_or_path", "inference_mode", "revision", "auto_mapping", "peft_version"),
        *("lora_dropout", "task_type", "eva_config", "corda_config", "megatron_core"),
    )
)
# How tensors began, which PEFT repeats on loading. These only draw tensors, which those of the file replace; others
# (PiSSA, OLoRA, LoftQ) also change the base weights.
INIT, DRAWN_INITS = "init_lora_weights", ("true", "false", "none", "gaussian")
OF_LOFTQ = "loftq_config"  # read on loading, and only by LoftQ
# Keys with lists that PEFT takes as sets, and writes in any order.
ADAPTER_SETS = ("target_modules", "exclude_modules", "modules_to_save", "feedforward_modules", "layers_to_transform")


class _Tensor(NamedTuple):
    name: str
    kind: str
    shape: tuple[int, ...]
    path: Path
    begin: int
    end: int


def weights_digest(
    folder: Path, max_whole_bytes: int = MAX_WHOLE_BYTES, model_kwargs: Mapping[str, Any] | None = None
) -> str | None:
    """-> `sha256:...` or `sha256-sampled:...` of a checkpoint's tensors; None where there is none that can be read.

    model_kwargs: arguments of `from_pretrained`, which choose the files
    ModelError where a file is torn.
    """
    files = checkpoint_files(folder, model_kwargs)
    return _digest_of_files(files, max_whole_bytes) if files else None


def adapter_digest(folder: Path) -> str | None:
    """-> the same of an adapter's tensors, and of what its config says of how they are applied."""
    files = next((files for name in ADAPTER if (files := indexed_files(folder, name))), None)
    if files is None:
        return None
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_bytes())
        told = {
            key: sorted(set(value), key=str) if key in ADAPTER_SETS and isinstance(value, list) else value
            for key, value in config.items()
            if value is not None and not _is_harmless(key, str(config.get(INIT)).lower())
        }
    except (OSError, ValueError, TypeError, AttributeError):
        raise ModelError(
            f"{folder / ADAPTER_CONFIG}: must be a JSON object that says how the adapter is applied"
        ) from None
    whole = json.dumps([told, _digest_of_files(files, MAX_WHOLE_BYTES)], sort_keys=True)
    return f"sha256:{hashlib.sha256(whole.encode()).hexdigest()}"


def _is_harmless(key: str, init: str) -> bool:
    """Whether a key of adapter_config.json changes nothing of what is computed; init: its INIT in lower case."""
    if key == INIT:
        return init in DRAWN_INITS
    return key in HARMLESS_ADAPTER_CONFIG or (key == OF_LOFTQ and init != "loftq")


def _digest_of_files(files: list[Path], max_whole_bytes: int) -> str:
    if files[0].suffix != ".safetensors":
        return _digest_of_pickles(files, max_whole_bytes)
    tensors = sorted(tensor for path in files for tensor in _tensors(path))
    is_whole = sum(tensor.end - tensor.begin for tensor in tensors) <= max_whole_bytes
    with ThreadPoolExecutor(MAX_THREADS) as pool:  # hashing and reading let other threads run
        digests = list(pool.map(lambda tensor: _digest_of(tensor, is_whole), tensors))
    return _join(digests, is_whole)


def _join(digests: Iterable[bytes], is_whole: bool) -> str:
    return f"{'sha256' if is_whole else 'sha256-sampled'}:{hashlib.sha256(b''.join(digests)).hexdigest()}"


def _tensors(path: Path) -> Iterator[_Tensor]:
    """A file starts with 8 bytes, the length of its JSON header (huggingface/safetensors, README.md, "Format")."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER_BYTES:
                raise ValueError
            header = json.loads(file.read(length))
        for name, told in header.items():
            if name != "__metadata__":
                begin, end = told["data_offsets"]
                yield _Tensor(name, told["dtype"], tuple(told["shape"]), path, 8 + length + begin, 8 + length + end)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ModelError(f"{path}: no safetensors file: its header cannot be read") from None


def _digest_of(tensor: _Tensor, is_whole: bool) -> bytes:
    digest = _begin(tensor.name, tensor.kind, tensor.shape)
    with tensor.path.open("rb") as file:
        for begin, end in _blocks(tensor.end - tensor.begin, is_whole):
            file.seek(tensor.begin + begin)
            block = file.read(end - begin)
            if len(block) != end - begin:
                raise ModelError(f"{tensor.path}: torn: it ends within tensor {tensor.name}")
            digest.update(block)
    return digest.digest()


def _begin(name: str, kind: str, shape: Iterable[int]) -> Any:
    return hashlib.sha256(json.dumps([name, kind, list(shape)]).encode())


def _blocks(size: int, is_whole: bool) -> Iterator[tuple[int, int]]:
    """-> (begin, end) of the bytes to read of a tensor of this size."""
    if is_whole or size <= SAMPLED_BLOCKS * BLOCK_BYTES:
        yield from ((begin, min(begin + CHUNK_BYTES, size)) for begin in range(0, size, CHUNK_BYTES))
        return
    for number in range(SAMPLED_BLOCKS):
        begin = number * (size - BLOCK_BYTES) // (SAMPLED_BLOCKS - 1)
        yield begin, begin + BLOCK_BYTES


def _digest_of_pickles(files: list[Path], max_whole_bytes: int) -> str:
    """Of torch's own format: tensors are mapped into memory; the digest is that of a safetensors file of them."""
    import torch

    named: dict[str, Any] = {}
    for path in files:
        try:
            named |= torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except Exception as error:  # a pickle raises whatever it likes
            raise ModelError(f"{path}: its tensors cannot be read: {type(error).__name__}: {error}") from None
    kinds = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
    is_whole = sum(tensor.numel() * tensor.element_size() for tensor in named.values()) <= max_whole_bytes
    digests = []
    for name, tensor in sorted(named.items()):
        digest = _begin(name, kinds.get(tensor.dtype, str(tensor.dtype)), tensor.shape)
        held = memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
        for begin, end in _blocks(len(held), is_whole):
            digest.update(held[begin:end])
        digests.append(digest.digest())
    return _join(digests, is_whole)
