"""The infer task: opens and closes the routing trace of each dataset."""

import gc
import time
import traceback
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from mmengine.config import ConfigDict
from opencompass.models import HuggingFace, HuggingFacewithChatTemplate
from opencompass.registry import MODELS
from opencompass.tasks.openicl_infer import OpenICLInferTask
from opencompass.utils import build_model_from_cfg, dataset_abbr_from_cfg, model_abbr_from_cfg

from .._util.caches import use_writable
from .._util.file_names import sibling
from ..errors import WdmoeError
from ..run.dataset_progress import DatasetWatch, StartNote, spent_s
from ..run.failures import note_failure, sentence
from ..run.files import FAILURE_SUFFIX
from ..run.lock import DatasetIsRunningError, exclusive
from ..run.recovery import SEALED_SUFFIXES, keep_answers, redo_unfinished, whole_answers
from .command import module_command, run_dumped
from .encodable_answers import encodable_answers
from .identify import asked_facts, inferencer_facts
from .loading import whole_weights
from .models import WdmoeMixin, supply_batch_encode_plus
from .name_checks import name_problems
from .output_files import PREDICTIONS, RESULTS, output_file
from .progress_line import METHODS, live_line, prompts_of
from .registered import is_subclass, resolve

LOCK_WAIT_S = 60.0


class TaskFailedError(WdmoeError, RuntimeError):
    """Some datasets of a task failed, each for a reason already logged."""


