"""OpenCompass's partitioners, made sure that what they take for finished is finished."""

import logging
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mmengine.config import ConfigDict
from opencompass.partitioners import NaivePartitioner, NumWorkerPartitioner, SizePartitioner
from opencompass.utils import dataset_abbr_from_cfg, model_abbr_from_cfg

from ..errors import NotReadableNow, shown
from ..file_names import dataset_file, parts_of
from .lock import DatasetIsRunning, exclusive
from .name_checks import RENAME, name_problems, why_no_file
from .unfinished import redo_stale_results, redo_unfinished

LOG = logging.getLogger(__name__)
PREDICTIONS, RESULTS = "predictions", "results"


class _Checked:
    """Before OpenCompass skips what has a file, files that are torn, or lack their trace, are taken away."""

    def partition(self, model_dataset_combinations: list[dict], work_dir: str, out_dir: str, **others: Any) -> list:
        """As OpenCompass's own."""
        _refuse_names(model_dataset_combinations, Path(work_dir))
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
        root, abbr, whole = Path(work_dir) / PREDICTIONS, model_abbr_from_cfg(model), dataset_abbr_from_cfg(dataset)
        results = dataset_file(Path(work_dir) / RESULTS, abbr, whole, ".json")
        parts = parts_of(root, abbr, whole, names)
        configs = {whole: dataset} | (self._configs_of_parts(dataset) if parts and stage == PREDICTIONS else {})
        for name in [whole, *parts]:
            predictions = dataset_file(root, abbr, name, ".json")
            if not predictions.exists():
                continue
            try:
                with exclusive(predictions):
                    if stage == PREDICTIONS:
                        redo_unfinished(predictions, results, model, configs.get(name))
                    else:
                        redo_stale_results(predictions, results)
            except DatasetIsRunning as running:
                LOG.warning("%s", running)
            except NotReadableNow as error:
                raise SystemExit(f"error: {error}; nothing was changed: mend that, then start again with -r") from None

    def _configs_of_parts(self, dataset: Any) -> dict[str, Any]:
        """Of a partitioner that splits datasets: what it would make of this one; of another: its own, of no part."""
        split = getattr(self, "split_dataset", None)
        return {} if split is None else {dataset_abbr_from_cfg(one): one for one in split(dataset)}


def _refuse_names(combinations: list[dict], work_dir: Path) -> None:
    problems = name_problems(
        (
            (model_abbr_from_cfg(model), dataset_abbr_from_cfg(dataset))
            for combination in combinations
            for model in combination["models"]
            for dataset in combination["datasets"]
        ),
        work_dir,
    )
    if problems:
        raise SystemExit("\n".join(f"error: {problem}" for problem in problems))


class _Splitting(_Checked):
    """Also before a dataset is split: its parts must have file names of their own."""

    _names: Collection[str] = ()  # of the run's datasets

    def partition(self, model_dataset_combinations: list[dict], work_dir: str, out_dir: str, **others: Any) -> list:
        """As OpenCompass's own."""
        self._names = {dataset_abbr_from_cfg(one) for each in model_dataset_combinations for one in each["datasets"]}
        return super().partition(model_dataset_combinations, work_dir, out_dir, **others)

    def split_dataset(self, dataset_cfg: ConfigDict) -> list[ConfigDict]:
        """As OpenCompass's own."""
        whole = dataset_abbr_from_cfg(dataset_cfg)
        parts = super().split_dataset(dataset_cfg)  # type: ignore[misc]
        for part in map(dataset_abbr_from_cfg, parts):
            why = why_no_file(part)
            if part in self._names:
                why = f"it would have the file of the dataset of that name: {RENAME}"
            elif whole.endswith("/") or not whole:
                why = "OpenCompass cannot join the parts of a dataset whose file has no name: give it another abbr"
            if why is not None:
                raise SystemExit(f"error: dataset {shown(whole)} is split, and of its part {shown(part)}: {why}")
        return parts


def _check_processes(model: Any) -> None:
    run_cfg = model.get("run_cfg", {})
    if run_cfg.get("num_procs", 1) != 1:  # each would write the same files
        raise SystemExit(
            f"error: {model_abbr_from_cfg(model)}: run_cfg num_procs must be 1, got {run_cfg['num_procs']}: a task is "
            "one process; model_kwargs=dict(device_map='auto') spreads a model over the num_gpus of its task"
        )


class WdmoeNaivePartitioner(_Checked, NaivePartitioner):
    """`NaivePartitioner`: one task per `n` datasets of a model."""


class WdmoeSizePartitioner(_Splitting, SizePartitioner):
    """`SizePartitioner`: tasks of about `max_task_size`; long datasets are split."""


class WdmoeNumWorkerPartitioner(_Splitting, NumWorkerPartitioner):
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
