"""What a config will do, before anything is loaded: `wdmoe plan`. No weights are read and no connection is opened."""

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import numpy as np
import psutil
import torch
import transformers
from mmengine.config import Config, ConfigDict
from opencompass.models import HuggingFaceBaseModel, HuggingFacewithChatTemplate
from opencompass.models.base import BaseModel
from opencompass.openicl.icl_inferencer import GenInferencer, PPLInferencer
from opencompass.openicl.icl_retriever import FixKRetriever, RandomRetriever, SlidingWindowRetriever, ZeroRetriever
from opencompass.registry import (
    ICL_EVALUATORS,
    ICL_INFERENCERS,
    ICL_PROMPT_TEMPLATES,
    ICL_RETRIEVERS,
    MODELS,
    PARTITIONERS,
    RUNNERS,
    TASKS,
    TEXT_POSTPROCESSORS,
)
from opencompass.runners import LocalRunner
from opencompass.utils import (
    build_dataset_from_cfg,
    build_model_from_cfg,
    dataset_abbr_from_cfg,
    model_abbr_from_cfg,
)
from opencompass.utils.run import get_config_from_arg
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.generation.utils import GENERATION_MODES_MAPPING

from ..._util.checkpoint_files import missing_files
from ..._util.checksummed_safetensors import MAX_BYTES
from ...channel.profile import ChannelProfile
from ...errors import WdmoeError, brief, show
from ...identity import Facts, compare_facts
from ...identity.facts import batch_enters_answers, rows_per_prompt, sentence
from ...routing.checkpoint import check_checkpoint, quiet
from ...trace.format import array_bytes, axis_sizes
from ...trace.recording import RecordingMetadata
from ..adapters import adapter_kind
from ..config_errors import check_encodable, read_config, read_dumped, temporary_folder
from ..evaluation_needs import check_caches, check_metric
from ..identify import asked_facts
from ..infer_task import WdmoeInferTask
from ..models import WdmoeMixin
from ..name_checks import name_problems
from ..returned import generate_tokens, returns_tokens
from ..sections import (
    ENDS_AT_FIRST,
    NO_TRACE,
    RUNNERS_FILE,
    ends_at_first,
    import_cause,
    part_of,
    registered,
    resolved,
    wrong_parts,
)
from ..settings import parse_settings
from ..summarizer import WdmoeSummarizer
from .batch_memory import batch_memory, batch_sentence
from .facts import DatasetFacts, ModelFacts, Plan, RunEstimate, grouped
from .generation import why_not_generated
from .offline import NotOnThisMachine, no_network
from .values import check_values
from .weights import local_folder, measure_weights

SAMPLED_ITEMS = 25  # of each dataset, evenly spaced, whose prompts are rendered
CHARACTERS_PER_TOKEN = 4  # our choice, where the tokenizer is not on this machine
HEADER_BYTES = 3390  # of a trace: array names, versions, policy, identity; its channel profile comes on top
RECORDING_HEADER_BYTES = 1880
SCORING = dict(
    evaluator=ICL_EVALUATORS, pred_postprocessor=TEXT_POSTPROCESSORS, dataset_postprocessor=TEXT_POSTPROCESSORS
)  # of an `eval_cfg`: where OpenCompass looks for a type
CHEAP_RETRIEVERS = (ZeroRetriever, FixKRetriever, RandomRetriever, SlidingWindowRetriever)


@dataclass
class _Model:
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


@dataclass
class _Dataset:
    """What the estimates need of a dataset: its config and the rendered prompts of the sampled items."""

    cfg: ConfigDict
    facts: DatasetFacts
    prompts: list[Any] = field(default_factory=list)


