"""What answers depend on besides policy and channel, read from OpenCompass's configs and from a loaded model.

Which facts there are, and when two are the same, says the package `identity`; here they are gathered.
"""

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from opencompass.openicl.icl_inferencer import GenInferencer, PPLInferencer
from opencompass.registry import ICL_INFERENCERS
from transformers.dynamic_module_utils import get_relative_import_files

from ..identity import Facts, adapter_digest, arguments_of, weights_digest
from ..identity.facts import (
    DEFAULT_CONFIG,
    DEFAULT_MODEL_KWARGS,
    HARMLESS_CONFIG,
    HARMLESS_MODEL_KWARGS,
    batch_enters_answers,
    generation_facts,
    plain,
)
from ..run.recovery import LABEL
from .plan.weights import local_folder
from .precision import precision_name
from .registered import is_subclass, resolve

# Arguments of an inferencer that change no answer, or that other facts hold.
HARMLESS_INFERENCER = (
    *("type", "model", "batch_size", "max_out_len", "min_out_len", "max_seq_len", "stopping_criteria", "save_every"),
    *("output_json_filepath", "output_json_filename", "dump_timer", "dump_res_length", "dump_only_message_path"),
)
# Facts of a model that enter the answers of one method alone; all others enter both.
OF_PERPLEXITY = ("perplexity",)
OF_GENERATION = (
    *("generation_kwargs", "seed", "stop_words", "mode", "chat_template", "fastchat_template", "meta_template"),
)
OF_PADDING = ("pad_token_id", "padding_side")
HANDLED_MODEL_KWARGS = (
    *("torch_dtype", "dtype", "attn_implementation", "experts_implementation", "quantization_config"),
    *("revision", "code_revision", *DEFAULT_MODEL_KWARGS),  # the weights' content, and the class with its code
)
TRANSFORMERS, REMOTE_CODE = "transformers", "transformers_modules"  # packages of models' classes
EXACT_DTYPE = "float32"  # in which other batches round, and change no routing (docs/perplexity.md)


def method_of(inferencer: Any) -> str | None:
    """-> ppl or gen; None for an inferencer that does something else."""
    kind = resolve(ICL_INFERENCERS, inferencer)
    names = ((PPLInferencer, "ppl"), (GenInferencer, "gen"))
    return next((name for base, name in names if is_subclass(kind, base)), None)


def inferencer_facts(model_cfg: Mapping[str, Any], dataset_cfg: Mapping[str, Any]) -> Facts:
    """-> what a dataset's inferencer will ask for; the model's config holds its defaults."""
    inferencer = dict((dataset_cfg.get("infer_cfg") or {}).get("inferencer") or {})
    method = method_of(inferencer.get("type"))
    facts = {f"inferencer.{key}": value for key, value in inferencer.items() if key not in HARMLESS_INFERENCER}
    if method != "ppl":
        for key in ("max_out_len", "min_out_len"):
            facts[key] = inferencer[key] if inferencer.get(key) is not None else model_cfg.get(key)
        facts["stop_words"] = sorted(set(inferencer.get("stopping_criteria") or []))
    facts["batch_size"] = inferencer.get("batch_size", model_cfg.get("batch_size"))
    facts["method"] = method or str(plain(inferencer.get("type")))
    return plain({key: value for key, value in facts.items() if value not in (None, [])})


def asked_facts(model_cfg: Mapping[str, Any], dataset_cfg: Mapping[str, Any]) -> Facts:
    """-> what configs alone say of a model and a dataset, as it is written there."""
    of_model, of_dataset = arguments_of(model_cfg), inferencer_facts(model_cfg, dataset_cfg)
    words = {*of_model.get("stop_words", []), *of_dataset.pop("stop_words", [])}
    return of_model | of_dataset | (dict(stop_words=sorted(words)) if words else {})


