"""Whether a checkpoint's tensors are the model's, by name and shape: before loading, from the headers, and after.

transformers initialises at random what a checkpoint lacks and drops what its model does not know, with a warning. A run
of such a model would publish numbers of a random router.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key, revert_weight_conversion
from transformers.modeling_utils import load_state_dict
from transformers.utils import logging

from .._util.checkpoint_files import checkpoint_files
from ..errors import ModelError, first_line

MAX_NAMED = 3  # tensors that a sentence names of each kind
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
WAY_OUT = "get the weights again, or the config.json that belongs to them"

# Arguments of from_pretrained that change neither names nor shapes: where weights go, how they are read and computed
# with, and which files they are in. A quantisation asked for in a config happens after reading.
NOT_SHAPING = {
    "attn_implementation",
    "device_map",
    "disable_mmap",
    "dtype",
    "experts_implementation",
    "ignore_mismatched_sizes",
    "local_files_only",
    "low_cpu_mem_usage",
    "max_memory",
    "offload_buffers",
    "offload_folder",
    "offload_state_dict",
    "output_loading_info",
    "quantization_config",
    "revision",
    "token",
    "torch_dtype",
    "use_kernels",
    "use_safetensors",
    "variant",
}
INDEXED_EXPERT = re.compile(r"^(.*\bexperts\.)(\d+)(\..+)$")


def check_checkpoint(folder: Path, model_kwargs: dict[str, Any]) -> str | None:
    """Load a folder's weights as `from_pretrained(folder, **model_kwargs)` would, with their headers in their place.

    Returns: None, or in words why that cannot be done before loading
    Raises ModelError naming the tensors that are missing, unexpected or of another shape.
    """
    if "gguf_file" in model_kwargs:
        return "a GGUF file has no tensors of these names"
    trusted = bool(model_kwargs.get("trust_remote_code"))
    shaping = config_arguments(model_kwargs)
    shaping["trust_remote_code"] = trusted  # None would ask at the terminal
    try:
        config, unused = AutoConfig.from_pretrained(folder, return_unused_kwargs=True, **shaping)
        with torch.device("meta"):
            blank = AutoModelForCausalLM.from_config(config, trust_remote_code=trusted)
    except Exception as error:  # a model's own code may raise anything
        return f"no model can be built from its config: {first_line(error)}"
    files = checkpoint_files(folder, model_kwargs)
    if not files or not all(file.is_file() for file in files):
        return "its weight files are not there"
    tensors = _headers(files)
    if getattr(config, "quantization_config", None) is not None:
        _refuse(folder, blank, _without_any(blank, tensors), set(), {})
        return "its weights are quantised, and their shapes are their quantiser's"
    for key in ("trust_remote_code", "subfolder", "code_revision"):
        unused.pop(key, None)
    try:
        with quiet():
            model, info = type(blank).from_pretrained(
                None,
                config=blank.config,
                state_dict=dict(tensors),
                device_map="meta",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **unused,
            )
    except Exception as error:
        if "conversion" in str(error):  # tensors that are to be merged do not fit each other
            _refuse(folder, blank, *_differences(blank, tensors))
        return f"{type(error).__name__}: {first_line(error)}"
    missing, reshaped = _as_stored(model, info, tensors)
    unexpected = _unexpected(model, info, _is_one_of_several(config))
    _refuse(folder, model, missing, _stored_as(model, unexpected, tensors), reshaped)
    _refuse(folder, model, _holes(tensors), set(), {})
    return None


def config_arguments(model_kwargs: dict[str, Any]) -> dict[str, Any]:
    """-> those arguments of `from_pretrained` that the model's config takes."""
    return {key: value for key, value in model_kwargs.items() if key not in NOT_SHAPING}


def check_loaded(path: str, model: Any, info: dict[str, Any], is_one_of_several: bool = False) -> None:
    """ModelError where transformers' own report of a loading names tensors.

    info: `missing_keys`, `unexpected_keys`, `mismatched_keys` of `from_pretrained(..., output_loading_info=True)`
    is_one_of_several: the model is the language model of a checkpoint that also reads images or sound
    """
    reshaped = {name: (tuple(stored), tuple(wanted)) for name, stored, wanted in info["mismatched_keys"]}
    _refuse(path, model, set(info["missing_keys"]), _unexpected(model, info, is_one_of_several), reshaped)


@contextmanager
def checked_loading(path: str) -> Iterator[None]:
    """Models that the Auto classes load within it have all of their checkpoint's tensors, or ModelError is raised."""
    with ExitStack() as stack:
        for auto in (AutoModelForCausalLM, AutoModel):
            stack.enter_context(_checked(auto, path))
        yield


@contextmanager
def _checked(auto: Any, path: str) -> Iterator[None]:
    own, load = vars(auto).get("from_pretrained"), auto.from_pretrained

    def from_pretrained(*args: Any, **kwargs: Any) -> Any:
        asked = dict(kwargs, output_loading_info=True, ignore_mismatched_sizes=True)  # told, and refused below
        try:
            model, info = load(*args, **asked)
        except RuntimeError as error:
            if "conversion" not in str(error):
                raise
            raise ModelError(f"{path}: its tensors do not fit each other: {first_line(error)}; {WAY_OUT}") from None
        named = {key: kwargs[key] for key in ("revision", "subfolder", "trust_remote_code") if key in kwargs}
        stored = AutoConfig.from_pretrained(*args[:1], **named)
        check_loaded(path, model, info, _is_one_of_several(stored))
        return model

    auto.from_pretrained = staticmethod(from_pretrained)
    try:
        yield
    finally:
        del auto.from_pretrained
        if own is not None:
            auto.from_pretrained = own


