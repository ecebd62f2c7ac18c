"""Which rows of a running `generate` are finished: what they go on producing is no load."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList

GET_CRITERIA = "_get_stopping_criteria"  # how transformers' generate gathers all criteria, end tokens included
HAS_UNFINISHED = "_beam_search_has_unfinished_sequences"  # how transformers' beam search asks whether to go on


class FinishedRows(StoppingCriteriaList):
    """All stopping criteria of a generation, which remember the sequences that have ended.

    A sequence has ended when transformers ends it, or as soon as a criterion with a `done_tracker` (OpenCompass's stop
    words) says so. rows: [rows] bool, None before the first step.
    """

    rows: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """-> [rows] bool, what the criteria say."""
        answer = super().__call__(input_ids, scores, **kwargs)
        ended = answer
        for criterion in self:
            tracker = getattr(criterion, "done_tracker", None)
            if tracker is not None and len(tracker) == len(ended):
                ended = ended | torch.tensor(tracker, device=ended.device)
        self.rows = ended if self.rows is None else self.rows | ended
        return answer


class FinishedBeams:
    """Knows which prompts' beam searches are over: those that would have stopped had the prompt been alone.

    Until then all beams of a prompt count, also right after a hypothesis has ended: its place goes to a live beam.
    rows: [prompts * beams] bool, None before the first step.
    """

    def __init__(self, has_unfinished: Callable[..., Tensor]):
        self._has_unfinished = has_unfinished
        self.rows: Tensor | None = None

    def __call__(self, can_improve: Tensor, is_finished: Tensor, hits: Tensor, early_stopping: bool | str) -> Tensor:
        """The question of beam search; can_improve: [prompts, 1], is_finished and hits: [prompts, beams]."""
        over = ~can_improve.any(dim=1) | hits.all(dim=1)
        if early_stopping is True:
            over = over | is_finished.all(dim=1)
        over_rows = over.repeat_interleave(is_finished.shape[1])
        self.rows = over_rows if self.rows is None else self.rows | over_rows
        return self._has_unfinished(can_improve, is_finished, hits, early_stopping)


class WatchedGenerate:
    """`generate` of a model, watched: `finished_rows` says which rows of the next pass are no load.

    ended: called when a generation has ended; failed: when it has in an exception or an interrupt
    """

    def __init__(self, model: Any, ended: Callable[[], None], failed: Callable[[], None]):
        self.model = model
        self._ended, self._failed = ended, failed
        self._own = model.__dict__.get("generate")
        self._generate = model.generate
        self._rows: FinishedRows | None = None
        self._beams: FinishedBeams | None = None
        model.generate = self

    def remove(self) -> None:
        """Give the model its own `generate` back."""
        if self._own is None:
            self.model.__dict__.pop("generate", None)
        else:
            self.model.generate = self._own

    def finished_rows(self, rows: int) -> Tensor | None:
        """-> [rows] bool, or None when no generation of so many rows is running."""
        finished = None if self._rows is None else self._rows.rows
        if self._beams is not None and self._beams.rows is not None:
            finished = self._beams.rows
        return finished if finished is not None and len(finished) == rows else None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as the model does."""
        with ExitStack() as stack:
            if hasattr(self.model, GET_CRITERIA):
                get_criteria = getattr(self.model, GET_CRITERIA)
                stack.enter_context(
                    _replaced(self.model, GET_CRITERIA, lambda *a, **k: self._watch(get_criteria(*a, **k)))
                )
            if hasattr(self.model, HAS_UNFINISHED):
                self._beams = FinishedBeams(getattr(self.model, HAS_UNFINISHED))
                stack.enter_context(_replaced(self.model, HAS_UNFINISHED, self._beams))
            try:
                answer = self._generate(*args, **kwargs)
                self._ended()
                return answer
            except BaseException:
                self._failed()
                raise
            finally:
                self._rows = self._beams = None

    def _watch(self, criteria: StoppingCriteriaList) -> FinishedRows:
        self._rows = FinishedRows(criteria)
        return self._rows


@contextmanager
def _replaced(model: Any, name: str, value: Any) -> Iterator[None]:
    own = vars(model).get(name)
    setattr(model, name, value)
    try:
        yield
    finally:
        delattr(model, name)
        if own is not None:
            setattr(model, name, own)
