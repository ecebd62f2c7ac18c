"""How far a dataset of a run is: from the files of the run alone, read beside it, without OpenCompass or torch.

Items, dropped assignments and waiting latency come from the journal of the routing trace, of which only new blocks are
read; the number of all prompts and the times from a small file, `progress/MODEL/DATASET.json`, that the task writes
when it begins a dataset and when it is done. Latency is that of `replay` with the run's own profile and channel draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .._util.atomic_write import write_whole
from .._util.file_names import beside, dataset_file, partial_file
from ..allocation import PRIMARY_SCOPE
from ..errors import WdmoeError, visible
from ..replay import replay
from ..trace.format import JOURNAL_SUFFIX, SEALED_SUFFIX, RoutingTrace, read_trace
from ..trace.journal_tail import JournalTail
from .failures import noted_failure
from .files import FAILURE_SUFFIX, changed_s, line_count, progress_file, read_if_there, version_of
from .lock import holder, lock_file
from .scores import main_score

WAITING, RUNNING, INTERRUPTED, FAILED, FINISHED = STATES = ("waiting", "running", "interrupted", "failed", "finished")
METHODS = ("uniform", "optimal")  # bandwidth allocations that the waiting latency is computed for
EVEN, OPTIMAL = "waiting, even split (ms per batch)", "waiting, optimal split (ms per batch)"  # columns of these
SILENT_S = 120.0  # where no lock tells, a dataset whose files did not change for so long is not running
MAX_REASON_LENGTH = 300

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, strict=True)]


class Begun(BaseModel):
    """What a task notes of a dataset that it begins, goes on with, or is done with.

    prompts: what the model is given in all, one per item, under perplexity one per item and possible answer; None where
    the inferencer does not tell. first_prompt: how many of them earlier tries have left. started_s: of this try,
    seconds since 1970. earlier_s: what earlier tries took. took_s: all tries together, once the dataset is done.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    items: Count
    prompts: Count | None
    first_prompt: Count
    started_s: Seconds
    earlier_s: Seconds = 0.0
    took_s: Seconds | None = None

    @classmethod
    def read(cls, path: Path) -> "Begun | None":
        """None where there is none, or it is torn."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return None

    def write(self, path: Path) -> None:
        """Write it whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, self.model_dump_json() + "\n")


@dataclass
class DatasetProgress:
    """One line: how far a model is with a dataset, or with a part that a partitioner made of it.

    state: one of STATES; reason: why it failed or was interrupted, or who runs it. prompts, prompts_done: see Begun.
    accuracy: percent, the metric that OpenCompass shows, named by `metric`; of the whole dataset: None before, and
    where the evaluation gave none.
    share_dropped: of the assignments so far. waiting_latency_s_per_batch: attention waiting latency, Eq. (11), summed
    over layers and passes, mean over the batches so far, by bandwidth allocation (scope `layer`). elapsed_s: all tries
    together; remaining_s: at the pace of this one.
    """

    model: str
    dataset: str
    state: str
    reason: str | None = None
    items: int | None = None
    prompts: int | None = None
    prompts_done: int | None = None
    metric: str | None = None
    accuracy: float | None = None
    share_dropped: float | None = None
    batches: int = 0
    waiting_latency_s_per_batch: dict[str, float] = field(default_factory=dict)
    elapsed_s: float | None = None
    remaining_s: float | None = None

    def cells(self) -> dict[str, str]:
        """The line as text, by column."""
        done = "-" if self.prompts_done is None else str(self.prompts_done)
        waiting = {name: f"{1000 * value:.3f}" for name, value in self.waiting_latency_s_per_batch.items()}
        return {
            "model": visible(self.model),
            "dataset": visible(self.dataset),
            "state": self.state,
            "prompts": f"{done}/{'-' if self.prompts is None else self.prompts}",
            "accuracy (%)": "-" if self.accuracy is None else f"{self.accuracy:.2f}",
            "dropped (%)": "-" if self.share_dropped is None else f"{100 * self.share_dropped:.2f}",
            EVEN: waiting.get("uniform", "-"),
            OPTIMAL: waiting.get("optimal", "-"),
            "elapsed": clock(self.elapsed_s),
            "left": clock(self.remaining_s),
        }

    def line(self) -> str:
        """The line alone, for a log: what is not known is left out."""
        cells = self.cells()
        parts = {
            "prompts": "{} prompts",
            "accuracy (%)": "accuracy {} %",
            "dropped (%)": "{} % of the assignments dropped",
            EVEN: "waiting {} ms per batch with an even split",
            OPTIMAL: "{} with an optimal one",
            "elapsed": "elapsed {}",
            "left": "left {}",
        }
        known = [text.format(cells[name]) for name, text in parts.items() if cells[name] != "-"]
        return ", ".join([f"{visible(self.model)}/{visible(self.dataset)}: {self.state}", *known])


