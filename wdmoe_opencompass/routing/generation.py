"""Which rows of a running `generate` are finished: what they go on producing is no load."""

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
    """All stopping criteria of a generation, which remember the sequences that have ended.

    A sequence has ended when transformers ends it, or as soon as it holds a stop word by a criterion with a
    `done_tracker`. That is OpenCompass's criterion: its tracker has an entry per prompt, looks at as many rows and ends
    the batch, which stays as it is. Whether a row has ended, we ask a copy with an entry per row.

    rows: [rows] bool, as transformers ends them, None before the first step. Beam search shows all candidates here.
    holds_stop_word: [rows] bool, of the rows that are forwarded next; None where no criterion has a tracker
    """

    rows: Tensor | None = None
    holds_stop_word: Tensor | None = None

    def __init__(self, criteria: StoppingCriteriaList):
        super().__init__(criteria)
        self._of_prompts = [criterion for criterion in criteria if hasattr(criterion, "done_tracker")]
        self._known: dict[bytes, bool] = {}  # sequence after the last step -> whether it holds a stop word

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """-> [rows] bool, what the criteria say."""
        answer = super().__call__(input_ids, scores, **kwargs)
        self.rows = answer if self.rows is None or len(self.rows) != len(answer) else self.rows | answer
        if self._of_prompts:
            self._look_for_stop_words(input_ids, scores, kwargs)
        return answer

    def _look_for_stop_words(self, input_ids: Tensor, scores: Any, kwargs: dict[str, Any]) -> None:
        """A sequence holds a stop word if its last step shows one, or it did before that step."""
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
        """Note which of the rows that are forwarded next hold a stop word; input_ids: [rows, length] all of them."""
        if self._of_prompts:
            held = [self._known.get(row.tobytes(), False) for row in input_ids.cpu().numpy()]
            self.holds_stop_word = torch.tensor(held, device=input_ids.device)


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
            if hasattr(self.model, PREPARE):
                stack.enter_context(_replaced(self.model, PREPARE, self._looking_up(getattr(self.model, PREPARE))))
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

    def _looking_up(self, prepare: Callable) -> Callable:
        @wraps(prepare)  # generate looks at its arguments
        def looked_up(input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._rows is not None:
                self._rows.look_up(input_ids)
            return prepare(input_ids, *args, **kwargs)

        return looked_up


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
