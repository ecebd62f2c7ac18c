"""The routing trace: the counts a run leaves, from which every latency is computed afterwards. No torch here.

While a dataset runs, each finished batch is appended to a journal (`*.trace.part`): length, SHA-256, then one
safetensors block. A torn last block is recognised by its checksum and forgotten. When the dataset is done the journal
is sealed: joined into one safetensors file (`*.trace.safetensors`) that states its own SHA-256, written under a
temporary name and renamed. Neither is trusted when it is read: what breaks a rule is a TraceError.
"""

import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from .._util.atomic_write import write_whole
from .._util.bounded_read import read_regular
from .._util.checksummed_safetensors import BROKEN, MAX_BYTES, check_version, read_sealed, write_sealed
from ..channel.profile import MAX_SEED, ChannelProfile, first_error
from ..errors import NotReadableNowError, TraceError, shown

FORMAT_VERSION = 7
READABLE_VERSIONS = (6, FORMAT_VERSION)  # 6 lacks identity and arguments, which are then empty
RATIO_BINS = 50
FRAME_BYTES = 8 + 32  # before a journal's block: its length and SHA-256
SEALED_SUFFIX = ".trace.safetensors"
JOURNAL_SUFFIX = ".trace.part"
METADATA_KEY = "wdmoe_trace"
EVENTS_SUFFIX = ".testbed_events.jsonl"  # beside it: what happened to the devices of a live testbed
PHASES = ("prefill", "decode")

Arrays = dict[str, tuple[str, tuple[str, ...]]]
Count = Annotated[int, Field(ge=0, lt=1 << 31, strict=True)]
Metadata = TypeVar("Metadata", bound=BaseModel)
Perplexity = Literal["stock", "exact"]  # how texts were scored: as OpenCompass does, or independent of the batch

# name -> (dtype, axes after the first; the first is passes, batches, or the items of all batches)
PER_PASS: Arrays = {
    "batch": ("int32", ()),
    "pass_index": ("int32", ()),
    "phase": ("uint8", ()),
    "tokens": ("int32", ()),
    "device_load_before": ("int32", ("layers", "devices")),
    "device_load": ("int32", ("layers", "devices")),
    "expert_evaluations_before": ("int32", ("layers", "devices")),
    "expert_evaluations": ("int32", ("layers", "devices")),
    "assignments_before": ("int32", ("layers",)),
    "assignments": ("int32", ("layers",)),
    "weight_sum_before": ("float32", ("layers", "devices")),
    "weight_sum": ("float32", ("layers", "devices")),
}
PER_BATCH: Arrays = {
    "first_item": ("int32", ()),
    "items": ("int32", ()),
    "co_selection": ("int32", ("layers", "pairs")),
    "ratio_counts": ("int32", ("layers", "ratio_bins")),
}
PER_ITEM: Arrays = {"item_passes": ("int32", ())}
TABLES = (PER_PASS, PER_BATCH, PER_ITEM)
EVERY_ARRAY = PER_PASS | PER_BATCH | PER_ITEM


def routing_name(policy: str, quantised_bits: int | None) -> str:
    """A policy, and the bits that its payload is really rounded to."""
    return policy if quantised_bits is None else f"{policy}, {quantised_bits}-bit payload"


