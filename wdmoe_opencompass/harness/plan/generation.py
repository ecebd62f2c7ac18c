"""Whether a model's generation settings can be used: transformers is asked, with a tiny model instead."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
import transformers
from mmengine.config import ConfigDict
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation.utils import GENERATION_MODES_MAPPING

from ...errors import brief
from ...identity.facts import rows_per_prompt
from ...routing.checkpoint import quiet
from ..returned import generate_tokens, returns_tokens
from .config import plain
from .facts import ModelFacts, Plan

NEEDS_TOKENIZER = ("stop_strings",)
NEW_TOKENS = 2


def check_generation(cfg: ConfigDict, facts: ModelFacts, problem: Callable, plan: Plan) -> int | None:
    """-> rows that a model generates of each prompt; None, after a call of `problem`, if it cannot generate like this.

    A note where OpenCompass would not know the end of each of its rows.
    """
    arguments = returns_tokens(plain(cfg.get("generation_kwargs") or {}))
    try:
        with quiet():
            stored = _stored_generation_config(cfg, facts)
            config = _generation_config(arguments, stored)
        mode = config.get_generation_mode()
    except (ValueError, TypeError) as error:
        problem(f"its generation_kwargs do not fit each other: {brief(error)}")
        return None
    if "/" in GENERATION_MODES_MAPPING.get(mode, ""):
        problem(
            f"its generation_kwargs ask for {mode.value.replace('_', ' ')}, which transformers "
            f"{transformers.__version__} no longer has; take num_beams or do_sample"
        )
        return None
    why_not = facts.weights and why_not_generated(stored, arguments, facts.weights.vocabulary)
    if why_not is not None:
        problem(f"its generation_kwargs, or its generation_config.json, cannot be used: {why_not}")
        return None
    rows = rows_per_prompt(config.to_dict())
    if rows > 1 and cfg.get("stop_words"):
        plan.notes.append(
            f"model {facts.abbr}: OpenCompass ends a batch of n prompts when the first n of its {rows}n rows "
            "have had a stop word, so it may cut other answers short; generation_kwargs=dict(stop_strings=[...]) "
            "ends each row by itself"
        )
    return rows


def _generation_config(arguments: dict[str, Any], stored: GenerationConfig) -> GenerationConfig:
    """Merged as OpenCompass and `generate` do it: the model's own without sampling, defaults, generation_kwargs.

    ValueError or TypeError where these do not fit each other.
    """
    config = GenerationConfig()
    config.update(**stored.to_dict(), defaults_only=True, allow_custom_entries=True)
    defaults: dict[str, Any] = getattr(config, "_get_default_generation_params", dict)()
    config.update(**defaults, defaults_only=True)
    config.update(**arguments)
    for name in ("num_beams", "num_return_sequences"):
        if not isinstance(getattr(config, name), int):
            raise ValueError(f"{name} must be a whole number, got {getattr(config, name)!r}")
    return config


def _stored_generation_config(cfg: ConfigDict, facts: ModelFacts) -> GenerationConfig:
    """What the model's folder asks for, without sampling, as OpenCompass loads it."""
    stored, folder = GenerationConfig(), facts.folder or ""
    subfolder = cfg.get("model_kwargs", {}).get("subfolder") or ""
    for name in ("generation_config.json", "config.json") if folder else ():
        try:
            stored = GenerationConfig.from_pretrained(folder, config_file_name=name, subfolder=subfolder)
            break
        except OSError:  # not there, or not to be read: the next one is taken
            continue
    stored.do_sample = False
    generate_tokens(stored)
    return stored


def why_not_generated(stored: GenerationConfig, arguments: dict[str, Any], vocabulary: int) -> str | None:
    """-> why `generate` refuses these settings, in transformers' words; None where it takes them.

    stored:     what the model's folder asks for
    arguments:  a config's generation_kwargs
    vocabulary: tokens that the model knows
    """
    size: dict[str, Any] = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    taken = {name: value for name, value in arguments.items() if name not in NEEDS_TOKENIZER}
    prompts = torch.ones((2, 3), dtype=torch.long)
    try:
        with quiet(), warnings.catch_warnings(action="ignore"), torch.random.fork_rng(devices=[]), torch.no_grad():
            model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=max(vocabulary, 8), **size))
            model.generation_config = stored
            model.generate(
                prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=NEW_TOKENS, pad_token_id=0, **taken
            )
    except Exception as error:  # each setting has a check of its own, which may raise anything
        return brief(error)
    return None
