"""DES: the cheapest experts with a sufficient sum of scores."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..base import ChannelState, Routing, Selection, SelectionPolicy, TunedParameter
from ..expert_choice import COSTS, Cost, device_cost, fill_slots
from ..knapsack import by_price, cheapest, choice_counts
from ..loads import rank_within
from ..validation import check_choice, check_number

MAX_CHOICES = 1 << 15  # that are all tried; beyond, prices find a choice


@dataclass(frozen=True)
class Des(SelectionPolicy):
    """DES, arXiv 2503.13421: minimise ``sum_k x_k c_k`` so that ``sum_k x_k s_k >= Q_l`` and ``sum_k x_k <= D``.

    The problem is from notes on the paper ([note]); its factor ``Q_l = z gamma_0^l``, l = 1 for
    the first MoE layer, is from an earlier reading that was not found again. The authors search a tree with the linear
    relaxation for a bound; we find the same optimum without one ([ours]): experts of a device cost the same, so only
    how many of each device are taken matters, the best of it first. All such counts are tried where they are at most
    MAX_CHOICES: 54 for two of 8 experts on 8 devices (36 subsets, and two experts where there is one), 24,309 for 8
    of 64 or of 128. Beyond, a price on the score replaces the constraint, `by_price`: feasible, not always the
    cheapest (1 to 10 % dearer on average on random routings), with the linear relaxation's bound as its certificate.

    z, gamma_0:   Q_l, in units of the softmax score; the authors' values were not read, ours are mid-range
    most_experts: D; by default, and at most, the router's k
    cost:         c_k: `energy`, token_energy_j in joules, as the paper has it; `latency`, Eq. (8) in seconds under
                  evenly split bandwidth, for a like-for-like run (our default). 0 at the base station

    Our choices: scores s_k are the softmax over all experts; where no choice reaches Q_l the token keeps its D highest
    of the router's own; of equally cheap choices the highest score wins; a token keeps at least one expert (which need
    not be its top one); each expert counts in full where a device holds several; kept weights are renormalised where
    the model does so.
    """

    may_add: ClassVar[bool] = True
    name: ClassVar[str] = "des"
    tuned = TunedParameter("z", 0.0, 100.0)
    neutral: ClassVar[dict[str, Any]] = dict(z=100.0, gamma_0=1.0, most_experts=None)  # Q_l is out of reach
    couples_tokens = False

    z: float = 0.5
    gamma_0: float = 0.95
    most_experts: int | None = None
    cost: Cost = "latency"

    def __post_init__(self) -> None:
        """Check the parameters' ranges."""
        check_number(self.name, "z", self.z, ">= 0")
        check_number(self.name, "gamma_0", self.gamma_0, "> 0 and <= 1")
        if self.most_experts is not None:
            check_number(self.name, "most_experts", self.most_experts, ">= 1", whole=True)
        check_choice(self.name, "cost", self.cost, COSTS)

    def select(self, routing: Routing, channel: ChannelState) -> Selection:
        """Choose for all tokens at once."""
        return fill_slots(routing, self.choose(routing, channel, device_cost(channel, self.cost)))

    def least_score(self, layer: int) -> float:
        """Q_l of a layer, counted from 0."""
        return self.z * self.gamma_0 ** (layer + 1)

    def most(self, routing: Routing) -> int:
        """D."""
        k = routing.top_k_index.shape[1]
        return k if self.most_experts is None else min(k, self.most_experts)

    def choose(self, routing: Routing, channel: ChannelState, of_device: Tensor) -> Tensor:
        """Find the cheapest experts that reach Q_l.

        routing, channel: scores, and the placement of the experts.
        of_device: [devices] cost of one token.
        Returns: [tokens, experts] bool.
        """
        least, most, devices = self.least_score(routing.layer), self.most(routing), len(of_device)
        if math.comb(devices + 1 + most, most) > MAX_CHOICES:
            cost = channel.of_experts(of_device).expand(routing.probabilities.shape)
            answer = by_price(routing.probabilities, cost, least, most)
            chosen, found = answer.chosen, answer.found
        else:
            chosen, found = self._by_counts(routing, channel, of_device, least, most)
        own = torch.zeros_like(chosen).scatter(1, routing.top_k_index, routing.rank < most)
        return torch.where(found[:, None], chosen, own)

    def _by_counts(
        self, routing: Routing, channel: ChannelState, of_device: Tensor, least: float, most: int
    ) -> tuple[Tensor, Tensor]:
        """Try every number of experts of every device; experts of the base station, the last group, cost nothing."""
        scores, groups = routing.probabilities.double(), len(of_device) + 1  # small ones count
        group = (channel.device_of_expert % groups).expand(scores.shape)
        rank = rank_within(group, scores)  # [tokens, experts] 0 for the best of its group
        table = scores.new_full((len(scores), groups * (most + 1)), -torch.inf)  # a group may have fewer experts
        column = group * (most + 1) + (rank + 1).clamp(max=most)
        table = table.scatter_reduce(1, column, torch.where(rank < most, scores, -torch.inf), "amax")
        table = table.view(-1, groups, most + 1)
        table[:, :, 0] = 0.0
        table = table.cumsum(dim=2)  # score of a group's best 0, 1, ... experts
        counts = choice_counts(groups, most, most, scores.device)
        cost = (counts[:, :-1] * of_device.double()).sum(dim=1)
        best, found = cheapest(table, cost.expand(len(scores), -1), counts, least)
        return rank < counts[best].gather(1, group), found


@dataclass(frozen=True)
class DesTopK(Des):
    """DES within the top-k, [ours] after arXiv 2503.13421: the cheapest of the router's own experts that reach Q_l.

    Parameters and choices are those of `des`; all 2^k subsets are tried, up to k = 15. In addition:

    may_lose_all: False, a token's top expert stays (our choice); True, as `des`, it may go where the others reach Q_l
                  for less, and all go where Q_l is 0
    """

    may_add: ClassVar[bool] = False
    name: ClassVar[str] = "des_top_k"

    may_lose_all: bool = False

    def __post_init__(self) -> None:
        """Check the parameters' ranges."""
        super().__post_init__()
        check_choice(self.name, "may_lose_all", self.may_lose_all, (True, False))

    def select(self, routing: Routing, channel: ChannelState) -> Selection:
        """Choose for all tokens at once."""
        scores = routing.probabilities.gather(1, routing.top_k_index).double()  # [tokens, k]
        of_expert = channel.of_experts(device_cost(channel, self.cost)).double()
        cost, k = of_expert[routing.top_k_index], scores.shape[1]
        least, most, top = self.least_score(routing.layer), self.most(routing), routing.rank == 0
        stays = top & (not self.may_lose_all)
        if 2**k > MAX_CHOICES:
            answer = by_price(scores, torch.where(stays, 0.0, cost), least, most, stays)
            keep, found = answer.chosen, answer.found
        else:
            table = torch.stack([torch.where(stays, -torch.inf, 0.0).double(), scores], dim=2)  # [tokens, k, 2]
            counts = choice_counts(k, most, 1, scores.device, least=0 if self.may_lose_all else 1)
            best, found = cheapest(table, cost @ counts.double().T, counts, least)
            keep = counts[best] > 0
        return Selection(routing.top_k_index, torch.where(found[:, None], keep, routing.rank < most))
