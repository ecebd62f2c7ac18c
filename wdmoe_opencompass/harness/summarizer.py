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
from ..report.tables import ModelRun, write_report
from ..routing.trace import SEALED_SUFFIX, read_trace, seal_finished
from .infer_task import FAILURE_SUFFIX
from .settings import parse_settings

NO_TRACE = (
    "no routing trace: the stock infer task ran (--models, --datasets, --slurm and --dlc on the command line put it "
    "back) or the run was interrupted; start it again with -r"
)


class WdmoeSummarizer(DefaultSummarizer):
    """Prints what DefaultSummarizer prints, then Tables I and II, and writes both into the run's `summary/` folder."""

    def summarize(self, output_path: str | None = None, time_str: str | None = None) -> None:
        """Write all tables; a cell that a failed task left empty is named with its reason."""
        super().summarize(output_path, time_str or datetime.now().strftime("%Y%m%d_%H%M%S"))
        runs = [self._model_run(cfg) for cfg in self.model_cfgs if "wdmoe" in cfg]
        folder = Path(self.work_dir) / "summary"
        for table in write_report(runs, self._datasets(), folder):
            print(table)
        write_figures(runs, self._datasets(), folder)
        print(f"tables and figures: {folder}")

    def _datasets(self) -> Sequence[str]:
        return [dataset_abbr_from_cfg(cfg) for cfg in self.dataset_cfgs]

    def _model_run(self, model_cfg: Any) -> ModelRun:
        settings = parse_settings(model_cfg["wdmoe"])
        abbr = model_abbr_from_cfg(model_cfg)
        profile = settings.load_profile()
        run = ModelRun(abbr, settings.policy, (model_cfg["path"], profile.content_hash))
        predictions = Path(self.work_dir) / "predictions" / abbr
        seal_finished(predictions)
        for dataset_cfg in self.dataset_cfgs:
            dataset = dataset_abbr_from_cfg(dataset_cfg)
            reasons = []
            try:
                run.accuracies[dataset] = _main_metric(self._result_path(model_cfg, dataset_cfg))
            except WdmoeError as error:
                reasons.append(str(error))
            try:
                trace = read_trace(predictions / (dataset + SEALED_SUFFIX))
                if trace.metadata.profile_hash != profile.content_hash:
                    raise TraceError("its trace was recorded with another content of the channel profile")
                run.traces[dataset] = trace
            except TraceError as error:
                reasons.append(NO_TRACE if not (predictions / (dataset + SEALED_SUFFIX)).exists() else str(error))
            if reasons:
                failure = predictions / (dataset + FAILURE_SUFFIX)
                run.missing[dataset] = failure.read_text().strip() if failure.exists() else "; ".join(reasons)
        return run

    def _result_path(self, model_cfg: Any, dataset_cfg: Any) -> Path:
        return Path(get_infer_output_path(model_cfg, dataset_cfg, str(Path(self.work_dir) / "results")))


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
