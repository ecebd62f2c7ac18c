"""Capacity-aware token drop: no expert, or no device, gets more than its share of a pass."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..base import ChannelState, Renormalise, Routing, Selection, SelectionPolicy, TunedParameter
from ..loads import rank_within
from ..validation import check_choice, check_number


@dataclass(frozen=True)
class CapacityDrop(SelectionPolicy):
    """Capacity-aware token drop, arXiv 2503.05066: who holds more pairs than its cap keeps those of highest score.

    The score of a (token, expert) pair is the router's softmax weight. J counts real tokens, k is the router's top-k,
    n the number of experts. The cap by `tokens` is from the authors' code (CASE-Lab-UMD/Capacity-Aware-MoE), that of a
    `device` from notes on the paper, that by `time` ours; the last two are of the pairs on all experts of a device.

    by:           what is capped: `tokens`, every expert at ``C = ceil(gamma k J / n)``; `device`, every device at C
                  times the number of its experts; `time`, every device at ``ceil(gamma k J (1/c_k) / sum_m (1/c_m))``
                  with its token latency c_k, Eq. (8), under evenly split bandwidth: caps that take equal times
    gamma:        > 0; 1.0 in the authors' script, 1.5 and 2.0 in their tables
    phase:        `prefill` as theirs, or `all`
    may_lose_all: True as theirs; False: top experts stay whatever the cap, and count first

    Our choices: experts at the base station have no cap, for they are no device's load; equal scores go by the order of
    the tokens; padding has no part in it. Weights are not renormalised, as theirs are not.
    """

    renormalise: ClassVar[Renormalise] = False
    tuned = TunedParameter("gamma", 1e-3, 1e3)
    neutral: ClassVar[dict[str, Any]] = dict(gamma=1e12)
    name: ClassVar[str] = "capacity"

    gamma: float = 1.0
    by: Literal["tokens", "device", "time"] = "tokens"
    phase: Literal["prefill", "all"] = "prefill"
    may_lose_all: bool = True

    def __post_init__(self) -> None:
        """Check the parameters' ranges."""
        check_number(self.name, "gamma", self.gamma, "> 0")
        check_choice(self.name, "by", self.by, ("tokens", "device", "time"))
        check_choice(self.name, "phase", self.phase, ("prefill", "all"))
        check_choice(self.name, "may_lose_all", self.may_lose_all, (True, False))

    def select(self, routing: Routing, channel: ChannelState) -> Selection:
        """Cap the router's own choice."""
        if self.phase == "prefill" and routing.phase != "prefill":
            return Selection(routing.top_k_index, torch.ones_like(routing.top_k_index, dtype=torch.bool))
        return Selection(routing.top_k_index, self.within_cap(routing, channel))

    def within_cap(self, routing: Routing, channel: ChannelState) -> Tensor:
        """Apply the caps to the router's own pairs.

        routing, channel: the router's choice, and what caps depend on.
        Returns: [tokens, k] bool, which pairs stay.
        """
        score = routing.probabilities.gather(1, routing.top_k_index)
        if not self.may_lose_all:
            score = score.masked_fill(routing.rank == 0, torch.inf)
        holder = self.holder_of_expert(routing, channel)[routing.top_k_index]
        keep = first_of_each(holder, score, self.cap(routing, channel), routing.is_real_token[:, None])
        return keep if self.may_lose_all else keep | (routing.rank == 0)

    def holder_of_expert(self, routing: Routing, channel: ChannelState) -> Tensor:
        """Tell who is capped for an expert: the expert itself, or its device.

        routing, channel: the number of experts, and their placement.
        Returns: [experts] index of the holder; -1 at the base station.
        """
        if self.by != "tokens":
            return channel.device_of_expert
        experts = torch.arange(routing.probabilities.shape[1], device=channel.device_of_expert.device)
        return torch.where(channel.device_of_expert >= 0, experts, -1)

    def cap(self, routing: Routing, channel: ChannelState) -> Tensor:
        """Most pairs of each holder.

        routing, channel: the pass's real tokens, and the devices' token latencies.
        Returns: [holders + 1] float64; the last is the base station's, infinite.
        """
        experts = routing.probabilities.shape[1]
        slots = self.gamma * routing.top_k_index.shape[1] * routing.is_real_token.sum(dtype=torch.float64)  # gamma k J
        if self.by == "time":
            speed = 1 / (channel.communication_s + channel.computation_s).double()
            cap = _whole(slots * speed / speed.sum())
        elif self.by == "device":
            cap = _whole(slots / experts) * _experts_per_device(channel)
        else:
            cap = _whole(slots / experts).expand(experts)
        return torch.cat([cap, cap.new_full((1,), torch.inf)])


def first_of_each(holder: Tensor, score: Tensor, cap: Tensor, counts: Tensor) -> Tensor:
    """Tell which pairs are among the `cap` pairs of highest score of their holder.

    holder: [tokens, m] the pair's expert or device, -1: without a cap
    score:  [tokens, m]; equal ones in the order of the tokens
    cap:    [holders + 1]
    counts: [tokens, m or 1] bool; the others are not counted
    Returns: [tokens, m] bool; True where a pair does not count.
    """
    column = torch.where(counts, holder, -1).flatten() % len(cap)  # those without a cap are held by the last
    rank = rank_within(column[None], score.flatten()[None])[0]  # the highest score first
    return (rank < cap[column]).view(score.shape)


def _whole(cap: Tensor) -> Tensor:
    """Round up, but not for a last bit too much."""
    return (cap - 1e-9).ceil()


def _experts_per_device(channel: ChannelState) -> Tensor:
    devices = len(channel.communication_s)
    column = channel.device_of_expert % (devices + 1)  # the last column is the base station's
    held = torch.zeros(devices + 1, dtype=torch.float64, device=column.device)
    return held.scatter_add(0, column, torch.ones_like(column, dtype=torch.float64))[:devices]
