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
from ..report.publication import write_publication
from ..report.summary import write_report
from ..report.tables import DENSE, ModelRun, benchmarks_of
from ..routing.trace import SEALED_SUFFIX, RoutingTrace, read_trace, seal_finished
from .infer_task import FAILURE_SUFFIX
from .settings import parse_settings

NO_TRACE = (
    "no routing trace: the stock infer task ran (--models, --datasets, --slurm and --dlc on the command line put it "
    "back) or the run was interrupted; start it again with -r"
)


class WdmoeSummarizer(DefaultSummarizer):
    """Prints what DefaultSummarizer prints, then Tables I and II, and writes both into the run's `summary/` folder.

    summary_groups, as in OpenCompass: `dict(name='mmlu', subsets=[...])` makes one benchmark of those of its datasets
    that the config has.
    """

    def summarize(self, output_path: str | None = None, time_str: str | None = None) -> None:
        """Write all tables; a cell that a failed task left empty is named with its reason."""
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
        groups = {one["name"]: [d for d in one["subsets"] if d in present] for one in self.summary_groups}
        return {name: members for name, members in groups.items() if members}

    def _model_run(self, model_cfg: Any) -> ModelRun:
        abbr = model_abbr_from_cfg(model_cfg)
        predictions = Path(self.work_dir) / "predictions" / abbr
        if "wdmoe" in model_cfg:
            settings = parse_settings(model_cfg["wdmoe"])
            run = ModelRun(abbr, settings.policy, (model_cfg["path"], settings.load_profile().content_hash))
            seal_finished(predictions)
        else:
            run = ModelRun(abbr, DENSE, (str(model_cfg.get("path", "")), ""))
        run.groups = self._groups()
        run.group_size = {one["name"]: len(one["subsets"]) for one in self.summary_groups}
        for dataset_cfg in self.dataset_cfgs:
            dataset = dataset_abbr_from_cfg(dataset_cfg)
            reasons = []
            try:
                run.accuracies[dataset] = _main_metric(self._result_path(model_cfg, dataset_cfg))
            except WdmoeError as error:
                reasons.append(str(error))
            if run.policy != DENSE:
                try:
                    run.traces[dataset] = _traces_of(predictions, dataset, run.base[1])
                except TraceError as error:
                    reasons.append(str(error))
            if reasons:
                failure = predictions / (dataset + FAILURE_SUFFIX)
                run.missing[dataset] = failure.read_text().strip() if failure.exists() else "; ".join(reasons)
        return run

    def _result_path(self, model_cfg: Any, dataset_cfg: Any) -> Path:
        return Path(get_infer_output_path(model_cfg, dataset_cfg, str(Path(self.work_dir) / "results")))


def _traces_of(predictions: Path, dataset: str, profile_hash: str) -> list[RoutingTrace]:
    """The trace of a dataset, or those of the parts `<dataset>_0`, `<dataset>_1`, ... that a partitioner made of it."""
    parts = sorted(
        (path for path in predictions.glob(f"{dataset}_*.json") if path.stem.removeprefix(dataset + "_").isdigit()),
        key=lambda path: int(path.stem.rpartition("_")[2]),
    )
    names = [path.stem for path in parts] or [dataset]
    if (predictions / (dataset + SEALED_SUFFIX)).exists():
        names = [dataset]
    paths = [predictions / (name + SEALED_SUFFIX) for name in names]
    if not all(path.exists() for path in paths):
        raise TraceError(NO_TRACE)
    traces = [read_trace(path) for path in paths]
    if any(trace.metadata.profile_hash != profile_hash for trace in traces):
        raise TraceError("its trace was recorded with another content of the channel profile")
    return traces


def _main_metric(path: Path) -> tuple[str, float]:
    """The metric that OpenCompass itself shows first."""
    if not path.exists():
        raise WdmoeError("no result: the inference or the evaluation did not finish; see logs/")
    result = mmengine.load(str(path))
    if "error" in result:
        raise WdmoeError(f"the evaluation failed: {result['error']}")
    names = [n for n, value in result.items() if n not in METRIC_BLACKLIST and isinstance(value, int | float)]
    if not names:
        raise WdmoeError("the evaluation gave no number")
    name = min(names, key=lambda n: METRIC_WHITELIST.index(n) if n in METRIC_WHITELIST else len(METRIC_WHITELIST))
    return name, float(result[name])