class TraceMetadata(BaseModel):
    """Where a trace comes from; everything a table has to name.

    weights is the model's path as its config names it; test_range which items of the dataset were run, as OpenCompass's
    config says it (empty: all). profile is the whole channel profile of the run, so that a
    trace explains itself; seed is that of its fading. kept_share is what the policy's knob was matched to, if it was,
    on the calibration of that hash; quantise_payload whether what was sent was rounded to the profile's payload_bits.
    routed_from says whose router outputs the policy was run on: those of the model as it ran, of a `recording` (whose
    SHA-256 is recording_sha256) or of a `generator`. The last two have no answers, and a drop changed nothing in later
    layers. Where softmax_recorded is False the recording lacks the full softmax: a policy knew the top-k only, or took
    the rest to be spread evenly if top_k_mass says what the top-k weigh together. recorded_routing is the routing of
    the run that was recorded. batch_size: sequences per forward pass, of a generator or into which a recording was cut;
    None: a run's own batches. routing_seed is that of a generator. identity holds what the answers depend on besides
    policy and profile, arguments what the configs said of it (package `identity`); both are empty without a model.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")  # a parameter may be infinite

    format_version: int
    model: str
    weights: str
    dataset: str
    test_range: str = ""
    policy: str
    policy_parameters: dict[str, Any]
    renormalise: bool | str
    kept_share: Annotated[float, Field(ge=0, le=1)] | None = None
    calibration_hash: str | None = None
    quantise_payload: bool = False
    perplexity: Perplexity = "stock"
    profile: ChannelProfile
    profile_hash: str
    seed: Annotated[int, Field(ge=0, le=MAX_SEED, strict=True)]
    layers: Count
    experts: Count
    top_k: Count
    hidden_size: Count
    ffn_size: Count
    dtype: str
    versions: dict[str, str]
    routed_from: Literal["model", "recording", "generator"] = "model"
    recording_sha256: str = ""
    recorded_routing: str = ""
    softmax_recorded: bool | None = None
    top_k_mass: Annotated[float, Field(gt=0, le=1)] | None = None
    batch_size: Annotated[int, Field(gt=0)] | None = None
    routing_seed: Annotated[int, Field(ge=0, le=MAX_SEED, strict=True)] | None = None
    identity: dict[str, Any] = Field(default_factory=dict)
    arguments: dict[str, Any] = Field(default_factory=dict)

    @property
    def routing(self) -> str:
        """What the tables call the run's routing; `top_k` alone is the unchanged model."""
        return routing_name(self.policy, self.profile.payload_bits if self.quantise_payload else None)

    def routed_notes(self) -> list[str]:
        """Lines on what a trace cannot know that was routed without its model; none of a model's run."""
        if self.routed_from == "model":
            return []
        source = "generated router outputs"
        if self.routing_seed is not None:
            source += f" (routing seed {self.routing_seed})"
        if self.routed_from == "recording":
            source = f"a recording of the router (SHA-256 {self.recording_sha256[:12] or 'unknown'})"
        lines = [
            f"routed from {source}, without the model: a drop does not change what later layers see (open loop), and "
            "there are no answers, so no accuracy"
        ]
        if self.batch_size is not None:
            lines.append(f"batch size {self.batch_size} (sequences per forward pass)")
        if self.routed_from == "generator" or self.batch_size is not None:
            lines.append(
                "requests are counted per sequence: where answers are ranked by perplexity each candidate answer is a "
                "request of its own"
            )
        if self.recorded_routing not in ("", "top_k"):
            lines.append(f"the recorded run routed by {self.recorded_routing}: later layers saw what it had dropped")
        if self.softmax_recorded is False and self.top_k_mass is None:
            lines.append(
                "the recording lacks the full softmax: similarities as in Eq. (18) know the top-k only, all other "
                "weights are taken as 0"
            )
        elif self.top_k_mass is not None:
            lines.append(
                f"the recording lacks the full softmax: the top-k are taken to weigh {self.top_k_mass:g} together, and "
                "the rest to be spread evenly over the other experts"
            )
        return lines

    def sizes(self) -> dict[str, int]:
        """Length of every named axis."""
        return axis_sizes(self.layers, len(self.profile.devices), self.experts)


