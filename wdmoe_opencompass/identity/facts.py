"""The facts that answers depend on besides selection policy and channel, how they are compared, and how they are said.

A fact is called as the argument that sets it. Its value is what took effect, so an argument that spells out a default
is equal to none. What is a file (weights, adapter, tokenizer) is the digest of its content.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

Facts = dict[str, Any]

DATASET_FACTS = ("prompts", "evaluator", "pred_postprocessor")  # what was asked, and how answers were scored
# Arguments of a model's config that change no answer, or that other facts hold: where it runs and how it is called.
HARMLESS_ARGUMENTS = frozenset(
    (
        *("abbr", "summarizer_abbr", "path", "run_cfg", "batch_size", "batch_padding", "tokenizer_only"),
        *("wdmoe", "pred_postprocessor", "max_out_len", "min_out_len", "peft_path", "tokenizer_path"),
    )
)
HARMLESS_MODEL_KWARGS = frozenset(
    (
        *("device_map", "max_memory", "low_cpu_mem_usage", "offload_folder", "offload_state_dict", "offload_buffers"),
        *(
            "cache_dir",
            "local_files_only",
            "token",
            "force_download",
            "proxies",
        ),
    )
)
# What arguments that choose files and code mean by default.
DEFAULT_MODEL_KWARGS = dict(trust_remote_code=False, use_safetensors=True, variant=None, subfolder="")
# Keys of a model's config.json that say where it comes from, not what it computes. Its class is a fact of its own.
HARMLESS_CONFIG = frozenset(
    (
        *("_name_or_path", "transformers_version", "architectures", "auto_map", "dtype", "torch_dtype"),
        *("output_router_logits", "router_aux_loss_coef", "initializer_range", "attention_dropout", "return_dict"),
        *("output_attentions", "output_hidden_states", "id2label", "label2id", "chunk_size_feed_forward"),
        *("is_encoder_decoder", "pad_token_id", "bos_token_id", "eos_token_id"),
    )
)
DEFAULT_CONFIG = dict(use_cache=True)  # without a cache every pass loads the devices with the whole sequence again
HARMLESS_GENERATION = frozenset(
    (
        *("transformers_version", "_from_model_config", "pad_token_id", "bos_token_id"),
        *("output_scores", "output_logits", "output_attentions", "output_hidden_states", "return_dict_in_generate"),
    )
)
OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
# argument of OpenCompass that replaces, where it is set -> what transformers takes, the first only without the second
OF_LENGTH = dict(max_out_len=("max_length", "max_new_tokens"), min_out_len=("min_length", "min_new_tokens"))
WITHOUT_EFFECT = dict(min_new_tokens=0, use_cache=True)  # where transformers names no default
OF_BEAMS = ("length_penalty", "early_stopping", "num_beam_groups", "diversity_penalty")

MAX_SHOWN = 60  # characters of a value in a sentence
DIGEST_SHOWN = 12  # characters of a digest in a sentence
MAX_NAMED = 8  # differences in a sentence
MAX_DESCRIBED = 60  # facts in a note
MISSING = object()


def arguments_of(model_cfg: Mapping[str, Any]) -> Facts:
    """-> the arguments of a model's config that can change answers, as they are written; unset ones are left out."""
    model_kwargs = {
        key: value
        for key, value in dict(model_cfg.get("model_kwargs") or {}).items()
        if key not in HARMLESS_MODEL_KWARGS and value not in (None, DEFAULT_MODEL_KWARGS.get(key))
    }
    named = {key: value for key, value in model_cfg.items() if key not in HARMLESS_ARGUMENTS}
    named |= dict(model_kwargs=model_kwargs, stop_words=sorted(map(str, model_cfg.get("stop_words") or [])))
    named |= {key: model_cfg.get(key) for key in ("peft_path", "tokenizer_path")}
    if named["tokenizer_path"] == model_cfg.get("path"):
        del named["tokenizer_path"]
    facts = plain({key: value for key, value in named.items() if value not in (None, "", [], {}, ())})
    if "type" in facts:  # configs name a class by one import path or another
        facts["type"] = str(facts["type"]).rpartition(".")[2]
    return facts


def generation_facts(
    defaults: Mapping[str, Any], *given: Mapping[str, Any], asked: Mapping[str, Any] | None = None
) -> Facts:
    """-> what generation was really told, without what has no effect.

    defaults: of transformers; given: the model's generation config, then what replaces parts of it, in that order;
    asked: arguments of OpenCompass, some of which replace lengths of tokens (OF_LENGTH)
    """
    told = dict(defaults)
    for arguments in given:
        told |= {key: value for key, value in arguments.items() if value is not None}
    ignored = set(HARMLESS_GENERATION)
    if not told.get("do_sample"):
        ignored |= set(OF_SAMPLING)
    if told.get("num_beams", 1) == 1:
        ignored |= set(OF_BEAMS)
    for own, (length, new_tokens) in OF_LENGTH.items():
        if (asked or {}).get(own) is not None:
            ignored |= {length, new_tokens}
        elif told.get(new_tokens) is not None:
            ignored.add(length)
    without_effect = WITHOUT_EFFECT | dict(defaults)
    return plain(
        {
            key: value
            for key, value in told.items()
            if key not in ignored and value is not None and value != without_effect.get(key)
        }
    )


