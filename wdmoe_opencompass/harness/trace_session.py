"""The trace of a dataset that a model runs: opened, one batch recorded after the other, and closed."""

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from .._util.atomic_write import write_whole
from .._util.file_names import sibling
from ..routing.attachment import Attachment
from ..routing.channel_state import ChannelStates
from ..routing.clock import device_names
from ..routing.router_recorder import RouterRecorder
from ..testbed.history import MeasuredHistory
from ..trace.format import EVENTS_SUFFIX, Journal, TraceMetadata
from ..trace.journal import BlockJournal
from ..trace.recording import RecordingJournal, RecordingMetadata
from ..trace.speed import MAX_DEVICE_NAME, SPEED_SUFFIX, BatchSpeed, append_speed, keep_speed
from ..trace.times import TimesJournal, TimesMetadata, TimesRecorder

if TYPE_CHECKING:
    from ..testbed.client import BaseStation

ANSWERED = "items_answered_before"  # of an event: how many items had whole answers when its batch began


class _OpenTrace:
    """The files of the dataset that is running; times and recording are None where nothing measures or records them."""

    def __init__(self, predictions: Path, metadata: TraceMetadata, items_total: int):
        self.predictions, self.metadata = predictions, metadata
        self.items_total, self.next_item = items_total, 0
        self.journal = Journal(sibling(predictions, Journal.suffix), metadata)
        self.times: TimesJournal | None = None
        self.recording: RecordingJournal | None = None
        self.events, self.speed = (sibling(predictions, suffix) for suffix in (EVENTS_SUFFIX, SPEED_SUFFIX))

    @property
    def journals(self) -> list[BlockJournal]:
        """All of them, the trace's own first."""
        return [journal for journal in (self.journal, self.times, self.recording) if journal is not None]

    def first_item(self) -> int:
        """Perplexity goes through all items once per label: the count starts over with each."""
        return self.next_item % self.items_total if self.items_total else self.next_item