def make_plan(config: Path | str) -> Plan:
    """Look at everything a run of `config` needs; WdmoeError where the config itself cannot be read."""
    with no_network():
        cfg = _read_config(Path(config))
        plan = Plan(str(config))
        _check_sections(cfg, plan)
        runner = resolved(RUNNERS, part_of(cfg, "infer", "runner").get("type", LocalRunner))
        models = {model_abbr_from_cfg(one): _look_at_model(one, runner, plan) for one in cfg["models"]}
        found = {dataset_abbr_from_cfg(one): _look_at_dataset(one, plan) for one in cfg["datasets"]}
        _look_at_tensors(models, plan)
        plan.models, plan.datasets = [m.facts for m in models.values()], [d.facts for d in found.values()]
        _report_failures(plan)
        partitioners = [part_of(cfg, section, "partitioner").get("type") for section in ("infer", "eval")]
        kinds = [resolved(PARTITIONERS, partitioner) for partitioner in partitioners]
        kinds.append(resolved(TASKS, part_of(cfg, "eval", "runner", "task").get("type")))
        check_caches(kinds, plan)
        _look_at_comparisons(cfg, plan)
        _estimate_runs(cfg, models, found, plan)
        _look_at_trace_sizes(plan)
        _look_at_batches(plan)
    plan.problems, plan.notes = list(dict.fromkeys(plan.problems)), list(dict.fromkeys(plan.notes))
    if plan.runs:
        counts = " and ".join(dict.fromkeys(model.token_count for model in plan.models if model.token_count))
        plan.notes.append(
            f"tokens are estimates, from at most {SAMPLED_ITEMS} items of each dataset, by {counts}; generation is "
            "counted to its last allowed token, so its passes, tokens and traces are upper bounds"
        )
    return plan


# -- the config ----------------------------------------------------------------------------------------------------
def _read_config(path: Path) -> Config:
    """Read it as the `opencompass` command does: once from its file, and again from what that dumps for its tasks."""
    if not path.is_file():
        raise WdmoeError(f"{path}: no such config file")
    with temporary_folder() as folder:  # mmengine reads through one too
        cfg = read_config(path, lambda: Config.fromfile(path, format_python_code=False))
        for key in ("models", "datasets"):  # OpenCompass takes them for granted
            if not isinstance(cfg.get(key), list):
                raise WdmoeError(f"{path}: must have a list `{key}` that is not empty")
        check_encodable(path, cfg)
        cfg = read_config(path, lambda: get_config_from_arg(SimpleNamespace(config=str(path), accelerator=None)))
        cfg = read_dumped(path, cfg, folder)
    for key in ("models", "datasets"):
        if not (isinstance(cfg.get(key), list) and cfg[key]):
            raise WdmoeError(f"{path}: must have a list `{key}` that is not empty")
        _check_abbrs(path, key, cfg[key])
    check_values(path, cfg)
    return cfg


def _check_abbrs(path: Path, key: str, entries: list[Any]) -> None:
    abbr_of = model_abbr_from_cfg if key == "models" else dataset_abbr_from_cfg
    for number, one in enumerate(entries):
        try:
            named = isinstance(abbr_of(one), str)
        except Exception:  # OpenCompass makes an abbr from whatever else is there
            named = False
        if not named:
            raise WdmoeError(f"{path}: {key}[{number}] must be a dict with abbr='...', got {show(one)}")


def _check_sections(cfg: Config, plan: Plan) -> None:
    for kind, key in (("models", model_abbr_from_cfg), ("datasets", dataset_abbr_from_cfg)):
        abbrs = [key(one) for one in cfg[kind]]
        for abbr in sorted({one for one in abbrs if abbrs.count(one) > 1}):
            plan.problems.append(f"{kind}: the abbr {abbr} stands twice, so one would take the other's predictions")
    plan.problems += wrong_parts(cfg)
    if ends_at_first(cfg):
        plan.notes.append(f"eval: {ENDS_AT_FIRST}")
    pairs = [(model_abbr_from_cfg(m), dataset_abbr_from_cfg(d)) for m, d in _pairs(cfg)]
    plan.problems += name_problems(pairs, Path(cfg.get("work_dir") or "outputs/default") / "YYYYMMDD_hhmmss")
    task = resolved(TASKS, part_of(cfg, "infer", "runner", "task").get("type"))
    if not any("wdmoe" in model for model in cfg["models"]):
        plan.notes.append("no model has wdmoe=dict(...): no routing trace will be written")
        if not _is_subclass(task, WdmoeInferTask) and _needs_batch_encode_plus(cfg):
            plan.problems.append(
                "infer: OpenCompass's Hugging Face models call tokenizer.batch_encode_plus, which the installed "
                "transformers does not have; take infer from eval_configs/runners/wdmoe_local.py: its task supplies it"
            )
        return
    if cfg.get("infer") is None:
        plan.problems.append(NO_TRACE + RUNNERS_FILE)
    summarizer = resolved(TASKS, part_of(cfg, "summarizer").get("type"))
    if not _is_subclass(summarizer, WdmoeSummarizer):
        plan.problems.append("summarizer: must be dict(type=WdmoeSummarizer), or no latency is reported")


