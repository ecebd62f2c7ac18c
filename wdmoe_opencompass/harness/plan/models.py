"""The models of a plan: settings, weights, memory and tokenizer, without loading any weights."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import psutil
import torch
from mmengine.config import Config, ConfigDict
from opencompass.models import HuggingFacewithChatTemplate
from opencompass.registry import MODELS, RUNNERS
from opencompass.runners import LocalRunner
from opencompass.utils import build_model_from_cfg, model_abbr_from_cfg

from ..._util.checkpoint_files import missing_files
from ...channel.profile import ChannelProfile
from ...errors import WdmoeError, brief
from ...identity.facts import rows_per_prompt
from ...routing.checkpoint import check_checkpoint
from ..adapters import adapter_kind
from ..models import WdmoeMixin
from ..registered import is_subclass, resolve
from ..sections import import_cause, part_of
from ..settings import parse_settings
from .config import plain
from .facts import ModelFacts, Plan
from .generation import check_generation
from .weights import local_folder, measure_weights

CHARACTERS_PER_TOKEN = 4  # our choice, where the tokenizer is not on this machine


@dataclass
class PlannedModel:
    """What the estimates need of a model; `instance` holds its tokenizer and no weights."""

    cfg: ConfigDict
    facts: ModelFacts
    profile: ChannelProfile | None = None
    records_routing: bool = False
    rows_per_prompt: int = 1  # sequences that generation forwards for one prompt
    instance: Any = None

    def token_counter(self, method: str) -> Callable[[Any], int]:
        """-> function from a rendered prompt to its tokens, as the model class will make them."""
        if self.instance is None:
            return lambda prompt: ceil(len(str(prompt)) / CHARACTERS_PER_TOKEN)
        model = self.instance
        return lambda prompt: min(model.get_token_len(model.parse_template(prompt, method)), model.max_seq_len)

    def tokenizer_key(self) -> str:
        """Equal for models that turn a prompt into the same number of tokens."""
        others = ("abbr", "wdmoe", "model_kwargs", "run_cfg", "batch_size", "max_out_len", "generation_kwargs")
        return json.dumps({k: v for k, v in self.cfg.items() if k not in others}, sort_keys=True, default=str)


def check_models(cfg: Config, plan: Plan) -> dict[str, PlannedModel]:
    """-> every model by its abbr; its facts, and what is wrong with it, enter the plan."""
    runner = resolve(RUNNERS, part_of(cfg, "infer", "runner").get("type", LocalRunner))
    models = {model_abbr_from_cfg(model_cfg): _check_model(model_cfg, runner, plan) for model_cfg in cfg["models"]}
    plan.models = [model.facts for model in models.values()]
    return models


def _check_model(cfg: ConfigDict, runner: Any, plan: Plan) -> PlannedModel:
    facts = ModelFacts(model_abbr_from_cfg(cfg), str(cfg.get("path") or ""))
    model = PlannedModel(cfg, facts, rows_per_prompt=rows_per_prompt(cfg.get("generation_kwargs") or {}))
    kind = resolve(MODELS, cfg.get("type"))

    def problem(sentence: Any) -> None:
        plan.problems.append(f"model {facts.abbr}: {sentence}")

    if kind is None:
        problem(f"its type {cfg.get('type')} cannot be imported{import_cause(cfg.get('type'))}")
        return model
    if is_subclass(kind, WdmoeMixin):
        _check_settings(model, kind, problem)
        if model.profile is not None:
            unusual = model.profile.unusual_values
            plan.notes += [f"unusual in channel profile {model.profile.name}: {sentence}" for sentence in unusual]
    elif "wdmoe" in cfg:
        problem(f"{kind.__name__} ignores wdmoe=dict(...); take a model class of wdmoe_opencompass.harness.models")
    if not is_subclass(kind, HuggingFacewithChatTemplate):
        plan.notes.append(f"model {facts.abbr}: weights and memory of a {kind.__name__} are not checked")
        return model
    check_weights(model, problem)
    model.rows_per_prompt = check_generation(cfg, facts, problem, plan) or model.rows_per_prompt
    _check_memory(model, runner, problem)
    if is_subclass(kind, WdmoeMixin):
        _load_tokenizer(model, problem)  # and look at its adapter
    elif cfg.get("peft_path"):
        try:
            adapter_kind(cfg["peft_path"])
        except WdmoeError as error:
            problem(error)
    facts.token_count = (
        "its tokenizer" if model.instance is not None else f"{CHARACTERS_PER_TOKEN} characters per token"
    )
    return model


def _check_settings(model: PlannedModel, kind: type[WdmoeMixin], problem: Callable) -> None:
    try:
        settings = parse_settings(model.cfg.get("wdmoe"))
        kind.check_settings(settings)
    except WdmoeError as error:
        problem(error)
        return
    model.facts.policy, model.facts.profile = settings.policy, settings.profile
    model.profile, model.records_routing = settings.load_profile(), settings.record_routing


def check_weights(model: PlannedModel, problem: Callable) -> None:
    """Find and measure its weights; `problem` is called if they are missing or do not fit its channel profile."""
    path, model_kwargs = model.facts.path, plain(model.cfg.get("model_kwargs", {}))
    if not path:
        problem("needs path='...', the folder or Hugging Face name of its weights")
        return
    folder = local_folder(path, model_kwargs.get("revision"))
    if folder is None:
        problem(
            f"its weights and config are neither in a folder {path} nor in the Hugging Face cache "
            f"({huggingface_hub.constants.HF_HUB_CACHE}), so its memory is unknown; get them with: hf download {path}"
        )
        return
    model.facts.folder = str(folder)
    try:
        missing = missing_files(folder, model_kwargs)
    except WdmoeError as error:
        problem(error)
        return
    if missing:
        more = f" and {len(missing) - 1} more files" if len(missing) > 1 else ""
        way_out = "" if Path(path).is_dir() else f"; get them with: hf download {path}"
        problem(f"weights missing: {folder / missing[0]}{more}{way_out}")
    try:
        weights = model.facts.weights = measure_weights(folder, model_kwargs)
        if model.profile is not None and weights.experts:
            model.profile.device_of_expert(weights.experts)
    except WdmoeError as error:
        problem(error)
        return
    if model.profile is not None and not weights.layers:
        problem(f"{folder} has no MoE layer, so there is nothing to route")


def _check_memory(model: PlannedModel, runner: Any, problem: Callable) -> None:
    facts, num_gpus = model.facts, model.cfg.get("run_cfg", {}).get("num_gpus", 0)
    device_map = model.cfg.get("model_kwargs", {}).get("device_map", "auto")
    used = num_gpus if device_map in ("auto", "balanced", "balanced_low_0", "sequential") else min(num_gpus, 1)
    facts.gpus = 0 if device_map == "cpu" else used
    if not is_subclass(runner, LocalRunner):
        facts.memory = "the cluster's, not checked here"
        return
    present = torch.cuda.device_count()
    if num_gpus > present:
        problem(f"run_cfg asks for {num_gpus} GPUs and this machine has {present}: LocalRunner cannot start its task")
        facts.memory = f"{num_gpus} GPUs"
        return
    if num_gpus == 0 or device_map == "cpu":
        facts.memory, facts.available_bytes = "host", psutil.virtual_memory().available
    else:
        facts.memory = f"{used} GPU" + "s" * (used > 1)
        facts.available_bytes = sum(torch.cuda.mem_get_info(index)[0] for index in range(used))
    if facts.weights is not None and facts.weights.bytes > facts.available_bytes:
        need, free = facts.weights.bytes / 1e9, facts.available_bytes / 1e9
        problem(f"its weights alone need {need:.1f} GB ({facts.weights.dtype}), free on {facts.memory}: {free:.1f} GB")


def _load_tokenizer(model: PlannedModel, problem: Callable) -> None:
    """Build the model class itself without weights: it checks its arguments and loads its tokenizer."""
    try:
        model.instance = build_model_from_cfg(ConfigDict(model.cfg, tokenizer_only=True))
    except WdmoeError as error:
        if model.profile is not None:  # otherwise said already
            problem(error)
    except Exception as error:  # whatever a tokenizer's own loader raises
        if model.facts.folder is not None:
            problem(f"its tokenizer cannot be loaded: {brief(error)}")


def check_tensors(models: Iterable[PlannedModel], plan: Plan) -> None:
    """Whether each checkpoint's tensors are its model's, once for all models that load it in the same way."""
    groups: dict[str, list[PlannedModel]] = {}
    for model in models:
        if model.facts.folder is not None and model.facts.weights is not None:  # else something was said already
            key = json.dumps([model.facts.folder, model.cfg.get("model_kwargs", {})], default=str)
            groups.setdefault(key, []).append(model)
    for group in groups.values():
        folder = Path(str(group[0].facts.folder))
        model_kwargs = plain(group[0].cfg.get("model_kwargs", {}))
        if missing_files(folder, model_kwargs):
            continue
        try:
            why_not = check_checkpoint(folder, model_kwargs)
        except WdmoeError as error:
            plan.problems += [f"model {model.facts.abbr}: {error}" for model in group]
        else:
            if why_not is not None:
                plan.notes += [
                    f"model {model.facts.abbr}: its checkpoint's tensors are compared with the model's when it loads, "
                    f"not before: {why_not}"
                    for model in group
                ]