def clock(seconds: float | None) -> str:
    """Hours, minutes and seconds; `-` for None."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


@dataclass
class Counted:
    """What the batches of a dataset add up to. waiting_s: by bandwidth allocation, summed over the passes."""

    methods: Sequence[str] = METHODS
    prompts: int = 0
    passes: int = 0
    batches: int = 0
    assignments_before: int = 0
    assignments: int = 0
    waiting_s: dict[str, float] = field(default_factory=dict)

    def add(self, trace: RoutingTrace) -> None:
        """Add further batches; WdmoeError where their latency cannot be computed."""
        self._add_counts(trace)
        for method in self.methods:
            waiting_s = replay(trace, trace.metadata.profile, method, PRIMARY_SCOPE).waiting_latency_s.sum()
            self.waiting_s[method] = self.waiting_s.get(method, 0.0) + float(waiting_s)

    def _add_counts(self, trace: RoutingTrace) -> None:
        self.prompts += int(trace.items.sum())
        self.passes += len(trace.batch)
        self.batches += len(trace.items)
        self.assignments_before += int(trace.assignments_before.sum())
        self.assignments += int(trace.assignments.sum())

    def is_of(self, trace: RoutingTrace) -> bool:
        """Whether this is what the trace's batches add up to."""
        other = Counted(self.methods, waiting_s=self.waiting_s)
        other._add_counts(trace)
        return other == self


