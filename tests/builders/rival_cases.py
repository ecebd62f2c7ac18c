"""Random layers for the rival policies, and their choices in plain Python."""

import torch
from hypothesis import strategies as st

from wdmoe_opencompass.selection import ChannelState, Routing


@st.composite
def cases(draw, k=None):
    """-> routing and channel: ties, unsorted top-k, padding, shared or empty devices, experts at the base station."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    tokens, experts, devices = draw(st.integers(1, 30)), draw(st.integers(4, 10)), draw(st.integers(1, 10))
    k = k or draw(st.integers(1, 4))
    probabilities = torch.randint(1, 9, (tokens, experts), generator=generator) / 32
    weights, index = probabilities.topk(k, dim=-1)
    shuffle = torch.rand(tokens, k, generator=generator).argsort(dim=1)
    if draw(st.booleans()):
        weights = weights / weights.sum(1, keepdim=True)
    is_real_token = torch.rand(tokens, generator=generator) < draw(st.sampled_from([0.0, 0.7, 1.0]))
    device_of_expert = torch.arange(experts) % devices
    device_of_expert[: draw(st.integers(0, 3))] = -1
    routing = Routing(probabilities, index.gather(1, shuffle), weights.gather(1, shuffle), is_real_token, 0, "prefill")
    time_s = torch.rand(2, devices, generator=generator).double()
    return routing, ChannelState(
        time_s[0] + 0.1, time_s[1], device_of_expert[torch.randperm(experts, generator=generator)]
    )


def plain(routing):
    """-> weights and choices of the real tokens, as lists."""
    return routing.probabilities[routing.is_real_token].tolist(), routing.top_k_index[routing.is_real_token].tolist()


def kept(routing, selection):
    """-> what real tokens keep."""
    real = routing.is_real_token.nonzero().flatten().tolist()
    return [set(selection.expert_index[j][selection.keep[j]].tolist()) for j in real]