class WdmoeInferTask(OpenICLInferTask):
    """OpenCompass's infer task with a routing trace next to every predictions file.

    A dataset that fails does not take the later ones of its task with it; its reason is left next to the predictions,
    and the task's process fails at the end.
    """

    def get_command(self, cfg_path: str, template: str) -> str:
        """Start this module: the inherited method names the stock task's file.

        The runner asks before it starts anything: SystemExit where the run would fail after its inference.
        """
        from .sections import check_start_of  # which looks for this class

        check_start_of(Path(self.work_dir))
        return module_command("wdmoe_opencompass.harness.infer_task", cfg_path, template)

    model_cfgs: list[ConfigDict]
    dataset_cfgs: list[list[ConfigDict]]

    def run(self, cur_model: Any = None, cur_model_abbr: str | None = None) -> None:
        """Called by runners in their own process under --debug: failures are logged, never raised.

        An exception would end the command: no later task would run, nothing be scored, and no summary be written.
        """
        self.model: Any = None
        self.model_cfg = self.model_cfgs[-1]  # the runner asks for both afterwards
        try:
            self.run_or_raise(cur_model, cur_model_abbr)
        except (Exception, SystemExit) as error:
            self.logger.error(f"{self.name}: {sentence(error)}")

    def run_or_raise(self, cur_model: Any = None, cur_model_abbr: str | None = None) -> None:
        """Run all datasets of all models of the task, one model in memory at a time; raise at the end if any failed."""
        for said in use_writable(Path(self.work_dir)):  # of this machine: a cluster's nodes need not be alike
            self.logger.warning(said)
        self._failed: list[str] = []
        errors = []
        every_model = list(zip(self.model_cfgs, self.dataset_cfgs, strict=True))
        self._refuse_names()
        for model_cfg, dataset_cfgs in every_model:
            self.model_cfgs, self.dataset_cfgs = [model_cfg], [dataset_cfgs]
            self.model = None
            self._checked: set[str] = set()  # datasets with finished files that were read already
            try:
                self._redo_unfinished(model_cfg, dataset_cfgs)  # a scheduler may start a task again that it killed
                if cur_model is not None and cur_model_abbr == model_abbr_from_cfg(model_cfg):
                    self.model = cur_model
                else:
                    self.model = build_model(model_cfg)
                self._infer_all(model_cfg, dataset_cfgs)
                others = [cfg for cfg in dataset_cfgs if dataset_abbr_from_cfg(cfg) not in self._checked]
                self._failed += self._redo_unfinished(model_cfg, others)  # skipped, but of a task that died meanwhile
            except (Exception, SystemExit) as error:  # the model: none of its datasets can be run
                errors.append(error.with_traceback(None))  # its frames would keep the model in memory
                if len(every_model) > 1 or not isinstance(error, WdmoeError | OSError):
                    self.logger.error(traceback.format_exc())
                for dataset_cfg in dataset_cfgs:
                    self._note_failure(model_cfg, dataset_cfg, error)
            for dataset_cfg in dataset_cfgs:  # where the stock task leaves the model: two would be in memory at a time
                dataset_cfg["infer_cfg"]["inferencer"].pop("model", None)
            self.model = None
            gc.collect()
        self.model_cfgs, self.dataset_cfgs = map(list, zip(*every_model, strict=True))
        if errors:
            raise errors[0]
        if self._failed:
            raise TaskFailedError(f"failed: {', '.join(self._failed)}; the reasons are next to the predictions")

    def _infer_all(self, model_cfg: ConfigDict, dataset_cfgs: list[ConfigDict]) -> None:
        """Run every dataset, also those after one that cannot be loaded."""
        left = dataset_cfgs
        while left:
            self.dataset_cfgs = [left]
            try:
                return super().run(self.model, model_abbr_from_cfg(model_cfg))
            except (Exception, SystemExit) as error:
                self._dataset_failed(error)
                left = left[next(n for n, dataset_cfg in enumerate(left, 1) if dataset_cfg is self.dataset_cfg) :]

    def _refuse_names(self) -> None:
        """OpenCompass's own partitioners do not check them."""
        pairs = [
            (model_abbr_from_cfg(model), dataset_abbr_from_cfg(dataset))
            for model, datasets in zip(self.model_cfgs, self.dataset_cfgs, strict=True)
            for dataset in datasets
        ]
        problems = name_problems(pairs, Path(self.work_dir))
        if problems:
            raise WdmoeError("; ".join(problems))

    def _inference(self) -> None:
        predictions = self._predictions(self.model_cfg, self.dataset_cfg)
        predictions.parent.mkdir(parents=True, exist_ok=True)
        failure = sibling(predictions, FAILURE_SUFFIX)
        dataset = dataset_abbr_from_cfg(self.dataset_cfg)
        traced = hasattr(self.model, "open_trace")
        encodable_answers(self.model, self.logger.warning)
        if not traced and getattr(self.model, "tokenizer", None) is not None:
            supply_batch_encode_plus(self.model.tokenizer)
        try:
            with exclusive(predictions, LOCK_WAIT_S):
                self._redo_one(self.model_cfg, self.dataset_cfg)
                if not predictions.exists():  # else somebody else has finished it meanwhile
                    self._traced_inference(predictions, dataset, traced)
            failure.unlink(missing_ok=True)
        except (Exception, SystemExit) as error:
            self._dataset_failed(error)

    def _dataset_failed(self, error: BaseException) -> None:
        dataset = dataset_abbr_from_cfg(self.dataset_cfg)
        is_told = isinstance(error, WdmoeError | OSError)  # in one sentence; of a defect the lines of code matter
        self.logger.error(f"{dataset}: {sentence(error)}" if is_told else traceback.format_exc())
        self._note_failure(self.model_cfg, self.dataset_cfg, error)
        self._failed.append(dataset)

    def _traced_inference(self, predictions: Path, dataset: str, traced: bool) -> None:
        model_abbr = model_abbr_from_cfg(self.model_cfg)
        answers = whole_answers(predictions)
        earlier_s = spent_s(Path(self.work_dir), model_abbr, dataset)
        if not traced:
            with self._live_line(model_abbr, dataset, traced, len(answers), earlier_s):
                super()._inference()
            return
        try:
            for suffix in SEALED_SUFFIXES:  # of earlier predictions, if there are any
                sibling(predictions, suffix).unlink(missing_ok=True)
            first = self.model.open_trace(
                predictions,
                model_abbr,
                dataset,
                len(self.dataset.test),
                len(answers),
                str(self.dataset_cfg["reader_cfg"].get("test_range", "")),
                inferencer_facts(self.model_cfg, self.dataset_cfg),
                asked_facts(self.model_cfg, self.dataset_cfg),
            )
            keep_answers(predictions, answers[:first])
            with self._live_line(model_abbr, dataset, traced, first, earlier_s):
                super()._inference()
        except (Exception, SystemExit):
            self.model.close_trace(seal=False)
            predictions.unlink(missing_ok=True)  # half written, say, on a disk that is full
            raise
        self.model.close_trace(seal=True)
        why = self._redo_one(self.model_cfg, self.dataset_cfg)
        if why is not None:
            raise WdmoeError(f"{predictions}: {why}")
        self._checked.add(dataset)

    def _live_line(
        self, model_abbr: str, dataset: str, traced: bool, first_prompt: int, earlier_s: float
    ) -> AbstractContextManager[None]:
        items = len(self.dataset.test)
        watch = DatasetWatch(Path(self.work_dir), model_abbr, dataset, traced, methods=METHODS)
        begun = StartNote(
            items=items,
            prompts=prompts_of(items, self.infer_cfg),
            first_prompt=first_prompt,
            started_s=time.time(),
            earlier_s=earlier_s,
        )
        return live_line(watch, begun)

    def _note_failure(self, model_cfg: ConfigDict, dataset_cfg: ConfigDict, error: BaseException) -> None:
        predictions = self._predictions(model_cfg, dataset_cfg)
        if predictions.exists():
            return
        try:
            note_failure(predictions, sentence(error))
        except OSError as disk:  # full, or read-only
            self.logger.error(f"{predictions}: {sentence(error)}; no note of it could be left: {disk.strerror}")

    def _redo_unfinished(self, model_cfg: ConfigDict, dataset_cfgs: list[ConfigDict]) -> list[str]:
        """-> the datasets that have to be run again; those that somebody is running are left alone."""
        redone = []
        for dataset_cfg in dataset_cfgs:
            predictions = self._predictions(model_cfg, dataset_cfg)
            if not predictions.exists():
                continue
            try:
                with exclusive(predictions):
                    if self._redo_one(model_cfg, dataset_cfg) is not None:
                        redone.append(dataset_abbr_from_cfg(dataset_cfg))
            except DatasetIsRunningError as running:
                self.logger.warning(str(running))
        return redone

    def _redo_one(self, model_cfg: ConfigDict, dataset_cfg: ConfigDict) -> str | None:
        results = output_file(self.work_dir, RESULTS, model_cfg, dataset_cfg)
        return redo_unfinished(self._predictions(model_cfg, dataset_cfg), results, model_cfg, dataset_cfg)

    def _predictions(self, model_cfg: ConfigDict, dataset_cfg: ConfigDict) -> Path:
        return output_file(self.work_dir, PREDICTIONS, model_cfg, dataset_cfg)


def build_model(model_cfg: ConfigDict) -> Any:
    """Build a model as OpenCompass does; ModelError if one of its own Hugging Face classes lacks weights.

    Those classes only warn. Ours check their weights themselves.
    """
    kind = resolve(MODELS, model_cfg.get("type"))
    is_stock = is_subclass(kind, (HuggingFace, HuggingFacewithChatTemplate)) and not is_subclass(kind, WdmoeMixin)
    if not is_stock or not model_cfg.get("path"):
        return build_model_from_cfg(model_cfg)
    model_kwargs = {"trust_remote_code": True, **ConfigDict(model_cfg.get("model_kwargs") or {}).to_dict()}
    with whole_weights(model_cfg.path, model_kwargs, model_cfg.get("peft_path")):
        return build_model_from_cfg(model_cfg)


def main() -> None:
    """Run one dumped task config; an error is one sentence, with exit code 2."""
    run_dumped("Run one infer task of a dumped OpenCompass config", lambda cfg: WdmoeInferTask(cfg).run_or_raise())


if __name__ == "__main__":
    main()
