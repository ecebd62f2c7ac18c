"""The summarizer: OpenCompass's own table, then accuracy and waiting latency side by side."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from datetime import datetime
from pathlib import Path
from typing import Any

from opencompass.registry import TASKS
from opencompass.summarizers import DefaultSummarizer
from opencompass.utils import dataset_abbr_from_cfg, model_abbr_from_cfg

from .._util.atomic_write import files_of, write_whole
from .._util.tolerant_stdout import make_stdout_tolerant
from ..errors import TraceError, WdmoeError
from ..identity import Facts
from ..report.figures import write_figures
from ..report.html.page import write_page
from ..report.items import item_results
from ..report.publication import write_publication
from ..report.runs import DENSE, ModelRun, benchmarks_of
from ..report.summary import write_report
from ..run.failures import note_failure, own_words, read_failure
from ..run.files import FAILURE_SUFFIX, read_whole
from ..run.recovery import remove_torn_results, why_not_of, why_not_parts_of
from ..run.scores import NOT_FINITE, main_score, metric_rank
from ..trace.format import EVENTS_SUFFIX, SEALED_SUFFIX, RoutingTrace
from ..trace.times import TIMES_SUFFIX
from .eval_task import WdmoeEvalTask
from .identify import asked_facts, prompts_digest, scoring_facts
from .output_files import PREDICTIONS, RESULTS, output_file
from .registered import resolve
from .sections import ENDS_AT_FIRST, EVAL, part_of
from .trace_checks import Expected, ModelFiles, couples_tokens, why_refused

OURS = (
    *("table_*", "figure_*", "frontier*", "differences.*", "paper_comparison.*", "requests.*", "speed.*"),
    *("testbed_*", "predicted_*"),
)
TORN_RESULTS = "its results file was torn; start again with -r to evaluate it again"
NOT_SCORED = (
    "not scored: its predictions are there, but its evaluation did not finish: see logs/eval/, then start again with -r"
)
NO_TRACE = (
    "no routing trace: the stock infer task ran (--models, --datasets, --slurm and --dlc on the command line put it "
    "back) or the run was interrupted; start it again with -r"
)


class WdmoeSummarizer(DefaultSummarizer):
    """Prints what DefaultSummarizer prints, then Tables I and II, and writes both into the run's `summary/` folder.

    summary_groups, as in OpenCompass: `dict(name='mmlu', subsets=[...])` makes one benchmark of those of its datasets
    that the config has. Groups with weights, or with any other rule than the plain mean, stay in OpenCompass's table.
    """

    model_cfgs: list[Any]
    dataset_cfgs: list[Any]

    def summarize(self, output_path: str | None = None, time_str: str | None = None) -> None:
        """Write all tables; a cell has a reason if its task failed or its trace is from another run.

        Tables and figures of an earlier summary that are not written again are removed: their numbers are outdated.
        Raises SystemExit in one sentence where the disk is full or the folder read-only: each file is written whole or
        not at all.
        """
        make_stdout_tolerant()
        folder = Path(self.work_dir) / "summary"
        try:
            for torn in files_of(folder, [".*.tmp"]):  # of a summary that was killed
                torn.unlink()
            self._summarize(output_path, time_str)
        except OSError as error:
            raise SystemExit(
                f"error: {error.filename or self.work_dir}: {error.strerror}; predictions and traces are as they were, "
                "tables are whole, but some may be new and others old; when there is room, start again with --mode viz "
                "-r"
            ) from None

    def _summarize(self, output_path: str | None, time_str: str | None) -> None:
        for model_cfg in self.model_cfgs:
            for dataset_cfg in self.dataset_cfgs:
                results = output_file(self.work_dir, RESULTS, model_cfg, dataset_cfg)
                if remove_torn_results(results):
                    note_failure(results, TORN_RESULTS)
        self._write_opencompass_table(output_path, time_str or datetime.now().strftime("%Y%m%d_%H%M%S"))
        self._expected: dict[str, Expected] = {}
        runs = [self._model_run(cfg) for cfg in self.model_cfgs]
        leave_out_mixed(runs, self._expected)
        benchmarks = benchmarks_of(self._datasets(), self._groups())
        folder = Path(self.work_dir) / "summary"
        earlier = files_of(folder, OURS)
        for table in write_report(runs, benchmarks, folder):
            print(table)
        write_figures(runs, benchmarks, folder)
        for path, numbers in files_of(folder, OURS).items():
            if earlier.get(path) == numbers:  # not written again
                path.unlink()
        try:
            page = f"page of the run: {write_page(Path(self.work_dir))[0]}"
        except WdmoeError as reason:
            page = f"no page of the run: {reason}"
        write_publication(Path(self.work_dir), runs)
        print(f"tables and figures: {folder}\n{page}")

    def _write_opencompass_table(self, output_path: str | None, time_str: str) -> None:
        """OpenCompass's own table; if it cannot be made, a text with the reason instead."""
        own, self.dataset_cfgs = self.dataset_cfgs, deepcopy(self.dataset_cfgs)  # OpenCompass changes them for a hash
        try:
            super().summarize(output_path, time_str)
        except OSError:
            raise
        except Exception as error:  # scores may be anything; the other tables are written all the same
            reason = f"OpenCompass's own table could not be written: {own_words(error)}"
            print(reason)
            folder = Path(self.work_dir) / "summary"
            folder.mkdir(parents=True, exist_ok=True)  # OpenCompass makes it, unless it stops before
            write_whole(folder / f"summary_{time_str}.txt", reason + "\n")
        finally:
            self.dataset_cfgs = own

    def _pick_up_results(self) -> tuple[dict, dict, dict, dict]:
        """As OpenCompass's own, but one model's metrics may differ from another's: NaN where it has no such number."""
        every_model = self.model_cfgs
        raw: dict[str, dict] = {}
        parsed: dict[str, dict] = {}
        names: dict[str, dict[str, None]] = {}
        try:
            for model_cfg in every_model:
                self.model_cfgs = [model_cfg]
                raw_of_model, parsed_of_model, _, modes = super()._pick_up_results()
                for abbr, results in raw_of_model.items():
                    raw.setdefault(abbr, {}).update(results)
                    numbers = parsed.setdefault(abbr, {})
                    numbers.update(parsed_of_model[abbr])
                    for dataset, result in results.items():
                        texts = {name: value for name, value in result.items() if value in NOT_FINITE.values()}
                        if texts:
                            numbers.setdefault(dataset, {}).update({name: float(text) for name, text in texts.items()})
                        names.setdefault(dataset, {}).update(dict.fromkeys(numbers.get(dataset, {})))
        finally:
            self.model_cfgs = every_model
        metrics = {dataset: sorted(found, key=metric_rank) for dataset, found in names.items() if found}
        for numbers in parsed.values():
            for dataset, found in numbers.items():
                found.update({name: math.nan for name in metrics[dataset] if name not in found})
        return raw, parsed, metrics, modes

    def _datasets(self) -> Sequence[str]:
        return [dataset_abbr_from_cfg(cfg) for cfg in self.dataset_cfgs]

    def _groups(self) -> dict[str, list[str]]:
        """Groups of at least one dataset of this run; a group of a group is spelled out by OpenCompass's configs."""
        present = self._datasets()
        plain = [group for group in self.summary_groups if set(group) == {"name", "subsets"}]
        groups = {group["name"]: [d for d in group["subsets"] if d in present] for group in plain}
        return {name: members for name, members in groups.items() if members}

    def _batch_sizes(self) -> dict[str, int]:
        """-> dataset -> the batch size that its inferencer names."""
        inferencers = {
            dataset_abbr_from_cfg(cfg): cfg.get("infer_cfg", {}).get("inferencer", {}) for cfg in self.dataset_cfgs
        }
        return {
            name: inferencer["batch_size"] for name, inferencer in inferencers.items() if "batch_size" in inferencer
        }

    def _model_run(self, model_cfg: Any) -> ModelRun:
        abbr = model_abbr_from_cfg(model_cfg)
        files = ModelFiles(Path(self.work_dir) / PREDICTIONS, abbr, self._datasets())
        sealed: dict[str, RoutingTrace] = {}
        unreadable: dict[str, str] = {}
        if "wdmoe" in model_cfg:
            sealed, unreadable = files.read_traces()
            expected = Expected.of(model_cfg, [trace.metadata for trace in sealed.values()], self.dataset_cfgs)
            self._expected[abbr] = expected
            run = ModelRun(abbr, expected.routing, (expected.weights, expected.profile_hash))
            run.couples_tokens = any(couples_tokens(trace.metadata) for trace in sealed.values())
            run.batch_size = model_cfg.get("batch_size")
            run.perplexity = expected.perplexity
            run.own_batch_sizes = {d: size for d, size in self._batch_sizes().items() if size != run.batch_size}
        else:
            run = ModelRun(abbr, DENSE, (str(model_cfg.get("path", "")), ""))
        run.groups = self._groups()
        run.group_size = {group["name"]: len(group["subsets"]) for group in self.summary_groups}
        for dataset_cfg in self.dataset_cfgs:
            dataset = dataset_abbr_from_cfg(dataset_cfg)
            reasons = []
            is_scored = False
            run.asked[dataset] = asked_facts(model_cfg, dataset_cfg)
            answers = _answers(files, dataset)
            run.scored[dataset] = _scored(answers, model_cfg, dataset_cfg)
            try:
                result = self._result(model_cfg, dataset_cfg, files)
                is_scored = "error" not in result
                run.accuracies[dataset] = _accuracy(result)
            except WdmoeError as error:
                reasons.append(str(error))
            else:
                try:
                    run.items[dataset] = item_results(result, *run.accuracies[dataset])
                except WdmoeError as error:
                    run.no_items[dataset] = str(error)
            if run.policy != DENSE:
                try:
                    names = self._trace_names(files, dataset, is_scored, unreadable)
                    check_counts(answers, {name: sealed[name] for name in names}, dataset_cfg)
                    run.traces[dataset] = [sealed[name] for name in names]
                    run.trace_names[dataset] = list(names)
                    run.sources[dataset] = _digests(files, names)
                except TraceError as error:
                    reasons.append(str(error))
                    if str(error) in unreadable.values():  # nothing says which run gave these answers
                        forget(run, dataset)
            if reasons:
                failures = [
                    read_failure(files.path(name, ".json"))
                    for name in (dataset, *files.parts_of(dataset, FAILURE_SUFFIX))
                ]
                noted = [failure for failure in failures if failure is not None]
                run.missing[dataset] = "; ".join(dict.fromkeys(noted or reasons))
        return run

    def _trace_names(
        self, files: ModelFiles, dataset: str, is_scored: bool, unreadable: Mapping[str, str]
    ) -> Sequence[str]:
        """Name of a dataset's trace, or those of the parts that a partitioner made of it.

        OpenCompass scores parts only if together they are the dataset: if they were not scored, one may be
        missing.
        """
        whole = files.path(dataset, SEALED_SUFFIX)
        names = [dataset] if whole.exists() else files.parts_of(dataset) or [dataset]
        if not all(files.path(name, SEALED_SUFFIX).exists() for name in names):
            raise TraceError(NO_TRACE)
        numbered = [f"{dataset}_{number}" for number in range(len(names))]
        if names != [dataset] and (names != numbered or not is_scored):
            raise TraceError(f"its parts ({', '.join(names)}) were not scored together: one may be missing")
        for name in names:
            if name in unreadable:
                raise TraceError(unreadable[name])
        return names

    def _result(self, model_cfg: Any, dataset_cfg: Any, files: ModelFiles) -> dict[str, Any]:
        """What the evaluator left of a dataset; WdmoeError with the reason where it left nothing."""
        results = output_file(self.work_dir, RESULTS, model_cfg, dataset_cfg)
        result = read_whole(results) if results.exists() else None
        if result is not None:
            return result
        failure = read_failure(results)
        if failure is not None:
            raise WdmoeError(f"the evaluation failed: {failure}")
        dataset = dataset_abbr_from_cfg(dataset_cfg)
        if not files.path(dataset, ".json").exists() and not files.parts_of(dataset):
            raise WdmoeError("no predictions: the inference did not finish; start it again with -r")
        raise WdmoeError(NOT_SCORED + self._way_out())

    def _way_out(self) -> str:
        """What to change first, where the run's eval section scores several datasets in a process that one can end."""
        task = resolve(TASKS, part_of(self.cfg, EVAL, "runner", "task").get("type"))
        return "" if task is None or issubclass(task, WdmoeEvalTask) else f"; {ENDS_AT_FIRST}"


