"""Whether a model's generation settings can be used: transformers is asked to, with a tiny model in its place."""

import warnings
from typing import Any

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from ...errors import brief
from ...routing.checkpoint import quiet

NEEDS_TOKENIZER = ("stop_strings",)
NEW_TOKENS = 2


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
