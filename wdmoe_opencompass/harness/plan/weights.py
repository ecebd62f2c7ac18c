"""A model's weights without loading them: where they lie, how many there are, how many bytes they will take."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..._util.checkpoint_files import MAX_HEADER_BYTES
from ...errors import ModelError, first_line
from ...routing.checkpoint import config_arguments
from ..returned import check_is_decoder
from .batch_memory import TokenBytes, token_bytes

# transformers names these differently from one model family to the next.
EXPERTS_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
TOP_K_KEYS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k")


@dataclass(frozen=True)
class WeightsFacts:
    """What a model's config alone tells.

    active_parameters: those one token meets, embeddings and router included. bytes: loaded, in `dtype` and under the
    quantization asked for. layers, experts, top_k: of its MoE layers; layers is 0 for a dense model. vocabulary:
    tokens that it knows. token: what a token of a forward pass takes on top; None if unknown.
    """

    parameters: int
    active_parameters: int
    bytes: int
    dtype: str
    layers: int
    experts: int
    top_k: int
    vocabulary: int
    token: TokenBytes | None = None


def local_folder(path: str, revision: str | None = None) -> Path | None:
    """Folder of a model on this machine: `path` itself, or its snapshot in the Hugging Face cache; else None."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if Path(path).is_dir():
        return Path(path)
    try:
        return Path(snapshot_download(path, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def weight_files(folder: Path) -> list[str]:
    """Names of the safetensors files in `folder`."""
    return sorted(path.name for path in folder.glob("*.safetensors"))


def torn_files(folder: Path) -> dict[str, str]:
    """-> name of each safetensors file that is not as long as its own header says: what is wrong with it.

    A file starts with 8 bytes, the length of its header, a JSON object with where each tensor's bytes begin and end
    (huggingface/safetensors, README.md, "Format").
    """
    found = {name: _why_torn(folder / name) for name in weight_files(folder)}
    return {name: why for name, why in found.items() if why is not None}


def _why_torn(path: Path) -> str | None:
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if size < 8 or header_bytes > min(size - 8, MAX_HEADER_BYTES):
            return f"no safetensors file, or torn in its header ({size} bytes; a Git LFS pointer has some 130)"
        try:
            tensors = json.loads(file.read(header_bytes))
            ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
            expected = 8 + header_bytes + max(ends, default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return "no safetensors file: its header cannot be read"
    return None if size == expected else f"{size} bytes, and its header says {expected}"


def measure_weights(folder: Path, model_kwargs: dict[str, Any]) -> WeightsFacts:
    """Build the model on the meta device, as `from_pretrained(folder, **model_kwargs)` would load it, and count.

    Raises ModelError where the folder's config cannot be built, or makes an encoder and decoder.
    """
    from opencompass.models.huggingface_above_v4_33 import _set_model_kwargs_torch_dtype
    from transformers import AutoConfig, AutoModelForCausalLM

    trusted = bool(model_kwargs.get("trust_remote_code"))
    shaping = config_arguments(model_kwargs)
    try:
        config = AutoConfig.from_pretrained(folder, **{**shaping, "trust_remote_code": trusted})
        asked = _set_model_kwargs_torch_dtype(dict(model_kwargs), str(folder))
        dtype = _dtype(asked.get("dtype", asked["torch_dtype"]), config)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trusted)
    except Exception as error:  # a model's own code, and what checks its config, may raise anything
        raise ModelError(f"{folder}: no model can be built from its config: {first_line(error)}") from None
    check_is_decoder(folder, model)
    text = config.get_text_config()
    experts, top_k = _first_of(text, EXPERTS_KEYS), _first_of(text, TOP_K_KEYS)
    _check_top_k(folder, text, experts)
    in_experts = _parameters_in_experts(model, experts)
    parameters = sum(weight.numel() for weight in model.parameters())
    idle = sum(in_experts) * (experts - top_k) // experts if experts else 0
    return WeightsFacts(
        parameters=parameters,
        active_parameters=parameters - idle,
        bytes=_loaded_bytes(model, model_kwargs.get("quantization_config")),
        dtype=str(dtype).removeprefix("torch."),
        layers=len(in_experts),
        experts=experts,
        top_k=top_k,
        vocabulary=int(getattr(text, "vocab_size", 0) or 0),
        token=token_bytes(text, dtype.itemsize, max(in_experts, default=0) // max(experts, 1), top_k),
    )


def _dtype(asked: Any, config: Any) -> torch.dtype:
    if isinstance(asked, torch.dtype):
        return asked
    named = getattr(torch, str(asked).removeprefix("torch."), None)
    return named or config.get_text_config().dtype or config.dtype or torch.float32  # 'auto': as stored


def _check_top_k(folder: Path, text: Any, experts: int) -> None:
    """ModelError where a config asks for more experts per token than there are, or for none."""
    for key in TOP_K_KEYS if experts else ():
        top_k = getattr(text, key, None)
        if top_k is not None and not (isinstance(top_k, int) and 1 <= top_k <= experts):
            raise ModelError(f"{folder}: {key} in its config.json must be from 1 to {experts}, got {top_k!r}")


def _first_of(config: Any, keys: tuple[str, ...]) -> int:
    return next((int(getattr(config, key)) for key in keys if getattr(config, key, None)), 0)


def _parameters_in_experts(model: nn.Module, experts: int) -> list[int]:
    """-> [MoE layers] parameters of each layer's experts: the modules that stack them along a first axis."""
    named = dict(model.named_parameters())
    owners = {name.rpartition(".")[0] for name, stack in named.items() if stack.ndim == 3 and len(stack) == experts}
    return [sum(stack.numel() for stack in model.get_submodule(owner).parameters()) for owner in sorted(owners)]


def _loaded_bytes(model: Any, quantization_config: Any) -> int:
    """Bytes of all parameters, by transformers' own quantizer where one is asked for or the checkpoint holds one."""
    stored = getattr(model.config, "quantization_config", None)
    if stored is None and quantization_config is None:
        return sum(weight.numel() * weight.element_size() for weight in model.parameters())
    from transformers.quantizers import AutoHfQuantizer

    try:
        quantizer = AutoHfQuantizer.from_config(stored or quantization_config, pre_quantized=stored is not None)
        # Swaps in the quantizer's modules, so that each parameter knows its size.
        quantizer.preprocess_model(model, device_map=None, checkpoint_files=[])
        named = model.named_parameters()
        sizes = [quantizer.param_element_size(model, name, part) * part.numel() for name, part in named]
    except (ImportError, ValueError, RuntimeError, TypeError, AttributeError, KeyError) as error:
        raise ModelError(f"its quantization_config cannot be applied: {first_line(error)}") from None
    return int(sum(sizes))
