"""Some experts of every MoE layer, read from a model's safetensors files without reading the others."""

import copy
import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key
from transformers.integrations.moe import grouped_mm_experts_forward

from .._util.checkpoint_files import SAFETENSORS, indexed_files
from ..errors import LabError
from ..routing.discovery import MoeLayer, find_moe_layers
from .wire import DTYPES, dtype_name, raw

EXPERT_NUMBER = re.compile(r"(?<=experts\.)\d+(?=\.)")


@dataclass(frozen=True)
class HeldExperts:
    """Experts of every MoE layer: one module per layer, of the model's own class, with these experts' weights alone.

    experts: their numbers in the model, ascending: row r of a module's weights is expert experts[r]
    """

    experts: tuple[int, ...]
    layers: tuple[Any, ...]
    hidden_size: int
    dtype: torch.dtype

    @property
    def weight_bytes(self) -> int:
        """Bytes of all their weights."""
        return sum(weight.numel() * weight.element_size() for layer in self.layers for weight in layer.parameters())

    def fingerprints(self) -> list[int]:
        """One number per layer and expert, layer by layer, that tells other weights apart."""
        rows = range(len(self.experts))
        return [fingerprint(layer, row) for layer in self.layers for row in rows]


def fingerprint(experts: Any, row: int) -> int:
    """CRC-32 of the first row of every weight of one expert."""
    crc = 0
    for _, weight in sorted(experts.named_parameters()):
        if weight.ndim > 1 and len(weight) == experts.num_experts:
            crc = zlib.crc32(raw(weight[row].flatten()[: weight.shape[-1]]), crc)
    return crc


@torch.no_grad()
def pair_answers(experts: Any, hidden: Tensor, expert: Tensor, weights: Tensor) -> Tensor:
    """-> [pairs, hidden] float32 weighted answer of each pair's expert, by transformers' own grouped products.

    hidden: [pairs, hidden]; expert: [pairs] row of the module's weights; weights: [pairs]
    """
    return grouped_mm_experts_forward(experts, hidden, expert[:, None], weights[:, None]).float()


def sums_per_token(answers: Tensor, token: Tensor, tokens: int) -> Tensor:
    """-> [tokens, hidden] float32 sum of the answers [pairs, hidden] of each token, in the order of the pairs."""
    return torch.zeros(tokens, answers.shape[1], device=answers.device).index_add_(0, token, answers)


def check_can_be_sent(layer: MoeLayer) -> None:
    """LabError where a layer's experts cannot run on another machine."""
    kind = type(layer.experts).__name__
    if not layer.contract.skips_dropped or getattr(layer.experts, "has_gate", None) not in (True, False):
        raise LabError(f"{layer.name}: {kind} does not follow the contract of experts that the testbed can send to")
    if hasattr(layer.experts.down_proj, "__tensor_flatten__") or not layer.experts.down_proj.is_floating_point():
        raise LabError(f"{layer.name}: {kind} has quantised weights; the testbed needs float32, float16 or bfloat16")


def load_experts(
    path: str | Path, experts: tuple[int, ...], dtype: str = "auto", device: str | torch.device = "cpu"
) -> HeldExperts:
    """Read these experts of every MoE layer; nothing else of the model is read.

    path: folder with config.json and safetensors files. dtype: float32, float16, bfloat16, or auto, the model's own.
    Raises LabError where the folder, the experts or the layout do not fit.
    """
    folder = Path(path)
    model = _meta_model(folder)
    layers = find_moe_layers(model)
    for layer in layers:
        check_can_be_sent(layer)
        for expert in experts:
            if not 0 <= expert < layer.num_experts:
                raise LabError(f"experts must be < {layer.num_experts}, the model's number of experts, got {expert}")
    wanted = tuple(sorted(set(experts)))
    if not wanted:
        raise LabError("experts must hold at least one entry, got none")
    own_dtype = _dtype(model, dtype)
    names = {id(module): name for name, module in model.named_modules()}
    targets = {
        f"{names[id(layer.experts)]}.{name}": (layer.experts, name, parameter)
        for layer in layers
        for name, parameter in layer.experts.named_parameters()
    }
    modules = {id(layer.experts): _empty(layer.experts, len(wanted)) for layer in layers}
    reader = _Reader(folder, model, set(targets), wanted)
    for key, (original, name, parameter) in targets.items():
        is_sliced = parameter.ndim > 1 and len(parameter) == original.num_experts
        weight = reader.read(key, is_sliced)
        shape = (len(wanted), *parameter.shape[1:]) if is_sliced else tuple(parameter.shape)
        if tuple(weight.shape) != shape:
            raise LabError(f"{folder}: {key}: the files give {list(weight.shape)}, the model needs {list(shape)}")
        holder, _, leaf = name.rpartition(".")
        module = modules[id(original)].get_submodule(holder)
        own = weight.to(device=device, dtype=own_dtype).clone(memory_format=torch.contiguous_format)
        module._parameters[leaf] = nn.Parameter(own, requires_grad=False)
    held = tuple(modules[id(layer.experts)] for layer in layers)
    return HeldExperts(wanted, held, layers[0].shape.hidden_size, own_dtype)


