"""Which files of a folder transformers reads a model's weights from: everything that looks at weights asks here."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelError

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
CONFIG = "config.json"
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit


def checkpoint_files(folder: Path, model_kwargs: Mapping[str, Any] | None = None) -> list[Path]:
    """-> the weight files of `from_pretrained(folder, **model_kwargs)`, in transformers' own order of preference.

    Of an index these are the files that it names, whether they are there or not. An empty list where there is neither a
    weight file nor an index. ModelError where an index cannot be read.
    """
    model_kwargs = model_kwargs or {}
    within = folder / (model_kwargs.get("subfolder") or "")
    found = next((within / name for name in _names(within, model_kwargs) if (within / name).is_file()), None)
    if found is None:
        return []
    return _indexed_files(found) if found.suffix == ".json" else [found]


def missing_files(folder: Path, model_kwargs: Mapping[str, Any] | None = None) -> list[str]:
    """-> names within `folder` of the weight files that transformers would look for and not find.

    ModelError where an index cannot be read.
    """
    model_kwargs = model_kwargs or {}
    within = folder / (model_kwargs.get("subfolder") or "")
    files = checkpoint_files(folder, model_kwargs) or [within / next(_names(within, model_kwargs))]
    return [os.path.relpath(file, folder) for file in files if not file.is_file()]


def indexed_files(folder: Path, single: str) -> list[Path]:
    """-> the file `single` of a folder, or those that its index names; an empty list where there is neither."""
    if (folder / single).is_file():
        return [folder / single]
    index = folder / f"{single}.index.json"
    return _indexed_files(index) if index.is_file() else []


def _names(within: Path, model_kwargs: Mapping[str, Any]) -> Iterator[str]:
    """-> names of weight files and indexes, the preferred ones first."""
    named = _named_in_config(within)
    if named is not None:
        yield named
        return
    is_safe, variant = model_kwargs.get("use_safetensors"), model_kwargs.get("variant")
    for single in [SAFETENSORS] * (is_safe is not False) + [PICKLED] * (not is_safe):
        for name in (single, f"{single}.index.json"):
            stem, _, ending = name.rpartition(".")
            yield name if variant is None else f"{stem}.{variant}.{ending}"


def _named_in_config(within: Path) -> str | None:
    """-> what a config.json says in `transformers_weights`, which goes before all else."""
    try:
        named = json.loads((within / CONFIG).read_bytes()).get("transformers_weights")
    except (OSError, ValueError, AttributeError, RecursionError):  # loading the config will report it
        return None
    return named if isinstance(named, str) else None


def _indexed_files(index: Path) -> list[Path]:
    try:
        shards = list(json.loads(index.read_bytes())["weight_map"].values())
        if not shards or not all(isinstance(shard, str) and shard for shard in shards):
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ModelError(
            f"{index}: not an index of weights: must be JSON with a weight_map from tensors to file names"
        ) from None
    return [index.parent / shard for shard in sorted(set(shards))]
