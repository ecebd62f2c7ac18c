"""The base station of a testbed: sends each MoE layer's tokens to the devices, and gets every answer somehow."""

import copy
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from ..errors import LabError
from ..routing.discovery import MoeLayer
from ..routing.payload import Payload
from ..trace.times import LayerTimes
from .base_station_experts import OwnExperts
from .experts import check_can_be_sent, sums_per_token
from .lab import Lab
from .link import Call, CallFailed, Link, read_sums
from .wire import OVERHEAD_BYTES, Tokens, WireError, bytes_per_row, check_of_tokens, dtype_name, pack, raw, unpack

LOG = logging.getLogger(__name__)
TESTBED_EXPERTS = "wdmoe_testbed"
SEND = "_wdmoe_testbed"
DROPPED = -2  # place of a pair that nobody computes; -1 is the base station
MAX_TIMES = 1_000_000
Forward = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Event:
    """Something went wrong with a device, or right again.

    at:     seconds since 1970
    kind:   timeout, unavailable, refused, bad_reply or failed: of a message, whose tokens somebody else took over; or
            of a health check (layer -1); rejoined: the device is back
    by:     who took over: another device, or base_station; empty where nothing had to be
    """

    at: float
    device: str
    kind: str
    reason: str
    layer: int = -1
    pass_index: int = -1
    tokens: int = 0
    by: str = ""


@dataclass
class _Group:
    """The pairs of one layer that one device computes.

    rows:       [tokens] of the layer's hidden states, ascending
    slot:       [tokens] where the sum goes: the first of the token's k places that the device holds
    pair_token: [pairs] index into rows; expert, weight: [pairs]
    """

    owner: int
    rows: Tensor
    slot: Tensor
    pair_token: Tensor
    expert: Tensor
    weight: Tensor
    number: int = 0
    message: bytes = b""
    link: Link | None = None
    call: Call | None = None