class TraceSession:
    """Records what a model runs, batch by batch, into the trace of one dataset after another.

    testbed, history: the base station of a live testbed and what it measures, None without one
    """

    def __init__(
        self,
        attachment: Attachment,
        channel: ChannelStates,
        testbed: "BaseStation | None" = None,
        history: MeasuredHistory | None = None,
    ):
        self.attachment, self.channel, self.testbed, self.history = attachment, channel, testbed, history
        self._trace: _OpenTrace | None = None
        self._events_written = 0

    def open(self, predictions: Path, metadata: TraceMetadata, items_total: int, answered: int) -> int:
        """Begin, or continue, the trace next to a predictions file; -> the item to go on at.

        answered: how many items have whole answers; if the last of them are not a whole batch with known counts, the
        trace goes on at the batch before.
        """
        trace = _OpenTrace(predictions, metadata, items_total)
        times_path, recording_path = (sibling(predictions, kind.suffix) for kind in (TimesJournal, RecordingJournal))
        if self.testbed is not None:
            trace.times = TimesJournal(times_path, _times_metadata(metadata, self.testbed))
        else:
            times_path.unlink(missing_ok=True)  # of a start with a testbed: it would miss the next batches
        if (recorder := self.attachment.router_recorder) is not None:
            trace.recording = RecordingJournal(recording_path, _recording_metadata(metadata, recorder))
        else:
            recording_path.unlink(missing_ok=True)  # of a start that recorded: the same
        first_item = answered
        for journal in trace.journals * len(trace.journals):  # repeatedly: one may miss what the others have
            first_item = journal.resumable(first_item)
        for journal in trace.journals:
            journal.resume(first_item)
        trace.next_item = first_item
        forget_events(trace.events, first_item)
        keep_speed(trace.speed, first_item)
        recorded = None if trace.times is None else trace.times.read_or_none()
        if self.history is not None and recorded is not None and first_item:  # a run that goes on
            self.history.add(recorded.layer_times())
        self._trace = trace
        return first_item

    def close(self, seal: bool) -> None:
        """End the open trace; `seal` only when the predictions are complete."""
        if self._trace is not None:
            self._write_events(self._trace)
            for journal in self._trace.journals if seal else ():
                journal.seal(sibling(self._trace.predictions, journal.sealed_suffix))
        self._trace = None

    @contextmanager
    def record(self, items: int) -> Iterator[None]:
        """Count what the model runs in this block as one batch of `items`; at the end it enters the open trace."""
        self.attachment.forget_batch()  # whatever an exception left behind
        if self.testbed is not None:
            self.testbed.take_times()
            self.testbed.take_waiting()
        trace, clock = self._trace, self.attachment.clock
        if trace is None:
            yield
            self.attachment.forget_batch()
            return
        self.channel.dataset, self.channel.items_before = trace.metadata.dataset, trace.next_item
        began_s = time.perf_counter()
        yield
        clock.stop()
        batch_s = time.perf_counter() - began_s
        self._append(trace, items)
        self._write_events(trace)
        trace.next_item += items
        append_speed(
            trace.speed,
            BatchSpeed(
                end=trace.next_item,
                items=items,
                prefill_s=clock.seconds["prefill"],
                decode_s=clock.seconds["decode"],
                batch_s=batch_s,
                device=device_names(clock.devices)[:MAX_DEVICE_NAME],
            ),
        )

    def _append(self, trace: _OpenTrace, items: int) -> None:
        """Add a batch to every journal, the trace's own last: after a kill, missing times cannot be reconstructed."""
        first_item, recorder = trace.first_item(), self.attachment.router_recorder
        block = self.attachment.recorder.finish_batch(first_item, items)
        if trace.times is not None and self.testbed is not None:
            measured = self._measured(self.testbed, trace.metadata, block["tokens"].tolist())
            trace.times.append(measured.finish_batch(first_item, items))
        if trace.recording is not None and recorder is not None:
            trace.recording.append(recorder.finish_batch(first_item, items))
        trace.journal.append(block)

    def _measured(self, testbed: "BaseStation", metadata: TraceMetadata, tokens: list[int]) -> TimesRecorder:
        """-> the batch's measured times; tokens: real ones of each pass."""
        recorder = TimesRecorder(metadata.layers, len(metadata.profile.devices))
        times, waiting = defaultdict(list), defaultdict(list)
        for message in testbed.take_times():
            times[message.pass_index].append(message)
        for pass_index, layer, seconds in testbed.take_waiting():
            waiting[pass_index].append((layer, seconds))
        for pass_index, count in enumerate(tokens):
            recorder.begin_pass(count)
            recorder.add(times[pass_index])
            for layer, seconds in waiting[pass_index]:
                recorder.add_waiting(layer, seconds)
        return recorder

    def _write_events(self, trace: _OpenTrace) -> None:
        """Add what happened to the devices since the last batch to a file next to the trace, one JSON object each."""
        events = [] if self.testbed is None else self.testbed.events[self._events_written :]
        self._events_written += len(events)
        if events:
            owner = dict(model=trace.metadata.model, dataset=trace.metadata.dataset)
            with trace.events.open("a") as file:
                for event in events:
                    file.write(json.dumps(asdict(event) | owner | {ANSWERED: trace.next_item}) + "\n")


def _times_metadata(trace: TraceMetadata, station: "BaseStation") -> TimesMetadata:
    shared = ("model", "dataset", "policy", "layers", "hidden_size", "ffn_size")
    return TimesMetadata(
        devices=tuple(device.name for device in trace.profile.devices),
        payload_bits=station.payload_bits,
        lab_hash=station.testbed.content_hash,
        **{name: getattr(trace, name) for name in shared},
    )


def _recording_metadata(trace: TraceMetadata, recorder: RouterRecorder) -> RecordingMetadata:
    shared = ("model", "weights", "dataset", "test_range", "routing", "layers", "top_k", "hidden_size", "ffn_size")
    return RecordingMetadata(
        source="run",
        num_experts=trace.experts,
        router_is_softmax=recorder.is_softmax,
        router_normalises=recorder.normalises,
        has_weights=True,
        has_probabilities=recorder.is_softmax,
        **{name: getattr(trace, name) for name in (*shared, "dtype", "versions")},
    )


def forget_events(path: Path, first_item: int) -> None:
    """Of a run that goes on at an item, forget what happened to a testbed's devices in the batches that are redone."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().split(b"\n"):
        try:
            event = json.loads(line)
            is_kept = event[ANSWERED] < first_item
        except (ValueError, TypeError, KeyError, RecursionError):  # torn
            continue
        kept += [json.dumps(event) + "\n"] if is_kept else []
    if kept:
        write_whole(path, *kept)
    else:
        path.unlink()
