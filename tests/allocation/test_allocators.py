import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pytest import approx

from wdmoe_opencompass import ExpertShape, allocate, draw_channel, link_budget, load_profile
from wdmoe_opencompass.allocation import ALLOCATORS
from wdmoe_opencompass.errors import AllocationError
from wdmoe_opencompass.latency import device_latency_s

PROFILE = load_profile("near_far_8_devices")
BUDGET = link_budget(PROFILE, draw_channel(PROFILE), ExpertShape())
TOTAL_HZ = PROFILE.total_bandwidth_hz
LOADS = arrays(np.int64, (3, 8), elements=st.integers(0, 60))
both_scopes = pytest.mark.parametrize("scope", ["pass", "layer"])
all_methods = pytest.mark.parametrize("method", list(ALLOCATORS))


@all_methods
@both_scopes
@settings(max_examples=30, deadline=None)
@given(load=LOADS)
def test_shares_are_not_negative_and_sum_to_the_total(method, scope, load):
    answer = allocate(method, scope, BUDGET, load, TOTAL_HZ)
    assert answer.bandwidth_hz.shape == (1, 3 if scope == "layer" else 1, 8)
    assert (answer.bandwidth_hz >= 0).all()
    assert (np.abs(answer.bandwidth_hz.sum(axis=2) / TOTAL_HZ - 1) < 1e-9).all()
    assert np.isfinite(answer.layer_latency_s).all()


@pytest.mark.parametrize("method", ["slsqp", "optimal"])
@both_scopes
@settings(max_examples=30, deadline=None)
@given(load=LOADS)
def test_optimising_is_never_worse_than_the_even_split(method, scope, load):
    even = allocate("uniform", scope, BUDGET, load, TOTAL_HZ).waiting_latency_s
    assert allocate(method, scope, BUDGET, load, TOTAL_HZ).waiting_latency_s <= even * (1 + 1e-6)


@settings(max_examples=30, deadline=None)
@given(load=LOADS)
def test_loaded_devices_finish_together_at_the_layer_optimum(load):
    """The optimality condition of the per-layer P3: whoever finishes early has bandwidth to give away."""
    answer = allocate("slsqp", "layer", BUDGET, load, TOTAL_HZ)
    times = device_latency_s(BUDGET, answer.bandwidth_hz, load)
    for row, time in zip(load, times[0], strict=True):
        if row.any():
            assert time[row > 0] == approx(np.full((row > 0).sum(), time.max()), rel=1e-4)


def test_equal_devices_under_equal_load_share_evenly():
    profile = load_profile("paper_8_devices")
    budget = link_budget(profile, draw_channel(profile), ExpertShape())
    same = type(budget)(budget.payload_bit, np.full(8, 1e10), np.full(8, 1e8), np.full(8, 3e-4))
    answer = allocate("slsqp", "pass", same, np.full((2, 8), 10), TOTAL_HZ)
    assert answer.bandwidth_hz == approx(np.full((1, 1, 8), TOTAL_HZ / 8), rel=1e-4)


def test_a_single_loaded_device_gets_everything():
    load = np.zeros((1, 8))
    load[0, 5] = 3
    assert allocate("slsqp", "layer", BUDGET, load, TOTAL_HZ).bandwidth_hz[0, 0, 5] == approx(TOTAL_HZ)


@all_methods
@both_scopes
def test_no_load_at_all_takes_no_time(method, scope):
    answer = allocate(method, scope, BUDGET, np.zeros((2, 8)), TOTAL_HZ)
    assert answer.waiting_latency_s == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("slsqq", "pass", BUDGET, np.ones((1, 8)), TOTAL_HZ), "did you mean 'slsqp'"),
        (("slsqp", "batch", BUDGET, np.ones((1, 8)), TOTAL_HZ), "scope 'batch' is unknown"),
        (("slsqp", "pass", BUDGET, np.ones((1, 7)), TOTAL_HZ), r"layers x 8 devices, got an array of shape \(1, 7\)"),
        (("slsqp", "pass", BUDGET, -np.ones((1, 8)), TOTAL_HZ), "finite and >= 0"),
        (("slsqp", "pass", BUDGET, np.full((1, 8), np.nan), TOTAL_HZ), "finite and >= 0"),
        (("slsqp", "pass", BUDGET, np.ones((1, 8)), 0.0), "total_bandwidth_hz must be > 0"),
    ],
)
def test_bad_input_gets_one_sentence(arguments, sentence):
    with pytest.raises(AllocationError, match=sentence):
        allocate(*arguments)
