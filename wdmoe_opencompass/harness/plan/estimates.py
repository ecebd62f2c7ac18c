"""Passes, tokens, memory and file sizes of every run of a plan."""

import json
from math import ceil

import numpy as np
from mmengine.config import Config
from opencompass.models.base import BaseModel
from opencompass.registry import MODELS
from opencompass.utils import dataset_abbr_from_cfg, model_abbr_from_cfg

from ..._util.checksummed_safetensors import MAX_BYTES
from ...errors import brief
from ...trace.format import array_bytes, axis_sizes
from ...trace.recording import RecordingMetadata
from ..registered import resolve
from .batch_memory import batch_memory, batch_sentence
from .config import pairs_of
from .datasets import PlannedDataset
from .facts import Plan, RunEstimate
from .models import PlannedModel

HEADER_BYTES = 3390  # of a trace: array names, versions, policy, identity; its channel profile comes on top
RECORDING_HEADER_BYTES = 1880


def estimate_runs(
    cfg: Config, models: dict[str, PlannedModel], datasets: dict[str, PlannedDataset], plan: Plan
) -> None:
    """Add an estimate of every model on each of its datasets, or the reason why there is none."""
    counted: dict[tuple[str, str], list[int]] = {}
    for model_cfg, dataset_cfg in pairs_of(cfg):
        model, dataset = models[model_abbr_from_cfg(model_cfg)], datasets[dataset_abbr_from_cfg(dataset_cfg)]
        _estimate_run(model, dataset, counted, plan)


def _estimate_run(model: PlannedModel, dataset: PlannedDataset, counted: dict, plan: Plan) -> None:
    facts, method = dataset.facts, dataset.facts.method
    if method is None or facts.failure is not None:
        return

    def problem(sentence: str) -> None:
        plan.problems.append(f"model {model.facts.abbr}, {facts.benchmark}: {sentence}")

    inferencer = dataset.cfg.infer_cfg.inferencer
    batch_size = inferencer.get("batch_size", model.cfg.get("batch_size"))
    out_tokens = inferencer.get("max_out_len", model.cfg.get("max_out_len"))
    kind = resolve(MODELS, model.cfg.get("type"))
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
    _measure_batch(model, dataset, batch_size or 1, max(counted[key]), decode)
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


def _measure_batch(model: PlannedModel, dataset: PlannedDataset, batch_size: int, prompt: int, new_tokens: int) -> None:
    """Note what the largest forward pass of this dataset needs where it is the model's largest yet."""
    weights, facts, method = model.facts.weights, model.facts, str(dataset.facts.method)
    if weights is None or weights.token is None:
        return
    beams = model.rows_per_prompt if method == "gen" else 1
    needed = batch_memory(dataset.facts.abbr, weights.token, method, batch_size, beams, prompt, new_tokens)
    gpus = max(facts.gpus, 1)
    if facts.batch is None or needed.bytes_per_gpu(0, gpus) > facts.batch.bytes_per_gpu(0, gpus):
        facts.batch = needed


def note_batches(plan: Plan) -> None:
    """One note for all models that need the same."""
    found: dict[str, list[str]] = {}
    for model in plan.models:
        if model.batch is not None and model.weights is not None:
            sentence = batch_sentence(model.batch, model.weights.bytes, model.gpus, model.available_bytes)
            found.setdefault(sentence, []).append(model.abbr)
    for sentence, abbrs in found.items():
        more = f" and {len(abbrs) - 1} more" if len(abbrs) > 1 else ""
        plan.notes.append(f"model {abbrs[0]}{more}: {sentence}")


def check_trace_sizes(plan: Plan) -> None:
    """Name traces and recordings that no file could hold."""
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


def _trace_bytes(model: PlannedModel, passes: int, batches: int, prompts: int) -> int | None:
    weights, profile = model.facts.weights, model.profile
    if weights is None or profile is None:
        return None
    sizes = axis_sizes(weights.layers, len(profile.devices), weights.experts)
    return HEADER_BYTES + len(json.dumps(profile.model_dump_json())) + array_bytes(sizes, passes, batches, prompts)


def _recording_bytes(model: PlannedModel, tokens: int, sequences: int, batches: int) -> int | None:
    """An upper bound: only a running router shows whether it is a softmax, with probabilities to record."""
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
