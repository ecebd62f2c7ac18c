"""OpenCompass model classes that route through a selection policy and leave a routing trace."""

import inspect
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from opencompass.models import HuggingFaceBaseModel, HuggingFacewithChatTemplate
from opencompass.models.huggingface_above_v4_33 import _convert_base_messages

from .._util.atomic_write import write_whole
from .._util.file_names import beside
from ..errors import ModelError, unknown_name
from ..identity import Facts
from ..routing.attachment import Attachment, find_moe_layers
from ..routing.channel_state import ChannelStates
from ..routing.clock import device_names
from ..routing.discovery import MoeLayer
from ..routing.router_recorder import RouterRecorder
from ..selection import policy_parameters
from ..testbed.history import MeasuredHistory
from ..trace.format import (
    EVENTS_SUFFIX,
    FORMAT_VERSION,
    JOURNAL_SUFFIX,
    SEALED_SUFFIX,
    Journal,
    TraceMetadata,
)
from ..trace.journal import BlockJournal
from ..trace.recording import RECORDING_JOURNAL_SUFFIX, RECORDING_SUFFIX, RecordingJournal, RecordingMetadata
from ..trace.speed import MAX_DEVICE_NAME, SPEED_SUFFIX, BatchSpeed, append_speed, keep_speed
from ..trace.times import TIMES_JOURNAL_SUFFIX, TIMES_SUFFIX, TimesJournal, TimesMetadata, TimesRecorder
from .adapters import check_adapter, without_wrapper
from .identify import answer_facts, model_facts
from .loading import whole_weights
from .perplexity import exact_perplexity
from .precision import check_precision, precision_name
from .returned import return_logits, returns_tokens
from .settings import WdmoeSettings, parse_settings

if TYPE_CHECKING:
    from ..testbed.client import LabClient

ANSWERED = "items_answered_before"  # of an event: how many items had whole answers when its batch began
TRACED_PACKAGES = ("wdmoe_opencompass", "opencompass", "torch", "transformers", "numpy")


class _OpenTrace:
    """The trace of the dataset that is running."""

    def __init__(self, journal: Journal, predictions: Path, items_total: int, first_item: int):
        self.journal = journal
        self.predictions = predictions
        self.items_total = items_total
        self.next_item = first_item
        self.times: TimesJournal | None = None
        self.recording: RecordingJournal | None = None
        self.events, self.speed = (beside(predictions, suffix) for suffix in (EVENTS_SUFFIX, SPEED_SUFFIX))

    def first_item(self) -> int:
        """Perplexity goes through all items once per label: the count starts over with each."""
        return self.next_item % self.items_total if self.items_total else self.next_item


