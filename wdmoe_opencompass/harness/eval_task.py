"""The eval task: a dataset that cannot be scored leaves the others alone, and its reason next to its results."""

import json
import math
import multiprocessing
import signal
import sys
import traceback
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import ConfigDict
from mmengine.fileio.handlers.json_handler import set_default
from opencompass.tasks import OpenICLEvalTask
from opencompass.utils import dataset_abbr_from_cfg, model_abbr_from_cfg

from .._util.atomic_write import write_whole
from .._util.caches import use_writable
from .._util.file_names import sibling
from .._util.json_values import map_values
from .._util.utf8_text import SURROGATE
from ..errors import WdmoeError
from ..run.failures import note_failure, own_words, read_failure, sentence
from ..run.files import FAILURE_SUFFIX
from ..run.scores import NOT_FINITE
from .command import end_with_the_runner, module_command, run_dumped
from .encodable_answers import REPLACED
from .output_files import PREDICTIONS, RESULTS, output_file

NO_PREDICTIONS = "no predictions: its inference did not finish"
CAN_FORK = sys.platform != "darwin" and "fork" in multiprocessing.get_all_start_methods()


class NotScored(WdmoeError, RuntimeError):
    """Some datasets of a task were not scored, each for the reason in its sentence."""


class WdmoeEvalTask(OpenICLEvalTask):
    """OpenCompass's eval task, dataset by dataset; reasons are left next to the results, its process fails at the end.

    Started as a process of its own, as runners do, it scores each dataset in a child process: an evaluator that ends
    its process, is killed for want of memory, or changes the working folder then harms its own dataset alone.
    """

    model_cfgs: list[ConfigDict]
    dataset_cfgs: list[list[ConfigDict]]

    def get_command(self, cfg_path: str, template: str) -> str:
        """Start this module: the inherited method names the stock task's file."""
        return module_command("wdmoe_opencompass.harness.eval_task", cfg_path, template)

    def run(self) -> None:
        """As runners call it in their own process under --debug: what could not be scored is logged, never raised.

        An exception would end the command: no later task would run, and no summary be written.
        """
        try:
            self.run_or_raise()
        except (Exception, SystemExit) as error:
            self.logger.error(f"{self.name}: {sentence(error)}")

    def run_or_raise(self, in_children: bool = False) -> None:
        """Score everything that can be; raise NotScored at the end if anything could not.

        in_children: score each dataset in a child process, where the platform can fork safely
        """
        for said in use_writable(Path(self.work_dir)):  # of this machine: a cluster's nodes need not be alike
            self.logger.warning(said)
        every_model = self.model_cfgs, self.dataset_cfgs
        failed = {}
        for model_cfg, dataset_cfgs in zip(*every_model, strict=True):
            for dataset_cfg in dataset_cfgs:
                self.model_cfgs, self.dataset_cfgs = [model_cfg], [[dataset_cfg]]
                try:
                    reason = self._score_dataset(model_cfg, dataset_cfg, in_children and CAN_FORK)
                except OSError as error:  # of our own notes and files: a disk, or a name that is too long
                    reason = sentence(error)
                if reason is not None:
                    failed[f"{model_abbr_from_cfg(model_cfg)}/{dataset_abbr_from_cfg(dataset_cfg)}"] = reason
        self.model_cfgs, self.dataset_cfgs = every_model
        if failed:
            raise NotScored("not scored: " + "; ".join(f"{name}: {reason}" for name, reason in failed.items()))

    def _score_dataset(self, model_cfg: ConfigDict, dataset_cfg: ConfigDict, in_child: bool) -> str | None:
        """-> why it could not be scored; None where its results are there."""
        results = output_file(self.work_dir, RESULTS, model_cfg, dataset_cfg)
        sibling(results, FAILURE_SUFFIX).unlink(missing_ok=True)
        if not in_child:
            return self._score_here(results)
        if not results.exists() and not self._has_predictions():
            return NO_PREDICTIONS
        child = multiprocessing.get_context("fork").Process(target=self._score_as_child, args=(results,))
        child.start()
        child.join()
        if results.exists():  # written whole, whatever its process did afterwards
            return None
        reason = read_failure(results) or _how_it_ended(child)
        self._note(results, reason)
        return reason

    def _score_as_child(self, results: Path) -> None:
        end_with_the_runner()
        sys.exit(self._score_here(results) is not None)

    def _score_here(self, results: Path) -> str | None:
        try:
            super().run()
        except (Exception, SystemExit) as error:  # what a loader, a post-processor or an evaluator may raise
            self.logger.error(traceback.format_exc())
            reason = own_words(error)
            if self._has_predictions():  # else the inference has left the reason
                self._note(results, reason)
            return reason
        return None

    def _has_predictions(self) -> bool:
        predictions = output_file(self.work_dir, PREDICTIONS, self.model_cfgs[0], self.dataset_cfgs[0][0])
        return predictions.exists() or sibling(predictions, "_0.json").exists()

    def _note(self, results: Path, reason: str) -> None:
        try:
            note_failure(results, reason)
        except OSError as disk:  # full, or read-only
            self.logger.error(f"{results}: {reason}; no note of it could be left: {disk.strerror}")

    def _evaluate_predictions(self, pred_strs: Any, test_set: Any, pred_dicts: Any) -> dict[str, Any]:
        """As OpenCompass's own, which takes parts up to the first gap; here only if together they are the dataset."""
        is_in_parts = not output_file(self.work_dir, PREDICTIONS, self.model_cfg, self.dataset_cfg).exists()
        if is_in_parts and len(pred_dicts) != len(test_set):
            raise WdmoeError(
                f"its parts have answers to {len(pred_dicts)} of its {len(test_set)} items: one is missing"
            )
        result: dict[str, Any] = super()._evaluate_predictions(pred_strs, test_set, pred_dicts)
        return result

    def _save_results(self, result: dict[str, Any]) -> None:
        """Write the results whole or not at all, and as JSON that any program reads.

        JSON has no number for NaN and infinity, which OpenCompass writes nevertheless: here they are text. So is what
        JSON has no value or no key for.
        """
        results = output_file(self.work_dir, RESULTS, self.model_cfg, self.dataset_cfg)
        results.parent.mkdir(parents=True, exist_ok=True)
        plain = map_values(result, _finite, _key)
        text = json.dumps(plain, ensure_ascii=False, indent=4, allow_nan=False, default=_as_json)
        if SURROGATE.search(text):
            self.logger.warning(f"{results}: its metrics or details held {REPLACED}")
        write_whole(results, text)