Answers = Mapping[str, dict[str, Any] | None]  # name -> content of its predictions file; None where that is torn


def _answers(files: ModelFiles, dataset: str) -> Answers:
    """-> the predictions of a dataset, or of each of its parts."""
    names = [dataset] if files.path(dataset, ".json").exists() else files.parts_of(dataset)
    return {name: read_whole(files.path(name, ".json")) for name in names}


def _scored(answers: Answers, model_cfg: Any, dataset_cfg: Any) -> Facts:
    """-> what was asked, by the predictions, and how the answers are scored."""
    parts = [part for part in answers.values() if part]
    is_known = answers and len(parts) == len(answers)
    return scoring_facts(model_cfg, dataset_cfg) | (dict(prompts=prompts_digest(parts)) if is_known else {})


def check_counts(answers: Answers, traces: Mapping[str, RoutingTrace], dataset_cfg: Any) -> None:
    """Raise TraceError unless the traces of a dataset, or of its parts, have every item of its predictions."""
    is_whole = list(traces) == [dataset_abbr_from_cfg(dataset_cfg)]
    why = None if is_whole else why_not_parts_of(list(traces.values()), dataset_cfg)
    for name, trace in traces.items():
        answered = answers.get(name)
        if why is None and answered is None:
            why = "the predictions are torn"
        elif why is None and answered is not None:
            why = why_not_of(trace, answered, dataset_cfg, None if is_whole else trace.metadata.test_range)
    if why is not None:
        raise TraceError(f"{why}; start it again with -r")


