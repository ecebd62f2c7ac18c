"""A recording of a router: what it chose for every token, so that any policy can be run on it without the model.

NumPy only. Prompts and answers are not in it, nor are hidden states: tokens have numbers, no text. The file
(`*.routing.safetensors`) is written and read by the rules of a routing trace: sealed with its SHA-256, versioned, and
grown in a journal (`*.routing.part`) of one block per finished batch. What breaks a rule is a TraceError.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from .._util.checksummed_safetensors import read_sealed, write_sealed
from ..errors import TraceError
from .format import RoutingTrace
from .journal import Arrays, BlockJournal, Count, FileMetadata, checked_arrays, joined_arrays

RECORDING_VERSION = 1
RECORDING_SUFFIX = ".routing.safetensors"
RECORDING_JOURNAL_SUFFIX = ".routing.part"
METADATA_KEY = "wdmoe_routing"
MAX_EXPERTS = 1 << 15  # an expert's number is an int16
SUM_TOLERANCE = 0.02  # of a token's probabilities against 1: half precision rounds 100 experts so far
DEFAULT_BATCH_SIZE = 64  # sequences per forward pass: about the size with which Table II's row one fits


class RecordingMetadata(FileMetadata):
    """Where a recording comes from.

    source:   `run`, written by one of our own runs; `import`, made from somebody else's arrays
    routing:  how the run routed, as its tables call it: under a policy other than `top_k` later layers saw what it had
              dropped. An import is taken to be of the unchanged model
    router_is_softmax: whether the weights come from one softmax over all experts; None where nobody has said
    router_normalises: whether the weights of a token's top-k have the same sum for every token
    """

    readable_versions = (RECORDING_VERSION,)

    format_version: Annotated[int, Field(strict=True)] = RECORDING_VERSION
    source: Literal["run", "import"]
    model: str
    weights: str = ""
    dataset: str
    test_range: str = ""
    routing: str = "top_k"
    layers: Annotated[Count, Field(gt=0)]
    num_experts: Annotated[Count, Field(gt=0, le=MAX_EXPERTS)]
    top_k: Annotated[Count, Field(gt=0)]
    hidden_size: Annotated[Count, Field(gt=0)]
    ffn_size: Annotated[Count, Field(gt=0)]
    router_is_softmax: bool | None = None
    router_normalises: bool = False
    has_weights: bool
    has_probabilities: bool
    dtype: str = ""
    versions: dict[str, str] = Field(default_factory=dict)

    def sizes(self) -> dict[str, int]:
        """Length of every named axis."""
        return {"layers": self.layers, "k": self.top_k, "experts": self.num_experts}

    def tables(self) -> tuple[Arrays, ...]:
        """Arrays per token, per sequence and, of a run, per batch: name -> (dtype, axes after the first)."""
        per_token: Arrays = {
            "sequence": ("int32", ()),
            "position": ("int32", ()),
            "expert_index": ("int16", ("layers", "k")),
        }
        if self.has_weights:
            per_token["weights"] = ("float32", ("layers", "k"))
        if self.has_probabilities:
            per_token["probabilities"] = ("float32", ("layers", "experts"))
        if self.source == "import":
            return per_token, {"prompt_length": ("int32", ())}
        return (
            per_token,
            dict.fromkeys(("prompt_length", "batch", "first_pass"), ("int32", ())),
            dict.fromkeys(("first_item", "items", "passes"), ("int32", ())),
        )

    def token_bytes(self) -> int:
        """Bytes of one token in a file."""
        sizes = self.sizes()
        return sum(
            np.dtype(dtype).itemsize * math.prod(sizes[axis] for axis in axes)
            for dtype, axes in self.tables()[0].values()
        )


class RouterPass(NamedTuple):
    """One forward pass of router outputs, recorded or generated; padding and finished sequences are not in it.

    batch:        number of its batch; a new one begins where it changes
    first_item, items: first item of the batch, and how many it holds
    phase:        prefill or decode
    expert_index: [tokens, layers, k] integers, the router's top-k, in its order
    weights:      [tokens, layers, k] float32 as the model uses them; None where they were not recorded
    probabilities: [tokens, layers, experts] float32 softmax over all experts; None where it was not recorded
    finished:     [rows] whether each row of the batch (a sequence, as many per item) has had its last token before;
                  None: none has
    """

    batch: int
    first_item: int
    items: int
    phase: Literal["prefill", "decode"]
    expert_index: NDArray
    weights: NDArray[np.float32] | None
    probabilities: NDArray[np.float32] | None
    finished: NDArray[np.bool_] | None = None


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
                   prompt
    first_item, items, passes: [batches] int32 first item of the batch, its items and its forward passes
    An import knows no batches: the last five are empty.
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

        batch_size: sequences per batch, in their order, each as an item of its own: nothing then says which candidate
        answers are of one item. None: the batches of the run that recorded them, pass by pass; an import has none, it
        gets DEFAULT_BATCH_SIZE.
        """
        if batch_size is None and self.has_batches:
            yield from self._recorded_passes()
            return
        size = batch_size or DEFAULT_BATCH_SIZE
        for batch, start in enumerate(range(0, len(self.prompt_length), size)):
            items = min(size, len(self.prompt_length) - start)
            tokens = slice(*self.sequence_start[[start, start + items]])
            step = self.token_step[tokens]
            last_step = self._last(step, tokens, start, items, none=-1)
            for pass_step in np.unique(step):  # no empty passes where a recording begins after the prompt
                phase: Literal["prefill", "decode"] = "decode" if pass_step else "prefill"
                chosen = np.flatnonzero(step == pass_step) + tokens.start
                yield self._pass(batch, start, items, phase, chosen, last_step < pass_step)

    def _recorded_passes(self) -> Iterator[RouterPass]:
        sequences = np.searchsorted(self.batch, np.arange(len(self.first_item) + 1))
        for batch, (first_item, items, passes) in enumerate(zip(self.first_item, self.items, self.passes, strict=True)):
            own = slice(*sequences[[batch, batch + 1]])
            tokens = slice(*self.sequence_start[[own.start, own.stop]])
            prefills = set(self.first_pass[own].tolist())
            pass_index = self.first_pass[self.sequence[tokens]] + self.token_step[tokens]
            last_pass = self._last(pass_index, tokens, own.start, own.stop - own.start, none=0)
            for number in range(passes):
                phase: Literal["prefill", "decode"] = "prefill" if number in prefills else "decode"
                chosen = np.flatnonzero(pass_index == number) + tokens.start
                # Of several prefills nothing says which items wait for which: all wait for all, as in the run.
                finished = last_pass < number if len(prefills) == 1 else None
                yield self._pass(batch, int(first_item), int(items), phase, chosen, finished)

    def _last(self, number: NDArray, tokens: slice, first: int, rows: int, none: int) -> NDArray[np.int64]:
        """-> [rows] the highest number of the tokens of each sequence from `first` on; `none` where it has no token."""
        last = np.full(rows, none, dtype=np.int64)
        np.maximum.at(last, self.sequence[tokens] - first, number)
        return last

    @cached_property
    def token_step(self) -> NDArray[np.int64]:
        """-> [tokens] 0 for the prompt's, n for the n-th new token of a sequence; a run's may skip passes (beams)."""
        if self.has_batches:
            return np.maximum(self.position.astype(np.int64) - self.prompt_length[self.sequence] + 1, 0)
        new = (~self.is_prompt).astype(np.int64)
        seen = np.cumsum(new)
        before = np.append(0, seen)[self.sequence_start[self.sequence]]  # new ones of the sequences before
        return (seen - before) * new

    def _pass(
        self,
        batch: int,
        first_item: int,
        items: int,
        phase: Literal["prefill", "decode"],
        tokens: NDArray,
        finished: NDArray[np.bool_] | None,
    ) -> RouterPass:
        return RouterPass(
            batch,
            first_item,
            items,
            phase,
            self.expert_index[tokens],
            None if self.weights is None else self.weights[tokens],
            None if self.probabilities is None else self.probabilities[tokens],
            finished,
        )


