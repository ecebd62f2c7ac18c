"""Which rows of a running `generate` are finished: what they go on producing is no load."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

HAS_UNFINISHED = "_beam_search_has_unfinished_sequences"  # how transformers' beam search asks whether to go on


class FinishedRows(StoppingCriteria):
    """Knows, after each decoding step, which sequences have ended; never stops anything itself.

    A sequence has ended after its end token, or as soon as another criterion with a `done_tracker` (OpenCompass's
    stop words) says so. rows: [rows] bool, None before the first step.
    """

    def __init__(self, others: StoppingCriteriaList, end_tokens: list[int]):
        self.others = others
        self.end_tokens = torch.tensor(end_tokens, dtype=torch.long)
        self.rows: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Look at every row's last token; -> [rows] False."""
        ended = torch.isin(input_ids[:, -1], self.end_tokens.to(input_ids.device))
        for criterion in self.others:
            tracker = getattr(criterion, "done_tracker", None)
            if tracker is not None and len(tracker) == len(ended):
                ended = ended | torch.tensor(tracker, device=ended.device)
        self.rows = ended if self.rows is None else self.rows | ended
        return torch.zeros_like(ended)


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
    """`generate` of a model, watched: `finished_rows` says which rows of the next pass are no load."""

    def __init__(self, model: Any):
        self.model = model
        self._own = model.__dict__.get("generate")
        self._generate = model.generate
        self._finished: FinishedRows | FinishedBeams | None = None
        model.generate = self

    def remove(self) -> None:
        """Give the model its own `generate` back."""
        if self._own is None:
            self.model.__dict__.pop("generate", None)
        else:
            self.model.generate = self._own

    def finished_rows(self, rows: int) -> Tensor | None:
        """-> [rows] bool, or None when no generation of so many rows is running."""
        finished = None if self._finished is None else self._finished.rows
        return finished if finished is not None and len(finished) == rows else None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as the model does."""
        given = inspect.signature(self._generate).bind_partial(*args, **kwargs).arguments
        given.update(given.pop("kwargs", {}))
        if (_setting(self.model, given, "num_beams") or 1) > 1:
            return self._generate_beams(given)
        end = _setting(self.model, given, "eos_token_id")
        criteria = StoppingCriteriaList(given.pop("stopping_criteria", None) or [])
        watching = FinishedRows(criteria, [end] if isinstance(end, int) else list(end or []))
        self._finished = watching
        try:
            return self._generate(**given, stopping_criteria=StoppingCriteriaList([*criteria, watching]))
        finally:
            self._finished = None

    def _generate_beams(self, given: dict[str, Any]) -> Any:
        self._finished = FinishedBeams(getattr(self.model, HAS_UNFINISHED))
        setattr(self.model, HAS_UNFINISHED, self._finished)
        try:
            return self._generate(**given)
        finally:
            self._finished = None
            self.model.__dict__.pop(HAS_UNFINISHED, None)


def _setting(model: Any, given: dict[str, Any], name: str) -> Any:
    """The generation setting that applies: the call's own, its generation_config's, the model's."""
    if given.get(name) is not None:
        return given[name]
    for config in (given.get("generation_config"), model.generation_config):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    return None
