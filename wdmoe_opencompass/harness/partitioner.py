"""OpenCompass's partitioners, which also check that what they skip as finished is finished."""

import logging
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mmengine.config import ConfigDict
from opencompass.partitioners import NaivePartitioner, NumWorkerPartitioner, SizePartitioner
from opencompass.utils import dataset_abbr_from_cfg, get_logger, model_abbr_from_cfg

from .._util.caches import use_writable
from .._util.file_names import dataset_file, parts_of
from ..errors import NotReadableNowError, WdmoeError, show
from ..run.failures import own_words
from ..run.lock import DatasetIsRunningError, exclusive
from ..run.recovery import redo_stale_results, redo_unfinished
from .encodable_answers import make_encodable
from .name_checks import RENAME, name_problems, why_no_file
from .output_files import PREDICTIONS, RESULTS, output_file
from .sections import EVAL, INFER, check_start, score_one_by_one

LOG = logging.getLogger(__name__)


class CheckedPartitioner:
    """Before OpenCompass skips what has a file, files that are torn or lack their trace are removed.

    In the `eval` section a dataset is never split: scores of its parts could not be joined.
    """

    is_scoring = False  # in the `eval` section

    def __call__(self, cfg: ConfigDict) -> list:
        """As OpenCompass's own; SystemExit where a section of the config holds what cannot work there."""
        check_start(cfg, (EVAL,) if self._stage_of(self.out_dir) == RESULTS else (INFER, EVAL))  # type: ignore[attr-defined]
        if score_one_by_one(cfg):
            get_logger().info(
                "eval: WdmoeEvalTask is run in place of OpenICLEvalTask: same scores, and datasets fail alone"
            )
        return super().__call__(cfg)  # type: ignore[misc]

    @staticmethod
    def _stage_of(out_dir: str) -> str:
        return Path(out_dir).name

    def partition(self, model_dataset_combinations: list[dict], work_dir: str, out_dir: str, **others: Any) -> list:
        """As OpenCompass's own; SystemExit in one sentence where the run could not write what it needs."""
        self.is_scoring = self._stage_of(out_dir) == RESULTS
        _refuse_names(model_dataset_combinations, Path(work_dir))
        _find_caches(Path(work_dir))
        for combination in model_dataset_combinations:
            for model in combination["models"]:
                _check_processes(model)
                names = {dataset_abbr_from_cfg(dataset) for dataset in combination["datasets"]}
                for dataset in combination["datasets"]:
                    self._check(model, dataset, names, work_dir)
        return super().partition(  # type: ignore[misc]
            model_dataset_combinations=model_dataset_combinations, work_dir=work_dir, out_dir=out_dir, **others
        )

    def _check(self, model: Any, dataset: Any, names: set[str], work_dir: str) -> None:
        root, abbr, whole = Path(work_dir) / PREDICTIONS, model_abbr_from_cfg(model), dataset_abbr_from_cfg(dataset)
        results = output_file(work_dir, RESULTS, model, dataset)
        parts = parts_of(root, abbr, whole, names)
        configs = {whole: dataset} | (self._configs_of_parts(dataset) if parts and not self.is_scoring else {})
        for name in [whole, *parts]:
            predictions = dataset_file(root, abbr, name, ".json")
            if not predictions.exists():
                continue
            try:
                with exclusive(predictions):
                    if self.is_scoring:
                        make_encodable(predictions)
                        redo_stale_results(predictions, results)
                    else:
                        redo_unfinished(predictions, results, model, configs.get(name))
            except DatasetIsRunningError as running:
                LOG.warning("%s", running)
            except NotReadableNowError as error:
                raise SystemExit(f"error: {error}; nothing was changed: fix that, then start again with -r") from None

    def _configs_of_parts(self, dataset: Any) -> dict[str, Any]:
        """Of a partitioner that splits datasets: what it would make of this one; of another: its own, of no part."""
        split = getattr(self, "split_dataset", None)
        return {} if split is None else {dataset_abbr_from_cfg(part): part for part in split(dataset)}


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


class _Splitting(CheckedPartitioner):
    """Also before a dataset is split: its parts must have file names of their own."""

    _names: Collection[str] = ()  # of the run's datasets

    def partition(self, model_dataset_combinations: list[dict], work_dir: str, out_dir: str, **others: Any) -> list:
        """As OpenCompass's own."""
        self._names = {
            dataset_abbr_from_cfg(dataset) for part in model_dataset_combinations for dataset in part["datasets"]
        }
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
                why = "OpenCompass cannot join the parts of a dataset with an empty file name: give it another abbr"
            if why is not None:
                raise SystemExit(f"error: dataset {show(whole)} is split, and of its part {show(part)}: {why}")
        return parts


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


def _warn_of_size(dataset: ConfigDict, error: Exception) -> None:
    LOG.warning("%s: cannot be loaded: %s", dataset_abbr_from_cfg(dataset), own_words(error))


class WdmoeNaivePartitioner(CheckedPartitioner, NaivePartitioner):
    """`NaivePartitioner`: one task per `n` datasets of a model."""


class WdmoeSizePartitioner(_Splitting, SizePartitioner):
    """`SizePartitioner`: tasks of about `max_task_size`; long datasets are split, but not for their evaluation."""

    def get_cost(self, dataset: ConfigDict, get_raw_factors: bool = False) -> Any:
        """As OpenCompass's own, but no cost that a dataset would be split for where it has to stay whole.

        0 of a dataset that cannot be loaded: its task says why, and the others are run.
        """
        try:
            cost = super().get_cost(dataset, get_raw_factors)
        except Exception as error:  # whatever a loader raises
            _warn_of_size(dataset, error)
            return 0
        return min(cost, self.max_task_size) if self.is_scoring and not get_raw_factors else cost


class WdmoeNumWorkerPartitioner(_Splitting, NumWorkerPartitioner):
    """`NumWorkerPartitioner`: every dataset is split over the workers, at multiples of `batch_size`.

    For their evaluation whole datasets are dealt out over the workers.

    batch_size: that of the models. A policy like Algorithm 1 couples the tokens of a forward pass, so that only equal
    batches give equal answers, split or not.
    """

    def __init__(self, *arguments: Any, batch_size: int = 1, **others: Any):
        super().__init__(*arguments, **others)
        self.batch_size = batch_size
        self.min_task_size: int

    def partition(self, model_dataset_combinations: list[dict], work_dir: str, out_dir: str, **others: Any) -> list:
        """As OpenCompass's own."""
        if self._stage_of(out_dir) == RESULTS:
            self.num_split = 1
        return super().partition(model_dataset_combinations, work_dir, out_dir, **others)

    def get_size(self, dataset: ConfigDict) -> int:
        """As OpenCompass's own; 0 of a dataset that cannot be loaded: its task says why, and the others are run."""
        try:
            return super().get_size(dataset)
        except Exception as error:  # whatever a loader raises
            _warn_of_size(dataset, error)
            return 0

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
