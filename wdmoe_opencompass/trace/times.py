"""Measured times next to a routing trace: what each device took in each MoE layer of a testbed's passes. No torch here.

`*.times.safetensors` lies next to `*.trace.safetensors`, has the same passes in the same order, and is written by the
same rules: one block per finished batch in a journal (`*.times.part`), a torn last block is forgotten, sealed at the
end by a rename.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._util.checksummed_safetensors import read_sealed, write_sealed
from ..errors import TraceError
from .format import RoutingTrace
from .journal import Arrays, BlockJournal, Count, FileMetadata, NamedArrays, check_arrays, join_arrays

TIMES_VERSION = 2
TIMES_SUFFIX = ".times.safetensors"
TIMES_JOURNAL_SUFFIX = ".times.part"
METADATA_KEY = "wdmoe_times"

PARTS = ("send_s", "queue_s", "compute_s", "return_s", "total_s")
PER_PASS: Arrays = {
    "batch": ("int32", ()),
    "pass_index": ("int32", ()),
    "pass_tokens": ("int32", ()),
    "waiting_s": ("float32", ("layers",)),
    "tokens": ("int32", ("layers", "devices")),
} | dict.fromkeys(PARTS, ("float32", ("layers", "devices")))
PER_BATCH: Arrays = {"first_item": ("int32", ()), "items": ("int32", ())}


class LayerTimes(NamedTuple):
    """One device in one MoE layer of one forward pass, as the base station measured it.

    tokens:    sent there; send_s, queue_s, compute_s, return_s: seconds to get there, in the device's queue, of
               computing and to get back; total_s: the round trip
    waiting_s: how long attention waited for the layer, from the first message to the last answer: Eq. (11) as measured;
               the same for all of its devices
    pass_index: forward pass within the batch; taken_over: the tokens were those of another device, which failed
    """

    layer: int
    device: int
    tokens: int
    send_s: float
    queue_s: float
    compute_s: float
    return_s: float
    total_s: float
    waiting_s: float
    pass_index: int = 0
    taken_over: bool = False


class TimesMetadata(FileMetadata):
    """Where measured times come from.

    devices: names, in the order of the arrays' last axis; payload_bits: bits per value on the wire; lab_hash: of the
    testbed's configuration, so that only runs of one testbed are compared.
    """

    readable_versions = (TIMES_VERSION,)

    format_version: int = TIMES_VERSION
    model: str
    dataset: str
    policy: str
    layers: Count
    devices: tuple[str, ...]
    hidden_size: Count
    ffn_size: Count
    payload_bits: Count
    lab_hash: str = ""

    def sizes(self) -> dict[str, int]:
        """Length of every named axis."""
        return {"layers": self.layers, "devices": len(self.devices)}

    def tables(self) -> tuple[Arrays, ...]:
        """Arrays per pass and per batch."""
        return PER_PASS, PER_BATCH


@dataclass(frozen=True)
class MeasuredTimes(NamedArrays):
    """Measured times in memory: metadata and the arrays named in PER_PASS and PER_BATCH.

    [passes]: batch, pass_index and pass_tokens (real tokens of the pass). [passes, layers]: waiting_s, of a layer.
    [passes, layers, devices]: tokens, and the seconds of PARTS; 0 where nothing was sent, the sum where a device
    had several messages. [batches]: first_item, items.
    """

    metadata: TimesMetadata
    arrays: dict[str, NDArray]

    def layer_times(self) -> list[LayerTimes]:
        """Every message, pass by pass: what a history takes."""
        messages = np.argwhere(self.arrays["tokens"] > 0)  # [messages, 3] pass, layer, device
        columns = [self.arrays[name][tuple(messages.T)].tolist() for name in ("tokens", *PARTS)]
        waiting = self.arrays["waiting_s"][messages[:, 0], messages[:, 1]].tolist()
        return [
            LayerTimes(layer, device, *numbers)
            for (_, layer, device), *numbers in zip(messages.tolist(), *columns, waiting, strict=True)
        ]


class TimesRecorder:
    """Gathers a batch, as routing/recorder.py does: `begin_pass`, `add` per MoE layer, at last `finish_batch`."""

    def __init__(self, layers: int, devices: int):
        self._shape = (layers, devices)
        self.reset()

    def reset(self) -> None:
        """Forget an unfinished batch."""
        self._passes: list[dict[str, NDArray]] = []

    def begin_pass(self, tokens: int) -> None:
        """Open a forward pass of that many real tokens."""
        layers, devices = self._shape
        sizes = dict(layers=layers, devices=devices)
        row = {n: np.zeros([sizes[axis] for axis in axes], dtype) for n, (dtype, axes) in PER_PASS.items()}
        row["pass_index"] += len(self._passes)
        row["pass_tokens"] += tokens
        self._passes.append(row)

    def add(self, times: Iterable[LayerTimes]) -> None:
        """Add what was measured in the open pass; several messages of a device in a layer add up."""
        row = self._passes[-1]
        for message in times:
            row["tokens"][message.layer, message.device] += message.tokens
            for name in PARTS:
                row[name][message.layer, message.device] += getattr(message, name)
            row["waiting_s"][message.layer] = max(row["waiting_s"][message.layer], message.waiting_s)

    def add_waiting(self, layer: int, waiting_s: float) -> None:
        """The waiting time of a layer, also of one in which no device answered."""
        self._passes[-1]["waiting_s"][layer] = waiting_s

    def finish_batch(self, first_item: int, items: int) -> dict[str, NDArray]:
        """-> the batch as one block of a journal."""
        if not self._passes:
            raise RuntimeError("a batch without any forward pass cannot be recorded")
        block = {name: np.stack([row[name] for row in self._passes]) for name in PER_PASS}
        block |= {"first_item": np.array([first_item], np.int32), "items": np.array([items], np.int32)}
        self.reset()
        return block


def join_times(metadata: TimesMetadata, blocks: Sequence[dict[str, NDArray]]) -> MeasuredTimes:
    """One file's content from consecutive batches; their `batch` numbers are counted on."""
    return MeasuredTimes(metadata, join_arrays(metadata, blocks))


