"""What a model and its `generate` return: logits and tokens alone, whatever a config.json asks for on top.

OpenCompass takes the first thing that a model returns for its logits, and what `generate` returns for token ids.
"""

from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from ..errors import ModelError

# Neither changes logits or tokens, only what comes with them.
ON_TOP = ("output_router_logits", "output_hidden_states", "output_attentions")
GENERATED_ON_TOP = ("output_attentions", "output_hidden_states", "output_logits", "output_scores")


def return_logits(path: str, model: Any) -> None:
    """Let a loaded model return its logits first and by name, and its `generate` token ids.

    Raises ModelError where its config makes it an encoder and decoder: its prompts would go elsewhere.
    """
    check_is_decoder(path, model)
    for config in _configs(model):
        config.return_dict = True
        for name in ON_TOP:
            if getattr(config, name, False):
                setattr(config, name, False)
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        generate_tokens(generation)


def check_is_decoder(path: str | Path, model: Any) -> None:
    """ModelError where a model's config makes it an encoder and decoder: its prompts would go elsewhere."""
    if any(config.is_encoder_decoder for config in _configs(model)):
        raise ModelError(f"{path}: is_encoder_decoder in its config.json must be false, got true")


def generate_tokens(generation: Any) -> None:
    """Let a generation config ask for token ids alone."""
    generation.return_dict_in_generate = False
    for name in GENERATED_ON_TOP:
        setattr(generation, name, False)


def returns_tokens(generation_kwargs: dict[str, Any]) -> dict[str, Any]:
    """-> arguments of `generate` without those that add to the token ids which it returns."""
    return {
        name: value
        for name, value in generation_kwargs.items()
        if name not in (*GENERATED_ON_TOP, "return_dict_in_generate", "output_router_logits")
    }


def _configs(model: Any) -> list[PretrainedConfig]:
    """-> every config in a model, once."""
    found = (getattr(module, "config", None) for module in model.modules())
    return list({id(config): config for config in found if isinstance(config, PretrainedConfig)}.values())