def model_facts(model: Any, model_kwargs: Mapping[str, Any], peft_path: str | None, peft_kwargs: Any) -> Facts:
    """-> what a loaded model is: to be called before a policy is attached, which changes its experts' implementation.

    model: an OpenCompass model object with its tokenizer and weights loaded
    """
    loaded: Any = model.model
    config = loaded.config
    facts: Facts = dict(
        weights=_weights(model.path, model_kwargs),
        model_class=_model_class(type(loaded)),
        model_code=_model_code(type(loaded)),
        config={
            key: value
            for key, value in config.to_dict().items()
            if key not in HARMLESS_CONFIG and value not in (None, DEFAULT_CONFIG.get(key))
        },
        dtype=precision_name(loaded),
        attn_implementation=getattr(config, "_attn_implementation", None),
        experts_implementation=getattr(config, "_experts_implementation", None),
        tokenizer=tokenizer_digest(model.tokenizer),
        truncation_side=model.tokenizer.truncation_side,
        padding_side=model.tokenizer.padding_side,
        pad_token_id=model.tokenizer.pad_token_id,
    )
    ignored = {*HARMLESS_MODEL_KWARGS, *HANDLED_MODEL_KWARGS, *config.to_dict()}  # the config holds its own
    facts["model_kwargs"] = {key: value for key, value in model_kwargs.items() if key not in ignored}
    if peft_path is not None:
        facts |= dict(peft_path=_adapter(peft_path), peft_kwargs=dict(peft_kwargs or {}, is_trainable=None))
    return plain(facts)


def answer_facts(model: Any, of_model: Facts, asked: Facts, perplexity: str) -> Facts:
    """-> every fact that the answers to one dataset depend on.

    model: the OpenCompass model object after all arguments have taken effect; of_model: what `model_facts` gave;
    asked: what `inferencer_facts` gives. Facts without effect on the dataset's method are left out, and so is the batch
    size where it changes no answer: in float32 that is all but OpenCompass's own perplexity, and generation that
    depends on its batch (`batch_enters_answers`).
    """
    facts = dict(of_model) | _arguments_in_effect(model, asked) | dict(perplexity=perplexity)
    words = {*getattr(model, "stop_words", []), *asked.get("stop_words", [])}
    facts |= dict(asked, stop_words=sorted(words))
    method, is_exact = asked.get("method"), perplexity == "exact"
    if method == "ppl":
        for key in (*OF_GENERATION, *(OF_PADDING if is_exact else ())):
            facts.pop(key, None)
    elif method == "gen":
        for key in OF_PERPLEXITY:
            facts.pop(key, None)
    is_of_batch = batch_enters_answers(facts.get("generation_kwargs", {}), bool(words))
    rounds_only = str(of_model.get("dtype")) == EXACT_DTYPE and not is_of_batch
    if (method == "ppl" and is_exact) or (method == "gen" and rounds_only):
        facts.pop("batch_size", None)
    return plain({key: value for key, value in facts.items() if value not in (None, [], {}, "")})


def _arguments_in_effect(model: Any, asked: Facts) -> Facts:
    """What an OpenCompass model object took from its arguments, defaults included.

    asked: arguments of a dataset, which replace some of them
    """
    kind = type(model)
    facts: Facts = dict(type=f"{kind.__module__}.{kind.__qualname__}", max_seq_len=model.max_seq_len)
    for key in ("mode", "drop_middle", "fastchat_template"):
        facts[key] = getattr(model, key, None) or None
    facts["mode"] = None if facts["mode"] == "none" else facts["mode"]
    if hasattr(model, "fastchat_template"):  # of the class with a chat template
        facts["meta_template"] = getattr(model.template_parser, "meta_template", None)
        if not model.fastchat_template:
            facts["chat_template"] = _digest(getattr(model.tokenizer, "chat_template", None))
    config = model.model.generation_config
    defaults: dict[str, Any] = getattr(config, "_get_default_generation_params", dict)()
    facts["generation_kwargs"] = generation_facts(defaults, config.to_dict(), model.generation_kwargs, asked=asked)
    if facts["generation_kwargs"].get("do_sample"):
        facts["seed"] = torch.initial_seed()
    return facts


def _weights(path: str, model_kwargs: Mapping[str, Any]) -> str:
    """-> digest of the tensors; the path itself where no files are found that hold them."""
    folder = local_folder(path, model_kwargs.get("revision"))
    return (folder and weights_digest(folder, model_kwargs=model_kwargs)) or str(path)