def rows_per_prompt(generation: Mapping[str, Any]) -> int:
    """Sequences that generation forwards for one prompt, by its arguments."""
    asked = (generation.get(name) for name in ("num_beams", "num_return_sequences"))
    return max((rows for rows in asked if isinstance(rows, int)), default=1)


def batch_enters_answers(generation: Mapping[str, Any], has_stop_words: bool) -> bool:
    """Whether a prompt's answers depend on its batch in every precision.

    With several rows per prompt OpenCompass ends a batch of n prompts by the stop words of its first n rows. Where
    answers are sampled, the batch says which draw a row gets.
    """
    return bool(generation.get("do_sample")) or (has_stop_words and rows_per_prompt(generation) > 1)


def plain(value: Any) -> Any:
    """The same in JSON, keys in order; what JSON cannot hold as its text, a class or function by its import path."""
    found = json.loads(json.dumps(value, default=_text, skipkeys=True), parse_constant=str)
    return json.loads(json.dumps(found, sort_keys=True))  # only now is every key a text


def _text(value: Any) -> str:
    named = getattr(value, "__qualname__", None)
    return f"{value.__module__}.{named}" if named else str(value)


def key_of(facts: Mapping[str, Any]) -> str:
    """-> a digest that is equal for equal facts."""
    return hashlib.sha256(json.dumps(plain(dict(facts)), sort_keys=True).encode()).hexdigest()


def compare_facts(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, str]:
    """-> name of every fact that differs -> both values in words; empty if all are the same.

    A fact within a fact is named by its path: `generation_kwargs.num_beams`.
    """
    return {
        name: f"{_show(a)} against {_show(b)}"
        for name, a, b in _pairs(plain(dict(first)), plain(dict(second)))
        if not _are_equal(a, b)
    }


def sentence(differences: Mapping[str, str]) -> str:
    """-> all of `compare_facts` in one line."""
    named = [f"{_printable(name)} {values}" for name, values in differences.items()]
    more = f" and {len(named) - MAX_NAMED} more" if len(named) > MAX_NAMED else ""
    return ", ".join(named[:MAX_NAMED]) + more


def describe(facts: Mapping[str, Any]) -> str:
    """-> facts in one line: `max_seq_len=512, weights=sha256:0123456789ab`; what is none is left out."""
    flat = _flat(plain(dict(facts)))
    named = [f"{_printable(name)}={_show(value)}" for name, value in flat.items() if value not in (None, [], {}, "")]
    more = f" and {len(named) - MAX_DESCRIBED} more" if len(named) > MAX_DESCRIBED else ""
    return ", ".join(named[:MAX_DESCRIBED]) + more


def _pairs(first: Facts, second: Facts, within: str = "") -> list[tuple[str, Any, Any]]:
    found = []
    for key in dict.fromkeys((*first, *second)):
        a, b = first.get(key, MISSING), second.get(key, MISSING)
        inner = [value for value in (a, b) if isinstance(value, dict)]
        if inner and all(isinstance(value, dict) or value in (MISSING, None) for value in (a, b)):
            of_a, of_b = (value if isinstance(value, dict) else {} for value in (a, b))
            found += _pairs(of_a, of_b, f"{within}{key}.")
        else:
            found.append((f"{within}{key}", a, b))
    return found


def _are_equal(a: Any, b: Any) -> bool:
    a, b = (None if value is MISSING else value for value in (a, b))
    return a == b and (type(a) is type(b) or (_is_number(a) and _is_number(b)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _flat(facts: Facts, within: str = "") -> Facts:
    flat: Facts = {}
    for key, value in facts.items():
        flat |= _flat(value, f"{within}{key}.") if isinstance(value, dict) and value else {f"{within}{key}": value}
    return flat


def _show(value: Any) -> str:
    if value is MISSING or value is None:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    kind, colon, digest = text.partition(":")
    if colon and kind.startswith("sha256") and len(digest) == 64:
        return f"{kind}:{digest[:DIGEST_SHOWN]}"
    return _printable(text)


def _printable(text: str) -> str:
    """An untrusted text as one line of a table's notes."""
    text = text if text.isprintable() else json.dumps(text)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 20]}... ({len(text)} characters)"
