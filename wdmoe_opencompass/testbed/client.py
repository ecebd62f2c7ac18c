"""The base station of a testbed: connected to its devices, it lets a model's MoE layers compute there."""

import copy
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from ..errors import LabError
from ..routing.discovery import MoeLayer
from ..trace.times import LayerTimes
from .base_station_experts import OwnExperts
from .dispatch import Dispatcher, Event
from .experts import check_can_be_sent
from .lab import Lab
from .link import CallFailed, Link
from .wire import dtype_name

LOG = logging.getLogger(__name__)
TESTBED_EXPERTS = "wdmoe_testbed"
SEND = "_wdmoe_testbed"
MAX_TIMES = 1_000_000


def _testbed_forward(experts: Any, hidden_states: Tensor, expert_index: Tensor, weights: Tensor) -> Tensor:
    return getattr(experts, SEND)(hidden_states, expert_index, weights)


ALL_EXPERTS_FUNCTIONS.register(TESTBED_EXPERTS, _testbed_forward)


class _SentExperts:
    """Makes an experts module send its tokens; `remove` undoes it."""

    def __init__(self, experts: Any, forward: Callable[[Tensor, Tensor, Tensor], Tensor]):
        self.experts, self.config = experts, experts.config
        setattr(experts, SEND, forward)
        experts.config = copy.copy(experts.config)
        experts.config._experts_implementation_internal = TESTBED_EXPERTS

    def remove(self) -> None:
        """Give the module its own implementation back."""
        self.experts.config = self.config
        self.experts.__dict__.pop(SEND, None)


class BaseStation:
    """Connects to the devices of a testbed and computes MoE layers there; `close` at the end.

    layers: of the model, as `find_moe_layers` gives them. Raises LabError where the lab, a device or the model does not
    fit, or no device answers; a device that is not there yet is waited for in the background.

    times:   LayerTimes since `take_times` was called last
    waiting: (pass, layer, seconds) of every layer that had a token for a device, answered or not, since `take_waiting`
    events:  every Event since the start
    on_layer: called with the LayerTimes of each layer when it is done, before the next layer's experts are chosen
    """

    def __init__(self, lab: Lab, layers: list[MoeLayer]):
        self.lab, self.layers = lab, layers
        for layer in layers:
            check_can_be_sent(layer)
        self.device_of_expert = lab.device_of_expert(layers[0].num_experts)
        self.times: deque[LayerTimes] = deque(maxlen=MAX_TIMES)
        self.events: list[Event] = []
        self.waiting: deque[tuple[int, int, float]] = deque(maxlen=MAX_TIMES)
        self.on_layer: Callable[[list[LayerTimes]], None] | None = None
        self._own = OwnExperts(layers)
        self._links = [
            Link(number, device, lab, self._check_holding, self._changed) for number, device in enumerate(lab.devices)
        ]
        self.dispatcher = Dispatcher(lab, layers, self._links, self._own, self._note)
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        def connect(link: Link) -> str:
            try:
                link.connect(self.lab.connect_s)
                return ""
            except CallFailed as failed:
                return str(failed)

        with ThreadPoolExecutor(len(self._links)) as pool:
            missing = list(pool.map(connect, self._links))
        if all(missing):
            first = self.lab.devices[0]
            raise LabError(
                f"no device of the lab answers within {self.lab.connect_s:g} s; {first.name} at {first.address}: "
                f"{missing[0]}"
            )
        for link, reason in zip(self._links, missing):
            if reason:
                self._changed(link, "unavailable", f"not there at the start: {reason}")
            link.watch()

    def close(self) -> None:
        """End all connections."""
        for link in self._links:
            link.close()

    def __enter__(self) -> "BaseStation":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def keep_own_experts(self, path: str | Path) -> None:
        """Free what the lab's `experts_in_memory: own` says; the model is no longer whole then.

        path: the model's folder. Raises LabError where its files cannot be read expert by expert.
        """
        if self.lab.experts_in_memory == "own":
            self._own.free((expert for expert, device in enumerate(self.device_of_expert) if device >= 0), path)

    def take_times(self) -> list[LayerTimes]:
        """-> the times since the last call."""
        taken, self.times = list(self.times), deque(maxlen=MAX_TIMES)
        return taken

    def take_waiting(self) -> list[tuple[int, int, float]]:
        """-> the waiting times since the last call."""
        taken, self.waiting = list(self.waiting), deque(maxlen=MAX_TIMES)
        return taken

    def send_layer(self, number: int, current_pass: Callable[[], tuple[int, Tensor]]) -> _SentExperts:
        """Let layer `number` compute its experts here from now on; -> what undoes it.

        current_pass: -> the running forward pass's index, and [tokens] bool which of its tokens are no padding
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
            raise LabError(f"{name} holds experts {list(holding.experts)}, the lab file says {sorted(wanted)}")
        if holding.dtype != dtype:
            raise LabError(f"{name} computes in {holding.dtype}, the model in {dtype}: start it with --dtype {dtype}")
        if (holding.layers, holding.hidden_size) != (len(self.layers), layer.shape.hidden_size):
            raise LabError(
                f"{name} has {holding.layers} layers of hidden size {holding.hidden_size}, the model "
                f"{len(self.layers)} of {layer.shape.hidden_size}: it was started with another model"
            )
        if holding.message_bytes < self.lab.message_bytes:
            raise LabError(
                f"{name} takes messages of {holding.message_bytes} bytes, the lab file says {self.lab.message_bytes}: "
                f"start it with --message-bytes {self.lab.message_bytes}"
            )
        known = self._own.fingerprints
        if known and list(holding.fingerprints) != [of[expert] for of in known for expert in holding.experts]:
            raise LabError(f"{name} holds other weights than the model's: it was started with another model")

    def _changed(self, link: Link, kind: str, reason: str) -> None:
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
