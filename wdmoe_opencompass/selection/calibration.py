"""Constants that some rules measure beforehand on a model, and a sample of its routing; made by `wdmoe calibrate`."""

import hashlib
import json
import os.path
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file
from torch import Tensor

from .._util.bounded_read import read_regular
from .._util.checksummed_safetensors import BROKEN, header_of
from ..errors import PolicyError, shown

CALIBRATION_SUFFIX = ".calibration.safetensors"
METADATA_KEY = "wdmoe_calibration"
MAX_BYTES = 1 << 30
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
AXES = {
    "ratio_median": ("layers",),
    "probabilities": ("layers", "tokens", "experts"),
    "top_k_index": ("layers", "tokens", "k"),
    "top_k_weights": ("layers", "tokens", "k"),
    "output_difference": ("layers", "experts", "experts + 1"),
    "fewer_experts_difference": ("layers", "k - 1"),
    "sensitivity": ("layers",),
}


@dataclass(frozen=True)
class Calibration:
    """What was measured on a model; parts that were not are None.

    ratio_median:             [layers] median over tokens of the second router weight over the first (NAEE)
    probabilities:            [layers, tokens, experts] of a sample of tokens, as policies read them
    top_k_index, top_k_weights: [layers, tokens, k] of the same tokens
    output_difference:        [layers, experts, experts + 1] mean over 64 tokens of ``|E_i(h) - E_j(h)|_2``, activation
                              units; the last column is ``|E_i(h)|_2``, what skipping costs (SiftMoE)
    fewer_experts_difference: [layers, k - 1] mean Frobenius norm of ``Y(k' = 1, 2, ...) - Y(k)`` over batches of
                              Gaussian inputs (LExI)
    sensitivity:              [layers] mean over tokens of the squared gradient of the language-model loss, summed over
                              the tokens, in the layer's output (our completion of AdapMoE's Fisher information)
    model:                    where the weights came from
    """

    ratio_median: Tensor | None = None
    probabilities: Tensor | None = None
    top_k_index: Tensor | None = None
    top_k_weights: Tensor | None = None
    output_difference: Tensor | None = None
    fewer_experts_difference: Tensor | None = None
    sensitivity: Tensor | None = None
    model: str = ""
    source: str = ""

    def need(self, name: str) -> Tensor:
        """-> a part; PolicyError where it was not measured."""
        part = getattr(self, name)
        if part is None:
            origin = self.source or "the calibration"
            raise PolicyError(f"{origin} holds no {name}; make one with: wdmoe calibrate MODEL --text FILE --out FILE")
        return part

    def check_fits(self, layers: int, experts: int, top_k: int) -> None:
        """Raise PolicyError where something was measured on a model of other sizes."""
        sizes = {"layers": layers, "experts": experts, "experts + 1": experts + 1, "k": top_k, "k - 1": top_k - 1}
        for name, part in self.parts().items():
            for axis, length in zip(AXES[name], part.shape):
                if sizes.get(axis, length) != length:
                    raise PolicyError(f"{self.source}: {name} has {length} {axis}, the model has {sizes[axis]}")

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over what was measured: equal constants, equal hash."""
        digest = hashlib.sha256()
        for name, part in self.parts().items():
            digest.update(name.encode() + part.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def parts(self) -> dict[str, Tensor]:
        """-> name -> tensor of everything that was measured."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part for name, part in found.items() if isinstance(part, Tensor)}

    def write(self, path: Path) -> None:
        """Write a `*.calibration.safetensors` file."""
        parts = {name: part.contiguous() for name, part in self.parts().items()}
        save_file(parts, path, {METADATA_KEY: json.dumps(dict(model=self.model, sha256=self.content_hash))})


@lru_cache(maxsize=8)
def read_calibration(path: str) -> Calibration:
    """Read a file that `wdmoe calibrate` wrote; PolicyError naming the file where it is none, or was changed."""
    if not os.path.lexists(path):
        raise PolicyError(f"calibration {path}: no such file")
    blob = read_regular(path, MAX_BYTES, PolicyError)
    try:
        metadata = json.loads(header_of(blob)["__metadata__"][METADATA_KEY])
        parts = load_tensors(blob)
        if not isinstance(metadata["model"], str) or metadata.keys() - {"model", "sha256"}:
            raise KeyError
    except BROKEN:
        raise PolicyError(f"calibration {path}: not a file that `wdmoe calibrate` wrote") from None
    for name, part in parts.items():
        _check_part(path, name, part)
    _check_sizes(path, parts)
    calibration = Calibration(**parts, model=metadata["model"], source=path)
    if metadata.get("sha256", calibration.content_hash) != calibration.content_hash:  # older files do not state it
        raise PolicyError(f"calibration {path}: changed since it was written: its parts do not have the stated SHA-256")
    return calibration


def _check_part(path: str, name: str, part: Tensor) -> None:
    if name not in AXES or part.ndim != len(AXES[name]):
        raise PolicyError(
            f"calibration {path}: {shown(name)} does not belong there or is not {AXES.get(name, 'known')}"
        )
    kinds, words = ((torch.int64,), "int64") if name == "top_k_index" else (FLOATS, "floats of 16 bits or more")
    if part.dtype not in kinds:
        raise PolicyError(f"calibration {path}: {name} must hold {words}, got {part.dtype}")
    if not (torch.isfinite(part) & (part >= 0)).all():
        raise PolicyError(f"calibration {path}: {name} must be finite and >= 0")


def _check_sizes(path: str, parts: dict[str, Tensor]) -> None:
    sizes: dict[str, int] = {}
    for name, part in parts.items():
        for axis, length in zip(AXES[name], part.shape):
            base, _, offset = axis.partition(" ")  # `experts + 1`
            size = length - int(offset.replace(" ", "") or 0)
            if size < 1 or sizes.setdefault(base, size) != size:
                raise PolicyError(f"calibration {path}: {name} has {length} {axis}, which does not fit its other parts")
    if "top_k_index" in parts and "experts" in sizes and (parts["top_k_index"] >= sizes["experts"]).any():
        raise PolicyError(f"calibration {path}: top_k_index must be < {sizes['experts']}, the number of experts")


def second_to_first(top_k_weights: Tensor) -> Tensor:
    """-> [...] second-highest weight over the highest, r of the ratio rules; top_k_weights: [..., k >= 2]."""
    highest = top_k_weights.float().topk(2, dim=-1).values
    return highest[..., 1] / highest[..., 0].clamp(min=1e-30)


def given_calibration(policy: str, path: str | None, instead: str = "") -> Calibration:
    """Read the file that a policy was given; PolicyError where none was. instead: the parameter that would do too."""
    if path is None:
        wanted = f"{instead}, or calibration" if instead else "calibration"
        raise PolicyError(f"selection policy {policy!r} needs {wanted}: a file of `wdmoe calibrate` for this model")
    return read_calibration(path)