def _finite(value: Any) -> Any:
    """Text in place of a number that is not finite."""
    return NOT_FINITE[str(float(value))] if isinstance(value, float) and not math.isfinite(value) else value


def _key(key: Any) -> Any:
    """Text in place of a key that JSON has none for, such as a pair or NumPy's numbers."""
    plain = key.item() if isinstance(key, np.generic) else key
    is_one = plain is None or isinstance(plain, str | bool | int | float)
    return _finite(plain) if is_one else str(plain)


def _as_json(value: Any) -> Any:
    try:
        return map_values(set_default(value), _finite, _key)  # arrays, scalars and sets, as OpenCompass writes them
    except TypeError:
        return str(value)


def _how_it_ended(child: BaseProcess) -> str:
    """Of a child process that left neither a result nor a reason."""
    code = child.exitcode or 0
    if code >= 0:
        return f"the process of its evaluator ended with exit code {code} and left no score: see logs/eval/"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    memory = " (out of memory, or killed by somebody)" if name == "SIGKILL" else ""
    return f"the process of its evaluator was ended by {name}{memory}"


def main() -> None:
    """Run one dumped task config; what went wrong is one sentence, with exit code 2."""
    run_dumped(
        "Run one eval task of a dumped OpenCompass config",
        lambda cfg: WdmoeEvalTask(cfg).run_or_raise(in_children=True),
    )


if __name__ == "__main__":
    main()
