"""DES: the cheapest experts whose scores sum to enough."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..base import ChannelState, Knob, Routing, Selection, SelectionPolicy
from ..expert_choice import COSTS, Cost, device_cost, placed
from ..validation import check_choice, check_number

MAX_CHOICES = 1 << 15  # that are all tried; beyond, prices find a choice
MAX_TRIED_AT_ONCE = 1 << 22  # (token, choice) pairs held in memory
PRICE_STEPS = 40
ROUNDING = 1e-6  # of a float32 score, and of costs that count as equal


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
    knob = Knob("z", 0.0, 100.0)
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
        return placed(routing, self.chosen(routing, channel, device_cost(channel, self.cost)))

    def least_score(self, layer: int) -> float:
        """Q_l of a layer, counted from 0."""
        return self.z * self.gamma_0 ** (layer + 1)

    def most(self, routing: Routing) -> int:
        """D."""
        k = routing.top_k_index.shape[1]
        return k if self.most_experts is None else min(k, self.most_experts)

    def chosen(self, routing: Routing, channel: ChannelState, of_device: Tensor) -> Tensor:
        """-> [tokens, experts] bool, for a cost per device [devices]."""
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
        """Try every number of experts of every device; the last place is the base station, where they cost nothing."""
        scores, places = routing.probabilities.double(), len(of_device) + 1  # small ones count
        place = (channel.device_of_expert % places).expand(scores.shape)
        rank = _rank_within(place, scores)  # [tokens, experts] 0 for the best of its place
        table = scores.new_full((len(scores), places * (most + 1)), -torch.inf)  # a place has no so many experts
        column = place * (most + 1) + (rank + 1).clamp(max=most)
        table = table.scatter_reduce(1, column, torch.where(rank < most, scores, -torch.inf), "amax")
        table = table.view(-1, places, most + 1)
        table[:, :, 0] = 0.0
        table = table.cumsum(dim=2)  # score of a place's best 0, 1, ... experts
        counts = _counts(places, most, most, scores.device)
        cost = (counts[:, :-1] * of_device.double()).sum(dim=1)
        best, found = cheapest(table, cost.expand(len(scores), -1), counts, least)
        return rank < counts[best].gather(1, place), found


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
            counts = _counts(k, most, 1, scores.device, least=0 if self.may_lose_all else 1)
            best, found = cheapest(table, cost @ counts.double().T, counts, least)
            keep = counts[best] > 0
        return Selection(routing.top_k_index, torch.where(found[:, None], keep, routing.rank < most))


def cheapest(table: Tensor, cost: Tensor, counts: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """-> [tokens] the cheapest choice whose score is at least `least`, the best of equally cheap; whether there is one.

    table:  [tokens, places, most + 1] score of taking 0, 1, ... experts from a place
    cost:   [tokens, choices]
    counts: [choices, places]
    """
    per_chunk = max(1, MAX_TRIED_AT_ONCE // len(counts))
    if len(table) > per_chunk:
        parts = [cheapest(*part, counts, least) for part in zip(table.split(per_chunk), cost.split(per_chunk))]
        return torch.cat([best for best, _ in parts]), torch.cat([found for _, found in parts])
    score = table.new_zeros(len(table), len(counts))
    for place in range(counts.shape[1]):
        score += table[:, place].index_select(1, counts[:, place])
    enough = score >= least - ROUNDING
    payable = torch.where(enough, cost.float(), torch.inf)
    as_cheap = payable <= payable.amin(dim=1, keepdim=True) * (1 + ROUNDING)
    return torch.where(as_cheap & enough, score, -torch.inf).argmax(dim=1), enough.any(dim=1)


class Priced(NamedTuple):
    """chosen: [tokens, n] bool; found: [tokens] whether it reaches the score; bound: [tokens] no choice costs less."""

    chosen: Tensor
    found: Tensor
    bound: Tensor


def by_price(scores: Tensor, cost: Tensor, least: float, most: int, stays: Tensor | None = None) -> Priced:
    """Pay a price for score: take the (at most `most`) items with the largest ``price score - cost > 0``.

    scores, cost: [tokens, n]. The lowest price at which the score is enough is found by bisection; at an infinite one
    the `most` best are taken, so a choice is found where there is one. Then items that are not needed go, the dearest
    first. Every price bounds the optimum from below (Lagrange); the best such bound is that of the linear relaxation.
    At least one item is taken, and those that `stays` [tokens, n] marks.
    """
    scores, cost = scores.double(), cost.double()
    dearest = cost.amax(dim=1, keepdim=True).clamp(min=1e-30)

    def take(mix: Tensor) -> tuple[Tensor, Tensor]:
        """[tokens, 1] price / (1 + price) -> chosen, bound."""
        gain = mix * scores - (1 - mix) * cost / dearest
        ranked = gain if stays is None else gain.masked_fill(stays, torch.inf)
        value, item = ranked.topk(most, dim=1)
        taken = value > 0
        taken[:, 0] = True
        chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(1, item, taken)
        paid = torch.where(chosen, gain, 0.0).sum(dim=1, keepdim=True)
        return chosen, (mix * (least - ROUNDING) - paid) / (1 - mix).clamp(min=1e-30) * dearest

    def score_of(chosen: Tensor) -> Tensor:
        return torch.where(chosen, scores, 0.0).sum(dim=1, keepdim=True)

    low, high, bound = torch.zeros_like(dearest), torch.ones_like(dearest), torch.zeros_like(dearest)
    chosen, _ = take(high)
    found = score_of(chosen) >= least - ROUNDING
    for _ in range(PRICE_STEPS):
        middle = (low + high) / 2
        tried, below = take(middle)
        enough = score_of(tried) >= least - ROUNDING
        chosen = torch.where(enough, tried, chosen)
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
        bound = torch.maximum(bound, below)
    for _ in range(most - 1):
        spare = (
            chosen
            & (cost > 0)
            & (score_of(chosen) - scores >= least - ROUNDING)
            & (chosen.sum(dim=1, keepdim=True) > 1)
        )
        if stays is not None:
            spare &= ~stays
        goes = torch.where(spare, cost, -1.0).argmax(dim=1, keepdim=True)
        chosen = chosen.scatter(1, goes, chosen.gather(1, goes) & ~spare.gather(1, goes))
    return Priced(chosen, found[:, 0], bound[:, 0])


def _rank_within(place: Tensor, scores: Tensor) -> Tensor:
    """-> [tokens, experts] how many experts of the same place have a higher score, or the same and come first."""
    experts = scores.shape[1]
    falling = scores.argsort(dim=1, descending=True, stable=True)
    order = falling.gather(1, place.gather(1, falling).argsort(dim=1, stable=True))  # by place, then by score
    sorted_place = place.gather(1, order)
    number = torch.arange(experts, device=place.device).expand(place.shape)
    start = torch.searchsorted(sorted_place.contiguous(), sorted_place.contiguous())
    return torch.empty_like(place).scatter(1, order, number - start)


@lru_cache(maxsize=64)
def _counts(places: int, most: int, each: int, device: torch.device, least: int = 1) -> Tensor:
    """-> [choices, places] every number of experts per place, `least` to `most` in all, at most `each` per place."""
    rows: list[tuple[int, ...]] = [()]
    for _ in range(places):
        rows = [(*row, n) for row in rows for n in range(min(each, most - sum(row)) + 1)]
    return torch.tensor([row for row in rows if sum(row) >= least], device=device)