def _needs_batch_encode_plus(cfg: Config) -> bool:
    kinds = [resolved(MODELS, model.get("type")) for model in cfg["models"]]
    stock = any(
        _is_subclass(kind, HuggingFacewithChatTemplate) and not _is_subclass(kind, WdmoeMixin) for kind in kinds
    )
    return stock and not hasattr(PreTrainedTokenizerBase, "batch_encode_plus")


def _is_subclass(one: Any, base: type | tuple[type, ...]) -> bool:
    return isinstance(one, type) and issubclass(one, base)


# -- models --------------------------------------------------------------------------------------------------------
def _look_at_model(cfg: ConfigDict, runner: Any, plan: Plan) -> _Model:
    facts = ModelFacts(model_abbr_from_cfg(cfg), str(cfg.get("path") or ""))
    model = _Model(cfg, facts, rows_per_prompt=rows_per_prompt(cfg.get("generation_kwargs") or {}))
    kind = resolved(MODELS, cfg.get("type"))

    def problem(sentence: Any) -> None:
        plan.problems.append(f"model {facts.abbr}: {sentence}")

    if kind is None:
        problem(f"its type {cfg.get('type')} cannot be imported{import_cause(cfg.get('type'))}")
        return model
    if _is_subclass(kind, WdmoeMixin):
        _look_at_settings(model, kind, problem)
        if model.profile is not None:
            unusual = model.profile.unusual_values
            plan.notes += [f"unusual in channel profile {model.profile.name}: {sentence}" for sentence in unusual]
    elif "wdmoe" in cfg:
        problem(f"{kind.__name__} ignores wdmoe=dict(...); take a model class of wdmoe_opencompass.harness.models")
    if not _is_subclass(kind, HuggingFacewithChatTemplate):
        plan.notes.append(f"model {facts.abbr}: weights and memory of a {kind.__name__} are not checked")
        return model
    _look_at_weights(model, problem)
    _look_at_generation(model, problem, plan)
    _look_at_memory(model, runner, problem)
    if _is_subclass(kind, WdmoeMixin):
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


def _look_at_settings(model: _Model, kind: type[WdmoeMixin], problem: Callable) -> None:
    try:
        settings = parse_settings(model.cfg.get("wdmoe"))
        kind.check_settings(settings)
    except WdmoeError as error:
        problem(error)
        return
    model.facts.policy, model.facts.profile = settings.policy, settings.profile
    model.profile, model.records_routing = settings.load_profile(), settings.record_routing


def _look_at_weights(model: _Model, problem: Callable) -> None:
    path, model_kwargs = model.facts.path, _plain(model.cfg.get("model_kwargs", {}))
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


def _look_at_tensors(models: dict[str, _Model], plan: Plan) -> None:
    """Whether each checkpoint's tensors are its model's, once for all models that load it in the same way."""
    groups: dict[str, list[_Model]] = {}
    for model in models.values():
        if model.facts.folder is not None and model.facts.weights is not None:  # else something was said already
            key = json.dumps([model.facts.folder, model.cfg.get("model_kwargs", {})], default=str)
            groups.setdefault(key, []).append(model)
    for group in groups.values():
        folder = Path(str(group[0].facts.folder))
        model_kwargs = _plain(group[0].cfg.get("model_kwargs", {}))
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


def _look_at_generation(model: _Model, problem: Callable, plan: Plan) -> None:
    """Whether transformers can generate in this way, and OpenCompass knows the end of each of its rows."""
    try:
        with quiet():
            stored = _stored_generation_config(model)
            config = _generation_config(model, stored)
        mode = config.get_generation_mode()
    except (ValueError, TypeError) as error:
        problem(f"its generation_kwargs do not fit each other: {brief(error)}")
        return
    if "/" in GENERATION_MODES_MAPPING.get(mode, ""):
        problem(
            f"its generation_kwargs ask for {mode.value.replace('_', ' ')}, which transformers "
            f"{transformers.__version__} no longer has; take num_beams or do_sample"
        )
        return
    arguments = returns_tokens(_plain(model.cfg.get("generation_kwargs") or {}))
    weights = model.facts.weights
    why_not = weights and why_not_generated(stored, arguments, weights.vocabulary)
    if why_not is not None:
        problem(f"its generation_kwargs, or its generation_config.json, cannot be used: {why_not}")
        return
    rows = model.rows_per_prompt = rows_per_prompt(config.to_dict())
    if rows > 1 and model.cfg.get("stop_words"):
        plan.notes.append(
            f"model {model.facts.abbr}: OpenCompass ends a batch of n prompts when the first n of its {rows}n rows "
            "have had a stop word, so it may cut other answers short; generation_kwargs=dict(stop_strings=[...]) "
            "ends each row by itself"
        )


