"""Top-p: keep the fewest experts whose weights sum to more than p."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..base import ChannelState, Knob, Renormalise, Routing, Selection, SelectionPolicy
from ..ratio_rules import drop_below
from ..validation import check_number


@dataclass(frozen=True)
class TopP(SelectionPolicy):
    """Top-p routing, arXiv 2403.07652: the fewest experts whose weights sum to more than `p`; no renormalisation.

    The rule is from the authors' code (ZhenweiAn/Dynamic_MoE), for routers trained with it (p = 0.4 there) and over all
    experts. As a cut inside the top-k of any router, on its shares ``p_j``, it is our use: nothing is added.

    p: share of a token's top-k weight that its kept experts must exceed; at 1 all are kept
    """

    renormalise: ClassVar[Renormalise] = False
    knob = Knob("p", 0.0, 1.0)
    neutral: ClassVar[dict[str, Any]] = dict(p=1.0)
    couples_tokens = False

    p: float = 0.7

    def __post_init__(self) -> None:
        """Check the parameter's range."""
        check_number("top_p", "p", self.p, ">= 0 and <= 1")

    def select(self, routing: Routing, channel: ChannelState) -> Selection:
        """Drop an expert where those before it, by falling weight, already exceed p."""
        falling = torch.zeros_like(routing.shares).scatter(1, routing.rank, routing.shares)
        before = torch.nn.functional.pad(falling.cumsum(dim=1)[:, :-1], (1, 0)).clamp(max=1.0).gather(1, routing.rank)
        return drop_below(routing, -before, -self.p)
