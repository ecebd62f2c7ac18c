"""The summarizer: OpenCompass's own table, then accuracy and waiting latency side by side."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import mmengine
from opencompass.summarizers import DefaultSummarizer
from opencompass.summarizers.default import METRIC_BLACKLIST, METRIC_WHITELIST
from opencompass.utils import dataset_abbr_from_cfg, get_infer_output_path, model_abbr_from_cfg

from ..errors import TraceError, WdmoeError
from ..report.figures import write_figures
from ..report.items import item_results
from ..report.publication import write_publication
from ..report.summary import write_report
from ..report.tables import DENSE, ModelRun, benchmarks_of, dataset_of
from ..routing.times import seal_finished_times
from ..routing.trace import SEALED_SUFFIX, RoutingTrace, read_trace, routing_name, seal_finished
from .infer_task import FAILURE_SUFFIX
from .settings import parse_settings

NO_TRACE = (
    "no routing trace: the stock infer task ran (--models, --datasets, --slurm and --dlc on the command line put it "
    "back) or the run was interrupted; start it again with -r"
)


class WdmoeSummarizer(DefaultSummarizer):
    """Prints what DefaultSummarizer prints, then Tables I and II, and writes both into the run's `summary/` folder.

    summary_groups, as in OpenCompass: `dict(name='mmlu', subsets=[...])` makes one benchmark of those of its datasets
    that the config has. Groups with weights, or with any other rule than the plain mean, stay in OpenCompass's table.
    """

    def summarize(self, output_path: str | None = None, time_str: str | None = None) -> None:
        """Write all tables; a cell that a failed task left empty is named with its reason.

        Raises SystemExit in one sentence where the disk is full or the folder read-only: each file is written whole or
        not at all.
        """
        try:
            self._summarize(output_path, time_str)
        except OSError as error:
            raise SystemExit(
                f"error: {error.filename or self.work_dir}: {error.strerror}; predictions, traces and earlier tables "
                "are as they were; when there is room, start again with --mode viz -r"
            ) from None

    def _summarize(self, output_path: str | None, time_str: str | None) -> None:
        super().summarize(output_path, time_str or datetime.now().strftime("%Y%m%d_%H%M%S"))
        runs = [self._model_run(cfg) for cfg in self.model_cfgs]
        benchmarks = benchmarks_of(self._datasets(), self._groups())
        folder = Path(self.work_dir) / "summary"
        for table in write_report(runs, benchmarks, folder):
            print(table)
        write_figures(runs, benchmarks, folder)
        write_publication(Path(self.work_dir), runs)
        print(f"tables and figures: {folder}")

    def _datasets(self) -> Sequence[str]:
        return [dataset_abbr_from_cfg(cfg) for cfg in self.dataset_cfgs]

    def _groups(self) -> dict[str, list[str]]:
        """Groups of at least one dataset of this run; a group of a group is spelled out by OpenCompass's configs."""
        present = self._datasets()
        plain = [one for one in self.summary_groups if set(one) == {"name", "subsets"}]
        groups = {one["name"]: [d for d in one["subsets"] if d in present] for one in plain}
        return {name: members for name, members in groups.items() if members}

    def _model_run(self, model_cfg: Any) -> ModelRun:
        abbr = model_abbr_from_cfg(model_cfg)
        predictions = Path(self.work_dir) / "predictions" / abbr
        if "wdmoe" in model_cfg:
            seal_finished(predictions)
            seal_finished_times(predictions)
            policy, profile_hash = _policy_and_profile_hash(model_cfg["wdmoe"], predictions)
            run = ModelRun(abbr, policy, (model_cfg["path"], profile_hash))
        else:
            run = ModelRun(abbr, DENSE, (str(model_cfg.get("path", "")), ""))
        run.groups = self._groups()
        run.group_size = {one["name"]: len(one["subsets"]) for one in self.summary_groups}
        for dataset_cfg in self.dataset_cfgs:
            dataset = dataset_abbr_from_cfg(dataset_cfg)
            reasons = []
            try:
                result = _result(self._result_path(model_cfg, dataset_cfg))
                run.accuracies[dataset] = _main_metric(result)
            except WdmoeError as error:
                reasons.append(str(error))
            else:
                try:
                    run.items[dataset] = item_results(result, *run.accuracies[dataset])
                except WdmoeError as error:
                    run.no_items[dataset] = str(error)
            if run.policy != DENSE:
                try:
                    run.traces[dataset] = self._traces_of(predictions, dataset, run)
                except TraceError as error:
                    reasons.append(str(error))
            if reasons:
                failures = [
                    (predictions / (name + FAILURE_SUFFIX)).read_text().strip()
                    for name in (dataset, *self._parts_of(predictions, dataset, FAILURE_SUFFIX))
                    if (predictions / (name + FAILURE_SUFFIX)).exists()
                ]
                run.missing[dataset] = "; ".join(dict.fromkeys(failures or reasons))
        return run

    def _traces_of(self, predictions: Path, dataset: str, run: ModelRun) -> list[RoutingTrace]:
        """The trace of a dataset, or those of the parts that a partitioner made of it.

        OpenCompass scores parts only if together they are the dataset: without accuracy nothing says that none lacks.
        """
        whole = predictions / (dataset + SEALED_SUFFIX)
        names = [dataset] if whole.exists() else self._parts_of(predictions, dataset, ".json") or [dataset]
        paths = [predictions / (name + SEALED_SUFFIX) for name in names]
        if not all(path.exists() for path in paths):
            raise TraceError(NO_TRACE)
        numbered = [f"{dataset}_{number}" for number in range(len(names))]
        if names != [dataset] and (names != numbered or dataset not in run.accuracies):
            raise TraceError(f"its parts ({', '.join(names)}) were not scored together: one may be missing")
        traces = [read_trace(path) for path in paths]
        if any(trace.metadata.profile_hash != run.base[1] for trace in traces):
            raise TraceError("its trace was recorded with another content of the channel profile")
        return traces

    def _parts_of(self, predictions: Path, dataset: str, suffix: str) -> list[str]:
        """Names `<dataset>_0`, `<dataset>_1`, ... of the files with this suffix, in order."""
        datasets = self._datasets()
        names = [path.name.removesuffix(suffix) for path in predictions.glob(f"{dataset}_*{suffix}")]
        parts = [name for name in names if dataset_of(name, datasets) == dataset]
        return sorted(parts, key=lambda name: int(name.rpartition("_")[2]))

    def _result_path(self, model_cfg: Any, dataset_cfg: Any) -> Path:
        return Path(get_infer_output_path(model_cfg, dataset_cfg, str(Path(self.work_dir) / "results")))