def leave_out_mixed(runs: Sequence[ModelRun], expected: Mapping[str, Expected]) -> None:
    """Empty the cells with traces that do not belong in the run's tables, and note the reason for each.

    The accuracy goes too: the answers were given by the same run as the trace.
    """
    owners = {
        (run.abbr, name): (run, dataset, trace)
        for run in runs
        for dataset, traces in run.traces.items()
        for name, trace in zip(run.trace_names[dataset], traces, strict=True)
    }
    for key, why in why_refused({key: trace for key, (*_, trace) in owners.items()}, expected).items():
        run, dataset, _ = owners[key]
        forget(run, dataset)
        run.missing[dataset] = "; ".join(dict.fromkeys(filter(None, (run.missing.get(dataset), why))))


def forget(run: ModelRun, dataset: str) -> None:
    """Leave a model's cells of a dataset empty."""
    held: Sequence[dict[str, Any]] = (run.accuracies, run.items, run.no_items, run.traces, run.trace_names, run.sources)
    for facts in held:
        facts.pop(dataset, None)


def _digests(files: ModelFiles, names: Sequence[str]) -> dict[str, str]:
    """-> SHA-256 of the traces of these names and of what a testbed left next to them."""
    paths = [files.path(name, suffix) for name in names for suffix in (SEALED_SUFFIX, TIMES_SUFFIX, EVENTS_SUFFIX)]
    return {
        path.relative_to(files.predictions.parent).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.exists()
    }


def _accuracy(result: dict[str, Any]) -> tuple[str, float]:
    """-> (metric, percent); WdmoeError with the reason where the evaluation gave none."""
    score = main_score(result)
    if score.metric is None or score.percent is None:
        raise WdmoeError(str(score.why_not))
    return score.metric, score.percent
