"""Which rows of a running `generate` are finished: tokens generated after that are not counted."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import copy
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList

GET_CRITERIA = "_get_stopping_criteria"  # how transformers' generate gathers all criteria, end tokens included
HAS_UNFINISHED = "_beam_search_has_unfinished_sequences"  # how transformers' beam search asks whether to go on
PREPARE = "prepare_inputs_for_generation"  # gets the sequences of all rows before each forward pass


class FinishedRows(StoppingCriteriaList):
    """All stopping criteria of a generation, and the sequences that have ended.

    A sequence has ended when transformers ends it, or when a criterion with a `done_tracker` finds a stop word in it.
    That is OpenCompass's criterion. Its tracker has an entry per prompt, reads as many rows and ends the batch; this
    does not change. Whether a row has ended is asked of a copy with an entry per row.

    rows: [rows] bool, as transformers ends them; None before the first step. Beam search passes all candidates here.
    holds_stop_word: [rows] bool, of the rows that are forwarded next; None if no criterion has a tracker
    """

    rows: Tensor | None = None
    holds_stop_word: Tensor | None = None

    def __init__(self, criteria: StoppingCriteriaList):
        super().__init__(criteria)
        self._of_prompts = [criterion for criterion in criteria if hasattr(criterion, "done_tracker")]
        self._known: dict[bytes, bool] = {}  # sequence after the last step -> whether it holds a stop word

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """Apply the criteria.

        input_ids: [rows, length] sequences so far. scores: [rows, vocabulary] of the last step, or None.
        Returns: [rows] bool, True where a criterion ends the row.
        """
        answer = super().__call__(input_ids, scores, **kwargs)
        self.rows = answer if self.rows is None or len(self.rows) != len(answer) else self.rows | answer
        if self._of_prompts:
            self._look_for_stop_words(input_ids, scores, kwargs)
        return answer

    def _look_for_stop_words(self, input_ids: Tensor, scores: Any, kwargs: dict[str, Any]) -> None:
        """A sequence holds a stop word if one is found after its last step, or was found before that step."""
        shown = [False] * len(input_ids)
        for criterion in self._of_prompts:
            of_rows = copy(criterion)
            of_rows.done_tracker = [False] * len(input_ids)
            of_rows(input_ids, scores, **kwargs)
            shown = [before or now for before, now in zip(shown, of_rows.done_tracker, strict=True)]
        sequences = input_ids.cpu().numpy()
        self._known = {
            row.tobytes(): here or self._known.get(row[:-1].tobytes(), False)
            for row, here in zip(sequences, shown, strict=True)
        }

    def look_up(self, input_ids: Tensor) -> None:
        """Note which of the rows that are forwarded next hold a stop word.

        input_ids: [rows, length] sequences of these rows.
        """
        if self._of_prompts:
            held = [self._known.get(row.tobytes(), False) for row in input_ids.cpu().numpy()]
            self.holds_stop_word = torch.tensor(held, device=input_ids.device)


class FinishedBeams:
    """The prompts that have finished their beam search: it would have stopped if the prompt had been alone.

    Until then all beams of a prompt count, even just after a hypothesis has ended: its slot goes to a live beam.
    rows: [prompts * beams] bool; None before the first step.
    """

    def __init__(self, has_unfinished: Callable[..., Tensor]):
        self._has_unfinished = has_unfinished
        self.rows: Tensor | None = None

    def __call__(self, can_improve: Tensor, is_finished: Tensor, hits: Tensor, early_stopping: bool | str) -> Tensor:
        """Answer, as transformers does, whether beam search goes on.

        can_improve: [prompts, 1] bool. is_finished, hits: [prompts, beams] bool. early_stopping: as in `generate`.
        Returns: [] bool, transformers' own answer.
        """
        over = ~can_improve.any(dim=1) | hits.all(dim=1)
        if early_stopping is True:
            over = over | is_finished.all(dim=1)
        over_rows = over.repeat_interleave(is_finished.shape[1])
        self.rows = over_rows if self.rows is None else self.rows | over_rows
        return self._has_unfinished(can_improve, is_finished, hits, early_stopping)


class WatchedGenerate:
    """Replaces a model's `generate`; `finished_rows` says which rows of the next pass are not counted.

    on_end: called when a generation has ended; on_failure: when an exception or an interrupt ended it
    """

    def __init__(self, model: Any, on_end: Callable[[], None], on_failure: Callable[[], None]):
        self.model = model
        self._on_end, self._on_failure = on_end, on_failure
        self._own = model.__dict__.get("generate")
        self._generate = model.generate
        self._rows: FinishedRows | None = None
        self._beams: FinishedBeams | None = None
        model.generate = self

    def remove(self) -> None:
        """Restore the model's own `generate`."""
        if self._own is None:
            self.model.__dict__.pop("generate", None)
        else:
            self.model.generate = self._own

    def finished_rows(self, rows: int) -> Tensor | None:
        """Return the finished rows.

        rows: how many the forward pass has.
        Returns: [rows] bool, or None if no generation with that many rows is running.
        """
        if self._rows is None:
            return None
        by_search = self._rows.rows if self._beams is None or self._beams.rows is None else self._beams.rows
        found = [
            finished
            for finished in (by_search, self._rows.holds_stop_word)
            if finished is not None and len(finished) == rows
        ]
        return torch.stack(found).any(dim=0) if found else None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model's own `generate`."""
        with ExitStack() as stack:
            if hasattr(self.model, GET_CRITERIA):
                get_criteria = getattr(self.model, GET_CRITERIA)
                stack.enter_context(
                    _replace(self.model, GET_CRITERIA, lambda *a, **k: self._watch(get_criteria(*a, **k)))
                )
            if hasattr(self.model, HAS_UNFINISHED):
                self._beams = FinishedBeams(getattr(self.model, HAS_UNFINISHED))
                stack.enter_context(_replace(self.model, HAS_UNFINISHED, self._beams))
            if hasattr(self.model, PREPARE):
                stack.enter_context(_replace(self.model, PREPARE, self._with_look_up(getattr(self.model, PREPARE))))
            try:
                answer = self._generate(*args, **kwargs)
                self._on_end()
                return answer
            except BaseException:
                self._on_failure()
                raise
            finally:
                self._rows = self._beams = None

    def _watch(self, criteria: StoppingCriteriaList) -> FinishedRows:
        self._rows = FinishedRows(criteria)
        return self._rows

    def _with_look_up(self, prepare: Callable) -> Callable:
        @wraps(prepare)  # generate looks at its arguments
        def prepare_after_look_up(input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._rows is not None:
                self._rows.look_up(input_ids)
            return prepare(input_ids, *args, **kwargs)

        return prepare_after_look_up


@contextmanager
def _replace(model: Any, name: str, value: Any) -> Iterator[None]:
    own = vars(model).get(name)
    setattr(model, name, value)
    try:
        yield
    finally:
        delattr(model, name)
        if own is not None:
            setattr(model, name, own)