def _policy_and_profile_hash(wdmoe: Any, predictions: Path) -> tuple[str, str]:
    """What the config names; where its profile or lab file is not on this machine, what the traces carry."""
    files = [str(wdmoe.get(key) or "") for key in ("profile", "testbed")]
    traces = sorted(predictions.glob(f"*{SEALED_SUFFIX}"))
    if any(name.endswith((".yaml", ".yml")) and not Path(name).is_file() for name in files) and traces:
        metadata = read_trace(traces[0]).metadata
        return metadata.routing, metadata.profile_hash
    settings = parse_settings(wdmoe)
    loaded = settings.load_profile()
    bits = loaded.payload_bits if settings.payload_is_rounded else None
    return routing_name(settings.policy, bits), loaded.content_hash


def _result(path: Path) -> dict[str, Any]:
    """What the evaluator left of a dataset."""
    if not path.exists():
        raise WdmoeError("no result: the inference or the evaluation did not finish; see logs/")
    result = mmengine.load(str(path))
    if "error" in result:
        raise WdmoeError(f"the evaluation failed: {result['error']}")
    return result


def _main_metric(result: dict[str, Any]) -> tuple[str, float]:
    """The metric that OpenCompass itself shows first."""
    names = [n for n, value in result.items() if n not in METRIC_BLACKLIST and isinstance(value, int | float)]
    if not names:
        raise WdmoeError("the evaluation gave no number")
    name = min(names, key=lambda n: METRIC_WHITELIST.index(n) if n in METRIC_WHITELIST else len(METRIC_WHITELIST))
    return name, float(result[name])
