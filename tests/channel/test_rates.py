import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pytest import approx

from tests import oracles
from wdmoe_opencompass.channel import rate_bit_per_s

positive = st.floats(1e-6, 1e9)


def test_one_bit_per_second_per_hertz_at_snr_one():
    assert rate_bit_per_s(20e6, 1.0, 1.0, 1 / 20e6) == approx(20e6)


def test_no_bandwidth_gives_no_rate():
    assert rate_bit_per_s([0.0, 1.0], 1.0, 1.0, 1.0).tolist() == [0.0, 1.0]


@given(bandwidth=positive, power=positive, gain=st.floats(1e-12, 1.0))
def test_rate_equals_eq_2_by_plain_arithmetic(bandwidth, power, gain):
    expected = oracles.rate(bandwidth, power, gain, 4e-21)
    assert rate_bit_per_s(bandwidth, power, gain, 4e-21) == approx(expected, rel=1e-9)


@given(bandwidth=positive, gain=st.floats(1e-12, 1.0))
def test_more_bandwidth_never_lowers_the_rate(bandwidth, gain):
    less, more = rate_bit_per_s(np.array([bandwidth, 2 * bandwidth]), 1.0, gain, 4e-21)
    assert more >= less
