"""A recording of a router: what it chose for every token, so that any policy can be run on it without the model.

NumPy only. Prompts and answers are not in it, nor are hidden states: tokens have numbers, no text.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from .trace import Count

RECORDING_VERSION = 1
DEFAULT_BATCH_SIZE = 64  # sequences per forward pass: the one size with which Table II's row one fits


class RecordingMetadata(BaseModel):
    """Where a recording comes from.

    source:   `run`, written by one of our own runs; `import`, made from somebody else's arrays
    policy:   the run's selection policy: under another than `top_k` later layers saw what it had dropped. Of an import
              `top_k`: routers are recorded without one
    router_is_softmax: whether the weights come from one softmax over all experts; None where nobody has said
    router_normalises: whether the weights of a token's top-k have the same sum for every token
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int = RECORDING_VERSION
    source: Literal["run", "import"]
    model: str
    weights: str = ""
    dataset: str
    test_range: str = ""
    policy: str = "top_k"
    layers: Annotated[Count, Field(gt=0)]
    num_experts: Annotated[Count, Field(gt=0, le=1 << 15)]
    top_k: Annotated[Count, Field(gt=0)]
    hidden_size: Annotated[Count, Field(gt=0)]
    ffn_size: Annotated[Count, Field(gt=0)]
    router_is_softmax: bool | None = None
    router_normalises: bool = False
    has_weights: bool
    has_probabilities: bool
    dtype: str = ""
    versions: dict[str, str] = Field(default_factory=dict)


class RouterPass(NamedTuple):
    """One forward pass of router outputs, recorded or generated; padding and finished sequences are not in it.

    batch:        number of its batch; a new one begins where it changes
    first_item, items: first item of the batch, and how many it holds
    phase:        prefill or decode
    expert_index: [tokens, layers, k] integers, the router's top-k, in its order
    weights:      [tokens, layers, k] float32 as the model uses them; None where they were not recorded
    probabilities: [tokens, layers, experts] float32 softmax over all experts; None where it was not recorded
    """

    batch: int
    first_item: int
    items: int
    phase: Literal["prefill", "decode"]
    expert_index: NDArray
    weights: NDArray[np.float32] | None
    probabilities: NDArray[np.float32] | None


@dataclass(frozen=True)
class Recording:
    """A recording in memory: metadata and arrays; sequences one after the other, each by ascending position.

    expert_index:  [tokens, layers, k] int16
    weights:       [tokens, layers, k] float32 as the model uses them, or None
    probabilities: [tokens, layers, experts] float32 softmax over all experts, or None
    sequence:      [tokens] int32 from 0, ascending
    position:      [tokens] int32 in the sequence, from 0, ascending within it; it may have gaps
    prompt_length: [sequences] int32; a token whose position is at least that is new
    batch, first_pass: [sequences] int32 batch of the run that recorded it, and the batch's forward pass that held the
                   prompt; batches of an import are all 0
    first_item, items, passes: [batches] int32 first item of the batch, its items and its forward passes; an import has
                   no batches, and all three are empty
    """

    metadata: RecordingMetadata
    expert_index: NDArray[np.int16]
    weights: NDArray[np.float32] | None
    probabilities: NDArray[np.float32] | None
    sequence: NDArray[np.int32]
    position: NDArray[np.int32]
    prompt_length: NDArray[np.int32]
    batch: NDArray[np.int32]
    first_pass: NDArray[np.int32]
    first_item: NDArray[np.int32]
    items: NDArray[np.int32]
    passes: NDArray[np.int32]

    @property
    def has_batches(self) -> bool:
        """Whether it knows the batches of the run that recorded it."""
        return len(self.first_item) > 0

    @cached_property
    def is_prompt(self) -> NDArray[np.bool_]:
        """-> [tokens] whether a token is of its sequence's prompt; any other is new."""
        return self.position < self.prompt_length[self.sequence]

    @cached_property
    def sequence_start(self) -> NDArray[np.int64]:
        """-> [sequences + 1] index of each sequence's first token, and the number of tokens."""
        return np.searchsorted(self.sequence, np.arange(len(self.prompt_length) + 1))

    def router_passes(self, batch_size: int | None = None) -> Iterator[RouterPass]:
        """The forward passes: prefill of all prompts of a batch, then its n-th new tokens, n = 1, 2, ...

        batch_size: sequences per batch, in their order. None: the batches of the run that recorded them, pass by pass;
        an import has none, it gets DEFAULT_BATCH_SIZE.
        """
        if batch_size is None and self.has_batches:
            yield from self._recorded_passes()
            return
        size = batch_size or DEFAULT_BATCH_SIZE
        for batch, start in enumerate(range(0, len(self.prompt_length), size)):
            tokens = slice(*self.sequence_start[[start, min(start + size, len(self.prompt_length))]])
            step = self._step[tokens]
            for pass_step in np.unique(step):  # no empty passes where a recording begins after the prompt
                phase: Literal["prefill", "decode"] = "decode" if pass_step else "prefill"
                items = min(size, len(self.prompt_length) - start)
                yield self._pass(batch, start, items, phase, np.flatnonzero(step == pass_step) + tokens.start)

    def _recorded_passes(self) -> Iterator[RouterPass]:
        sequences = np.searchsorted(self.batch, np.arange(len(self.first_item) + 1))
        for batch, (first_item, items, passes) in enumerate(zip(self.first_item, self.items, self.passes, strict=True)):
            own = slice(*sequences[[batch, batch + 1]])
            tokens = slice(*self.sequence_start[[own.start, own.stop]])
            prefills = set(self.first_pass[own].tolist())
            pass_index = self.first_pass[self.sequence[tokens]] + self._step[tokens]
            for number in range(passes):
                phase: Literal["prefill", "decode"] = "prefill" if number in prefills else "decode"
                chosen = np.flatnonzero(pass_index == number) + tokens.start
                yield self._pass(batch, int(first_item), int(items), phase, chosen)

    @cached_property
    def _step(self) -> NDArray[np.int64]:
        """-> [tokens] 0 for the prompt's, n for the n-th new token of a sequence."""
        new = (~self.is_prompt).astype(np.int64)
        seen = np.cumsum(new)
        before = np.append(0, seen)[self.sequence_start[self.sequence]]  # new ones of the sequences before
        return (seen - before) * new

    def _pass(
        self, batch: int, first_item: int, items: int, phase: Literal["prefill", "decode"], tokens: NDArray
    ) -> RouterPass:
        return RouterPass(
            batch,
            first_item,
            items,
            phase,
            self.expert_index[tokens],
            None if self.weights is None else self.weights[tokens],
            None if self.probabilities is None else self.probabilities[tokens],
        )
