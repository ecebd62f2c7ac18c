"""Random layers with their device loads, and what every set of drops costs: the oracle of `dual_price`."""

import itertools

import numpy as np
import torch

from wdmoe_opencompass import ExpertShape, allocate, draw_channel, link_budget, load_profile
from wdmoe_opencompass.channel.profile import ChannelProfile
from wdmoe_opencompass.latency import token_latency_s
from wdmoe_opencompass.routing.channel_state import ChannelStates
from wdmoe_opencompass.selection import Routing

FLOAT32 = 1e-5  # the channel state's precision


def random_profile(generator, devices, duplex="shared"):
    data = load_profile("paper_8_devices").model_dump(mode="json", exclude_none=True)
    data["devices"] = [
        dict(
            device,
            distance_m=float(generator.uniform(5, 400)),
            compute_flops=float(10 ** generator.uniform(10.5, 13.5)),
        )
        for device in data["devices"][:devices]
    ]
    data["fading"]["seed"] = int(generator.integers(1000))
    data["duplex"] = duplex
    return ChannelProfile.model_validate(data)


def random_case(seed, tokens, devices=4, k=2, experts=None, duplex="shared"):
    generator = np.random.default_rng(seed)
    profile = random_profile(generator, devices, duplex)
    states = ChannelStates(profile, ExpertShape(256, 512), experts or devices)
    scores = torch.tensor(generator.normal(size=(tokens, experts or devices)) * 1.5, dtype=torch.float32)
    probabilities = torch.softmax(scores, dim=1)
    weights, index = probabilities.topk(k, dim=1)
    routing = Routing(probabilities, index, weights, torch.ones(tokens, dtype=torch.bool), 0, "prefill")
    budget = link_budget(profile, draw_channel(profile), ExpertShape(256, 512))
    return routing, states(0, 0, torch.device("cpu")), profile, budget


def waiting(split, profile, budget, loads):
    """-> [...] T of loads [..., devices]."""
    loads = np.asarray(loads, dtype=float)
    method = "optimal" if split == "optimal" else "uniform"
    flat = loads.reshape(-1, 1, loads.shape[-1])
    return allocate(method, "layer", budget, flat, profile.total_bandwidth_hz).waiting_latency_s.reshape(
        loads.shape[:-1]
    )


def loads_of(routing, keep, devices):
    return torch.bincount(routing.top_k_index[keep], minlength=devices).numpy()


def cost(split, worth, routing, profile, budget, keep):
    """T + worth T_0 / J lost of sets of kept pairs [sets, tokens, k], and what a unit of weight adds to it."""
    tokens = len(routing.shares)
    loads = np.array([loads_of(routing, torch.tensor(kept), 4) for kept in keep])
    seconds = token_latency_s(budget, profile.total_bandwidth_hz / 4)
    unit = worth * routing.top_k_index.numel() / (1 / seconds).sum() / tokens
    lost = (routing.shares.double().numpy()[None] * ~keep).sum(axis=(1, 2))
    return waiting(split, profile, budget, loads) + unit * lost, unit


def sets_of_drops(tokens, k, may_lose_all):
    """-> [sets, tokens, k] all sets of kept pairs; the router's order is by falling weight."""
    lower = k if may_lose_all else k - 1
    sets = np.array(list(itertools.product([True, False], repeat=tokens * lower))).reshape(-1, tokens, lower)
    return np.concatenate([np.ones((len(sets), tokens, k - lower), dtype=bool), sets], axis=2)