def _generation_config(model: _Model, stored: GenerationConfig) -> GenerationConfig:
    """Merged as OpenCompass and `generate` do it: the model's own without sampling, defaults, generation_kwargs.

    ValueError or TypeError where these do not fit each other.
    """
    config = GenerationConfig()
    config.update(**stored.to_dict(), defaults_only=True, allow_custom_entries=True)
    defaults: dict[str, Any] = getattr(config, "_get_default_generation_params", dict)()
    config.update(**defaults, defaults_only=True)
    config.update(**returns_tokens(_plain(model.cfg.get("generation_kwargs") or {})))
    for name in ("num_beams", "num_return_sequences"):
        if not isinstance(getattr(config, name), int):
            raise ValueError(f"{name} must be a whole number, got {getattr(config, name)!r}")
    return config


def _stored_generation_config(model: _Model) -> GenerationConfig:
    """What the model's folder asks for, without sampling, as OpenCompass loads it."""
    stored, folder = GenerationConfig(), model.facts.folder or ""
    subfolder = model.cfg.get("model_kwargs", {}).get("subfolder") or ""
    for name in ("generation_config.json", "config.json") if folder else ():
        try:
            stored = GenerationConfig.from_pretrained(folder, config_file_name=name, subfolder=subfolder)
            break
        except OSError:  # not there, or not to be read: the next one is taken
            continue
    stored.do_sample = False
    generate_tokens(stored)
    return stored


def _look_at_memory(model: _Model, runner: Any, problem: Callable) -> None:
    facts, num_gpus = model.facts, model.cfg.get("run_cfg", {}).get("num_gpus", 0)
    device_map = model.cfg.get("model_kwargs", {}).get("device_map", "auto")
    used = num_gpus if device_map in ("auto", "balanced", "balanced_low_0", "sequential") else min(num_gpus, 1)
    facts.gpus = 0 if device_map == "cpu" else used
    if not _is_subclass(runner, LocalRunner):
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


def _load_tokenizer(model: _Model, problem: Callable) -> None:
    """Build the model class itself without weights: it checks its arguments and loads its tokenizer."""
    try:
        model.instance = build_model_from_cfg(ConfigDict(model.cfg, tokenizer_only=True))
    except WdmoeError as error:
        if model.profile is not None:  # otherwise said already
            problem(error)
    except Exception as error:  # whatever a tokenizer's own loader raises
        if model.facts.folder is not None:
            problem(f"its tokenizer cannot be loaded: {brief(error)}")


def _look_at_comparisons(cfg: Config, plan: Plan) -> None:
    """Note which models will not be compared with vanilla, because more than the policy differs in the config."""
    routed = [model for model in cfg["models"] if isinstance(model.get("wdmoe"), dict) and model.get("path")]
    vanillas = [model for model in routed if model["wdmoe"].get("policy", "top_k") == "top_k"]
    for model in routed:
        mine = [v for v in vanillas if (v["path"], _profile_of(v)) == (model["path"], _profile_of(model))]
        found: dict[str, list[str]] = {}
        for dataset in cfg["datasets"] if mine else ():
            differences = {model_abbr_from_cfg(v): _differing(v, model, dataset) for v in mine}
            if all(differences.values()):
                nearest = min(differences, key=lambda abbr: len(differences[abbr]))
                what = f"{nearest}: {sentence(differences[nearest])}"
                found.setdefault(what, []).append(dataset_abbr_from_cfg(dataset))
        for what, names in found.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            plan.notes.append(
                f"model {model_abbr_from_cfg(model)}, {names[0]}{more}: more than the policy differs from {what}; "
                "unless both mean the same, no difference from vanilla will be shown (docs/identity.md)"
            )


def _profile_of(model_cfg: ConfigDict) -> Any:
    return model_cfg["wdmoe"].get("profile"), model_cfg["wdmoe"].get("testbed")


