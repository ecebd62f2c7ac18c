"""The infer task: opens and closes the routing trace of each dataset."""

import argparse
import gc
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from opencompass.tasks.openicl_infer import OpenICLInferTask
from opencompass.utils import dataset_abbr_from_cfg, get_infer_output_path, model_abbr_from_cfg

from ..caches import use_writable
from ..errors import WdmoeError
from ..files import write_whole
from ..routing.recording import RECORDING_SUFFIX
from ..routing.times import TIMES_SUFFIX
from ..routing.trace import SEALED_SUFFIX
from .command import module_command
from .encodable_answers import encodable_answers
from .live_line import METHODS, live_line, prompts_of
from .lock import DatasetIsRunning, exclusive
from .models import supply_batch_encode_plus
from .progress import Begun, DatasetWatch, spent_s
from .unfinished import FAILURE_SUFFIX, beside, keep_answers, redo_unfinished, whole_answers

LOOK_AFTER_RUNNER_S = 1.0
LOCK_WAIT_S = 60.0
SHELLS = ("sh", "dash", "bash", "zsh", "ksh")


class TaskFailed(WdmoeError, RuntimeError):
    """Some datasets of a task failed, each for a reason that was told before."""


class WdmoeInferTask(OpenICLInferTask):
    """OpenCompass's infer task with a routing trace beside every predictions file.

    A dataset that fails does not take the later ones of its task with it; its reason is left beside the predictions,
    and the task fails at the end.
    """

    def get_command(self, cfg_path: str, template: str) -> str:
        """Start this module: the inherited method names the stock task's file."""
        return module_command("wdmoe_opencompass.harness.infer_task", cfg_path, template)

    model_cfgs: list[ConfigDict]
    dataset_cfgs: list[list[ConfigDict]]

    def run(self, cur_model: Any = None, cur_model_abbr: str | None = None) -> None:
        """Run all datasets of all models of the task, one model in memory at a time; raise at the end if any failed."""
        for said in use_writable(Path(self.work_dir)):  # of this machine: a cluster's nodes need not be alike
            self.logger.warning(said)
        self._failed: list[str] = []
        errors = []
        every_model = list(zip(self.model_cfgs, self.dataset_cfgs, strict=True))
        for model_cfg, dataset_cfgs in every_model:
            self.model_cfgs, self.dataset_cfgs = [model_cfg], [dataset_cfgs]
            self.model: Any = None
            self._checked: set[str] = set()  # datasets whose finished files were read once already
            try:
                self._redo_unfinished(model_cfg, dataset_cfgs)  # a scheduler may start a task again that it killed
                super().run(cur_model, cur_model_abbr)
                others = [one for one in dataset_cfgs if dataset_abbr_from_cfg(one) not in self._checked]
                self._failed += self._redo_unfinished(model_cfg, others)  # skipped, but of a task that died meanwhile
            except Exception as error:  # the model, or a dataset's own files: nothing of the model after it was run
                errors.append(error.with_traceback(None))  # whose frames would hold the model
                if len(every_model) > 1:
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
            raise TaskFailed(f"failed: {', '.join(self._failed)}; the reasons stand beside the predictions")

    def _inference(self) -> None:
        predictions = self._predictions(self.model_cfg, self.dataset_cfg)
        predictions.parent.mkdir(parents=True, exist_ok=True)
        failure = beside(predictions, FAILURE_SUFFIX)
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
        except Exception as error:
            is_told = isinstance(error, WdmoeError | OSError)  # in one sentence; of a defect the lines of code matter
            self.logger.error(f"{dataset}: {_sentence(error)}" if is_told else traceback.format_exc())
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
            for suffix in (SEALED_SUFFIX, TIMES_SUFFIX, RECORDING_SUFFIX):  # of earlier predictions, if there are any
                beside(predictions, suffix).unlink(missing_ok=True)
            first = self.model.open_trace(
                predictions,
                model_abbr,
                dataset,
                len(self.dataset.test),
                len(answers),
                str(self.dataset_cfg["reader_cfg"].get("test_range", "")),
            )
            keep_answers(predictions, answers[:first])
            with self._live_line(model_abbr, dataset, traced, first, earlier_s):
                super()._inference()
        except Exception:
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
        begun = Begun(
            items=items,
            prompts=prompts_of(items, self.infer_cfg),
            first_prompt=first_prompt,
            started_s=time.time(),
            earlier_s=earlier_s,
        )
        return live_line(watch, begun)

    def _note_failure(self, model_cfg: ConfigDict, dataset_cfg: ConfigDict, error: Exception) -> None:
        predictions = self._predictions(model_cfg, dataset_cfg)
        if predictions.exists():
            return
        try:
            predictions.parent.mkdir(parents=True, exist_ok=True)
            write_whole(beside(predictions, FAILURE_SUFFIX), _sentence(error) + "\n")
        except OSError as disk:  # full, or read-only
            self.logger.error(f"{predictions}: {_sentence(error)}; no note of it could be left: {disk.strerror}")

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
            except DatasetIsRunning as running:
                self.logger.warning(str(running))
        return redone

    def _redo_one(self, model_cfg: ConfigDict, dataset_cfg: ConfigDict) -> str | None:
        results = get_infer_output_path(model_cfg, dataset_cfg, os.path.join(self.work_dir, "results"))
        return redo_unfinished(self._predictions(model_cfg, dataset_cfg), Path(results), model_cfg, dataset_cfg)

    def _predictions(self, model_cfg: ConfigDict, dataset_cfg: ConfigDict) -> Path:
        return Path(get_infer_output_path(model_cfg, dataset_cfg, os.path.join(self.work_dir, "predictions")))


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        reason = f"{error.filename + ': ' if isinstance(error.filename, str) else ''}{error.strerror}"
        return f"{reason}; what was finished is kept: mend that, then start again with -r"
    return " ".join((str(error) if isinstance(error, WdmoeError) else f"{type(error).__name__}: {error}").split())


def _end_with_the_runner() -> None:
    """On Linux: a runner that is killed takes its tasks with it, else they would go on beside those of the next run."""
    parent = os.getppid()
    runner = _parent_of(parent) if _name_of(parent) in SHELLS else None  # some shells put the task in their own place
    if _name_of(parent) is not None:
        threading.Thread(target=_end_without, args=(parent, runner), daemon=True).start()


def _end_without(parent: int, runner: int | None) -> None:
    while os.getppid() == parent and (runner is None or _parent_of(parent) == runner):
        time.sleep(LOOK_AFTER_RUNNER_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _name_of(process: int) -> str | None:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return None


def _parent_of(process: int) -> int | None:
    """None where the system does not tell."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None


def main() -> None:
    """Run one dumped task config; a WdmoeError becomes one sentence and exit code 2."""
    parser = argparse.ArgumentParser(description="Run one infer task of a dumped OpenCompass config")
    parser.add_argument("config")
    _end_with_the_runner()
    try:
        WdmoeInferTask(Config.fromfile(parser.parse_args().config)).run()
    except (WdmoeError, OSError) as error:
        print(f"error: {_sentence(error)}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
