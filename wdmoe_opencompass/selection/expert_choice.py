"""What rules that choose among all experts share: what an expert costs, and how a choice becomes a Selection."""

from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import PolicyError
from .base import ChannelState, Routing, Selection

Cost = Literal["latency", "energy"]
COSTS = get_args(Cost)


def device_cost(channel: ChannelState, cost: Cost) -> Tensor:
    """Cost of one token on each device, by `cost`: seconds, Eq. (8), or joules.

    channel: times [devices], and energies for `energy`; PolicyError without.
    Returns: [devices].
    """
    if cost == "latency":
        return channel.communication_s + channel.computation_s
    if channel.token_energy_j is None:
        raise PolicyError("cost='energy' needs the channel state's token_energy_j, and this state has none")
    return channel.token_energy_j


def fill_slots(routing: Routing, chosen: Tensor) -> Selection:
    """Select the best k of the experts chosen for each token.

    Those of a token's top-k stay in the router's slots, the others take free slots with the router's weights.

    routing: what the router chose.
    chosen: [tokens, experts] bool.
    """
    own = chosen.gather(1, routing.top_k_index)  # [tokens, k]
    k = own.shape[1]
    others = chosen.scatter(1, routing.top_k_index, False)
    # A stable sort, not topk: equal probabilities keep the order of the experts.
    falling = torch.where(others, routing.probabilities, -1.0).sort(dim=1, descending=True, stable=True)
    best, expert = (part[:, :k] for part in falling)
    offered = ((~own).cumsum(dim=1) - 1).clamp(min=0)  # a free slot takes the expert of this number
    added = ~own & (best.gather(1, offered) >= 0)
    index = torch.where(added, expert.gather(1, offered), routing.top_k_index)
    weights = routing.weights_of(index).to(routing.top_k_weights.dtype)
    return Selection(index, own | added, torch.where(added, weights, routing.top_k_weights))