def _differing(vanilla: ConfigDict, model: ConfigDict, dataset: ConfigDict) -> dict[str, str]:
    """By the configs alone; the batch size is left out where it changes no answer."""
    first, second = (
        asked_facts(of, dataset) | dict(perplexity=of["wdmoe"].get("perplexity", "stock")) for of in (vanilla, model)
    )
    differences = compare_facts(first, second)
    if not _batch_size_counts(vanilla, first, second):
        differences.pop("batch_size", None)
    if first.get("method") == "ppl":
        no_effect = ("stop_words", "generation_kwargs", "mode")
        return {name: value for name, value in differences.items() if name.partition(".")[0] not in no_effect}
    return {name: value for name, value in differences.items() if name != "perplexity"}


def _batch_size_counts(model: ConfigDict, first: Facts, second: Facts) -> bool:
    """Whether another batch size gives other answers; first: the model's facts, second: those it is compared with."""
    if first.get("method") == "ppl":
        return first["perplexity"] == second["perplexity"] == "stock"
    kind = resolved(MODELS, model.get("type"))
    is_chat = _is_subclass(kind, HuggingFacewithChatTemplate) and not _is_subclass(kind, HuggingFaceBaseModel)
    has_stop_words = is_chat or bool(first.get("stop_words"))  # OpenCompass takes a chat model's end tokens for some
    return batch_enters_answers(first.get("generation_kwargs", {}), has_stop_words)


# -- datasets ------------------------------------------------------------------------------------------------------
def _look_at_dataset(cfg: ConfigDict, plan: Plan) -> _Dataset:
    abbr = dataset_abbr_from_cfg(cfg)
    facts = DatasetFacts(abbr, str(cfg.get("data_files") or cfg.get("path") or abbr))
    dataset = _Dataset(cfg, facts)
    try:
        facts.method = _method(cfg.infer_cfg.inferencer.type)
        built = build_dataset_from_cfg(cfg)
        facts.items = len(built.test)
        dataset.prompts = _sampled_prompts(dataset, built, plan)
    except (NotOnThisMachine, FileNotFoundError) as error:
        facts.missing = _missing_file(error)
        facts.failure = f"file missing: {facts.missing}"
    except Exception as error:  # whatever a loader or a template raises
        facts.failure = f"cannot be loaded: {brief(error)}"
    if facts.method is None and facts.failure is None:
        plan.notes.append(f"{facts.benchmark}: passes of a {cfg.infer_cfg.inferencer.type} are not estimated")
    _look_at_evaluator(cfg, facts.benchmark, plan)
    return dataset


def _method(inferencer: Any) -> str | None:
    methods = {PPLInferencer: "ppl", GenInferencer: "gen"}
    return next(
        (name for base, name in methods.items() if _is_subclass(resolved(ICL_INFERENCERS, inferencer), base)), None
    )


def _look_at_evaluator(cfg: ConfigDict, benchmark: str, plan: Plan) -> None:
    missing = list(_missing_scoring(cfg.get("eval_cfg") or {}))
    plan.problems += [f"{benchmark}: its answers cannot be scored: {sentence}" for sentence in missing]
    if missing:
        return
    try:
        evaluator = ICL_EVALUATORS.build(_plain(cfg.get("eval_cfg", {}).get("evaluator", {})))
    except ImportError as error:
        plan.problems.append(f"{benchmark}: its evaluator lacks a package: {brief(error)}")
    except Exception:  # an evaluator that needs more than its config, such as a judge model, is no business of ours
        return
    else:
        check_metric(evaluator, benchmark, plan)


def _missing_scoring(eval_cfg: ConfigDict) -> Iterator[str]:
    """A sentence for each part of an `eval_cfg` that is not there, or whose type is no class and no function."""
    if part_of(eval_cfg, "evaluator").get("type") is None:
        yield "eval_cfg must have an evaluator=dict(type=...)"
    for name, registry in SCORING.items():
        kind = part_of(eval_cfg, name).get("type")
        if kind is not None and not callable(registered(registry, kind)):
            yield f"eval_cfg.{name}.type is {show(kind)}, which cannot be imported{import_cause(kind)}"


def _missing_file(error: Exception) -> str:
    """The path that OpenCompass or a loader asked for; the error's own words where it names none."""
    named = getattr(error, "filename", None)
    if isinstance(error, NotOnThisMachine):
        named = str(error)
    elif named is None and (quoted := re.search(r"Unable to find '([^']+)'", str(error))):  # load_dataset's words
        named = quoted[1]
    return brief(error) if named is None else os.path.abspath(named)


