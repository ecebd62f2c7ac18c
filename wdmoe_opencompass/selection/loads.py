"""What the devices have to do in one layer for a router's own choice."""

import torch
from torch import Tensor

from .base import ChannelState, Routing


def device_tokens(routing: Routing, channel: ChannelState) -> tuple[Tensor, Tensor]:
    """-> [devices] float64 tokens sent to each device, and (token, expert) pairs computed there; padding is none.

    A token goes once to a device that holds several of its experts, Eq. (9).
    """
    devices = len(channel.communication_s)
    column = channel.device_of_expert[routing.top_k_index] % (devices + 1)  # the last column is the base station's
    pairs = torch.zeros(len(column), devices + 1, dtype=torch.float32, device=column.device)
    pairs = pairs.scatter_add(1, column, routing.is_real_token[:, None].float().expand(column.shape))[:, :devices]
    return (pairs > 0).sum(dim=0).double(), pairs.sum(dim=0, dtype=torch.float64)


def device_time_s(routing: Routing, channel: ChannelState) -> Tensor:
    """-> [devices] float64 seconds each device takes, Eq. (10), under evenly split bandwidth."""
    sent, computed = device_tokens(routing, channel)
    return sent * channel.communication_s + computed * channel.computation_s