NO_BATCHES = dict.fromkeys(("batch", "first_pass", "first_item", "items", "passes"), np.zeros(0, np.int32))


def new_recording(source: Path | str, metadata: RecordingMetadata, arrays: dict[str, NDArray]) -> Recording:
    """A recording of these arrays; TraceError, which names `source`, where they break a rule."""
    check_recording(source, metadata, arrays)
    optional: dict[str, Any] = dict(weights=None, probabilities=None)
    return Recording(metadata, **(optional | NO_BATCHES | arrays))


def write_recording(path: Path, recording: Recording) -> None:
    """Write a sealed recording whole or not at all."""
    arrays = {name: getattr(recording, name) for table in recording.metadata.tables() for name in table}
    write_sealed(path, arrays, {METADATA_KEY: recording.metadata.model_dump_json()})


def read_recording(path: Path | str) -> Recording:
    """Read a sealed recording; TraceError where it is missing, changed, torn, of another version or inconsistent."""
    path = Path(path)
    text, arrays = read_sealed(path, METADATA_KEY, "recording of a router", RECORDING_VERSION)
    return new_recording(path, RecordingMetadata.parsed(path, text), arrays)


def check_recording(source: Path | str, metadata: RecordingMetadata, arrays: dict[str, NDArray]) -> None:
    """Raise TraceError unless the arrays are those that the metadata says, and no token contradicts another."""
    checked_arrays(source, metadata, arrays)
    _check_tokens(source, arrays["sequence"], arrays["position"], len(arrays["prompt_length"]))
    _check_experts(source, metadata, arrays)
    if metadata.source == "run":
        _check_passes(source, arrays)