def _model_class(kind: type) -> str:
    """-> name of a loaded model's class; of code in a model's folder without that folder, which may lie anywhere."""
    package, _, module = kind.__module__.partition(".")
    where = {TRANSFORMERS: TRANSFORMERS, REMOTE_CODE: module.rpartition(".")[2]}.get(package, kind.__module__)
    return f"{where}.{kind.__qualname__}"


def _model_code(kind: type) -> str | None:
    """-> digest of the file of a model's class and of those that it imports from its folder.

    None for a class of transformers (its version is known) and for one that is in no file.
    """
    if kind.__module__.partition(".")[0] == TRANSFORMERS:
        return None
    try:
        file = inspect.getfile(kind)
        imported = get_relative_import_files(file) if kind.__module__.startswith(f"{REMOTE_CODE}.") else []
        contents = [(Path(name).name, Path(name).read_text(encoding="utf-8")) for name in sorted({file, *imported})]
    except (OSError, TypeError, ValueError):
        return None
    return _digest(contents)


def _adapter(peft_path: str) -> str:
    folder = local_folder(peft_path)
    return (folder and adapter_digest(folder)) or str(peft_path)


def tokenizer_digest(tokenizer: Any) -> str:
    """-> digest of how text becomes tokens and back, whatever folder it came from; padding and templates apart."""
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items() if key != "pad_token"}
    told: dict[str, Any] = dict(special=special, cleans_up=getattr(tokenizer, "clean_up_tokenization_spaces", None))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and hasattr(backend, "to_str"):
        rules = json.loads(backend.to_str())
        for state in ("padding", "truncation"):  # of the last call
            rules.pop(state, None)
        told["rules"] = rules
    else:
        told |= dict(kind=type(tokenizer).__qualname__, vocabulary=_vocabulary(tokenizer))
    return str(_digest(json.dumps(told, sort_keys=True, default=str)))


def _vocabulary(tokenizer: Any) -> Any:
    try:
        return tokenizer.get_vocab()
    except NotImplementedError:  # some tokenizers of their own do not tell it
        return str(tokenizer.name_or_path)


def _digest(text: Any) -> str | None:
    if text is None:
        return None
    whole = text if isinstance(text, str) else json.dumps(text, sort_keys=True, default=str)
    return f"sha256:{hashlib.sha256(whole.encode(errors='surrogatepass')).hexdigest()}"


ASKED_KEYS = ("origin_prompt", "gold", "in-context examples")
ASKED_OF_LABEL = ("prompt", "testing input")


def prompts_digest(parts: Sequence[Mapping[str, Any]]) -> str:
    """-> digest of all prompts and gold answers of a dataset, in order; equal however it was split.

    parts: content of its predictions files. Prompts hold the items, their templates and in-context examples, so two
    datasets are the same that ask the same, wherever they were read from.
    """
    digest = hashlib.sha256()
    for part in parts:
        for answer in part.values():
            asked = {key: answer[key] for key in ASKED_KEYS if key in answer}
            asked |= {
                key: [value.get(name) for name in ASKED_OF_LABEL]
                for key, value in answer.items()
                if key.startswith(LABEL) and isinstance(value, Mapping)
            }
            digest.update(json.dumps(asked, sort_keys=True, default=str).encode() + b"\n")
    return f"sha256:{digest.hexdigest()}"


def scoring_facts(model_cfg: Mapping[str, Any], dataset_cfg: Mapping[str, Any]) -> Facts:
    """-> how answers are scored: the dataset's eval_cfg, and the postprocessor that a model brings."""
    facts = dict(evaluator=dataset_cfg.get("eval_cfg") or None, pred_postprocessor=model_cfg.get("pred_postprocessor"))
    return {key: value for key, value in plain(_by_class(facts)).items() if value}


def _by_class(value: Any) -> Any:
    """The same with classes and functions instead of their import paths: one class may have several."""
    if isinstance(value, Mapping):
        return {key: _import_type(part) if key == "type" else _by_class(part) for key, part in value.items()}
    return [_by_class(part) for part in value] if isinstance(value, list | tuple) else value


def _import_type(named: Any) -> Any:
    module, _, name = str(named).rpartition(".")
    try:
        return getattr(import_module(module), name) if isinstance(named, str) and module else named
    except (ImportError, AttributeError):
        return named