class WdmoeMixin:
    """Adds `wdmoe=dict(...)` to an OpenCompass Hugging Face model class, and nothing else to its arguments."""

    ranks_by_perplexity = False

    def __init__(self, *args: Any, wdmoe: Any = None, **kwargs: Any):
        self.settings = parse_settings(wdmoe)
        self.check_settings(self.settings)
        self.profile = self.settings.load_profile()
        self._payload_is_rounded = self.settings.payload_is_rounded
        self._trace: _OpenTrace | None = None
        self._events_written = 0
        self._refuse_unknown(kwargs)
        path = args[0] if args else kwargs["path"]
        check_adapter(path, kwargs.get("peft_path"))
        if kwargs.get("max_seq_len") is None:  # the base class would look it up trusting remote code
            kwargs["max_seq_len"] = _longest_input(path, bool(kwargs.get("model_kwargs", {}).get("trust_remote_code")))
        super().__init__(*args, **kwargs)
        self.generation_kwargs = returns_tokens(self.generation_kwargs)  # type: ignore[has-type]

    @classmethod
    def check_settings(cls, settings: WdmoeSettings) -> None:
        """Raise ModelError for a setting that means nothing to this class of model."""
        if settings.perplexity != "stock" and not cls.ranks_by_perplexity:
            raise ModelError(
                f"wdmoe.perplexity must be 'stock' with {cls.__name__}, which only generates, got "
                f"{settings.perplexity!r}; WdmoeHuggingFaceBaseModel ranks answers by perplexity"
            )

    def _refuse_unknown(self, kwargs: dict) -> None:
        stock = next(base for base in type(self).__mro__ if base.__module__.startswith("opencompass."))
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        known = [name for name, one in inspect.signature(stock).parameters.items() if one.kind in kinds]
        for key in kwargs:
            if key not in known:
                raise ModelError(unknown_name(f"argument of {type(self).__name__}", key, {*known, "wdmoe"}))

    def _load_tokenizer(self, path: str, kwargs: dict, pad_token_id: int | None = None) -> None:
        super()._load_tokenizer(path, {"trust_remote_code": False, **kwargs}, pad_token_id)  # type: ignore[misc]
        supply_batch_encode_plus(self.tokenizer)  # type: ignore[attr-defined]

    def _load_model(
        self, path: str, kwargs: dict, peft_path: str | None = None, peft_kwargs: dict[str, Any] | None = None
    ) -> None:
        kwargs = {"trust_remote_code": False, **kwargs}
        adapter = dict(peft_path=peft_path, peft_kwargs=dict(peft_kwargs or {}))
        with whole_weights(path, kwargs, peft_path):
            super()._load_model(path=path, kwargs=kwargs, **adapter)  # type: ignore[misc]
        if peft_path is not None:
            elsewhere = self.settings.testbed is not None
            self.model = without_wrapper(self.model, peft_path, elsewhere)  # type: ignore[has-type]
        model: Any = self.model
        return_logits(path, model)
        check_precision(path, model)
        self._facts = model_facts(self, kwargs, peft_path, peft_kwargs)
        layers = find_moe_layers(model)
        if self.settings.calibration is not None:
            self.settings.read_calibration().check_fits(len(layers), layers[0].num_experts, layers[0].top_k)
        self.testbed = self._connect(layers)
        self._history = None if self.testbed is None else MeasuredHistory(len(layers), len(self.profile.devices))
        if self.testbed is not None and self._history is not None:
            self.testbed.on_layer = self._history.add
        experts = max(layer.num_experts for layer in layers)
        self._channel = ChannelStates(self.profile, layers[0].shape, experts, self._history)
        policy = self.settings.build_policy(self._channel)
        payload_bits = self.profile.payload_bits if self.settings.quantise_payload else None
        self.attachment = Attachment(
            model, policy, self._channel, self.settings.renormalise, payload_bits, self.testbed
        )
        if self.settings.record_routing:
            self.attachment.router_recorder = RouterRecorder(layers)
        if self.testbed is not None:
            self.testbed.keep_own_experts(path)

    def _connect(self, layers: list[MoeLayer]) -> "LabClient | None":
        """The base station of the live testbed, if there is one; its connections end with the process."""
        if self.settings.testbed is None:
            return None
        from ..testbed.client import LabClient

        return LabClient(self.settings.load_lab(), layers)

    def _has_stop_strings(self, kwargs: dict[str, Any]) -> bool:
        """Whether `generate` will look for stop strings, which it needs the tokenizer for."""
        asked = {**self.generation_kwargs, **kwargs}
        stored = self.model.generation_config.stop_strings  # type: ignore[attr-defined]
        return asked.get("stop_strings", stored) is not None

    # -- the trace -----------------------------------------------------------------------------------------------
    def open_trace(
        self,
        predictions: Path,
        model_abbr: str,
        dataset: str,
        items_total: int,
        answered: int,
        test_range: str = "",
        asked: Facts | None = None,
        arguments: Facts | None = None,
    ) -> int:
        """Begin, or continue, the trace beside a dataset's predictions file; -> the item to go on at.

        asked: what `identify.inferencer_facts` gives for the dataset; arguments: what `identify.asked_facts` gives.
        answered: how many items have whole answers; where the last of them are no whole batch whose counts are known,
        the trace goes on at the batch before.
        """
        metadata = self._metadata(model_abbr, dataset, test_range, asked, arguments)
        journal = Journal(beside(predictions, JOURNAL_SUFFIX), metadata)
        journals: list[BlockJournal] = [journal]
        times, times_path = None, beside(predictions, TIMES_JOURNAL_SUFFIX)
        if self.testbed is not None:
            times = TimesJournal(times_path, self._times_metadata(model_abbr, dataset))
            journals.append(times)
        else:
            times_path.unlink(missing_ok=True)  # of a start with a testbed: it would lack the batches to come
        recording, recording_path = None, beside(predictions, RECORDING_JOURNAL_SUFFIX)
        if self.attachment.router_recorder is not None:
            recording = RecordingJournal(recording_path, self._recording_metadata(metadata))
            journals.append(recording)
        else:
            recording_path.unlink(missing_ok=True)  # of a start that recorded: the same
        first_item = answered
        for one in journals * len(journals):  # again and again: a journal may lack what the other ones have
            first_item = one.resumable(first_item)
        for one in journals:
            one.resume(first_item)
        self._trace = _OpenTrace(journal, predictions, items_total, first_item)
        self._trace.recording = recording
        forget_events(self._trace.events, first_item)
        keep_speed(self._trace.speed, first_item)
        if times is not None:
            self._trace.times = times
            recorded = times.recorded()
            if self._history is not None and recorded is not None and first_item:  # a run that goes on
                self._history.add(recorded.layer_times())
        return first_item

    def close_trace(self, seal: bool) -> None:
        """End the trace of the dataset; `seal` only when the predictions are complete."""
        if self._trace is not None:
            self._write_events(self._trace)
        if self._trace is not None and seal:
            predictions = self._trace.predictions
            self._trace.journal.seal(beside(predictions, SEALED_SUFFIX))
            for journal, suffix in ((self._trace.times, TIMES_SUFFIX), (self._trace.recording, RECORDING_SUFFIX)):
                if journal is not None:
                    journal.seal(beside(predictions, suffix))
        self._trace = None

    def _times_metadata(self, model_abbr: str, dataset: str) -> TimesMetadata:
        layer, lab = self.attachment.layers[0], self.settings.load_lab()
        own_bits = torch.finfo(layer.experts.down_proj.dtype).bits
        return TimesMetadata(
            model=model_abbr,
            dataset=dataset,
            policy=self.settings.policy,
            layers=len(self.attachment.layers),
            devices=tuple(device.name for device in self.profile.devices),
            hidden_size=layer.shape.hidden_size,
            ffn_size=layer.shape.ffn_size,
            payload_bits=lab.payload_bits or own_bits,
            lab_hash=lab.content_hash,
        )

    def _recording_metadata(self, trace: TraceMetadata) -> RecordingMetadata:
        recorder = self.attachment.router_recorder
        assert recorder is not None
        return RecordingMetadata(
            source="run",
            model=trace.model,
            weights=trace.weights,
            dataset=trace.dataset,
            test_range=trace.test_range,
            routing=trace.routing,
            layers=trace.layers,
            num_experts=trace.experts,
            top_k=trace.top_k,
            hidden_size=trace.hidden_size,
            ffn_size=trace.ffn_size,
            router_is_softmax=recorder.is_softmax,
            router_normalises=recorder.normalises,
            has_weights=True,
            has_probabilities=recorder.is_softmax,
            dtype=trace.dtype,
            versions=trace.versions,
        )

    def _write_events(self, trace: _OpenTrace) -> None:
        """Add what happened to the devices since the last batch to a file beside the trace, one JSON object each."""
        if self.testbed is None:
            return
        events = self.testbed.events[self._events_written :]
        self._events_written += len(events)
        if events:
            metadata = trace.journal.metadata
            whose = dict(model=metadata.model, dataset=metadata.dataset) if metadata else {}
            with trace.events.open("a") as file:
                for event in events:
                    file.write(json.dumps(asdict(event) | whose | {ANSWERED: trace.next_item}) + "\n")

    def _metadata(
        self,
        model_abbr: str,
        dataset: str,
        test_range: str,
        asked: Facts | None = None,
        arguments: Facts | None = None,
    ) -> TraceMetadata:
        layer = self.attachment.layers[0]
        return TraceMetadata(
            format_version=FORMAT_VERSION,
            model=model_abbr,
            weights=self.path,  # type: ignore[attr-defined]
            dataset=dataset,
            test_range=test_range,
            policy=self.settings.policy,
            policy_parameters=policy_parameters(self.attachment.policy),
            renormalise=self.attachment.renormalise,
            kept_share=self.settings.kept_share,
            calibration_hash=self._calibration_hash(),
            quantise_payload=self._payload_is_rounded,
            perplexity=self.settings.perplexity,
            profile=self.profile,
            profile_hash=self.profile.content_hash,
            seed=self.profile.fading.seed,
            layers=len(self.attachment.layers),
            experts=self.attachment.num_experts,
            top_k=max(layer.top_k for layer in self.attachment.layers),
            hidden_size=layer.shape.hidden_size,
            ffn_size=layer.shape.ffn_size,
            dtype=precision_name(self.model),  # type: ignore[attr-defined]
            versions={package: version(package) for package in TRACED_PACKAGES},
            identity=answer_facts(self, self._facts, asked or {}, self.settings.perplexity),
            arguments=arguments or {},
        )

    def _calibration_hash(self) -> str | None:
        return None if self.settings.calibration is None else self.settings.read_calibration().content_hash

    @contextmanager
    def _batch(self, items: int) -> Iterator[None]:
        recorder, clock = self.attachment.recorder, self.attachment.clock
        router_recorder = self.attachment.router_recorder
        recorder.reset()  # whatever an exception left behind
        clock.reset()
        if router_recorder is not None:
            router_recorder.reset()
        trace = self._trace
        if self.testbed is not None:
            self.testbed.take_times()
            self.testbed.take_waiting()
        if trace is None:
            yield
            recorder.reset()
            if router_recorder is not None:
                router_recorder.reset()
            return
        self._channel.dataset = trace.journal.metadata.dataset if trace.journal.metadata else ""
        self._channel.items_before = trace.next_item
        began_s = time.perf_counter()
        yield
        clock.stop()
        batch_s = time.perf_counter() - began_s
        block = recorder.finish_batch(trace.first_item(), items)
        if trace.times is not None:  # first: what is there twice after a kill is dropped, what lacks cannot be made up
            trace.times.append(self._measured(block["tokens"].tolist(), trace.first_item(), items))
        if trace.recording is not None and router_recorder is not None:
            trace.recording.append(router_recorder.finish_batch(trace.first_item(), items))
        trace.journal.append(block)
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

    def _measured(self, tokens: list[int], first_item: int, items: int) -> dict[str, Any]:
        """-> the batch's measured times as one block; tokens: real ones of each pass."""
        assert self.testbed is not None
        recorder = TimesRecorder(len(self.attachment.layers), len(self.profile.devices))
        of_pass = defaultdict(list)
        for one in self.testbed.take_times():
            of_pass[one.pass_index].append(one)
        waiting = defaultdict(list)
        for number, layer, seconds in self.testbed.take_waiting():
            waiting[number].append((layer, seconds))
        for number, count in enumerate(tokens):
            recorder.begin_pass(count)
            recorder.add(of_pass[number])
            for layer, seconds in waiting[number]:
                recorder.add_waiting(layer, seconds)
        return recorder.finish_batch(first_item, items)

    def generate(
        self,
        inputs: list,
        max_out_len: int,
        min_out_len: int | None = None,
        stopping_criteria: list[str] | tuple = (),
        **kwargs: Any,
    ) -> list[str]:
        """Generate as the base class does; the batch enters the trace."""
        kwargs = returns_tokens(kwargs)
        if self._has_stop_strings(kwargs):
            kwargs["tokenizer"] = self.tokenizer  # type: ignore[attr-defined]
        with self._batch(len(inputs)):
            return super().generate(  # type: ignore[misc]
                inputs, max_out_len, min_out_len=min_out_len, stopping_criteria=list(stopping_criteria), **kwargs
            )


