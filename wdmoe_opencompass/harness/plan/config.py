"""The config of a plan: read as a run will read it, with its values and sections checked: OpenCompass checks none."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mmengine.config import Config, ConfigDict
from opencompass.models import HuggingFacewithChatTemplate
from opencompass.registry import MODELS, TASKS
from opencompass.utils import dataset_abbr_from_cfg, model_abbr_from_cfg
from opencompass.utils.run import get_config_from_arg
from transformers import PreTrainedTokenizerBase

from ...errors import WdmoeError, show
from ..config_errors import check_encodable, read_config, read_dumped, temporary_folder
from ..infer_task import WdmoeInferTask
from ..models import WdmoeMixin
from ..name_checks import name_problems
from ..registered import is_subclass, resolve
from ..sections import ENDS_AT_FIRST, NO_TRACE, RUNNERS_FILE, ends_at_first, part_of, wrong_count, wrong_parts
from ..summarizer import WdmoeSummarizer
from .facts import Plan

COUNTS = ("batch_size", "max_out_len", "max_seq_len")
DICTS_OF_MODEL = ("model_kwargs", "tokenizer_kwargs", "run_cfg", "generation_kwargs")
DICTS_OF_DATASET = ("reader_cfg", "infer_cfg", "eval_cfg")
SECTIONS = (
    ("infer",), ("infer", "partitioner"), ("infer", "runner"), ("infer", "runner", "task"),
    ("eval",), ("eval", "partitioner"), ("eval", "runner"), ("eval", "runner", "task"),
    ("summarizer",),
)  # fmt: skip


def read_plan_config(path: Path) -> Config:
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
    for wrong in _wrong_values(cfg):
        raise WdmoeError(f"{path}: {wrong}")
    return cfg


def _check_abbrs(path: Path, key: str, entries: list[Any]) -> None:
    abbr_of = model_abbr_from_cfg if key == "models" else dataset_abbr_from_cfg
    for number, entry in enumerate(entries):
        try:
            named = isinstance(abbr_of(entry), str)
        except Exception:  # OpenCompass makes an abbr from whatever else is there
            named = False
        if not named:
            raise WdmoeError(f"{path}: {key}[{number}] must be a dict with abbr='...', got {show(entry)}")


def _wrong_values(cfg: Any) -> Iterator[str]:
    """A sentence for each value of a wrong kind, or out of its range, whatever the run."""
    for keys in SECTIONS:
        yield from _wrong_dict(".".join(keys), part_of(cfg, *keys[:-1]).get(keys[-1]))
    for number, model in enumerate(cfg["models"]):
        key = f"models[{number}]"
        for name in DICTS_OF_MODEL:
            yield from _wrong_dict(f"{key}.{name}", model.get(name))
        yield from _wrong_counts(key, model)
        if not isinstance(model.get("path"), str | None):
            yield f"{key}.path must be a text, got {show(model['path'])}"
        yield from wrong_count(f"{key}.run_cfg.num_gpus", part_of(model, "run_cfg").get("num_gpus"), 0)
        words = model.get("stop_words")
        if words is not None and not (isinstance(words, list | tuple) and all(isinstance(word, str) for word in words)):
            yield f"{key}.stop_words must be a list of texts, got {show(words)}"
    for number, dataset in enumerate(cfg["datasets"]):
        for name in DICTS_OF_DATASET:
            yield from _wrong_dict(f"datasets[{number}].{name}", dataset.get(name))
        inferencer = part_of(dataset, "infer_cfg").get("inferencer")
        yield from _wrong_dict(f"datasets[{number}].infer_cfg.inferencer", inferencer)
        yield from _wrong_counts(f"datasets[{number}].infer_cfg.inferencer", inferencer or {})


def _wrong_dict(key: str, value: Any) -> Iterator[str]:
    if value is not None and not isinstance(value, dict):
        yield f"{key} must be a dict, got {show(value)}"


def _wrong_counts(key: str, values: dict[str, Any]) -> Iterator[str]:
    for name in COUNTS:
        yield from wrong_count(f"{key}.{name}", values.get(name), 1)


def check_sections(cfg: Config, plan: Plan) -> None:
    """What is wrong with the config as a whole: its names, its sections, and whether they fit its models."""
    for kind, abbr_of in (("models", model_abbr_from_cfg), ("datasets", dataset_abbr_from_cfg)):
        abbrs = [abbr_of(entry) for entry in cfg[kind]]
        for abbr in sorted({abbr for abbr in abbrs if abbrs.count(abbr) > 1}):
            plan.problems.append(f"{kind}: the abbr {abbr} occurs twice, so one would take the other's predictions")
    plan.problems += wrong_parts(cfg)
    if ends_at_first(cfg):
        plan.notes.append(f"eval: {ENDS_AT_FIRST}")
    pairs = [(model_abbr_from_cfg(m), dataset_abbr_from_cfg(d)) for m, d in pairs_of(cfg)]
    plan.problems += name_problems(pairs, Path(cfg.get("work_dir") or "outputs/default") / "YYYYMMDD_hhmmss")
    task = resolve(TASKS, part_of(cfg, "infer", "runner", "task").get("type"))
    if not any("wdmoe" in model for model in cfg["models"]):
        plan.notes.append("no model has wdmoe=dict(...): no routing trace will be written")
        if not is_subclass(task, WdmoeInferTask) and _needs_batch_encode_plus(cfg):
            plan.problems.append(
                "infer: OpenCompass's Hugging Face models call tokenizer.batch_encode_plus, which the installed "
                "transformers does not have; take infer from eval_configs/runners/wdmoe_local.py: its task supplies it"
            )
        return
    if cfg.get("infer") is None:
        plan.problems.append(NO_TRACE + RUNNERS_FILE)
    summarizer = resolve(TASKS, part_of(cfg, "summarizer").get("type"))
    if not is_subclass(summarizer, WdmoeSummarizer):
        plan.problems.append("summarizer: must be dict(type=WdmoeSummarizer), or no latency is reported")


def _needs_batch_encode_plus(cfg: Config) -> bool:
    kinds = [resolve(MODELS, model.get("type")) for model in cfg["models"]]
    stock = any(is_subclass(kind, HuggingFacewithChatTemplate) and not is_subclass(kind, WdmoeMixin) for kind in kinds)
    return stock and not hasattr(PreTrainedTokenizerBase, "batch_encode_plus")


def pairs_of(cfg: Config) -> list[tuple[Any, Any]]:
    """Every model's config with that of each of its datasets."""
    combinations = cfg.get("model_dataset_combinations") or [dict(models=cfg["models"], datasets=cfg["datasets"])]
    return [(model, dataset) for part in combinations for model in part["models"] for dataset in part["datasets"]]


def plain(value: Any) -> Any:
    """A dict of a config as a plain one; other values as they are."""
    return value.to_dict() if isinstance(value, ConfigDict) else value
