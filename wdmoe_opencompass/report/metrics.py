"""Whether the accuracies of one column are of one metric: what is not is named, and no difference of it is shown."""

from collections.abc import Sequence

from .formats import by_reason
from .runs import ModelRun, datasets_of

MAX_NAMED = 3  # datasets of a group; more of one metric are counted


def share_metrics(run: ModelRun, other: ModelRun, benchmark: str) -> bool:
    """Whether two models' accuracies on a benchmark are of the same metrics; also where one of them has none."""
    first, second = (model.metrics_of(benchmark) for model in (run, other))
    return not first or not second or first == second


def metric_notes(runs: Sequence[ModelRun]) -> list[str]:
    """One line per dataset or group with accuracies of several metrics: which model has which."""
    groups = dict.fromkeys(name for run in runs for name in run.groups)
    lines = []
    for benchmark in dict.fromkeys((*datasets_of(runs), *groups)):
        models = by_reason((_describe(run, benchmark), run.abbr) for run in runs if run.metrics_of(benchmark))
        is_mixed = any(len(set(run.metrics_of(benchmark))) > 1 for run in runs)
        if len(models) > 1 or is_mixed:
            told = "; ".join(f"{metric} of {names}" for metric, names in models.items())
            ending = ": no difference between these is shown" if len(models) > 1 else ""
            lines.append(f"not one metric on {benchmark}: {told}{ending}")
    return lines


def _describe(run: ModelRun, benchmark: str) -> str:
    """A model's metric on a benchmark; if a group's datasets differ in it, which dataset has which."""
    of_metric: dict[str, list[str]] = {}
    for dataset, metric in zip(run.datasets_of(benchmark), run.metrics_of(benchmark), strict=True):
        of_metric.setdefault(metric, []).append(dataset)
    if len(of_metric) == 1:
        return next(iter(of_metric))
    return f"the mean of {' and '.join(f'{metric} ({_named(names)})' for metric, names in of_metric.items())}"


def _named(datasets: Sequence[str]) -> str:
    return ", ".join(datasets) if len(datasets) <= MAX_NAMED else f"{len(datasets)} datasets"
