import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pytest import approx

from tests import oracles
from wdmoe_opencompass import ExpertShape, draw_channel, link_budget, load_profile, token_latency_s, waiting_latency_s
from wdmoe_opencompass.latency import expert_flop, payload_bit

PROFILE = load_profile("heterogeneous_compute_8_devices")


def test_mixtral_token_payload_and_flop():
    assert payload_bit(16, 4096) == 65536
    assert expert_flop(ExpertShape()) == 6 * 4096 * 14336 + 5 * 14336


def test_token_latency_equals_eq_6_to_8_by_plain_arithmetic():
    shape = ExpertShape(128, 256)
    channel = draw_channel(PROFILE)
    bandwidth = np.linspace(1e6, 2e7, 8)
    expected = [
        oracles.token_latency(
            bandwidth[k], 10.0, 0.2, channel.uplink_gain[k], 10**-17.4 / 1000, 16, 128, 256, device.compute_flops
        )
        for k, device in enumerate(PROFILE.devices)
    ]
    assert token_latency_s(link_budget(PROFILE, channel, shape), bandwidth) == approx(expected, rel=1e-12)


@given(st.lists(st.lists(st.sets(st.integers(0, 7), max_size=3), max_size=6), min_size=1, max_size=4))
def test_waiting_latency_equals_a_token_by_token_replay(layers):
    budget = link_budget(PROFILE, draw_channel(PROFILE), ExpertShape())
    per_token = token_latency_s(budget, 12.5e6)
    load = [[sum(k in token for token in tokens) for k in range(8)] for tokens in layers]
    assert waiting_latency_s(budget, 12.5e6, load).sum() == approx(oracles.replay(layers, per_token), rel=1e-9)


def test_a_token_with_two_experts_on_a_device_is_sent_once_and_computed_twice():
    budget = link_budget(PROFILE, draw_channel(PROFILE), ExpertShape())
    once = waiting_latency_s(budget, 12.5e6, [1, 0, 0, 0, 0, 0, 0, 0])
    twice = waiting_latency_s(budget, 12.5e6, [1, 0, 0, 0, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0, 0, 0])
    assert twice - once == approx(budget.computation_s[0])


def test_an_idle_device_without_bandwidth_takes_no_time():
    budget = link_budget(PROFILE, draw_channel(PROFILE), ExpertShape())
    latency = waiting_latency_s(budget, [1e8, 0, 0, 0, 0, 0, 0, 0], [5, 0, 0, 0, 0, 0, 0, 0])
    assert np.isfinite(latency)