class WdmoeHuggingFaceBaseModel(WdmoeMixin, HuggingFaceBaseModel):
    """`HuggingFaceBaseModel` with a selection policy: perplexity and generation without a chat template."""

    ranks_by_perplexity = True

    def get_ppl(self, inputs: list, mask_length: list[int] | None = None) -> Any:
        """Perplexities as the base class computes them, or independent of the batch; the batch enters the trace."""
        with self._batch(len(inputs)):
            if self.settings.perplexity == "stock" or self.drop_middle:  # the latter takes one text at a time
                return super().get_ppl(inputs, mask_length)
            texts = _convert_base_messages(inputs)
            return exact_perplexity(self.model, self.tokenizer, texts, self.max_seq_len, mask_length)


class WdmoeHuggingFacewithChatTemplate(WdmoeMixin, HuggingFacewithChatTemplate):
    """`HuggingFacewithChatTemplate` with a selection policy."""


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


def supply_batch_encode_plus(tokenizer: Any) -> None:
    """Give a tokenizer the method that transformers 5 took away and OpenCompass 0.5.4 still calls."""
    if not hasattr(tokenizer, "batch_encode_plus"):
        tokenizer.batch_encode_plus = tokenizer.__call__


def _longest_input(path: str, trust_remote_code: bool) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    for key in ("max_position_embeddings", "seq_length", "model_max_length"):
        if getattr(config, key, None):
            return int(getattr(config, key))
    raise ModelError(f"{path}: max_seq_len must be given, the model's config does not tell it")