def layers_without_weights(path: str | Path, dtype: str = "auto") -> list[MoeLayer]:
    """-> the MoE layers of a model, for what needs shapes alone: no weights are read; dtype as in load_experts."""
    model = _meta_model(Path(path))
    return find_moe_layers(model.to(_dtype(model, dtype)))


def _dtype(model: Any, name: str) -> torch.dtype:
    if name == "auto":
        name = dtype_name(model.config.dtype or torch.float32)
    if name not in DTYPES:
        raise LabError(f"dtype must be one of {', '.join(DTYPES)} or auto, got {name!r}")
    return DTYPES[name]


def _meta_model(folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        raise LabError(f"{folder}: no such folder with a config.json")
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if getattr(config, "quantization_config", None) is not None:
        raise LabError(f"{folder}: the weights are quantised; the testbed needs float32, float16 or bfloat16")
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False).eval()


def _empty(experts: Any, count: int) -> Any:
    """The same module for `count` experts; its weights are still to come."""
    module = copy.deepcopy(experts)
    module.num_experts = count
    return module


class _Reader:
    """Reads weights by transformers' own rules of conversion, but only what belongs to the wanted experts."""

    def __init__(self, folder: Path, model: Any, targets: set[str], wanted: tuple[int, ...]):
        self.folder, self.model, self.wanted = folder, model, wanted
        rules = get_model_conversion_mapping(model)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        self.converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        known = model.state_dict()
        self.sources: dict[str, list[tuple[str, str | None]]] = {}
        self.file_of = _files(folder)
        for key in sorted(self.file_of, key=dot_natural_key):
            found = rename_source_key(key, renamings, self.converters, model.base_model_prefix, known)
            if found[0] not in known and key in known:
                found = (key, None)
            if found[0] in targets:
                self.sources.setdefault(found[0], []).append((key, found[1]))

    def read(self, target: str, is_sliced: bool) -> Tensor:
        """-> the weight, with the wanted experts alone where it has one per expert."""
        sources = self.sources.get(target)
        if not sources:
            raise LabError(
                f"{self.folder}: no weight of its files becomes {target}; the testbed knows the layouts that "
                "transformers converts itself: one weight per expert (Mixtral, Qwen, OLMoE and their like) or all fused"
            )
        key, pattern = sources[0]
        if pattern is None:
            return self._slice(key, is_sliced)
        rule = copy.deepcopy(next(rule for rule in self.converters if pattern in rule.source_patterns))
        is_one_each = all(EXPERT_NUMBER.search(source) for source, _ in sources)
        for source, its_pattern in sources:
            number = EXPERT_NUMBER.search(source)
            if not is_one_each or (number is not None and int(number[0]) in self.wanted):
                weight = self._slice(source, False)
                rule.add_tensor(target, source, str(its_pattern), lambda weight=weight: weight)  # type: ignore
        converted = rule.convert(target, model=self.model, config=self.model.config)
        weight = converted.get(target)
        weight = weight[0] if isinstance(weight, list) else weight
        if weight is None:
            raise LabError(f"{self.folder}: {target}: transformers' rules make {', '.join(converted)} of its sources")
        return weight[list(self.wanted)] if is_sliced and not is_one_each else weight

    def _slice(self, key: str, is_sliced: bool) -> Tensor:
        file = self.folder / self.file_of[key]
        try:
            with safe_open(file, framework="pt") as opened:
                if not is_sliced:
                    return opened.get_tensor(key)
                rows = opened.get_slice(key)
                return torch.cat([rows[expert : expert + 1] for expert in self.wanted])
        except (OSError, SafetensorError) as error:
            raise LabError(f"{file}: {key} cannot be read: {error}") from None


def _files(folder: Path) -> dict[str, str]:
    """-> name of every weight and the file that holds it."""
    index = folder / "model.safetensors.index.json"
    try:
        if index.is_file():
            indexed_files(folder, SAFETENSORS)  # ModelError where it is no index
            return dict(json.loads(index.read_text())["weight_map"])
        names = [path.name for path in sorted(folder.glob("*.safetensors"))]
        if not names:
            raise LabError(f"{folder}: no safetensors files; the testbed reads no other weights")
        found = {}
        for name in names:
            with safe_open(folder / name, framework="pt") as opened:
                found.update(dict.fromkeys(opened.keys(), name))
        return found
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise LabError(f"{folder}: its safetensors files cannot be read: {error}") from None
