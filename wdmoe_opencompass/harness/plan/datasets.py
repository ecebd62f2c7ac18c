"""The datasets of a plan: loaded by OpenCompass's own loaders, a sample of their prompts rendered."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mmengine.config import Config, ConfigDict
from opencompass.openicl.icl_retriever import FixKRetriever, RandomRetriever, SlidingWindowRetriever, ZeroRetriever
from opencompass.registry import ICL_EVALUATORS, ICL_PROMPT_TEMPLATES, ICL_RETRIEVERS, TEXT_POSTPROCESSORS
from opencompass.utils import build_dataset_from_cfg, dataset_abbr_from_cfg

from ...errors import brief, show
from ..evaluation_needs import check_metric
from ..identify import method_of
from ..registered import find_registered, is_subclass, resolve
from ..sections import import_cause, part_of
from .config import plain
from .facts import DatasetFacts, Plan, group_by
from .offline import NotOnThisMachine

SAMPLED_ITEMS = 25  # per dataset, evenly spaced: their prompts are rendered
SCORING = dict(
    evaluator=ICL_EVALUATORS, pred_postprocessor=TEXT_POSTPROCESSORS, dataset_postprocessor=TEXT_POSTPROCESSORS
)  # of an `eval_cfg`: where OpenCompass looks for a type
CHEAP_RETRIEVERS = (ZeroRetriever, FixKRetriever, RandomRetriever, SlidingWindowRetriever)


@dataclass
class PlannedDataset:
    """What the estimates need of a dataset: its config and the rendered prompts of the sampled items."""

    cfg: ConfigDict
    facts: DatasetFacts
    prompts: list[Any] = field(default_factory=list)


def check_datasets(cfg: Config, plan: Plan) -> dict[str, PlannedDataset]:
    """-> every dataset by its abbr; its facts, and what is wrong with its evaluator, enter the plan."""
    datasets = {dataset_abbr_from_cfg(entry): _check_dataset(entry, plan) for entry in cfg["datasets"]}
    plan.datasets = [dataset.facts for dataset in datasets.values()]
    return datasets


def _check_dataset(cfg: ConfigDict, plan: Plan) -> PlannedDataset:
    abbr = dataset_abbr_from_cfg(cfg)
    facts = DatasetFacts(abbr, str(cfg.get("data_files") or cfg.get("path") or abbr))
    dataset = PlannedDataset(cfg, facts)
    try:
        facts.method = method_of(cfg.infer_cfg.inferencer.type)
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
    _check_evaluator(cfg, facts.benchmark, plan)
    return dataset


def _check_evaluator(cfg: ConfigDict, benchmark: str, plan: Plan) -> None:
    missing = list(_missing_scoring(cfg.get("eval_cfg") or {}))
    plan.problems += [f"{benchmark}: its answers cannot be scored: {sentence}" for sentence in missing]
    if missing:
        return
    try:
        evaluator = ICL_EVALUATORS.build(plain(cfg.get("eval_cfg", {}).get("evaluator", {})))
    except ImportError as error:
        plan.problems.append(f"{benchmark}: its evaluator lacks a package: {brief(error)}")
    except Exception:  # an evaluator that needs more than its config, such as a judge model, is not checked
        return
    else:
        check_metric(evaluator, benchmark, plan)


def _missing_scoring(eval_cfg: ConfigDict) -> Iterator[str]:
    """A sentence for each part of an `eval_cfg` that is missing or has a type that is no class and no function."""
    if part_of(eval_cfg, "evaluator").get("type") is None:
        yield "eval_cfg must have an evaluator=dict(type=...)"
    for name, registry in SCORING.items():
        kind = part_of(eval_cfg, name).get("type")
        if kind is not None and not callable(find_registered(registry, kind)):
            yield f"eval_cfg.{name}.type is {show(kind)}, which cannot be imported{import_cause(kind)}"


def _missing_file(error: Exception) -> str:
    """The path that OpenCompass or a loader asked for; the error's own words where it names none."""
    named = getattr(error, "filename", None)
    if isinstance(error, NotOnThisMachine):
        named = str(error)
    elif named is None and (quoted := re.search(r"Unable to find '([^']+)'", str(error))):  # load_dataset's words
        named = quoted[1]
    return brief(error) if named is None else os.path.abspath(named)


def _sampled_prompts(dataset: PlannedDataset, built: Any, plan: Plan) -> list[Any]:
    """-> rendered prompts of the sampled items, for perplexity one per item and label, as the inferencer makes them."""
    infer_cfg, facts = dataset.cfg.infer_cfg, dataset.facts
    templates = {
        key: ICL_PROMPT_TEMPLATES.build(infer_cfg[key])
        for key in ("ice_template", "prompt_template")
        if key in infer_cfg
    }
    retriever_cfg = infer_cfg.retriever
    if not is_subclass(resolve(ICL_RETRIEVERS, retriever_cfg.type), CHEAP_RETRIEVERS):
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


def report_failures(plan: Plan) -> None:
    """One sentence per benchmark: the subjects of one path usually fail together."""
    for benchmark, group in group_by(plan.datasets, lambda dataset: dataset.benchmark):
        failed = [dataset for dataset in group if dataset.failure]
        if not failed:
            continue
        more = f" (and {len(failed) - 1} more of the {len(group)} datasets of {benchmark})" if len(failed) > 1 else ""
        way_out = (
            "; put it there, or set COMPASS_DATA_CACHE to the folder that holds data/" if failed[0].missing else ""
        )
        plan.problems.append(f"dataset {failed[0].abbr}: {failed[0].failure}{more}{way_out}")
