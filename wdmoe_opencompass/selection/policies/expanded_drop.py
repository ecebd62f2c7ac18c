"""Expanded drop: slots freed by a cap are filled with experts that a token reaches anyway."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..base import ChannelState, Routing, Selection
from ..expert_choice import fill_slots
from ..validation import check_choice
from .capacity import CapacityDrop, first_of_each


@dataclass(frozen=True)
class ExpandedDrop(CapacityDrop):
    """Expanded drop, arXiv 2503.05066: a token's candidates are its top-k and its local experts, then comes the cap.

    That much is from the authors' code, where local means the experts of the device a token comes from. Tokens come
    from the base station here, so `local` is ours: experts at the base station, or on a device that holds one of the
    token's own top-k experts. The rest is our completion, for k slots per token:

    - the router's own pairs are capped first, as `capacity` does (its parameters and choices hold here too);
    - tokens with slots left apply for all their other local experts; each expert, or device, takes applicants by
      score until its cap is reached;
    - a token fills its free slots with the best of those that took it, with the weights its router would give them.

    So nothing is added where nothing was dropped, and no cap is exceeded (but for top experts that `may_lose_all` =
    False keeps). With one expert per device and none at the base station it is `capacity`.

    candidates: `local`, or `all`: every expert is local, what the code does without a list
    """

    may_add: ClassVar[bool] = True
    name: ClassVar[str] = "expanded_drop"

    candidates: Literal["local", "all"] = "local"

    def __post_init__(self) -> None:
        """Check the parameters' ranges."""
        super().__post_init__()
        check_choice(self.name, "candidates", self.candidates, ("local", "all"))

    def select(self, routing: Routing, channel: ChannelState) -> Selection:
        """Cap the router's own choice, then fill what was dropped."""
        own = super().select(routing, channel)
        if self.phase == "prefill" and routing.phase != "prefill":
            return own
        taken = self._takes(routing, channel, own.keep)  # [tokens, experts]
        return fill_slots(routing, taken.scatter(1, routing.top_k_index, own.keep))

    def _takes(self, routing: Routing, channel: ChannelState, own_keep: Tensor) -> Tensor:
        """-> [tokens, experts] whether an expert that is no choice of the token's router takes it."""
        applies = self._local(routing, channel).scatter(1, routing.top_k_index, False)
        applies &= routing.is_real_token[:, None] & ~own_keep.all(dim=1, keepdim=True)
        holder = self.holder_of_expert(routing, channel)
        cap = self.cap(routing, channel)
        held = torch.zeros_like(cap)  # the base station's never counts: its cap has no end
        own_column = (holder[routing.top_k_index] % len(cap)).flatten()
        held = held.scatter_add(0, own_column, (own_keep & routing.is_real_token[:, None]).flatten().double())
        return applies & first_of_each(holder.expand(applies.shape), routing.probabilities, cap - held, applies)

    def _local(self, routing: Routing, channel: ChannelState) -> Tensor:
        """-> [tokens, experts] whether an expert is at the base station or on a device of one of the token's own."""
        if self.candidates == "all":
            return torch.ones_like(routing.probabilities, dtype=torch.bool)
        holders = len(channel.communication_s) + 1  # the last is the base station
        holder = channel.device_of_expert % holders
        reached = torch.zeros(len(routing.top_k_index), holders, dtype=torch.bool, device=holder.device)
        reached = reached.scatter(1, holder[routing.top_k_index], True)
        reached[:, -1] = True
        return reached[:, holder]
