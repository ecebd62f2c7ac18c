"""The routing trace: the counts a run leaves, from which every latency is computed afterwards. No torch here.

While a dataset runs, each finished batch is appended to a journal (`*.trace.part`), which is sealed at the end
(`*.trace.safetensors`).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from .._util.checksummed_safetensors import read_sealed, write_sealed
from ..channel.profile import MAX_SEED, ChannelProfile
from ..errors import TraceError, show
from .journal import Arrays, BlockJournal, Count, FileMetadata, NamedArrays, check_arrays, join_arrays

FORMAT_VERSION = 7
RATIO_BINS = 50
SEALED_SUFFIX = ".trace.safetensors"
JOURNAL_SUFFIX = ".trace.part"
METADATA_KEY = "wdmoe_trace"
EVENTS_SUFFIX = ".testbed_events.jsonl"  # next to it: what happened to the devices of a live testbed
PHASES = ("prefill", "decode")

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


def routing_name(policy: str, quantised_bits: int | None) -> str:
    """A policy, and the bits that its payload is really rounded to."""
    return policy if quantised_bits is None else f"{policy}, {quantised_bits}-bit payload"


class TraceMetadata(FileMetadata):
    """Where a trace comes from; everything a table has to name.

    weights is the model's path as its config names it; test_range which items of the dataset were run, as OpenCompass's
    config says it (empty: all). profile is the whole channel profile of the run, so that a
    trace explains itself; seed is that of its fading. kept_share is what the policy was tuned to keep, if it was,
    on the calibration of that hash; quantise_payload whether payloads were rounded to the profile's payload_bits.
    routed_from says which router outputs the policy was run on: those of the model as it ran, of a `recording` (its
    SHA-256 is recording_sha256) or of a `generator`. The last two have no answers, and a drop changed nothing in later
    layers. Where softmax_recorded is False the recording lacks the full softmax: a policy knew the top-k only, or took
    the rest to be spread evenly if top_k_mass says what the top-k weigh together. recorded_routing is the routing of
    the run that was recorded. batch_size: sequences per forward pass, of a generator or into which a recording was cut;
    None: a run's own batches. routing_seed is that of a generator. identity holds what the answers depend on besides
    policy and profile, arguments what the configs said of it (package `identity`); both are empty without a model.
    """

    readable_versions = (6, FORMAT_VERSION)  # 6 has no identity and arguments; they are empty then
    model_config = ConfigDict(ser_json_inf_nan="constants")  # a parameter may be infinite

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

    def tables(self) -> tuple[Arrays, ...]:
        """Arrays per pass, per batch and per item."""
        return PER_PASS, PER_BATCH, PER_ITEM

    @classmethod
    def parse(cls, path: Path, text: str) -> Self:
        """As any file's metadata; the stated hash is that of the profile."""
        metadata = super().parse(path, text)
        expected = metadata.profile.content_hash
        if metadata.profile_hash != expected:
            raise TraceError(
                f"{path}: metadata profile_hash must be {expected}, that of its profile, got "
                f"{show(metadata.profile_hash)}"
            )
        return metadata


@dataclass(frozen=True)
class RoutingTrace(NamedArrays):
    """A trace in memory: metadata and the arrays named in PER_PASS, PER_BATCH and PER_ITEM.

    [passes]: batch (row in the per-batch arrays), pass_index (0 is the batch's first forward pass), phase (index into
    PHASES), tokens (real ones). [passes, layers, devices]: device_load and expert_evaluations after selection, the same
    `_before` it, weight_sum (router weights of the kept assignments). [passes, layers]: assignments, those at the base
    station included. [batches]: first_item, items. [batches, layers, pairs]: co_selection, tokens routed to
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
    return join_arrays(metadata, [])


def join(metadata: TraceMetadata, blocks: list[dict[str, NDArray]]) -> RoutingTrace:
    """One trace from consecutive batches; their `batch` numbers are counted on."""
    return RoutingTrace(metadata, join_arrays(metadata, blocks))


def write_trace(path: Path, trace: RoutingTrace) -> None:
    """Write a sealed trace whole or not at all."""
    write_sealed(path, trace.arrays, {METADATA_KEY: trace.metadata.model_dump_json()})


def read_trace(path: Path | str) -> RoutingTrace:
    """Read a sealed trace; TraceError where it is missing, changed, torn, of another version or inconsistent."""
    path = Path(path)
    text, arrays = read_sealed(path, METADATA_KEY, "routing trace", TraceMetadata.readable_versions)
    metadata = TraceMetadata.parse(path, text)
    _check_arrays(path, metadata, arrays)
    return RoutingTrace(metadata, arrays)


def _check_arrays(source: Path | str, metadata: TraceMetadata, arrays: dict[str, NDArray]) -> None:
    """As `check_arrays`; every phase is one of PHASES, and no item waits for more passes than its batch has."""
    check_arrays(source, metadata, arrays)
    phase, item_passes, items = (arrays[name] for name in ("phase", "item_passes", "items"))
    if phase.size and phase.max() >= len(PHASES):
        raise TraceError(f"{source}: array phase must be < {len(PHASES)} throughout, got {phase.max()}")
    wanted = int(items.sum(dtype=np.int64))
    if len(item_passes) != wanted:
        raise TraceError(f"{source}: array item_passes must have {wanted} rows, one per item, got {len(item_passes)}")
    passes = np.repeat(np.bincount(arrays["batch"], minlength=len(items)), items)
    if (item_passes > passes).any():
        raise TraceError(f"{source}: array item_passes must be between 0 and the passes of the item's batch throughout")


class Journal(BlockJournal[TraceMetadata, RoutingTrace]):
    """The growing trace of a run."""

    kind = TraceMetadata
    contents = "a routing trace"
    suffix = JOURNAL_SUFFIX
    sealed_suffix = SEALED_SUFFIX

    _check_block = staticmethod(_check_arrays)
    _join = staticmethod(join)
    _write = staticmethod(write_trace)
