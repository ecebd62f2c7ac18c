"""OEA: while decoding, tokens share experts that are loaded anyway."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from ..base import ChannelState, Renormalise, Routing, Selection, SelectionPolicy
from ..expert_choice import fill_slots
from ..validation import check_choice, check_number


@dataclass(frozen=True)
class Oea(SelectionPolicy):
    """Opportunistic expert activation, arXiv 2511.02237: few experts of each token's own, the rest from the others'.

    From notes on the paper ([note]): each token's k0 highest experts are its base, U is their union over the pass's
    tokens, and each token is filled up to k experts from U by router rank; kept weights are renormalised, always.

    k0:    experts of the base; by default 3/8 of the router's k, rounded, at least 1 (3 of 8 is the authors')
    phase: `decode`, or `all` (ours: to see what it does to a prefill)

    Our choices: U is of real tokens only, padding adds nothing to it; a token gets fewer than k experts where U has no
    more, as with one sequence at a time; filling is by softmax over all experts.

    It saves the loading of weights: fewer distinct experts per pass. With our latency model, which counts tokens sent,
    it cuts little or nothing: up to k experts are still visited per token, and a visit has no fixed cost. That is a
    result, not a fault of the rule, which is made for one machine bound by memory.
    """

    may_add: ClassVar[bool] = True
    renormalise: ClassVar[Renormalise] = True
    neutral: ClassVar[dict[str, Any]] = dict(k0=1000)

    k0: int | None = None
    phase: Literal["decode", "all"] = "decode"

    def __post_init__(self) -> None:
        """Check the parameters' ranges."""
        if self.k0 is not None:
            check_number("oea", "k0", self.k0, ">= 1", whole=True)
        check_choice("oea", "phase", self.phase, ("decode", "all"))

    def select(self, routing: Routing, channel: ChannelState) -> Selection:
        """Fill every token from the union."""
        k = routing.top_k_index.shape[1]
        k0 = max(1, int(3 * k / 8 + 0.5)) if self.k0 is None else self.k0
        if k0 >= k or (self.phase == "decode" and routing.phase != "decode"):
            return Selection(routing.top_k_index, torch.ones_like(routing.top_k_index, dtype=torch.bool))
        nothing = torch.zeros_like(routing.probabilities, dtype=torch.bool)
        base = nothing.scatter(1, routing.top_k_index, routing.rank < k0)
        union = (base & routing.is_real_token[:, None]).any(dim=0)  # [experts]
        fill = torch.where(union & ~base, routing.probabilities, -1.0)
        best, expert = fill.topk(k - k0, dim=1)
        return fill_slots(routing, base | nothing.scatter(1, expert, best >= 0))
