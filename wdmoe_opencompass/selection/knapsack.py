"""The cheapest items with a sufficient sum of scores: every choice is tried, or a price is paid for score."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

MAX_TRIED_AT_ONCE = 1 << 22  # (token, choice) pairs held in memory
PRICE_STEPS = 40
ROUNDING = 1e-6  # of a float32 score, and of costs that count as equal


def cheapest(table: Tensor, cost: Tensor, counts: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Find the cheapest choice with a score of at least `least`, the best of equally cheap ones.

    table:  [tokens, groups, most + 1] score of taking 0, 1, ... experts from a group
    cost:   [tokens, choices]
    counts: [choices, groups]
    Returns: [tokens] number of the choice, and [tokens] bool, whether any reaches the score.
    """
    per_chunk = max(1, MAX_TRIED_AT_ONCE // len(counts))
    if len(table) > per_chunk:
        parts = [cheapest(*part, counts, least) for part in zip(table.split(per_chunk), cost.split(per_chunk))]
        return torch.cat([best for best, _ in parts]), torch.cat([found for _, found in parts])
    score = table.new_zeros(len(table), len(counts))
    for group in range(counts.shape[1]):
        score += table[:, group].index_select(1, counts[:, group])
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

    The lowest price at which the score is at least `least` is found by bisection; at an infinite one the `most` best
    are taken, so a choice is found where there is one. Then items that are not needed go, the dearest first. Every
    price bounds the optimum from below (Lagrange); the best such bound is that of the linear relaxation. At least one
    item is taken.

    scores, cost: [tokens, n].
    stays: [tokens, n] bool, items that are always taken.
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


@lru_cache(maxsize=64)
def choice_counts(groups: int, most: int, each: int, device: torch.device, least: int = 1) -> Tensor:
    """Every number of experts per group, `least` to `most` in all, at most `each` in one of the `groups`.

    device: where the answer is kept.
    Returns: [choices, groups] int64.
    """
    rows: list[tuple[int, ...]] = [()]
    for _ in range(groups):
        rows = [(*row, n) for row in rows for n in range(min(each, most - sum(row)) + 1)]
    return torch.tensor([row for row in rows if sum(row) >= least], device=device)