def _check_tokens(source: Path | str, sequence: NDArray, position: NDArray, sequences: int) -> None:
    if len(sequence) and sequence.max() >= sequences:
        raise TraceError(f"{source}: array sequence must be < {sequences} throughout, got {sequence.max()}")
    later = sequence[1:] > sequence[:-1]
    if not (later | ((sequence[1:] == sequence[:-1]) & (position[1:] > position[:-1]))).all():
        raise TraceError(f"{source}: sequences must follow each other, each with ascending positions")


def _check_experts(source: Path | str, metadata: RecordingMetadata, arrays: dict[str, NDArray]) -> None:
    index = arrays["expert_index"]
    if metadata.top_k > metadata.num_experts:
        raise TraceError(f"{source}: top_k must be <= num_experts, got {metadata.top_k} of {metadata.num_experts}")
    if index.size and index.max() >= metadata.num_experts:
        raise TraceError(f"{source}: array expert_index must be < {metadata.num_experts}, got {index.max()}")
    ordered = np.sort(index, axis=2)
    twice = np.argwhere((ordered[..., 1:] == ordered[..., :-1]).any(axis=2))
    if len(twice):
        token, layer = twice[0]
        raise TraceError(
            f"{source}: array expert_index must name an expert once per token, got {index[token, layer].tolist()} at "
            f"token {token}, layer {layer}"
        )
    if metadata.has_probabilities and len(index):
        off = np.abs(arrays["probabilities"].sum(axis=2, dtype=np.float64) - 1).max()
        if off > SUM_TOLERANCE:
            raise TraceError(f"{source}: array probabilities must sum to 1 over the experts, got a sum {off:.3g} off")


def _check_passes(source: Path | str, arrays: dict[str, NDArray]) -> None:
    """Every token's forward pass is one of its batch."""
    sequence, batch = arrays["sequence"], arrays["batch"]
    step = np.maximum(arrays["position"].astype(np.int64) - arrays["prompt_length"][sequence] + 1, 0)
    last = arrays["first_pass"].astype(np.int64)
    np.maximum.at(last, sequence, last[sequence] + step)
    if (last >= arrays["passes"][batch]).any():
        raise TraceError(f"{source}: array passes must count the passes of every token")