@dataclass(frozen=True)
class RoutingTrace:
    """A trace in memory: metadata and the arrays named in PER_PASS, PER_BATCH and PER_ITEM.

    [passes]: batch (row in the per-batch arrays), pass_index (0 is the batch's first forward pass), phase (index into
    PHASES), tokens (real ones). [passes, layers, devices]: device_load and expert_evaluations after selection, the same
    `_before` it, weight_sum (router weights of the kept assignments). [passes, layers]: assignments, those at the base
    station included. [batches]: first_item, items. [batches, layers, pairs]: co_selection, tokens whose router chose
    both experts of a pair, in the order of ``numpy.triu_indices(experts, 1)``. [batches, layers, ratio_bins]:
    ratio_counts, tokens by their second router weight over the first, in RATIO_BINS equal bins from 0 to 1.
    [items], the items of the first batch, then those of the second, and so on: item_passes, how many passes of its
    batch an item waits for, from the first to the one that gives its last token. With several rows per item (beams,
    several answers) the row that takes longest counts. 0: of a recording that holds no token of the item.

    items_before_first: items that were run before the first batch; not 0 only in a piece of a growing trace
    """

    metadata: TraceMetadata
    arrays: dict[str, NDArray]
    items_before_first: int = 0

    def __getattr__(self, name: str) -> NDArray:
        try:
            return self.__dict__["arrays"][name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def items_before(self) -> NDArray[np.int64]:
        """-> [batches] items that were run before each batch, every run of an item counted: what fading is drawn by."""
        items = self.arrays["items"].astype(np.int64)
        return self.items_before_first + np.cumsum(items) - items

    @property
    def item_numbers(self) -> NDArray[np.int64]:
        """-> number within its dataset of every item of the per-item arrays; one that is in several batches recurs."""
        starts = np.cumsum(self.arrays["items"], dtype=np.int64) - self.arrays["items"]
        within = np.arange(len(self.arrays["item_passes"])) - np.repeat(starts, self.arrays["items"])
        return np.repeat(self.arrays["first_item"].astype(np.int64), self.arrays["items"]) + within

    def is_phase(self, phase: str) -> NDArray[np.bool_]:
        """-> [passes] which passes belong to `phase`: all, prefill or decode."""
        if phase == "all":
            return np.ones(len(self.arrays["phase"]), dtype=bool)
        return self.arrays["phase"] == PHASES.index(phase)


def axis_sizes(layers: int, devices: int, experts: int) -> dict[str, int]:
    """Length of every named axis of a trace's arrays."""
    return {"layers": layers, "devices": devices, "pairs": experts * (experts - 1) // 2, "ratio_bins": RATIO_BINS}


def array_bytes(sizes: dict[str, int], passes: int, batches: int, items: int) -> int:
    """Bytes of the arrays of a trace; `sizes` is what `axis_sizes` gives, items those of all batches."""

    def row(table: Arrays) -> int:
        return sum(np.dtype(dtype).itemsize * math.prod(sizes[axis] for axis in axes) for dtype, axes in table.values())

    return passes * row(PER_PASS) + batches * row(PER_BATCH) + items * row(PER_ITEM)


def empty_arrays(metadata: TraceMetadata) -> dict[str, NDArray]:
    """Arrays of a trace without passes."""
    return joined_arrays(metadata.sizes(), EVERY_ARRAY, [])


def join(metadata: TraceMetadata, blocks: list[dict[str, NDArray]]) -> RoutingTrace:
    """One trace from consecutive batches; their `batch` numbers are counted anew."""
    return RoutingTrace(metadata, joined_arrays(metadata.sizes(), EVERY_ARRAY, blocks))


def joined_arrays(sizes: dict[str, int], tables: Arrays, blocks: Iterable[dict[str, NDArray]]) -> dict[str, NDArray]:
    """The arrays of consecutive blocks of batches, one after the other; `batch` numbers are counted anew."""
    arrays = {
        name: [np.zeros((0, *(sizes[axis] for axis in axes)), dtype=dtype)] for name, (dtype, axes) in tables.items()
    }
    batches = 0
    for block in blocks:
        for name, array in block.items():
            arrays[name].append(array + batches if name == "batch" else array)
        batches += len(block["first_item"])
    return {name: np.concatenate(parts).astype(tables[name][0]) for name, parts in arrays.items()}


def write_trace(path: Path, trace: RoutingTrace) -> None:
    """Write a sealed trace whole or not at all."""
    write_sealed(path, trace.arrays, {METADATA_KEY: trace.metadata.model_dump_json()})


def read_trace(path: Path | str) -> RoutingTrace:
    """Read a sealed trace; TraceError where it is missing, changed, torn, of another version or inconsistent."""
    path = Path(path)
    text, arrays = read_sealed(path, METADATA_KEY, "routing trace", READABLE_VERSIONS)
    metadata = _metadata(path, text)
    checked_arrays(path, metadata.sizes(), TABLES, arrays)
    return RoutingTrace(metadata, arrays)


def _metadata(path: Path, text: str) -> TraceMetadata:
    metadata = parsed_metadata(path, text, TraceMetadata, READABLE_VERSIONS)
    check_sizes(path, metadata.sizes(), EVERY_ARRAY)
    expected = metadata.profile.content_hash
    if metadata.profile_hash != expected:
        raise TraceError(
            f"{path}: metadata profile_hash must be {expected}, that of its profile, got {shown(metadata.profile_hash)}"
        )
    return metadata


def check_sizes(path: Path, sizes: dict[str, int], tables: Arrays) -> None:
    """Raise TraceError where one row of an array would be larger than a file may be."""
    for name, (_, axes) in tables.items():
        if math.prod(sizes[axis] for axis in axes) > MAX_BYTES:
            raise TraceError(f"{path}: metadata: array {name} would be beyond the {MAX_BYTES} bytes of a file")


def parsed_metadata(path: Path, text: str, kind: type[Metadata], expected_version: int | tuple[int, ...]) -> Metadata:
    """Read a file's metadata; TraceError where it is not readable, of another version or breaks the schema."""
    check_version(path, text, expected_version)
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = first_error(error)
        key = ".".join(map(str, first["loc"]))
        raise TraceError(f"{path}: metadata {key[:200]}: {first['msg'][:1000]}") from None


def checked_arrays(
    source: Path | str, sizes: dict[str, int], tables: tuple[Arrays, ...], arrays: dict[str, NDArray]
) -> None:
    """Raise TraceError unless the arrays are those of the tables, of their types, shapes and ranges.

    A table's arrays have equally many rows. Nothing is negative, infinite or not a number; `batch` ascends. No item
    waits for more passes than its batch has.
    """
    for table in tables:
        rows = None
        for name, (dtype, axes) in table.items():
            if name not in arrays:
                raise TraceError(f"{source}: array {name} is missing")
            expected = tuple(sizes[axis] for axis in axes)
            array = arrays[name]
            rows = len(array) if rows is None and array.ndim else rows
            if array.dtype != dtype or array.shape != (rows, *expected):
                raise TraceError(
                    f"{source}: array {name} must be {dtype} [{rows}, {expected}], got {array.dtype} {array.shape}"
                )
            _check_range(source, name, array)
    for name in arrays:
        if not any(name in table for table in tables):
            raise TraceError(f"{source}: array {shown(name)} does not belong there")
    batch = arrays.get("batch", np.zeros(0, np.int32))
    if len(batch) and (batch[-1] >= len(arrays["first_item"]) or (batch[1:] < batch[:-1]).any()):
        raise TraceError(f"{source}: batch numbers are out of range, or do not ascend")
    if PER_ITEM in tables:
        _check_item_passes(source, arrays)


def _check_item_passes(source: Path | str, arrays: dict[str, NDArray]) -> None:
    item_passes, items = arrays["item_passes"], arrays["items"]
    wanted = int(items.sum(dtype=np.int64))
    if len(item_passes) != wanted:
        raise TraceError(f"{source}: array item_passes must have {wanted} rows, one per item, got {len(item_passes)}")
    passes = np.repeat(np.bincount(arrays["batch"], minlength=len(items)), items)
    if (item_passes > passes).any():
        raise TraceError(f"{source}: array item_passes must be between 0 and the passes of the item's batch throughout")


def _check_range(source: Path | str, name: str, array: NDArray) -> None:
    if array.dtype.kind == "f":
        if not (np.isfinite(array) & (array >= 0)).all():
            raise TraceError(f"{source}: array {name} must be finite and >= 0 throughout")
    elif array.size and array.min() < 0:
        raise TraceError(f"{source}: array {name} must be >= 0 throughout, got {array.min()}")
    elif name == "phase" and array.size and array.max() >= len(PHASES):
        raise TraceError(f"{source}: array phase must be < {len(PHASES)} throughout, got {array.max()}")


class Journal:
    """The growing part of a trace: its metadata, then one block per finished batch; safe to continue after a kill.

    contents: what it is a journal of, in words; suffix, sealed_suffix: how its name ends, and that of what it becomes
    """

    contents: ClassVar[str] = "a routing trace"
    suffix: ClassVar[str] = JOURNAL_SUFFIX
    sealed_suffix: ClassVar[str] = SEALED_SUFFIX
    tables: ClassVar[tuple[Arrays, ...]] = TABLES

    def __init__(self, path: Path, metadata: TraceMetadata | None = None):
        self.path = path
        self.metadata = metadata

    def resumable(self, first_item: int) -> int:
        """-> the last item, not after `first_item`, at which `resume` can go on: the end of a batch of this run."""
        written, blocks = self._read_or_nothing()
        end = 0
        for block in blocks if written == self.metadata else []:
            first, items = int(block["first_item"].min()), int(block["items"].sum())
            if first != end or end + items > first_item:
                break
            end += items
        return end

    def resume(self, first_item: int) -> None:
        """Keep only whole blocks of items before `first_item` and of this very run; forget all others.

        `first_item` is where the inference goes on: a batch whose answers were not kept is redone, and its counts
        must not stand twice. Raises TraceError where answers are kept whose counts are not.
        """
        written, blocks = self._read_or_nothing()
        kept = [block for block in blocks if _end(block) <= first_item]
        if written != self.metadata:
            kept = []
        done = sum(int(block["items"].sum()) for block in kept)
        if done != first_item:
            raise TraceError(
                f"{self.path}: the trace knows {done} of the {first_item} items already answered; "
                "delete this dataset's predictions (tmp_*.jsonl too) to run it again with a trace"
            )
        assert self.metadata is not None
        frames = [_frame(self.metadata.model_dump_json().encode()), *(_frame(_packed(block)) for block in kept)]
        write_whole(self.path, b"".join(frames))

    def append(self, block: dict[str, NDArray]) -> None:
        """Add one finished batch; `resume` must have been called."""
        with self.path.open("ab") as file:
            file.write(_frame(_packed(block)))
            file.flush()
            os.fsync(file.fileno())

    def seal(self, path: Path) -> Any:
        """Join all blocks into a sealed file at `path` and remove the journal; -> what it holds."""
        joined = self.joined()
        self._write(path, joined)
        self.path.unlink(missing_ok=True)
        return joined

    def is_torn(self) -> bool:
        """Whether something follows the last whole block."""
        content = read_regular(self.path, MAX_BYTES, TraceError, NotReadableNowError)
        return sum(FRAME_BYTES + len(frame) for frame in _frames(content)) != len(content)

    def joined(self) -> Any:
        """-> what all whole blocks hold; TraceError where there is no readable journal."""
        metadata, blocks = self._read()
        if metadata is None:
            raise TraceError(f"{self.path}: not a journal of {self.contents}, or torn")
        return self._join(metadata, blocks)

    def _join(self, metadata: TraceMetadata, blocks: list[dict[str, NDArray]]) -> Any:
        return join(metadata, blocks)

    def _write(self, path: Path, joined: Any) -> None:
        write_trace(path, joined)

    @classmethod
    def of_metadata(cls, path: Path, text: str) -> "Journal":
        """-> the journal whose first frame holds this text; TraceError where it breaks the schema."""
        journal = cls(path)
        journal.metadata = journal._parse_metadata(text)
        return journal

    def block(self, number: int, frame: bytes) -> dict[str, NDArray]:
        """-> the arrays of a block of a journal whose metadata is known; TraceError where they break a rule."""
        assert self.metadata is not None
        return self._block(number, frame, self.metadata)

    def _read_or_nothing(self) -> tuple[TraceMetadata | None, list[dict[str, NDArray]]]:
        """What cannot be read, or was written by another version, is no start to go on from."""
        try:
            return self._read()
        except NotReadableNowError:
            raise
        except TraceError:
            return None, []

    def _read(self) -> tuple[TraceMetadata | None, list[dict[str, NDArray]]]:
        if not os.path.lexists(self.path):
            return None, []
        frames = list(_frames(read_regular(self.path, MAX_BYTES, TraceError, NotReadableNowError)))
        if not frames:
            return None, []
        try:
            metadata = self._parse_metadata(frames[0].decode())
        except UnicodeDecodeError:
            raise TraceError(f"{self.path}: its metadata is not readable") from None
        return metadata, [self._block(number, frame, metadata) for number, frame in enumerate(frames[1:])]

    def _block(self, number: int, frame: bytes, metadata: TraceMetadata) -> dict[str, NDArray]:
        source = f"{self.path}, block {number}"
        try:
            block = load_arrays(frame)
        except BROKEN:
            raise TraceError(f"{source}: its arrays are not readable") from None
        self._check_block(source, metadata, block)
        if not len(block["first_item"]):
            raise TraceError(f"{source}: must hold a batch, got none")
        return block

    def _check_block(self, source: str, metadata: Any, block: dict[str, NDArray]) -> None:
        checked_arrays(source, metadata.sizes(), self.tables, block)

    def _parse_metadata(self, text: str) -> TraceMetadata:
        return _metadata(self.path, text)


def _end(block: dict[str, NDArray]) -> int:
    """-> the number of the first item after a block's."""
    return int((block["first_item"].astype(np.int64) + block["items"]).max())


def _packed(block: dict[str, NDArray]) -> bytes:
    return save_arrays({name: np.ascontiguousarray(array) for name, array in block.items()})


def _frame(blob: bytes) -> bytes:
    return len(blob).to_bytes(8, "little") + hashlib.sha256(blob).digest() + blob


def _frames(content: bytes) -> Iterator[bytes]:
    position = 0
    while position + FRAME_BYTES <= len(content):
        length = int.from_bytes(content[position : position + 8], "little")
        start = position + FRAME_BYTES
        blob = content[start : start + length]
        if hashlib.sha256(blob).digest() != content[position + 8 : start]:
            return  # torn: nothing after it can be trusted
        yield blob
        position = start + length
