"""One MoE layer on a testbed: its tokens go to the devices that hold their experts, and every answer comes somehow."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import LabError
from ..routing.discovery import MoeLayer
from ..routing.payload import Payload
from ..trace.times import LayerTimes
from .base_station_experts import OwnExperts
from .experts import sums_per_token
from .lab import Lab
from .link import Call, CallFailed, Link, read_sums
from .wire import OVERHEAD_BYTES, Tokens, WireError, bytes_per_row, check_of_tokens, dtype_name, pack, raw, unpack

DROPPED = -2  # device of a pair that nobody computes; -1 is the base station


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
    slot:       [tokens] where the sum goes: the first of the token's k slots that the device holds
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


@dataclass
class _Exchange:
    """The messages of one layer in one forward pass.

    hidden_states: [tokens, hidden] of the layer, on the CPU
    times:         of every message that was answered
    """

    layer: int
    pass_index: int
    hidden_states: Tensor
    groups: list[_Group]
    began: float = 0.0
    times: list[LayerTimes] = field(default_factory=list)

    def times_until(self, answered_at: float) -> list[LayerTimes]:
        """-> the times, each with the waiting time of the layer, whose last answer came at this moment."""
        return [times._replace(waiting_s=answered_at - self.began) for times in self.times]


class Dispatcher:
    """Computes MoE layers on the devices; what a device does not answer, another one or the base station computes.

    note: called with every Event of a message
    """

    def __init__(
        self, lab: Lab, layers: list[MoeLayer], links: list[Link], own: OwnExperts, note: Callable[[Event], None]
    ):
        self.lab, self.layers, self.links, self.own, self.note = lab, layers, links, own, note
        self._numbers = itertools.count(1)
        self._last_s = [0.0] * len(lab.devices)  # round trip of each device's last message
        self._placements = [torch.tensor([*lab.device_of_expert(layer.num_experts), DROPPED]) for layer in layers]

    @torch.no_grad()
    def compute(
        self,
        layer: int,
        hidden_states: Tensor,
        expert_index: Tensor,
        weights: Tensor,
        pass_index: int,
        is_real_token: Tensor,
    ) -> tuple[Tensor, list[LayerTimes], float | None]:
        """Compute a layer's experts, wherever they are; index `experts` is nobody's pair.

        Tokens that are no load are computed here, not left out: a perplexity of left-padded prompts reads the logits of
        the last padding.

        hidden_states: [tokens, hidden]; expert_index, weights: [tokens, k]; is_real_token: [tokens]
        Returns: [tokens, hidden] the answers, weighted and summed; what each message took; the seconds until the last
        answer, None where no token was for a device.
        """
        here = hidden_states.device
        self.own.forget(expert for link in self.links if link.is_up for expert in link.device.experts)
        sent_index = expert_index.cpu()
        device = self._devices(layer, sent_index, is_real_token)
        groups = list(self._groups(device, sent_index, weights.cpu()))
        exchange = _Exchange(layer, pass_index, hidden_states.cpu(), groups)
        self._send_all(exchange)
        answers = torch.zeros(*expert_index.shape, hidden_states.shape[1], device=here)  # [tokens, k, hidden]
        token, slot = (column.to(here) for column in (device == -1).nonzero(as_tuple=True))
        if len(token):
            answers[token, slot] = self.own.answers(
                layer, hidden_states[token], expert_index[token, slot], weights[token, slot]
            )
        answered_at = exchange.began
        for group in groups:
            sums = self._answer(exchange, group)
            answers[group.rows.to(here), group.slot.to(here)] = sums.float().to(here)
            answered_at = max(answered_at, group.call.done_at if group.call is not None else time.monotonic())
        waiting_s = answered_at - exchange.began if groups else None
        return answers.sum(dim=1).to(hidden_states.dtype), exchange.times_until(answered_at), waiting_s

    def probe(
        self,
        layer: int,
        pass_index: int,
        tokens: Mapping[int, int],
        generator: torch.Generator,
        meanwhile: Callable[[Tensor], Any],
    ) -> list[LayerTimes]:
        """Send some devices random hidden states for a layer, to all at once; -> their times.

        Each token goes to one of the device's experts, in turn. The model's own weights are not needed.
        tokens:    of the message to each of these devices
        meanwhile: called with the longest message's once they are sent: what the base station does while it waits
        Raises LabError where a device does not answer as it should, or a message would be too long.
        """
        longest, limit = max(tokens.values()), self._max_tokens(1)
        if longest > limit:
            raise LabError(f"a message of {longest} tokens is longer than message_bytes allows ({limit} tokens)")
        shape, weights = self.layers[layer].shape, self.layers[layer].experts.down_proj
        hidden_states = torch.randn(longest, shape.hidden_size, generator=generator).to(weights.dtype)
        groups = [self._probing(self.links[device], count) for device, count in tokens.items()]
        exchange = _Exchange(layer, pass_index, hidden_states, groups)
        self._send_all(exchange)
        meanwhile(hidden_states)
        for group in groups:
            link = self.links[group.owner]
            if group.call is None or group.link is not link:
                raise LabError(f"{link.device.name} is not there")
            try:
                self._read(exchange, group, link, group.call)
            except CallFailed as failed:
                raise LabError(f"{link.device.name} does not answer: {failed}") from None
        return exchange.times_until(max(group.call.done_at for group in groups if group.call))

    def _probing(self, link: Link, count: int) -> _Group:
        placement = self._placements[0]
        first = [expert for expert in link.device.experts if placement[expert] == link.number]  # others: to take over
        rows, held = torch.arange(count), torch.tensor(first or link.device.experts)
        return _Group(link.number, rows, torch.zeros_like(rows), rows, held[rows % len(held)], torch.ones(count))

    def _devices(self, layer: int, expert_index: Tensor, is_real_token: Tensor) -> Tensor:
        """-> [tokens, k] the device that computes each pair, -1 for the base station, or DROPPED."""
        placement = self._placements[layer]
        device = placement[expert_index.clamp(max=len(placement) - 1)]
        if self.lab.send_padding:
            return device
        return device.masked_fill(~is_real_token.cpu()[:, None] & (device != DROPPED), -1)

    def _groups(self, device: Tensor, expert_index: Tensor, weights: Tensor) -> Iterator[_Group]:
        """The pairs of each device, cut into messages no longer than the limit."""
        most = self._max_tokens(expert_index.shape[1])
        for owner in range(len(self.links)):
            token, slot = (device == owner).nonzero(as_tuple=True)
            if not len(token):
                continue
            for rows in torch.unique_consecutive(token).split(most):
                mine = (token >= rows[0]) & (token <= rows[-1])
                its_token, its_slot = token[mine], slot[mine]
                yield _Group(
                    owner,
                    rows,
                    its_slot[torch.searchsorted(its_token, rows)],
                    torch.searchsorted(rows, its_token),
                    expert_index[its_token, its_slot],
                    weights[its_token, its_slot],
                )

    def _max_tokens(self, pairs_per_token: int) -> int:
        """Tokens of a message that is no longer than the limit, nor is its answer."""
        layer, bits = self.layers[0], self.lab.payload_bits
        types = (layer.experts.down_proj.dtype, torch.float32)
        row_bytes = max(bytes_per_row(layer.shape.hidden_size, dtype, bits) for dtype in types)
        return max(1, (self.lab.message_bytes - OVERHEAD_BYTES) // (row_bytes + 16 * pairs_per_token))

    def _send_all(self, exchange: _Exchange) -> None:
        """Pack every group, then send them; the exchange begins when the first one leaves.

        Each takes a moment to leave, nearly at once with the others but in no sure order; the device whose last round
        trip was the longest is asked to begin.
        """
        for group in exchange.groups:
            self._pack(exchange, group)
        exchange.began = time.monotonic()
        for group in sorted(exchange.groups, key=lambda group: -self._last_s[group.owner]):
            self._send(group)

    def _pack(self, exchange: _Exchange, group: _Group) -> None:
        """Make the message of a group; whoever gets it answers with the same number."""
        group.number = next(self._numbers)
        message = Tokens(
            number=group.number,
            layer=exchange.layer,
            hidden=pack(exchange.hidden_states[group.rows], self.lab.payload_bits),
            pair_token=raw(group.pair_token.int()),
            pair_expert=raw(group.expert.int()),
            pair_weight=raw(group.weight),
            weight_dtype=dtype_name(group.weight.dtype),
            sums_bits=self.lab.payload_bits or 0,
        )
        message.check = check_of_tokens(message)
        group.message = message.SerializeToString()

    def _send(self, group: _Group, but: tuple[int, ...] = ()) -> None:
        """Send a group to its device, or to another that is up and holds its experts; else leave it to be done here."""
        wanted = set(group.expert.tolist())
        others = (link for link in self.links if link.number != group.owner)
        for link in (self.links[group.owner], *others):
            if link.is_up and link.number not in but and wanted <= set(link.device.experts):
                try:
                    group.link, group.call = link, link.compute(group.message)
                    return
                except CallFailed:  # closed at this moment by its own thread
                    continue
        group.link = group.call = None

    def _answer(self, exchange: _Exchange, group: _Group) -> Tensor:
        """-> [tokens, hidden] the group's sums: from its device, from another that holds its experts, or from here."""
        failed: list[tuple[Link, CallFailed, float]] = []
        while group.link is not None and group.call is not None:
            link = group.link
            try:
                sums = self._read(exchange, group, link, group.call)
            except CallFailed as error:
                failed.append((link, error, time.time()))
                if not error.stays_up:
                    link.down()
                self._send(group, tuple(tried.number for tried, *_ in failed))
                continue
            break
        else:
            sums = self._compute_here(exchange, group)
        by = group.link.device.name if group.link is not None else "base_station"
        for link, problem, at in failed:
            where = exchange.layer, exchange.pass_index, len(group.rows)
            self.note(Event(at, link.device.name, problem.kind, str(problem), *where, by))
        return sums

    def _read(self, exchange: _Exchange, group: _Group, link: Link, call: Call) -> Tensor:
        try:
            reply = read_sums(call.answer(), group.number, link.session)
            dtype = torch.float32 if self.lab.payload_bits else exchange.hidden_states.dtype
            sums = unpack(reply.sums, exchange.hidden_states.shape[1], dtype)
            if len(sums) != len(group.rows):
                raise WireError(f"it answers {len(sums)} of {len(group.rows)} tokens")
            if reply.sums.bits != (self.lab.payload_bits or 0):
                raise WireError(f"it answers in {reply.sums.bits} bits")
            parts_s = link.parts(call, reply)
        except WireError as error:
            raise CallFailed("bad_reply", str(error)) from None
        link.worked()
        total_s = self._last_s[link.number] = call.done_at - call.sent_at
        taken_over = link.number != group.owner
        exchange.times.append(
            LayerTimes(exchange.layer, link.number, len(sums), *parts_s, total_s, 0.0, exchange.pass_index, taken_over)
        )
        return sums

    def _compute_here(self, exchange: _Exchange, group: _Group) -> Tensor:
        """The group's sums by the base station's own weights, rounded as if they had travelled."""
        here, bits = self.layers[exchange.layer].experts.down_proj.device, self.lab.payload_bits
        sent = exchange.hidden_states[group.rows]
        if bits is not None:
            sent = Payload(bits, torch.empty(0)).rounded(sent)
        pair_hidden = sent[group.pair_token].to(here)
        answers = self.own.answers(exchange.layer, pair_hidden, group.expert.to(here), group.weight.to(here))
        sums = sums_per_token(answers, group.pair_token.to(here), len(group.rows)).cpu()
        return sums.to(sent.dtype) if bits is None else Payload(bits, torch.empty(0)).rounded(sums)
