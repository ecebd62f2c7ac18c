"""Keep the router's own top-k: the baseline of every table."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..base import ChannelState, Routing, Selection, SelectionPolicy


@dataclass(frozen=True)
class TopK(SelectionPolicy):
    """Drops nothing, reads no latency, has no parameters."""

    needs_weights: ClassVar[bool] = False
    couples_tokens = False

    def select(self, routing: Routing, channel: ChannelState) -> Selection:
        """Return the router's choice unchanged."""
        return Selection(routing.top_k_index, torch.ones_like(routing.top_k_index, dtype=torch.bool))
