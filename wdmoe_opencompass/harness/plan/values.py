"""Values of a config that nothing can use, whatever the run: found before they are, for OpenCompass looks at none."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import WdmoeError, shown
from ..sections import part_of, wrong_count

COUNTS = ("batch_size", "max_out_len", "max_seq_len")
DICTS_OF_MODEL = ("model_kwargs", "tokenizer_kwargs", "run_cfg", "generation_kwargs")
DICTS_OF_DATASET = ("reader_cfg", "infer_cfg", "eval_cfg")
SECTIONS = (
    ("infer",), ("infer", "partitioner"), ("infer", "runner"), ("infer", "runner", "task"),
    ("eval",), ("eval", "partitioner"), ("eval", "runner"), ("eval", "runner", "task"),
    ("summarizer",),
)  # fmt: skip


def check_values(path: Path, cfg: Any) -> None:
    """WdmoeError, naming file, key and value, where a value is of a wrong kind or out of its range."""
    wrong = next(_wrong_values(cfg), None)
    if wrong is not None:
        raise WdmoeError(f"{path}: {wrong}")


def _wrong_values(cfg: Any) -> Iterator[str]:
    for keys in SECTIONS:
        yield from _wrong_dict(".".join(keys), part_of(cfg, *keys[:-1]).get(keys[-1]))
    for number, model in enumerate(cfg["models"]):
        key = f"models[{number}]"
        for name in DICTS_OF_MODEL:
            yield from _wrong_dict(f"{key}.{name}", model.get(name))
        yield from _wrong_counts(key, model)
        if not isinstance(model.get("path"), str | None):
            yield f"{key}.path must be a text, got {shown(model['path'])}"
        yield from wrong_count(f"{key}.run_cfg.num_gpus", part_of(model, "run_cfg").get("num_gpus"), 0)
        words = model.get("stop_words")
        if words is not None and not (isinstance(words, list | tuple) and all(isinstance(word, str) for word in words)):
            yield f"{key}.stop_words must be a list of texts, got {shown(words)}"
    for number, dataset in enumerate(cfg["datasets"]):
        for name in DICTS_OF_DATASET:
            yield from _wrong_dict(f"datasets[{number}].{name}", dataset.get(name))
        inferencer = part_of(dataset, "infer_cfg").get("inferencer")
        yield from _wrong_dict(f"datasets[{number}].infer_cfg.inferencer", inferencer)
        yield from _wrong_counts(f"datasets[{number}].infer_cfg.inferencer", inferencer or {})


def _wrong_dict(key: str, value: Any) -> Iterator[str]:
    if value is not None and not isinstance(value, dict):
        yield f"{key} must be a dict, got {shown(value)}"


def _wrong_counts(key: str, values: dict[str, Any]) -> Iterator[str]:
    for name in COUNTS:
        yield from wrong_count(f"{key}.{name}", values.get(name), 1)