class DatasetWatch:
    """Looks at one model's dataset, or a part of it, again and again; it changes nothing and holds no lock.

    is_traced: whether its model leaves a routing trace; is_matched: whether its score is the share of predictions that
    equal their gold, so that it follows from the predictions alone.
    """

    def __init__(
        self,
        run_folder: Path,
        model: str,
        name: str,
        is_traced: bool = True,
        is_matched: bool = False,
        methods: Sequence[str] = METHODS,
    ):
        self.model, self.name = model, name
        self.is_traced, self.is_matched, self.methods = is_traced, is_matched, methods
        self.begun = progress_file(run_folder, model, name)
        self.predictions = dataset_file(run_folder / "predictions", model, name, ".json")
        self.results = dataset_file(run_folder / "results", model, name, ".json")
        self._journal = beside(self.predictions, JOURNAL_SUFFIX)
        self._sealed = beside(self.predictions, SEALED_SUFFIX)
        self._partial = partial_file(self.predictions)
        self._tail = JournalTail(self._journal)
        self._counted = Counted(methods)
        self._why_uncounted: str | None = None
        self._sealed_seen: object = None
        self._answers_seen: object = None
        self._is_whole = False
        self._matched: float | None = None

    def look(self, now_s: float, is_summed_up: bool = False) -> DatasetProgress:
        """-> how far it is; now_s: seconds since 1970; is_summed_up: the run has written its summary since it began."""
        state, reason = self._state(now_s)
        found = self.counted(state, now_s)
        found.reason = "; ".join(filter(None, (reason, found.reason))) or None
        if state == FINISHED:
            self._add_accuracy(found, is_summed_up)
        return found

    def counted(self, state: str, now_s: float) -> DatasetProgress:
        """As `look`, of a dataset whose state is known, without its accuracy."""
        found = DatasetProgress(self.model, self.name, state)
        if self.is_traced:
            self._count()
            found.reason = self._why_uncounted
        begun, counted = Begun.read(self.begun), self._counted
        if begun is not None:
            found.items, found.prompts = begun.items, begun.prompts
        found.batches = counted.batches
        if self.is_traced:
            found.prompts_done = None if self._why_uncounted else counted.prompts
            if state == FINISHED and found.prompts is None and counted.batches:  # a run of before these notes
                found.prompts = counted.prompts
        elif state == FINISHED:
            found.prompts_done = found.prompts
        elif self._partial.exists():
            found.prompts_done = line_count(self._partial)
        if counted.assignments_before:
            found.share_dropped = 1 - counted.assignments / counted.assignments_before
        found.waiting_latency_s_per_batch = {name: s / counted.batches for name, s in counted.waiting_s.items()}
        if begun is not None:
            self._add_times(found, begun, now_s)
        return found

    def _add_times(self, found: DatasetProgress, begun: Begun, now_s: float) -> None:
        if found.state == FINISHED:
            found.elapsed_s = begun.took_s
            return
        last_s = self._last_change_s() or begun.started_s
        end_s = now_s if found.state == RUNNING else last_s
        found.elapsed_s = begun.earlier_s + max(0.0, end_s - begun.started_s)
        done = (found.prompts_done or 0) - begun.first_prompt
        if found.state == RUNNING and begun.prompts is not None and done > 0:
            each_s = max(0.0, last_s - begun.started_s) / done
            left = begun.prompts - begun.first_prompt - done
            found.remaining_s = max(0.0, each_s * left - max(0.0, now_s - last_s))

    def _count(self) -> None:
        try:
            if self._journal.exists():
                self._count_journal()
            else:
                self._count_sealed()
        except WdmoeError as error:
            self._why_uncounted = str(error)

    def _count_journal(self) -> None:
        if self._tail.began_again():
            self._counted, self._why_uncounted = Counted(self.methods), None
        if self._why_uncounted is None:
            for trace in self._tail.new_traces():
                self._counted.add(trace)

    def _count_sealed(self) -> None:
        seen = version_of(self._sealed)
        if seen is None or seen == self._sealed_seen:
            return
        self._sealed_seen, self._why_uncounted = seen, None
        trace = read_trace(self._sealed)
        if not self._counted.is_of(trace):  # else all of it was counted while it grew
            self._counted = Counted(self.methods)
            self._counted.add(trace)

    def _state(self, now_s: float) -> tuple[str, str | None]:
        if self.predictions.exists():
            return self._state_of_predictions(now_s)
        try:
            owner = holder(self.predictions)
            is_lock_known = self.is_traced or self._has_lock()
        except OSError:  # the file system knows no locks
            owner, is_lock_known = None, False
        if owner is not None:
            return RUNNING, owner
        failed_s = changed_s(beside(self.predictions, FAILURE_SUFFIX))
        if failed_s is not None and failed_s >= (changed_s(self.begun) or 0.0):
            return FAILED, _one_line(noted_failure(self.predictions) or "")
        if not is_lock_known and self._is_fresh(now_s):
            return RUNNING, None
        if any(path.exists() for path in (self._journal, self._partial, self.begun)):
            return INTERRUPTED, "started again with -r, it goes on"
        return WAITING, None

    def _state_of_predictions(self, now_s: float) -> tuple[str, str | None]:
        self._read_answers()
        if self._is_whole:
            is_untraced = self.is_traced and not self._sealed.exists() and not self._journal.exists()
            return FINISHED, "there is no routing trace of these predictions" if is_untraced else None
        # No look at the lock: who finds predictions there does not wait for it.
        if self._has_lock() and self._is_fresh(now_s):
            return RUNNING, None
        return INTERRUPTED, "the predictions are torn: started again with -r, it is run again"

    def _has_lock(self) -> bool:
        return lock_file(self.predictions).exists()

    def _is_fresh(self, now_s: float) -> bool:
        last_s = self._last_change_s()
        return last_s is not None and now_s - last_s < SILENT_S

    def _last_change_s(self) -> float | None:
        changed = [changed_s(path) for path in (self._journal, self._partial, self.predictions)]
        return max((time_s for time_s in changed if time_s is not None), default=None)

    def _add_accuracy(self, found: DatasetProgress, is_summed_up: bool) -> None:
        """What OpenCompass's evaluator left; before it has, the share of equal answers where that is the score.

        A result older than the predictions is of earlier ones. Not so where the run has been summed up, which comes
        after all evaluation: then only copying has changed the times.
        """
        scored_s, answered_s = changed_s(self.results), changed_s(self.predictions)
        if scored_s is None or (not is_summed_up and answered_s is not None and scored_s < answered_s):
            why_not = noted_failure(self.results)
            if why_not is not None:
                found.state, found.reason = FAILED, _one_line(f"the evaluation failed: {why_not}")
            elif self._matched is not None:
                found.metric, found.accuracy = "accuracy", self._matched
            return
        result = read_if_there(self.results)
        if result is None:
            found.reason = "its results are torn: started again with -r, it is evaluated again"
            return
        score = main_score(result)
        found.metric, found.accuracy = score.metric, score.percent
        if score.why_not is not None:
            found.reason = "; ".join(filter(None, (found.reason, _one_line(score.why_not))))
        if "error" in result:
            found.state, found.reason = FAILED, _one_line(f"{score.why_not}")

    def _read_answers(self) -> None:
        seen = version_of(self.predictions)
        if seen == self._answers_seen:
            return
        self._answers_seen = seen
        answers = read_if_there(self.predictions)
        self._is_whole = bool(answers)
        self._matched = _share_equal(answers) if answers and self.is_matched else None


def spent_s(run_folder: Path, model: str, name: str) -> float:
    """-> seconds that earlier tries of a dataset took, which none of them finished; to be asked before it goes on."""
    watch = DatasetWatch(run_folder, model, name)
    before = Begun.read(watch.begun)
    if before is None or before.took_s is not None:
        return 0.0
    return before.earlier_s + max(0.0, (watch._last_change_s() or 0.0) - before.started_s)


def _share_equal(answers: dict[str, Any]) -> float | None:
    """Percent of the predictions that equal their gold, as AccEvaluator compares them; None where one lacks either."""
    pairs = [(item.get("prediction"), item.get("gold")) for item in answers.values() if isinstance(item, dict)]
    if not pairs or len(pairs) < len(answers) or any(None in pair for pair in pairs):
        return None
    return 100 * sum(str(prediction) == str(gold) for prediction, gold in pairs) / len(pairs)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:MAX_REASON_LENGTH]
