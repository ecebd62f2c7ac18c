"""What a plan tells, as plain data, and as the rows of its tables."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .batch_memory import BatchMemory
from .weights import WeightsFacts


@dataclass
class DatasetFacts:
    """A dataset as OpenCompass's own loader finds it; `benchmark` is its config's path, shared by many subjects.

    method: ppl or gen; None if the inferencer's passes are not estimated. missing: the file the loader asked for.
    failure: why it cannot be used; None where it can.
    """

    abbr: str
    benchmark: str
    items: int = 0
    method: str | None = None
    labels: int = 1
    missing: str | None = None
    failure: str | None = None


@dataclass
class ModelFacts:
    """A model as its config and the files on this machine tell; `memory` names what its weights must fit in.

    gpus: over how many its layers are spread, 0 for the host. batch: what its largest forward pass needs.
    """

    abbr: str
    path: str
    policy: str | None = None
    profile: str | None = None
    folder: str | None = None
    weights: WeightsFacts | None = None
    memory: str = ""
    available_bytes: int | None = None
    gpus: int = 0
    batch: BatchMemory | None = None
    token_count: str = ""


@dataclass
class RunEstimate:
    """One model on one dataset. `at_most`: generation may stop earlier; for perplexity the passes are exact.

    recording_bytes: of the recording of the router, at most; None where none is asked for, or the model is unknown
    """

    model: str
    dataset: str
    benchmark: str
    at_most: bool
    batches: int
    passes: int
    prompt_tokens: int
    tokens: int
    trace_bytes: int | None
    recording_bytes: int | None = None


@dataclass
class Plan:
    """Everything `wdmoe plan` tells; `problems` are sentences, each a reason why the run could not work."""

    config: str
    models: list[ModelFacts] = field(default_factory=list)
    datasets: list[DatasetFacts] = field(default_factory=list)
    runs: list[RunEstimate] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def model_rows(self) -> list[dict[str, Any]]:
        """One row per model; parameters in 1e9, memory in 1e9 bytes."""
        return [_model_row(model) for model in self.models]

    def dataset_rows(self) -> list[dict[str, Any]]:
        """One row per benchmark: the subjects that share a path together."""
        rows = []
        for benchmark, group in group_by(self.datasets, lambda dataset: dataset.benchmark):
            found = [dataset.items for dataset in group if dataset.failure is None]
            methods = "/".join(dict.fromkeys(dataset.method or "other" for dataset in group))
            rows.append(
                dict(benchmark=benchmark, datasets=len(group), found=len(found), items=sum(found), method=methods)
            )
        return rows

    def run_rows(self) -> list[dict[str, Any]]:
        """One row per model and benchmark, and the sum of all."""
        rows = []
        for (model, benchmark), group in group_by(self.runs, lambda run: (run.model, run.benchmark)):
            rows.append(dict(model=model, benchmark=benchmark, **_sums(group)))
        return [*rows, dict(model="all", benchmark="all", **_sums(self.runs))] if rows else []


def group_by(items: list, key: Callable) -> Iterator[tuple[Any, list]]:
    """-> (value of `key`, its items) in the order of first appearance."""
    for value in dict.fromkeys(map(key, items)):
        yield value, [item for item in items if key(item) == value]


def _model_row(model: ModelFacts) -> dict[str, Any]:
    columns = ("parameters 1e9", "active 1e9", "MoE layers", "experts", "weights GB")
    cells: tuple = ("-",) * len(columns)
    if (weights := model.weights) is not None:
        size = f"{weights.bytes / 1e9:.3g} {weights.dtype}"
        moe = (weights.layers, f"{weights.top_k} of {weights.experts}")
        cells = (weights.parameters / 1e9, weights.active_parameters / 1e9, *moe, size)
    named = dict(model=model.abbr, policy=model.policy or "-", profile=model.profile or "-")
    free = "-" if model.available_bytes is None else f"{model.available_bytes / 1e9:.3g}"
    return named | dict(zip(columns, cells, strict=True)) | {"free GB": free, "on": model.memory or "-"}


def _sums(runs: list[RunEstimate]) -> dict[str, Any]:
    traces = [run.trace_bytes for run in runs if run.trace_bytes is not None]
    recordings = [run.recording_bytes for run in runs if run.recording_bytes is not None]
    sums = {
        "passes": sum(run.passes for run in runs),
        "passes are": "at most" if any(run.at_most for run in runs) else "exact",
        "prompt tokens": sum(run.prompt_tokens for run in runs),
        "tokens": sum(run.tokens for run in runs),
        "trace MB": sum(traces) / 1e6 if len(traces) == len(runs) else "-",
    }
    return sums | ({"recording MB, at most": sum(recordings) / 1e6} if recordings else {})
