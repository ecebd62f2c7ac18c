"""The models of a run: their configs and results, and which of them may be compared."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .._util.file_names import dataset_file, files_below, whole_of
from ..errors import TraceError
from ..identity import Facts, compare_facts
from ..identity.facts import sentence
from ..trace.format import SEALED_SUFFIX, RoutingTrace, read_trace
from ..trace.times import TIMES_SUFFIX, MeasuredTimes, check_belongs, read_times
from .formats import by_reason
from .items import ItemResults
from .statistics import Interval, accuracy_interval, wilson_interval
from .summary_files import DATASETS_FILE, GROUPS_FILE, read_summary

DENSE = "dense"  # the policy column of a model without experts


@dataclass
class ModelRun:
    """One model of a run: its config and its results.

    base:       path of the weights as the config names it, and the channel profile's hash
    identities: dataset -> every fact that its answers depend on besides policy and profile; if empty, those of its
                traces count
    asked:      dataset -> the same according to the configs alone, for traces without these facts
    scored:     dataset -> what was asked and how answers were scored, which no trace records; part of its identity
    accuracies: dataset -> (metric, value in percent)
    traces:     dataset -> its routing traces, several where OpenCompass split the dataset
    missing:    dataset -> why there is no accuracy or no trace
    groups:     benchmark -> its datasets in the run (MMLU's subjects); other benchmarks are one dataset
    group_size: benchmark -> number of datasets of the complete benchmark
    items:      dataset -> which of its items were answered right
    no_items:   dataset with an accuracy -> why its items are unknown; its accuracy then has no interval
    sources:    dataset -> files its traces and times were read from, by path in the run folder -> SHA-256 of each
    trace_names: dataset -> its name, or those of its parts: the files that the traces were read from
    own_batch_sizes: dataset -> the batch size that its own inferencer names in place of the model's
    batch_size: as the config names it; couples_tokens: whether what a token keeps depends on the others of its pass
    perplexity: how texts were scored, `stock` or `exact`
    """

    abbr: str
    policy: str
    base: tuple[str, str]
    accuracies: dict[str, tuple[str, float]] = field(default_factory=dict)
    traces: dict[str, list[RoutingTrace]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=dict)
    group_size: dict[str, int] = field(default_factory=dict)
    items: dict[str, ItemResults] = field(default_factory=dict)
    no_items: dict[str, str] = field(default_factory=dict)
    sources: dict[str, dict[str, str]] = field(default_factory=dict)
    trace_names: dict[str, list[str]] = field(default_factory=dict)
    own_batch_sizes: dict[str, int] = field(default_factory=dict)
    batch_size: int | None = None
    couples_tokens: bool = False
    perplexity: str = "stock"
    identities: dict[str, Facts] = field(default_factory=dict)
    asked: dict[str, Facts] = field(default_factory=dict)
    scored: dict[str, Facts] = field(default_factory=dict)

    @property
    def is_vanilla(self) -> bool:
        """Whether the model routes as it was trained to."""
        return self.policy == "top_k"

    def datasets_of(self, benchmark: str) -> list[str]:
        """The datasets that a benchmark is made of."""
        return self.groups.get(benchmark, [benchmark])

    def traces_of(self, benchmark: str) -> list[RoutingTrace]:
        """All traces of a benchmark; none if one of its datasets has none."""
        found = [self.traces.get(dataset, []) for dataset in self.datasets_of(benchmark)]
        return [trace for traces in found for trace in traces] if all(found) else []

    def accuracy_of(self, benchmark: str) -> tuple[str, float] | None:
        """(metric, percent) of a benchmark, a group's as the plain mean over its datasets; None if one has none.

        If a group's datasets differ in metric, its metric names them all.
        """
        datasets = self.datasets_of(benchmark)
        if not all(dataset in self.accuracies for dataset in datasets):
            return None
        percents = [self.accuracies[dataset][1] for dataset in datasets]
        return " and ".join(dict.fromkeys(self.metrics_of(benchmark))), sum(percents) / len(percents)

    def metrics_of(self, benchmark: str) -> list[str]:
        """The metric of each dataset of a benchmark; none if one of them has no accuracy."""
        datasets = self.datasets_of(benchmark)
        return [self.accuracies[d][0] for d in datasets] if all(d in self.accuracies for d in datasets) else []

    def items_of(self, benchmark: str) -> list[ItemResults]:
        """Right or wrong items of a benchmark, dataset by dataset; none if they are unknown for one."""
        datasets = self.datasets_of(benchmark)
        return [self.items[dataset] for dataset in datasets] if all(d in self.items for d in datasets) else []

    def accuracy_interval_of(self, benchmark: str) -> Interval | None:
        """95 % interval of a benchmark's accuracy, in percent: Wilson's, of a group by a stratified bootstrap."""
        rights = [items.right for items in self.items_of(benchmark)]
        if not rights:
            return None
        alone = len(rights) == 1
        found = wilson_interval(int(rights[0].sum()), len(rights[0])) if alone else accuracy_interval(rights)
        return found and Interval(100 * found.low, 100 * found.high)

    @property
    def all_traces(self) -> list[RoutingTrace]:
        """The traces of all datasets."""
        return [trace for traces in self.traces.values() for trace in traces]

    def identity_of(self, dataset: str) -> Facts:
        """Every fact that its answers to a dataset are known to depend on; empty if its traces are too old."""
        traced = next((trace.metadata.identity for trace in self.traces.get(dataset, [])), {})
        facts = self.identities.get(dataset, traced)
        return facts | self.scored.get(dataset, {}) if facts else {}

    def asked_of(self, dataset: str) -> Facts:
        """The configs' arguments, with the path of the weights; used where `identity_of` is empty."""
        dtypes = {trace.metadata.dtype for trace in self.traces.get(dataset, [])}
        known = dict(weights=self.base[0], perplexity=self.perplexity, dtype=" and ".join(sorted(dtypes)) or None)
        return self.asked.get(dataset, {}) | self.scored.get(dataset, {}) | known


def what_differs(run: ModelRun, other: ModelRun, benchmark: str) -> dict[str, str]:
    """-> in words, every fact except policy and profile in which two models' answers to a benchmark differ.

    Only if it is empty may a difference between them be attributed to the policy. If one model's facts are unknown,
    both are compared by their configs.
    """
    found: dict[str, str] = {}
    for dataset in dict.fromkeys((*run.datasets_of(benchmark), *other.datasets_of(benchmark))):
        facts = [model.identity_of(dataset) for model in (other, run)]
        if not all(facts):
            facts = [model.asked_of(dataset) for model in (other, run)]
        found = compare_facts(*facts) | found
    return found


def vanilla_of(run: ModelRun, runs: Sequence[ModelRun], benchmark: str) -> ModelRun | None:
    """The run that `run` is compared with: the first that routes by top-k and is the same in everything else."""
    alike = (other for other in _vanillas(run, runs, benchmark) if not what_differs(run, other, benchmark))
    return next(alike, None)


def _vanillas(run: ModelRun, runs: Sequence[ModelRun], benchmark: str) -> list[ModelRun]:
    """The vanilla models under a model's profile that have measured something on a benchmark."""
    others = [other for other in runs if other.is_vanilla and other.base[1] == run.base[1] and run.policy != DENSE]
    return [other for other in others if other.traces_of(benchmark) or other.accuracy_of(benchmark)]


def why_no_vanilla(run: ModelRun, runs: Sequence[ModelRun], benchmark: str) -> str | None:
    """Why `run` is compared with no vanilla model under its profile; None if it is, or if there is no vanilla."""
    others = _vanillas(run, runs, benchmark)
    if not others or vanilla_of(run, runs, benchmark) is not None:
        return None
    nearest = min(others, key=lambda other: len(what_differs(run, other, benchmark)))
    differences = sentence(what_differs(run, nearest, benchmark))
    return f"{nearest.abbr} and {run.abbr} differ in more than the policy: {differences}"


def not_compared_notes(runs: Sequence[ModelRun], benchmarks: Sequence[str]) -> list[str]:
    """One line for every model that differs from vanilla in more than its policy: what differs, and where."""
    lines = []
    for run in runs:
        measured = [name for name in benchmarks if run.accuracy_of(name) or run.traces_of(name)]
        found = by_reason((why_no_vanilla(run, runs, name), name) for name in measured)
        lines += [f"not compared on {where}: {why}" for why, where in found.items()]
    return lines


def benchmarks_of(datasets: Sequence[str], groups: dict[str, list[str]]) -> list[str]:
    """Columns of the tables: the datasets in order, groups in place of the first dataset of each."""
    columns = ([name for name, members in groups.items() if dataset in members] or [dataset] for dataset in datasets)
    return list(dict.fromkeys(name for names in columns for name in names))


def datasets_of(runs: Sequence[ModelRun]) -> list[str]:
    """Every dataset of the runs, answered or not."""
    return list(dict.fromkeys(name for run in runs for name in (*run.accuracies, *run.traces, *run.missing)))


def missing_cells(runs: Sequence[ModelRun]) -> list[str]:
    """One line for every model and dataset, or group of them, without accuracy or trace, with the reason."""
    lines = []
    for run in runs:
        lines += [f"{run.abbr}, {dataset}: {why}" for dataset, why in run.missing.items()]
        for name, members in run.groups.items():
            missing = [dataset for dataset in members if dataset in run.missing]
            if missing:
                lines.append(f"{run.abbr}, {name}: no mean without {', '.join(missing)}")
    return lines


def runs_from_traces(run_folder: Path) -> list[ModelRun]:
    """The models of a run folder with their sealed traces, without accuracies.

    TraceError if there is no trace, or if a model's traces are of different weights or channel profiles; WdmoeError
    if the groups or datasets in its summary are damaged.
    """
    groups = read_summary(run_folder, GROUPS_FILE, dict, {})
    datasets = read_summary(run_folder, DATASETS_FILE, list, [])
    runs: dict[str, ModelRun] = {}
    for path in files_below(run_folder / "predictions", SEALED_SUFFIX):
        trace = read_trace(path)
        metadata = trace.metadata
        base = metadata.weights, metadata.profile_hash
        run = runs.setdefault(metadata.model, ModelRun(metadata.model, metadata.routing, base))
        run.perplexity, run.batch_size = metadata.perplexity, metadata.batch_size
        if run.base != base:
            raise TraceError(f"{path}: recorded with other weights or another channel profile than {run.abbr}'s first")
        run.traces.setdefault(whole_of(metadata.dataset, datasets), []).append(trace)
        run.groups = groups
    if not runs:
        raise TraceError(f"{run_folder}: no sealed routing trace in its predictions; give a run's time-stamped folder")
    for run in runs.values():
        in_order = [dataset for dataset in (*datasets, *run.traces) if dataset in run.traces]
        run.traces = {dataset: _whole_or_parts(dataset, run.traces[dataset]) for dataset in in_order}
    return sorted(runs.values(), key=lambda run: (not run.is_vanilla, run.abbr))


def _whole_or_parts(dataset: str, traces: list[RoutingTrace]) -> list[RoutingTrace]:
    return [trace for trace in traces if trace.metadata.dataset == dataset] or traces


@dataclass
class MeasuredRun:
    """A model's run on a testbed.

    measured: dataset -> its traces, each with its times
    missing:  dataset -> why there are none
    """

    run: ModelRun
    measured: dict[str, list[tuple[RoutingTrace, MeasuredTimes]]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def pairs_of(self, benchmark: str) -> list[tuple[RoutingTrace, MeasuredTimes]]:
        """All traces and times of a benchmark; none if one of its datasets has none."""
        found = [self.measured.get(dataset, []) for dataset in self.run.datasets_of(benchmark)]
        return [pair for pairs in found for pair in pairs] if all(found) else []

    @property
    def testbeds(self) -> set[tuple[str, tuple[str, ...]]]:
        """The testbeds it was measured on."""
        every = [times.metadata for pairs in self.measured.values() for _, times in pairs]
        return {(metadata.lab_hash, metadata.devices) for metadata in every}


def measured_runs(runs: Sequence[ModelRun], predictions: Path) -> list[MeasuredRun]:
    """The runs with measured times next to their traces in `predictions/<model>/`."""
    found = [_measured_run(run, predictions) for run in runs]
    return [measured_run for measured_run in found if measured_run.measured or measured_run.missing]


def _measured_run(run: ModelRun, predictions: Path) -> MeasuredRun:
    found = MeasuredRun(run)
    for dataset, traces in run.traces.items():
        paths = [dataset_file(predictions, run.abbr, trace.metadata.dataset, TIMES_SUFFIX) for trace in traces]
        if not any(path.exists() for path in paths):
            continue
        try:
            pairs = [(trace, read_times(path)) for trace, path in zip(traces, paths, strict=True)]
            for trace, times in pairs:
                check_belongs(times, trace)
            found.measured[dataset] = pairs
        except TraceError as error:
            found.missing[dataset] = str(error)
    if found.measured:
        without = [dataset for dataset in run.traces if dataset not in found.measured | found.missing]
        found.missing |= dict.fromkeys(without, "no measured times next to its trace")
    return found
