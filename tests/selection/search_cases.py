"""Random problems that the tests of the searching rules share."""

from dataclasses import replace

from hypothesis import strategies as st

from tests.builders.random_routing import random_case
from wdmoe_opencompass.selection import Routing


def search_case(seed, tokens, experts, k, devices, at_base_station, spread):
    """As `random_case`, weights normalised in every second case, some experts at the base station."""
    routing, channel = random_case(seed, tokens, experts, min(k, experts), devices, spread)
    channel.device_of_expert[:at_base_station] = -1
    if seed % 2:
        routing = replace(routing, top_k_weights=routing.shares)
    return routing, channel


def search_cases(max_tokens=12, max_experts=7, max_k=4):
    return st.builds(
        search_case,
        seed=st.integers(0, 2**31),
        tokens=st.integers(1, max_tokens),
        experts=st.integers(4, max_experts),
        k=st.integers(1, max_k),
        devices=st.integers(1, 8),
        at_base_station=st.integers(0, 2),
        spread=st.sampled_from([0.3, 1.0, 3.0]),
    )


def tokens_of(routing):
    return list(
        zip(routing.probabilities.tolist(), routing.top_k_index.tolist(), routing.top_k_weights.tolist(), strict=True)
    )


def sets_of(selection):
    return [set(index[keep].tolist()) for index, keep in zip(selection.expert_index, selection.keep)]


def only_real(routing):
    real = routing.is_real_token
    return Routing(
        routing.probabilities[real],
        routing.top_k_index[real],
        routing.top_k_weights[real],
        real[real],
        0,
        routing.phase,
    )
