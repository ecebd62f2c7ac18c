"""What the devices have to do in one layer, and the order of what each of them has to do."""

import torch
from torch import Tensor

from .base import ChannelState, Routing


def device_loads(device: Tensor, runs: Tensor, devices: int) -> tuple[Tensor, Tensor]:
    """-> [..., devices] float64 tokens sent to each device, q_k of Eq. (9), and (token, expert) pairs computed there.

    A token goes once to a device that holds several of its experts.

    device: [..., tokens, n] of each pair's expert; -1 is the base station, which is not counted
    runs:   [..., tokens, n] bool; which pairs are computed
    """
    pairs = torch.zeros(*device.shape[:-1], devices + 1, dtype=torch.float32, device=device.device)
    pairs = pairs.scatter_add(-1, device % (devices + 1), runs.float())[..., :devices]  # without the base station's
    return (pairs > 0).sum(dim=-2, dtype=torch.float64), pairs.sum(dim=-2, dtype=torch.float64)


def routed_loads(routing: Routing, channel: ChannelState) -> tuple[Tensor, Tensor]:
    """-> what `device_loads` gives for the router's own choice; padding is not counted."""
    device = channel.device_of_expert[routing.top_k_index]
    return device_loads(device, routing.is_real_token[:, None].expand(device.shape), len(channel.communication_s))


def device_time_s(channel: ChannelState, device_load: Tensor, evaluations: Tensor) -> Tensor:
    """-> [devices] float64 seconds each device takes, Eq. (10), under evenly split bandwidth; arguments: [devices]."""
    return device_load * channel.communication_s + evaluations * channel.computation_s


def rank_within(holder: Tensor, score: Tensor) -> Tensor:
    """-> [rows, n] how many entries of the same row and holder have a higher score, or an equal one and come first.

    holder: [rows, n] >= 0, such as the device of an expert; score: [rows, n]
    """
    falling = score.argsort(dim=1, descending=True, stable=True)
    order = falling.gather(1, holder.gather(1, falling).argsort(dim=1, stable=True))  # by holder, then by score
    in_order = holder.gather(1, order)
    start = torch.searchsorted(in_order, in_order)
    return torch.empty_like(order).scatter(1, order, torch.arange(score.shape[1], device=score.device) - start)
