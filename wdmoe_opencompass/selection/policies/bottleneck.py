"""Algorithm 2 of the paper: relieve the device that is going to be by far the last, as measured history predicts."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..base import ChannelState, Routing, Selection, SelectionPolicy
from ..loads import routed_loads
from ..validation import check_choice, check_number


@dataclass(frozen=True)
class Bottleneck(SelectionPolicy):
    """Algorithm 2, Eq. (30) to (32), once per layer and forward pass, before anything is sent.

    factor:      the bottleneck is relieved only where its predicted time is more than this many times Q3
    quartile_of: `all`, Q3 is of all devices' predictions, 0 s for a device without a token now (the paper's words);
                 `loaded`, of the devices that have tokens (ours, for few tokens and many devices)
    candidates:  where a device holds several experts: `pairs`, every (token, expert) pair there that step 4 names;
                 `visits`, only those whose token has no other expert there, so that each drop spares the device a token
                 (ours: the quickstart's routing on 4 devices, one of 20 Mbit/s, loses less weight and waits less)

    With tbar_k of Eq. (30), the mean seconds that device k took per token:

    1. predicted times ``that_k = tbar_k J_k``, Eq. (31), with J_k the real tokens that k is about to get;
    2. ``khat = argmax_k that_k`` is the bottleneck if ``that_khat > factor x Q3``, Q3 the third quartile of that_k;
    3. at most ``J_drop = floor((that_khat - Q3) / tbar_khat)`` of its tokens are worth sparing it, Eq. (32);
    4. candidates are its tokens for which khat's expert has the lowest weight of their top-k, and one that is below the
       mean weight of khat's tokens; the J_drop smallest of them go, or all if they are fewer.

    Our choices: Q3 interpolates linearly between the sorted predictions, as ``numpy.quantile`` does; weights are the
    router's softmax over all experts; of equally slow devices the first is khat; equal weights go by the order of the
    tokens; every token keeps its top expert (with one expert per token nothing is dropped). With several experts on a
    device a candidate is a (token, expert) pair, the mean is over khat's pairs, and J_k counts a token once: among
    `pairs`, a token that has a second expert there is still sent. Experts at the base station are no device's load.

    In the testbed tbar_k is `ChannelState.mean_token_s`, measured. Where nothing is measured, in simulation, it is the
    token latency t_k of Eq. (8) under evenly split bandwidth (ours; the paper simulates Algorithm 1 only).

    It has no knob: only one device per layer is relieved, so a wide range of kept shares is out of its reach.
    """

    neutral: ClassVar[dict[str, Any]] = dict(factor=float("inf"))

    factor: float = 1.5
    quartile_of: Literal["all", "loaded"] = "all"
    candidates: Literal["pairs", "visits"] = "pairs"

    def __post_init__(self) -> None:
        """Check the parameters' ranges."""
        check_number("bottleneck", "factor", self.factor, ">= 1", may_be_infinite=True)
        check_choice("bottleneck", "quartile_of", self.quartile_of, ("all", "loaded"))
        check_choice("bottleneck", "candidates", self.candidates, ("pairs", "visits"))

    def select(self, routing: Routing, channel: ChannelState) -> Selection:
        """Predict, find the bottleneck, drop its least weights; no value leaves the model's device."""
        tokens, _ = routed_loads(routing, channel)  # [devices] J_k
        mean_s = mean_token_s(channel)
        predicted = mean_s * tokens
        quartile = third_quartile(predicted, (tokens > 0) | (self.quartile_of == "all"))
        latest, bottleneck = predicted.max(dim=0, keepdim=True)  # [1]; a number as an index would be copied to the host
        is_late = latest > self.factor * quartile
        spare = (latest - quartile) / mean_s.index_select(0, bottleneck).clamp(min=1e-30)
        most = (spare + 1e-9).floor()  # not a last bit too few

        weight = routing.probabilities.gather(1, routing.top_k_index).double()  # [tokens, k]
        there = (channel.device_of_expert[routing.top_k_index] == bottleneck) & routing.is_real_token[:, None]
        mean_weight = (weight * there).sum() / there.sum().clamp(min=1)
        lowest = max(routing.top_k_index.shape[1] - 1, 1)  # rank 0 is the top expert, even where it is the only one
        candidate = there & (routing.rank == lowest) & (weight < mean_weight)
        if self.candidates == "visits":
            candidate = candidate & (there.sum(dim=1, keepdim=True) == 1)
        order = torch.where(candidate, weight, torch.inf).flatten().argsort(stable=True)
        rank = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=order.device))
        goes = candidate & (rank.view(candidate.shape) < most) & is_late
        return Selection(routing.top_k_index, ~goes)


def mean_token_s(channel: ChannelState) -> Tensor:
    """-> [devices] float64 seconds per token, Eq. (30) as measured; t_k of Eq. (8) where nothing is."""
    if channel.mean_token_s is not None:
        return channel.mean_token_s.double()
    return channel.communication_s.double() + channel.computation_s.double()


def third_quartile(values: Tensor, counts: Tensor) -> Tensor:
    """-> the value at 3/4 of the way through those that count, sorted, linear in between; 0 where none counts.

    values, counts: [devices]
    """
    ascending = torch.where(counts, values, torch.inf).sort().values
    position = 0.75 * (counts.sum(dtype=torch.float64) - 1).clamp(min=0)
    positions = torch.stack([position.floor(), position.ceil()]).long()
    below, above = ascending.index_select(0, positions)
    between = torch.lerp(below, above, position - position.floor())
    return torch.where(counts.any(), between, torch.zeros_like(between))