def _sampled_prompts(dataset: _Dataset, built: Any, plan: Plan) -> list[Any]:
    """-> rendered prompts of the sampled items, for perplexity one per item and label, as the inferencer makes them."""
    infer_cfg, facts = dataset.cfg.infer_cfg, dataset.facts
    templates = {
        key: ICL_PROMPT_TEMPLATES.build(infer_cfg[key])
        for key in ("ice_template", "prompt_template")
        if key in infer_cfg
    }
    retriever_cfg = infer_cfg.retriever
    if not _is_subclass(resolved(ICL_RETRIEVERS, retriever_cfg.type), CHEAP_RETRIEVERS):
        plan.notes.append(f"{facts.benchmark}: its prompts are counted without their in-context examples")
        retriever_cfg = dict(type=ZeroRetriever)
    retriever = ICL_RETRIEVERS.build(dict(retriever_cfg, dataset=built))
    chosen = np.unique(np.linspace(0, facts.items - 1, min(facts.items, SAMPLED_ITEMS)).astype(int)).tolist()
    examples = retriever.retrieve()
    ice = {item: retriever.generate_ice(examples[item], templates.get("ice_template")) for item in chosen}
    if facts.method == "ppl":
        labels = infer_cfg.inferencer.get("labels") or retriever.get_labels(**templates)
        facts.labels = len(labels)
        return [
            retriever.generate_label_prompt(item, ice[item], label, **templates) for item in chosen for label in labels
        ]
    return [retriever.generate_prompt_for_generate_task(item, ice[item], **templates) for item in chosen]


def _report_failures(plan: Plan) -> None:
    """One sentence per benchmark: the subjects of one path usually fail together."""
    for benchmark, group in grouped(plan.datasets, lambda one: one.benchmark):
        failed = [one for one in group if one.failure]
        if not failed:
            continue
        more = f" (and {len(failed) - 1} more of the {len(group)} datasets of {benchmark})" if len(failed) > 1 else ""
        way_out = (
            "; put it there, or set COMPASS_DATA_CACHE to the folder that holds data/" if failed[0].missing else ""
        )
        plan.problems.append(f"dataset {failed[0].abbr}: {failed[0].failure}{more}{way_out}")


# -- estimates -----------------------------------------------------------------------------------------------------
def _estimate_runs(cfg: Config, models: dict[str, _Model], found: dict[str, _Dataset], plan: Plan) -> None:
    counted: dict[tuple[str, str], list[int]] = {}
    for model_cfg, dataset_cfg in _pairs(cfg):
        model, dataset = models[model_abbr_from_cfg(model_cfg)], found[dataset_abbr_from_cfg(dataset_cfg)]
        _estimate_run(model, dataset, counted, plan)


def _pairs(cfg: Config) -> list[tuple[Any, Any]]:
    """Every model's config with that of each of its datasets."""
    combinations = cfg.get("model_dataset_combinations") or [dict(models=cfg["models"], datasets=cfg["datasets"])]
    return [(model, dataset) for each in combinations for model in each["models"] for dataset in each["datasets"]]


def _estimate_run(model: _Model, dataset: _Dataset, counted: dict, plan: Plan) -> None:
    facts, method = dataset.facts, dataset.facts.method
    if method is None or facts.failure is not None:
        return

    def problem(sentence: str) -> None:
        plan.problems.append(f"model {model.facts.abbr}, {facts.benchmark}: {sentence}")

    inferencer = dataset.cfg.infer_cfg.inferencer
    batch_size = inferencer.get("batch_size", model.cfg.get("batch_size"))
    out_tokens = inferencer.get("max_out_len", model.cfg.get("max_out_len"))
    kind = resolved(MODELS, model.cfg.get("type"))
    if method == "ppl" and getattr(kind, "get_ppl", None) is BaseModel.get_ppl:
        return problem(f"{kind.__name__} gives no perplexity; take a base model class or a gen dataset")
    if method == "ppl" and batch_size is None:
        return problem("perplexity needs batch_size in the model's config")
    if method == "gen" and out_tokens is None:
        return problem("generation needs max_out_len in the dataset's inferencer or the model's config")

    key = (model.tokenizer_key(), facts.abbr)
    if key not in counted:
        counter = model.token_counter(method)
        try:
            counted[key] = [counter(prompt) for prompt in dataset.prompts] or [0]
        except Exception as error:  # a chat template is a program too
            return problem(f"its prompts cannot be tokenized: {brief(error)}")

    prompts = facts.items * (facts.labels if method == "ppl" else 1)
    rows = prompts * (model.rows_per_prompt if method == "gen" else 1)
    batches = facts.labels * ceil(facts.items / (batch_size or 1))
    decode = out_tokens - 1 if method == "gen" else 0  # the prefill gives the first token
    prompt_tokens = round(float(np.mean(counted[key])) * rows)
    _look_at_batch(model, dataset, batch_size or 1, max(counted[key]), decode)
    plan.runs.append(
        RunEstimate(
            model=model.facts.abbr,
            dataset=facts.abbr,
            benchmark=facts.benchmark,
            at_most=method == "gen",
            batches=batches,
            passes=batches * (1 + decode),
            prompt_tokens=prompt_tokens,
            tokens=prompt_tokens + rows * decode,
            trace_bytes=_trace_bytes(model, batches * (1 + decode), batches, prompts),
            recording_bytes=_recording_bytes(model, prompt_tokens + rows * decode, rows, batches),
        )
    )
    return None


