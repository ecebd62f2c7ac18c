"""The base station of a testbed: it connects to the devices and computes a model's MoE layers there."""

import copy
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from ..errors import TestbedError
from ..routing.discovery import MoeLayer
from ..trace.times import LayerTimes
from .base_station_experts import BaseStationExperts
from .dispatch import Dispatcher, Event
from .experts import check_can_be_sent
from .lab_file import Testbed
from .link import CallError, Link
from .wire import dtype_name

LOG = logging.getLogger(__name__)
TESTBED_EXPERTS = "wdmoe_testbed"
SEND = "_wdmoe_testbed"
MAX_TIMES = 1_000_000


def _testbed_forward(experts: Any, hidden_states: Tensor, expert_index: Tensor, weights: Tensor) -> Tensor:
    return getattr(experts, SEND)(hidden_states, expert_index, weights)


ALL_EXPERTS_FUNCTIONS.register(TESTBED_EXPERTS, _testbed_forward)


class _SentExperts:
    """Makes an experts module send its tokens to the devices; `remove` undoes it."""

    def __init__(self, experts: Any, forward: Callable[[Tensor, Tensor, Tensor], Tensor]):
        self.experts, self.config = experts, experts.config
        setattr(experts, SEND, forward)
        experts.config = copy.copy(experts.config)
        experts.config._experts_implementation_internal = TESTBED_EXPERTS

    def remove(self) -> None:
        """Restore the module's own implementation."""
        self.experts.config = self.config
        self.experts.__dict__.pop(SEND, None)


class BaseStation:
    """Connects to the devices of a testbed and computes MoE layers there; `close` at the end.

    layers: of the model, from `find_moe_layers`. Raises TestbedError if the testbed, a device or the model does not
    fit, or no device answers; it waits for a missing device in the background.

    times:    LayerTimes since the last `take_times`
    waiting:  (pass, layer, seconds) of every layer with a token for a device, answered or not, since `take_waiting`
    events:   every Event since the start
    on_layer: called with the LayerTimes of each layer when it is done, before the next layer's experts are chosen
    """

    def __init__(self, testbed: Testbed, layers: list[MoeLayer]):
        self.testbed, self.layers = testbed, layers
        for layer in layers:
            check_can_be_sent(layer)
        self.times: deque[LayerTimes] = deque(maxlen=MAX_TIMES)
        self.events: list[Event] = []
        self.waiting: deque[tuple[int, int, float]] = deque(maxlen=MAX_TIMES)
        self.on_layer: Callable[[list[LayerTimes]], None] | None = None
        self._own_experts = BaseStationExperts(layers)
        self._links = [
            Link(number, device, testbed, self._check_holding, self._note_change)
            for number, device in enumerate(testbed.devices)
        ]
        self.dispatcher = Dispatcher(testbed, layers, self._links, self._own_experts, self._note)
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        def connect(link: Link) -> str:
            try:
                link.connect(self.testbed.connect_s)
                return ""
            except CallError as failed:
                return str(failed)

        with ThreadPoolExecutor(len(self._links)) as pool:
            missing = list(pool.map(connect, self._links))
        if all(missing):
            first = self.testbed.devices[0]
            raise TestbedError(
                f"no device of the testbed answers within {self.testbed.connect_s:g} s; "
                f"{first.name} at {first.address}: {missing[0]}"
            )
        for link, reason in zip(self._links, missing):
            if reason:
                self._note_change(link, "unavailable", f"not there at the start: {reason}")
            link.watch()

    def close(self) -> None:
        """Close all connections."""
        for link in self._links:
            link.close()

    def __enter__(self) -> "BaseStation":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    @property
    def payload_bits(self) -> int:
        """Bits per value on the air: the testbed's, else those of the experts' own precision."""
        return self.testbed.payload_bits or torch.finfo(self.layers[0].experts.down_proj.dtype).bits

    def keep_own_experts(self, path: str | Path) -> None:
        """Under `experts_in_memory: own`, release the experts that devices hold; the model is then incomplete.

        path: the model's folder. Raises TestbedError if its files cannot be read expert by expert.
        """
        if self.testbed.experts_in_memory == "own":
            device_of_expert = self.testbed.device_of_expert(self.layers[0].num_experts)
            self._own_experts.free((expert for expert, device in enumerate(device_of_expert) if device >= 0), path)

    def take_times(self) -> list[LayerTimes]:
        """Return the times since the last call."""
        taken, self.times = list(self.times), deque(maxlen=MAX_TIMES)
        return taken

    def take_waiting(self) -> list[tuple[int, int, float]]:
        """Return the waiting times since the last call."""
        taken, self.waiting = list(self.waiting), deque(maxlen=MAX_TIMES)
        return taken

    def send_layer(self, number: int, current_pass: Callable[[], tuple[int, Tensor]]) -> _SentExperts:
        """Compute the experts of MoE layer `number` on the devices from now on; -> a handle that undoes it.

        current_pass: -> index of the running forward pass, and [tokens] bool, False for padding and finished rows
        """

        def forward(hidden_states: Tensor, expert_index: Tensor, weights: Tensor) -> Tensor:
            pass_index, is_real_token = current_pass()
            answers, times, waiting_s = self.dispatcher.compute(
                number, hidden_states, expert_index, weights, pass_index, is_real_token
            )
            if waiting_s is not None:
                self.waiting.append((pass_index, number, waiting_s))
            self.times.extend(times)
            if self.on_layer is not None:
                self.on_layer(times)
            return answers

        return _SentExperts(self.layers[number].experts, forward)

    def _check_holding(self, link: Link, holding: Any) -> None:
        name, layer = link.device.name, self.layers[0]
        dtype = dtype_name(layer.experts.down_proj.dtype)
        wanted = set(link.device.experts)
        if not wanted <= set(holding.experts):
            raise TestbedError(f"{name} holds experts {list(holding.experts)}, the lab file says {sorted(wanted)}")
        if holding.dtype != dtype:
            raise TestbedError(
                f"{name} computes in {holding.dtype}, the model in {dtype}: start it with --dtype {dtype}"
            )
        if (holding.layers, holding.hidden_size) != (len(self.layers), layer.shape.hidden_size):
            raise TestbedError(
                f"{name} has {holding.layers} layers of hidden size {holding.hidden_size}, the model "
                f"{len(self.layers)} of {layer.shape.hidden_size}: it was started with another model"
            )
        if holding.message_bytes < self.testbed.message_bytes:
            raise TestbedError(
                f"{name} takes messages of {holding.message_bytes} bytes, the lab file says "
                f"{self.testbed.message_bytes}: start it with --message-bytes {self.testbed.message_bytes}"
            )
        known = self._own_experts.fingerprints
        if known and list(holding.fingerprints) != [of[expert] for of in known for expert in holding.experts]:
            raise TestbedError(f"{name} holds other weights than the model's: it was started with another model")

    def _note_change(self, link: Link, kind: str, reason: str) -> None:
        self._note(Event(time.time(), link.device.name, kind, reason))

    def _note(self, event: Event) -> None:
        self.events.append(event)
        where = f" (layer {event.layer}, {event.tokens} tokens, taken over by {event.by})" if event.by else ""
        LOG.log(
            logging.INFO if event.kind == "rejoined" else logging.WARNING,
            "device %s: %s: %s%s",
            event.device,
            event.kind,
            event.reason,
            where,
        )
