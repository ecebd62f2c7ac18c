"""OpenCompass's partitioners, made sure that what they take for finished is finished."""

import logging
import math
from pathlib import Path
from typing import Any

from mmengine.config import ConfigDict
from opencompass.partitioners import NaivePartitioner, NumWorkerPartitioner, SizePartitioner
from opencompass.utils import dataset_abbr_from_cfg, get_infer_output_path, model_abbr_from_cfg

from ..caches import use_writable
from ..errors import NotReadableNow, WdmoeError
from .belongs import parts_of
from .encodable_answers import make_encodable
from .lock import DatasetIsRunning, exclusive
from .unfinished import redo_stale_results, redo_unfinished

LOG = logging.getLogger(__name__)
PREDICTIONS, RESULTS = "predictions", "results"


class _Checked:
    """Before OpenCompass skips what has a file, files that are torn, or lack their trace, are taken away."""

    def partition(self, model_dataset_combinations: list[dict], work_dir: str, out_dir: str, **others: Any) -> list:
        """As OpenCompass's own; SystemExit in one sentence where the run could not write what it needs."""
        _find_caches(Path(work_dir))
        for combination in model_dataset_combinations:
            for model in combination["models"]:
                _check_processes(model)
                names = {dataset_abbr_from_cfg(one) for one in combination["datasets"]}
                for dataset in combination["datasets"]:
                    self._check(model, dataset, names, work_dir, Path(out_dir).name)
        return super().partition(  # type: ignore[misc]
            model_dataset_combinations=model_dataset_combinations, work_dir=work_dir, out_dir=out_dir, **others
        )

    def _check(self, model: Any, dataset: Any, names: set[str], work_dir: str, stage: str) -> None:
        whole = Path(get_infer_output_path(model, dataset, str(Path(work_dir) / PREDICTIONS)))
        results = Path(get_infer_output_path(model, dataset, str(Path(work_dir) / RESULTS)))
        parts = parts_of(whole.parent, whole.stem, names, whole.suffix)
        configs = {whole.stem: dataset} | (self._configs_of_parts(dataset) if parts and stage == PREDICTIONS else {})
        for name in [whole.stem, *parts]:
            predictions = whole.with_name(name + whole.suffix)
            if not predictions.exists():
                continue
            try:
                with exclusive(predictions):
                    if stage == PREDICTIONS:
                        redo_unfinished(predictions, results, model, configs.get(name))
                    else:
                        make_encodable(predictions)
                        redo_stale_results(predictions, results)
            except DatasetIsRunning as running:
                LOG.warning("%s", running)
            except NotReadableNow as error:
                raise SystemExit(f"error: {error}; nothing was changed: mend that, then start again with -r") from None

    def _configs_of_parts(self, dataset: Any) -> dict[str, Any]:
        """Of a partitioner that splits datasets: what it would make of this one; of another: its own, of no part."""
        split = getattr(self, "split_dataset", None)
        return {} if split is None else {dataset_abbr_from_cfg(one): one for one in split(dataset)}


def _find_caches(run_folder: Path) -> None:
    """Before the first task starts, and for all of them: without its caches evaluation would leave empty cells."""
    try:
        for said in use_writable(run_folder):
            LOG.warning("%s", said)
    except WdmoeError as error:
        raise SystemExit(f"error: {error}") from None


def _check_processes(model: Any) -> None:
    run_cfg = model.get("run_cfg", {})
    if run_cfg.get("num_procs", 1) != 1:  # each would write the same files
        raise SystemExit(
            f"error: {model_abbr_from_cfg(model)}: run_cfg num_procs must be 1, got {run_cfg['num_procs']}: a task is "
            "one process; model_kwargs=dict(device_map='auto') spreads a model over the num_gpus of its task"
        )


class WdmoeNaivePartitioner(_Checked, NaivePartitioner):
    """`NaivePartitioner`: one task per `n` datasets of a model."""


class WdmoeSizePartitioner(_Checked, SizePartitioner):
    """`SizePartitioner`: tasks of about `max_task_size`; long datasets are split."""


class WdmoeNumWorkerPartitioner(_Checked, NumWorkerPartitioner):
    """`NumWorkerPartitioner`: every dataset is split over the workers, at multiples of `batch_size`.

    batch_size: that of the models. A policy like Algorithm 1 couples the tokens of a forward pass, so that only equal
    batches give equal answers, split or not.
    """

    def __init__(self, *arguments: Any, batch_size: int = 1, **others: Any):
        super().__init__(*arguments, **others)
        self.batch_size = batch_size
        self.min_task_size: int

    def split_dataset(self, dataset_cfg: ConfigDict) -> list[ConfigDict]:
        """Parts of equal size, a multiple of `batch_size`, the last one shorter."""
        least = self.min_task_size
        size = max(math.ceil(self.get_size(dataset_cfg) / self.num_split), least)
        self.min_task_size = math.ceil(size / self.batch_size) * self.batch_size
        try:
            return super().split_dataset(dataset_cfg)
        finally:
            self.min_task_size = least


class SharedProcessPartitioner(WdmoeNaivePartitioner):
    """NaivePartitioner's tasks, dealt out over `tasks` processes that run their models one after the other.

    Worth it for many small models (the policies of one model, say): each process costs about ten seconds of imports.
    """

    def __init__(self, out_dir: str, tasks: int = 2, n: int = 1000, keep_keys: list[str] | None = None):
        super().__init__(out_dir=out_dir, n=n, keep_keys=keep_keys)
        self.tasks = tasks

    def partition(self, model_dataset_combinations: list[dict], work_dir: str, out_dir: str, **others: Any) -> list:
        """Join every `tasks`-th of the tasks that NaivePartitioner makes."""
        single = super().partition(model_dataset_combinations, work_dir, out_dir, **others)
        joined = []
        for first in range(min(self.tasks, len(single))):
            task = single[first]
            for other in single[first + self.tasks :: self.tasks]:
                task["models"] = [*task["models"], *other["models"]]
                task["datasets"] = [*task["datasets"], *other["datasets"]]
            joined.append(task)
        return joined