def write_times(path: Path, times: MeasuredTimes) -> None:
    """Write sealed times whole or not at all."""
    write_sealed(path, times.arrays, {METADATA_KEY: times.metadata.model_dump_json()})


def read_times(path: Path | str) -> MeasuredTimes:
    """Read sealed times; TraceError where they are missing, changed, torn, of another version or inconsistent."""
    path = Path(path)
    text, arrays = read_sealed(path, METADATA_KEY, "file of measured times", TIMES_VERSION)
    metadata = TimesMetadata.parse(path, text)
    check_arrays(path, metadata, arrays)
    return MeasuredTimes(metadata, arrays)


def check_belongs(times: MeasuredTimes, trace: RoutingTrace) -> None:
    """Raise TraceError unless times and trace are of the same passes of the same model, dataset and devices."""
    own, other = times.metadata, trace.metadata
    devices = tuple(device.name for device in other.profile.devices)
    for what, ours, theirs in (
        ("model", own.model, other.model),
        ("dataset", own.dataset, other.dataset),
        ("MoE layers", own.layers, other.layers),
        ("devices", own.devices, devices),
    ):
        if ours != theirs:
            raise TraceError(f"the measured times of {own.dataset} are of {what} {ours}, its trace of {theirs}")
    for name in ("batch", "pass_index", "first_item", "items"):
        if not np.array_equal(times.arrays[name], trace.arrays[name]):
            raise TraceError(f"the measured times of {own.dataset} are not of the passes of its trace: {name} differs")


class TimesJournal(BlockJournal[TimesMetadata, MeasuredTimes]):
    """The growing file of measured times."""

    kind = TimesMetadata
    contents = "measured times"
    suffix = TIMES_JOURNAL_SUFFIX
    sealed_suffix = TIMES_SUFFIX

    def read_or_none(self) -> MeasuredTimes | None:
        """What whole blocks hold so far, for a history that goes on after a resume; None without a journal."""
        metadata, blocks = self._read()
        return None if metadata is None else self._join(metadata, blocks)

    _check_block = staticmethod(check_arrays)
    _join = staticmethod(join_times)
    _write = staticmethod(write_times)
