"""The optimal bandwidth split of a single layer, on the model's own device: Eq. (19)-(21) in scope `layer`."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import PolicyError
from .base import ChannelState

CANDIDATES, ROUNDS = 32, 3  # waiting latencies tried at once; how often the bracket shrinks to one step between them
CURVE_TOLERANCE = 1e-3  # the curve is read from a table: what the even split takes is feasible at this much more


class Split(NamedTuple):
    """What the optimal split gives.

    communication_s:   [..., devices] float64 seconds of one token there and back, Eq. (6); 0 on devices without load
    waiting_latency_s: [...] float64 attention waiting latency, Eq. (11); 0 where nothing is loaded
    """

    communication_s: Tensor
    waiting_latency_s: Tensor


def optimal_split(channel: ChannelState, device_load: Tensor, evaluations: Tensor) -> Split:
    """Give the devices the shares of the bandwidth with which all that have a load finish together, the earliest.

    device_load: [..., devices] tokens sent, q_k of Eq. (9); any number of independent problems in the leading axes
    evaluations: [..., devices] (token, expert) pairs computed; 0 where there is no load

    Device k needs the share s_k(T) for ``load_k f_k(s_k) + evaluations_k m_k = T``, f_k its curve. s_k falls as T
    grows, so the least T with ``sum_k s_k(T) <= 1`` is found by narrowing a bracket: from all devices with the whole
    bandwidth each to the even split. No copy to the host. Within 1e-3 of the exact optimum of allocation/optimal.py:
    the curve's table is what limits it, and more candidates would not help.
    """
    if channel.curve is None:
        raise PolicyError("the optimal bandwidth split needs the channel's bandwidth curve, and this state has none")
    load, loaded = device_load.double(), device_load > 0
    computing = evaluations.double() * channel.computation_s.double()  # [..., devices] seconds
    device = torch.arange(load.shape[-1], device=load.device)

    def slowest(token_s: Tensor) -> Tensor:
        return torch.where(loaded, load * token_s.double() + computing, 0.0).amax(dim=-1).clamp(min=1e-30)

    def sending(waiting: Tensor) -> Tensor:
        """[..., n] waiting latencies -> [..., n, devices] seconds that each device then has for one token's way."""
        return (waiting[..., None] - computing[..., None, :]) / load.clamp(min=1e-30)[..., None, :]

    low = slowest(channel.curve.communication_s[:, -1])  # [...]
    high = torch.maximum(slowest(channel.communication_s), low) * (1 + CURVE_TOLERANCE)
    steps = torch.linspace(0, 1, CANDIDATES + 1, dtype=torch.float64, device=load.device)
    for _ in range(ROUNDS):
        waiting = low[..., None] * (high / low)[..., None] ** steps  # [..., candidates + 1]
        share = channel.curve.share_for(sending(waiting).clamp(min=1e-30), device)
        fits = torch.where(loaded[..., None, :], share, 0.0).sum(dim=-1) <= 1
        fits[..., -1] = True  # the upper end always does
        best = fits.int().argmax(dim=-1, keepdim=True)  # the first that does
        low, high = (waiting.gather(-1, step)[..., 0] for step in ((best - 1).clamp(min=0), best))
    nothing = ~loaded.any(dim=-1)
    return Split(torch.where(loaded, sending(high[..., None])[..., 0, :], 0.0), torch.where(nothing, 0.0, high))