def join_recording(metadata: RecordingMetadata, blocks: Iterable[dict[str, NDArray]]) -> Recording:
    """One recording from consecutive batches; their `batch` and `sequence` numbers are counted on."""
    optional: dict[str, Any] = dict(weights=None, probabilities=None)
    return Recording(metadata, **(optional | joined_arrays(metadata, blocks)))


class RecordingJournal(BlockJournal[RecordingMetadata, Recording]):
    """The growing recording of a run."""

    kind = RecordingMetadata
    contents = "a recording of a router"
    suffix = RECORDING_JOURNAL_SUFFIX
    sealed_suffix = RECORDING_SUFFIX

    _check_block = staticmethod(check_recording)
    _join = staticmethod(join_recording)
    _write = staticmethod(write_recording)


def check_of_trace(recording: Recording, trace: RoutingTrace) -> None:
    """Raise TraceError unless a recording is of the forward passes of a run's trace."""
    for what, ours, theirs in (
        ("model", recording.metadata.model, trace.metadata.model),
        ("dataset", recording.metadata.dataset, trace.metadata.dataset),
        ("MoE layers", recording.metadata.layers, trace.metadata.layers),
        ("experts", recording.metadata.num_experts, trace.metadata.experts),
    ):
        if ours != theirs:
            raise TraceError(f"the recording of the router is of {what} {ours}, the trace of {theirs}")
    for name in ("first_item", "items"):
        if not np.array_equal(getattr(recording, name), trace.arrays[name]):
            raise TraceError(f"the recording of the router is not of the batches of its trace: {name} differs")
    batch = recording.batch[recording.sequence]
    start = np.append(0, np.cumsum(recording.passes))
    if start[-1] == len(trace.batch):
        pass_number = start[batch] + recording.first_pass[recording.sequence] + recording.token_step
        if np.array_equal(np.bincount(pass_number, minlength=start[-1]), trace.tokens):
            return
    raise TraceError("the recording of the router is not of the passes of its trace")


def summary(recording: Recording) -> dict[str, Any]:
    """-> what `wdmoe recording show` prints: sizes, what is known of the router, and how evenly its load is spread.

    largest_to_mean_load: of a layer, the most used expert's tokens over the mean of all, mean and worst of the layers
    """
    metadata = recording.metadata
    loads = expert_loads(recording)
    ratio = loads.max(axis=1) * metadata.num_experts / np.maximum(loads.sum(axis=1), 1)
    return dict(
        source=metadata.source,
        model=metadata.model,
        dataset=metadata.dataset,
        routing=metadata.routing,
        sequences=len(recording.prompt_length),
        tokens=len(recording.sequence),
        prompt_tokens=int(recording.is_prompt.sum()),
        new_tokens=int((~recording.is_prompt).sum()),
        batches=len(recording.first_item),
        layers=metadata.layers,
        num_experts=metadata.num_experts,
        top_k=metadata.top_k,
        hidden_size=metadata.hidden_size,
        ffn_size=metadata.ffn_size,
        weights=metadata.has_weights,
        probabilities=metadata.has_probabilities,
        router_is_softmax=metadata.router_is_softmax,
        router_normalises=metadata.router_normalises,
        largest_to_mean_load=float(ratio.mean()),
        worst_largest_to_mean_load=float(ratio.max()),
    )


def expert_loads(recording: Recording) -> NDArray[np.int64]:
    """-> [layers, experts] tokens whose router chose an expert."""
    index, experts = recording.expert_index, recording.metadata.num_experts
    layers = range(index.shape[1])
    return np.stack([np.bincount(index[:, layer].ravel(), minlength=experts) for layer in layers])
