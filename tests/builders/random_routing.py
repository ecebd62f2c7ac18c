"""One layer's random router output."""

import torch

from wdmoe_opencompass.selection import ChannelState, Routing
from wdmoe_opencompass.selection.base import BandwidthCurve


def random_case(seed, tokens, experts, k, devices=None, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.softmax(spread * torch.randn(tokens, experts, generator=generator), dim=-1)
    weights, index = probabilities.topk(k, dim=-1)
    shuffle = torch.rand(tokens, k, generator=generator).argsort(dim=1)  # some routers do not sort
    routing = Routing(
        probabilities,
        index.gather(1, shuffle),
        weights.gather(1, shuffle),
        torch.rand(tokens, generator=generator) < 0.8,
        layer=0,
        phase="prefill",
    )
    devices = devices or experts
    communication_s = torch.rand(devices, generator=generator) + 0.1
    share = torch.logspace(-4, 0, 60)
    curve = BandwidthCurve(share, communication_s[:, None] * (devices * share) ** -0.9)
    channel = ChannelState(
        communication_s,
        torch.rand(devices, generator=generator),
        torch.arange(experts) % devices,
        token_energy_j=torch.rand(devices, generator=generator),
        curve=curve,
    )
    return routing, channel