def _headers(files: list[Path]) -> dict[str, Tensor]:
    """-> tensors of the files by name, without their values (meta device)."""
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            in_file = _safetensors_header if file.suffix == ".safetensors" else _pickled_header
            tensors |= in_file(file)
        except Exception as error:  # torn, not weights at all, or a pickle that holds more than tensors
            raise ModelError(f"{file}: cannot be read as weights: {first_line(error)}; {WAY_OUT}") from None
    return tensors


def _safetensors_header(file: Path) -> dict[str, Tensor]:
    """8 bytes, the length of a JSON object that tells each tensor's shape (huggingface/safetensors, README, "Format").

    Read by hand: safetensors maps the whole file, which a machine of less memory than the weights may not allow.
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError("no safetensors file")
        header = json.loads(opened.read(length))
    return {
        name: torch.empty(entry["shape"], device="meta") for name, entry in header.items() if name != "__metadata__"
    }


def _pickled_header(file: Path) -> dict[str, Tensor]:
    return load_state_dict(file, map_location="meta")


Shapes = tuple[tuple[int, ...], tuple[int, ...]]


def _as_stored(model: Any, info: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[set[str], dict[str, Shapes]]:
    """-> what is missing, and shapes stored and wanted of the rest, by the names that the checkpoint has for them."""
    missing: set[str] = set()
    reshaped: dict[str, Shapes] = {}
    wanted = model.state_dict()
    for name in info["missing_keys"]:
        stored = _stored_names(model, name, wanted)
        absent = {part for part in stored if part not in tensors}
        missing |= absent or {name}
    for name, shape, wanted_shape in info["mismatched_keys"]:
        stored = _stored_names(model, name, wanted)
        absent = {part for part in stored if part not in tensors}
        other = {
            part: (tuple(tensors[part].shape), tuple(tensor.shape))
            for part, tensor in stored.items()
            if part in tensors and tensors[part].shape != tensor.shape
        }
        missing |= absent if not other else set()
        reshaped |= other or ({} if absent else {name: (tuple(shape), tuple(wanted_shape))})
    return missing, reshaped


def _stored_names(model: Any, name: str, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """-> the tensors of a checkpoint that one of the model's is made of; itself where that cannot be told."""
    try:
        return revert_weight_conversion(model, {name: wanted[name].to("meta")})
    except Exception:  # some conversions need their other tensors too
        return {name: wanted[name]}


def _stored_as(model: Any, names: set[str], tensors: dict[str, Tensor]) -> set[str]:
    """-> the names in the checkpoint of what became `names` of the model."""
    if names <= set(tensors):
        return names
    conversions = model._weight_conversions
    renamings = [conversion for conversion in conversions if isinstance(conversion, WeightRenaming)]
    converters = [conversion for conversion in conversions if isinstance(conversion, WeightConverter)]
    stored = {key for key in tensors if rename_source_key(key, renamings, converters)[0] in names}
    return stored or names


def _differences(blank: Any, tensors: dict[str, Tensor]) -> tuple[set[str], set[str], dict[str, Shapes]]:
    """-> missing, unexpected, reshaped, against the names under which transformers would save the model's tensors."""
    try:
        wanted = revert_weight_conversion(blank, blank.state_dict())
    except Exception:
        return set(), set(), {}
    tied = set(blank.all_tied_weights_keys)
    shapes = {
        name: (tuple(tensors[name].shape), tuple(tensor.shape))
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    }
    return set(wanted) - set(tensors) - tied, set(tensors) - set(wanted), shapes


def _without_any(blank: Any, tensors: dict[str, Tensor]) -> set[str]:
    """-> tensors of the model of whose modules a quantised checkpoint holds nothing at all, under no name.

    A quantiser stores a weight as several tensors of its own names, all in the weight's module.
    """
    modules = {name[: dot.start()] for name in tensors for dot in re.finditer(r"\.", name)}
    wanted = set(blank.state_dict()) - set(blank.all_tied_weights_keys)
    missing: set[str] = set()
    for name in wanted:
        stored = {part for part in _stored_names(blank, name, blank.state_dict()) if _module(part) not in modules}
        if _module(name) not in modules:
            missing |= stored
    return missing if len(missing) < len(tensors) / 2 else set()  # else its names are others altogether


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _holes(tensors: Iterable[str]) -> set[str]:
    """-> names of experts that are skipped: transformers would number those behind them one lower."""
    numbers: dict[tuple[str, str], set[int]] = defaultdict(set)
    for name in tensors:
        if match := INDEXED_EXPERT.match(name):
            numbers[match[1], match[3]].add(int(match[2]))
    return {
        f"{before}{number}{after}"
        for (before, after), there in numbers.items()
        for number in set(range(max(there))) - there
    }


def _is_one_of_several(config: Any) -> bool:
    return "text_config" in getattr(config, "sub_configs", {})


def _unexpected(model: Any, info: dict[str, Any], is_one_of_several: bool) -> set[str]:
    """-> tensors that the model has no place for, without those of other models around a language model."""
    unexpected = set(info["unexpected_keys"])
    if not is_one_of_several:
        return unexpected
    own = {name for name, _ in model.named_children()} | {model.base_model_prefix}
    return {name for name in unexpected if name.partition(".")[0] in own}


def _refuse(
    where: Path | str, model: Any, missing: set[str], unexpected: set[str], reshaped: dict[str, Shapes]
) -> None:
    shapes = {f"{name} {list(stored)} instead of {list(wanted)}" for name, (stored, wanted) in reshaped.items()}
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    found = [f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds if names]
    if found:
        raise ModelError(f"{where}: its tensors are not those of {type(model).__name__}: {', '.join(found)}; {WAY_OUT}")


def _first(names: set[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(sorted(names)[:MAX_NAMED]) + more


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own warnings, its table of what differs and its progress bar."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