def _testbed_forward(experts: Any, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    return getattr(experts, SEND)(hidden, index, weights)


ALL_EXPERTS_FUNCTIONS.register(TESTBED_EXPERTS, _testbed_forward)


class _SentExperts:
    """Makes an experts module send its tokens; `remove` undoes it."""

    def __init__(self, experts: Any, forward: Forward):
        self.experts, self.config = experts, experts.config
        setattr(experts, SEND, forward)
        experts.config = copy.copy(experts.config)
        experts.config._experts_implementation_internal = TESTBED_EXPERTS

    def remove(self) -> None:
        """Give the module its own implementation back."""
        self.experts.config = self.config
        self.experts.__dict__.pop(SEND, None)


class LabClient:
    """Connects to the devices of a lab and computes MoE layers there; `close` at the end.

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
        self.pass_index = 0
        self.is_real_token = torch.empty(0, dtype=torch.bool)
        self._own = OwnExperts(layers)
        self._numbers = itertools.count(1)
        self._last_s = [0.0] * len(lab.devices)  # round trip of each device's last message
        self._places = [torch.tensor([*lab.device_of_expert(layer.num_experts), DROPPED]) for layer in layers]
        self._links = [
            Link(number, device, lab, self._check_holding, self._changed) for number, device in enumerate(lab.devices)
        ]
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

    def __enter__(self) -> "LabClient":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def keep_own_experts(self, path: str | Path) -> None:
        """Free what the lab's `experts_in_memory: own` says; the model is no longer whole then.

        path: the model's folder. Raises LabError where its files cannot be read expert by expert.
        """
        if self.lab.experts_in_memory == "own":
            self._own.free((expert for expert, place in enumerate(self.device_of_expert) if place >= 0), path)

    def take_times(self) -> list[LayerTimes]:
        """-> the times since the last call."""
        taken, self.times = list(self.times), deque(maxlen=MAX_TIMES)
        return taken

    def take_waiting(self) -> list[tuple[int, int, float]]:
        """-> the waiting times since the last call."""
        taken, self.waiting = list(self.waiting), deque(maxlen=MAX_TIMES)
        return taken

    def send_layer(self, number: int) -> _SentExperts:
        """Let layer `number` compute its experts here from now on; -> what undoes it."""
        return _SentExperts(
            self.layers[number].experts, lambda hidden, index, weights: self._layer(number, hidden, index, weights)
        )

    def probe(
        self,
        number: int,
        tokens: Mapping[int, int],
        generator: torch.Generator,
        meanwhile: Callable[[Tensor], Any],
    ) -> list[LayerTimes]:
        """Send some devices random hidden states for layer `number`, to all at once; -> their times.

        Each token goes to one of the device's experts, in turn. The model's own weights are not needed.
        tokens:    of the message to each of these devices
        meanwhile: called with the longest message's once they are sent: what the base station does while it waits
        Raises LabError where a device does not answer as it should, or a message would be too long.
        """
        longest, limit = max(tokens.values()), self._most_tokens(1)
        if longest > limit:
            raise LabError(f"a message of {longest} tokens is longer than message_bytes allows ({limit} tokens)")
        layer = self.layers[number]
        hidden = torch.randn(longest, layer.shape.hidden_size, generator=generator).to(layer.experts.down_proj.dtype)
        groups = [self._probing(self._links[device], count) for device, count in tokens.items()]
        began = self._send_all(number, groups, hidden)
        meanwhile(hidden)
        times: list[LayerTimes] = []
        for group in groups:
            link = self._links[group.owner]
            if group.call is None or group.link is not link:
                raise LabError(f"{link.device.name} is not there")
            try:
                self._read(link, group.call, group, number, hidden, times)
            except CallFailed as failed:
                raise LabError(f"{link.device.name} does not answer: {failed}") from None
        self._keep_times(times, max(group.call.done_at for group in groups if group.call) - began)
        self.pass_index += 1
        return self.take_times()

    def _probing(self, link: Link, count: int) -> _Group:
        own = [e for e in link.device.experts if self.device_of_expert[e] == link.number]  # the others are to take over
        rows, held = torch.arange(count), torch.tensor(own or link.device.experts)
        return _Group(link.number, rows, torch.zeros_like(rows), rows, held[rows % len(held)], torch.ones(count))

    # -- devices -------------------------------------------------------------------------------------------------
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

    # -- one layer -----------------------------------------------------------------------------------------------
    @torch.no_grad()
    def _layer(self, number: int, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """-> [tokens, hidden] what the layer's experts answer, wherever they are; index `experts` is nobody's pair.

        Tokens that are no load are computed here, not left out: a perplexity of left-padded prompts reads the logits of
        the last padding.
        """
        here = hidden.device
        self._own.forget(expert for link in self._links if link.is_up for expert in link.device.experts)
        place = self._places[number]
        sent_hidden, sent_index, sent_weights = hidden.cpu(), index.cpu(), weights.cpu()
        place = place[sent_index.clamp(max=len(place) - 1)]
        if not self.lab.send_padding:
            stays = ~self.is_real_token.cpu()[:, None] & (place != DROPPED)
            place = place.masked_fill(stays, -1)
        groups = list(self._groups(place, sent_index, sent_weights))
        began = self._send_all(number, groups, sent_hidden)
        slots = torch.zeros(*index.shape, hidden.shape[1], device=here)  # [tokens, k, hidden]
        token, slot = (one.to(here) for one in (place == -1).nonzero(as_tuple=True))
        if len(token):
            slots[token, slot] = self._own.answers(number, hidden[token], index[token, slot], weights[token, slot])
        rows: list[LayerTimes] = []
        answered_at = began
        for group in groups:
            sums = self._answer(number, group, sent_hidden, rows)
            slots[group.rows.to(here), group.slot.to(here)] = sums.float().to(here)
            answered_at = max(answered_at, group.call.done_at if group.call is not None else time.monotonic())
        if groups:
            self.waiting.append((self.pass_index, number, answered_at - began))
        self._keep_times(rows, answered_at - began)
        return slots.sum(dim=1).to(hidden.dtype)

    def _groups(self, place: Tensor, index: Tensor, weights: Tensor) -> Iterator[_Group]:
        """The pairs of each device, cut into messages no longer than the limit."""
        most = self._most_tokens(index.shape[1])
        for owner in range(len(self._links)):
            token, slot = (place == owner).nonzero(as_tuple=True)
            if not len(token):
                continue
            all_rows = torch.unique_consecutive(token)
            for rows in all_rows.split(most):
                mine = (token >= rows[0]) & (token <= rows[-1])
                its_token, its_slot = token[mine], slot[mine]
                yield _Group(
                    owner,
                    rows,
                    its_slot[torch.searchsorted(its_token, rows)],
                    torch.searchsorted(rows, its_token),
                    index[its_token, its_slot],
                    weights[its_token, its_slot],
                )

    def _most_tokens(self, pairs_per_token: int) -> int:
        """Tokens of a message that is no longer than the limit, nor is its answer."""
        layer, bits = self.layers[0], self.lab.payload_bits
        types = (layer.experts.down_proj.dtype, torch.float32)
        row_bytes = max(bytes_per_row(layer.shape.hidden_size, dtype, bits) for dtype in types)
        return max(1, (self.lab.message_bytes - OVERHEAD_BYTES) // (row_bytes + 16 * pairs_per_token))

    def _pack(self, number: int, group: _Group, hidden: Tensor) -> None:
        """Make the message of a group; whoever gets it answers with the same number."""
        group.number = next(self._numbers)
        message = Tokens(
            number=group.number,
            layer=number,
            hidden=pack(hidden[group.rows], self.lab.payload_bits),
            pair_token=raw(group.pair_token.int()),
            pair_expert=raw(group.expert.int()),
            pair_weight=raw(group.weight),
            weight_dtype=dtype_name(group.weight.dtype),
            sums_bits=self.lab.payload_bits or 0,
        )
        message.check = check_of_tokens(message)
        group.message = message.SerializeToString()

    def _send_all(self, number: int, groups: list[_Group], hidden: Tensor) -> float:
        """Pack every group, then send them; -> when the first one left.

        Each takes a moment to leave, nearly at once with the others but in no sure order; the device whose last round
        trip was the longest is asked to begin.
        """
        for group in groups:
            self._pack(number, group, hidden)
        began = time.monotonic()
        for group in sorted(groups, key=lambda one: -self._last_s[one.owner]):
            self._send(group)
        return began

    def _send(self, group: _Group, but: tuple[int, ...] = ()) -> None:
        """Send a group to its device, or to another that is up and holds its experts; else leave it to be done here."""
        wanted = set(group.expert.tolist())
        others = (link for link in self._links if link.number != group.owner)
        for link in (self._links[group.owner], *others):
            if link.is_up and link.number not in but and wanted <= set(link.device.experts):
                try:
                    group.link, group.call = link, link.compute(group.message)
                    return
                except CallFailed:  # closed at this moment by its own thread
                    continue
        group.link = group.call = None

    def _answer(self, number: int, group: _Group, hidden: Tensor, rows: list[LayerTimes]) -> Tensor:
        """-> [tokens, hidden] the group's sums: from its device, from another that holds its experts, or from here."""
        failed: list[tuple[Link, CallFailed, float]] = []
        while group.link is not None and group.call is not None:
            link, call = group.link, group.call
            try:
                sums = self._read(link, call, group, number, hidden, rows)
            except CallFailed as error:
                failed.append((link, error, time.time()))
                if not error.stays_up:
                    link.down()
                self._send(group, tuple(one.number for one, *_ in failed))
                continue
            break
        else:
            sums = self._here(number, group, hidden)
        by = group.link.device.name if group.link is not None else "base_station"
        for link, problem, at in failed:
            event = Event(
                at,
                link.device.name,
                problem.kind,
                str(problem),
                number,
                self.pass_index,
                len(group.rows),
                by,
            )
            self._note(event)
        return sums

    def _read(
        self, link: Link, call: Call, group: _Group, number: int, hidden: Tensor, rows: list[LayerTimes]
    ) -> Tensor:
        try:
            reply = read_sums(call.answer(), group.number, link.session)
            dtype = torch.float32 if self.lab.payload_bits else hidden.dtype
            sums = unpack(reply.sums, hidden.shape[1], dtype)
            if len(sums) != len(group.rows):
                raise WireError(f"it answers {len(sums)} of {len(group.rows)} tokens")
            if reply.sums.bits != (self.lab.payload_bits or 0):
                raise WireError(f"it answers in {reply.sums.bits} bits")
            send_s, queue_s, compute_s, return_s = link.parts(call, reply)
        except WireError as error:
            raise CallFailed("bad_reply", str(error)) from None
        link.worked()
        total_s = self._last_s[link.number] = call.done_at - call.sent_at
        rows.append(
            LayerTimes(
                number,
                link.number,
                len(sums),
                send_s,
                queue_s,
                compute_s,
                return_s,
                total_s,
                0.0,
                self.pass_index,
                link.number != group.owner,
            )
        )
        return sums

    def _here(self, number: int, group: _Group, hidden: Tensor) -> Tensor:
        """The group's sums by the base station's own weights, rounded as if they had travelled."""
        here = self.layers[number].experts.down_proj.device
        bits = self.lab.payload_bits
        sent = hidden[group.rows]
        if bits is not None:
            sent = Payload(bits, torch.empty(0)).rounded(sent)
        pair_hidden = sent[group.pair_token].to(here)
        answers = self._own.answers(number, pair_hidden, group.expert.to(here), group.weight.to(here))
        sums = sums_per_token(answers, group.pair_token.to(here), len(group.rows)).cpu()
        return sums.to(hidden.dtype) if bits is None else Payload(bits, torch.empty(0)).rounded(sums)

    def _keep_times(self, rows: list[LayerTimes], waiting_s: float) -> None:
        whole = [row._replace(waiting_s=waiting_s) for row in rows]
        self.times.extend(whole)
        if self.on_layer is not None:
            self.on_layer(whole)