def _look_at_batch(model: _Model, dataset: _Dataset, batch_size: int, prompt: int, new_tokens: int) -> None:
    """Note what the largest forward pass of this dataset needs where it is the model's largest yet."""
    weights, facts, method = model.facts.weights, model.facts, str(dataset.facts.method)
    if weights is None or weights.token is None:
        return
    beams = model.rows_per_prompt if method == "gen" else 1
    needed = batch_memory(dataset.facts.abbr, weights.token, method, batch_size, beams, prompt, new_tokens)
    gpus = max(facts.gpus, 1)
    if facts.batch is None or needed.bytes_per_gpu(0, gpus) > facts.batch.bytes_per_gpu(0, gpus):
        facts.batch = needed


def _look_at_batches(plan: Plan) -> None:
    """One note for all models that need the same."""
    found: dict[str, list[str]] = {}
    for model in plan.models:
        if model.batch is not None and model.weights is not None:
            sentence = batch_sentence(model.batch, model.weights.bytes, model.gpus, model.available_bytes)
            found.setdefault(sentence, []).append(model.abbr)
    for sentence, abbrs in found.items():
        more = f" and {len(abbrs) - 1} more" if len(abbrs) > 1 else ""
        plan.notes.append(f"model {abbrs[0]}{more}: {sentence}")


def _look_at_trace_sizes(plan: Plan) -> None:
    for run in plan.runs:
        if (run.trace_bytes or 0) > MAX_BYTES:
            sentence = (
                f"{run.model}, {run.dataset}: its trace takes {'at most ' if run.at_most else ''}"
                f"{run.trace_bytes} bytes, and a file must hold at most {MAX_BYTES}: split the dataset"
            )
            (plan.notes if run.at_most else plan.problems).append(sentence)
        if (run.recording_bytes or 0) > MAX_BYTES:
            plan.notes.append(
                f"{run.model}, {run.dataset}: the recording of its router takes at most {run.recording_bytes} bytes, "
                f"and a file must hold at most {MAX_BYTES}: split the dataset, or record fewer items (test_range)"
            )


def _trace_bytes(model: _Model, passes: int, batches: int, prompts: int) -> int | None:
    weights, profile = model.facts.weights, model.profile
    if weights is None or profile is None:
        return None
    sizes = axis_sizes(weights.layers, len(profile.devices), weights.experts)
    return HEADER_BYTES + len(json.dumps(profile.model_dump_json())) + array_bytes(sizes, passes, batches, prompts)


def _recording_bytes(model: _Model, tokens: int, sequences: int, batches: int) -> int | None:
    """At most: whether the router is a softmax, whose probabilities are recorded too, shows only when it runs."""
    weights = model.facts.weights
    if weights is None or not model.records_routing or not weights.layers:
        return None
    metadata = RecordingMetadata(
        source="run",
        model=model.facts.abbr,
        dataset="",
        layers=weights.layers,
        num_experts=weights.experts,
        top_k=weights.top_k,
        hidden_size=1,
        ffn_size=1,
        has_weights=True,
        has_probabilities=True,
    )
    return RECORDING_HEADER_BYTES + tokens * metadata.token_bytes() + 12 * (sequences + batches)


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, ConfigDict) else value
