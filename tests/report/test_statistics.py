"""Published worked examples and limit cases.

Wilson: statulator.com/help/ci1P-help.html (12 of 150), and the four examples of Newcombe 1998, Statistics in Medicine
17, 857-872, method 3, quoted from memory: the article was not at hand.
McNemar, exact: the table 21, 9, 2, 12 of Fay's vignette "Exact McNemar's Test and Matching Confidence Intervals" (R's
exact2x2); its p is worked out in the test.
Paired difference: the approval ratings 794, 150, 86, 570 of Agresti, Categorical Data Analysis (R: ?mcnemar.test); the
standard error of the difference, 0.0095, is sqrt((86 + 150) / 1600 - 0.04^2) / sqrt(1600).
Holm: Wikipedia's "Holm-Bonferroni method", p values 0.01, 0.04, 0.03, 0.005: at 0.05 the first and fourth are rejected.
"""

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest import approx
from scipy.stats import t
from statsmodels.stats.multitest import multipletests

from wdmoe_opencompass.report.statistics import (
    MIN_GROUPS,
    accuracy_difference_interval,
    accuracy_interval,
    holm,
    latency_difference_interval,
    latency_interval,
    latency_ratio_interval,
    mcnemar_p,
    wilson_interval,
)


def pair(both, only_first, only_second, neither):
    counts = [both, only_first, only_second, neither]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


@pytest.mark.parametrize(
    ("correct", "items", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_are_the_published(correct, items, low, high):
    assert wilson_interval(correct, items) == approx((low, high), abs=5e-5)


def test_wilson_interval_of_twelve_in_a_hundred_and_fifty():
    assert wilson_interval(12, 150) == approx((0.046, 0.135), abs=5e-4)


def test_wilson_interval_is_the_score_test_inverted():
    """At both ends the distance to the measured share is 1.96 standard errors of that end."""
    for end in wilson_interval(45, 50):
        assert abs(0.9 - end) / np.sqrt(end * (1 - end) / 50) == approx(1.959964)


def test_wilson_interval_of_all_of_one_and_of_no_items():
    assert wilson_interval(7, 7).high == 1
    assert wilson_interval(0, 7).low == 0
    assert wilson_interval(1, 1) == approx((0.2065, 1), abs=1e-4)
    assert wilson_interval(0, 0) is None


def test_mcnemar_is_the_exact_one_of_fay_s_example():
    assert mcnemar_p(*pair(21, 2, 9, 12)) == approx(134 / 2048)  # 2 (1 + 11 + 55) / 2^11 = 0.06543


def test_mcnemar_counts_only_items_that_one_alone_got_right():
    assert mcnemar_p(*pair(0, 2, 9, 0)) == mcnemar_p(*pair(500, 2, 9, 400)) == mcnemar_p(*pair(3, 9, 2, 4))
    assert mcnemar_p(*pair(9, 0, 0, 4)) == 1
    assert mcnemar_p(*pair(0, 0, 0, 0)) == 1
    assert mcnemar_p(*pair(5, 3, 3, 5)) == 1


def test_holm_s_adjusted_values():
    assert holm([0.01, 0.04, 0.03, 0.005]) == approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.2]) == approx([0.2])
    assert holm([]) == []


@given(st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.03, 0.5, 1.0]) | st.floats(0, 1), min_size=1, max_size=20))
def test_holm_is_that_of_statsmodels(p_values):
    with patch("gc.collect"):  # which statsmodels calls, 0.3 s each
        expected = multipletests(p_values, method="holm")[1]
    assert holm(p_values) == expected.tolist()


def test_difference_of_the_approval_ratings():
    """Agresti: from 944 to 880 of 1600, -0.04 with standard error 0.0095, interval (-0.06, -0.02)."""
    found = accuracy_difference_interval(*([side] for side in pair(794, 150, 86, 570)))
    assert found == approx((-0.04 - 1.96 * 0.0095, -0.04 + 1.96 * 0.0095), abs=1e-3)


def test_equal_and_all_right_answers_still_have_a_width():
    right = np.ones(50, bool)
    low, high = accuracy_difference_interval([right], [right])
    assert -0.1 < low < 0 < high < 0.1
    low, high = accuracy_interval([right, right])
    assert 0.9 < low < high == 1


def test_difference_interval_of_one_and_of_no_item():
    one, none = np.ones(1, bool), np.zeros(0, bool)
    assert accuracy_difference_interval([one], [~one]) == (-1, 1)
    assert accuracy_difference_interval([none], [none]) is None
    assert accuracy_difference_interval([], []) is None
    assert accuracy_interval([one, none]) is None


def test_difference_intervals_hold_the_difference_and_turn_with_it():
    first, second = pair(0, 5, 0, 0)  # every item differs
    assert accuracy_difference_interval([first], [second]).low == -1
    low, high = accuracy_difference_interval(*([side] for side in pair(150, 40, 10, 50)))
    turned = accuracy_difference_interval(*([side] for side in pair(150, 10, 40, 50)))
    assert turned == approx((-high, -low), abs=0.006)


def test_weights_count_benchmarks_and_not_items():
    small, large = pair(10, 0, 10, 10), pair(200, 40, 0, 60)
    even = accuracy_difference_interval([small[0], large[0]], [small[1], large[1]])
    assert np.mean(even) == approx((10 / 30 - 40 / 300) / 2, abs=0.02)
    only_small = accuracy_difference_interval([small[0], large[0]], [small[1], large[1]], [1, 0])
    assert np.mean(only_small) == approx(10 / 30, abs=0.03)


def latencies(groups, seed=0):
    first = np.random.default_rng(seed).gamma(20, 1, groups)
    return first, 0.7 * first * np.random.default_rng(seed + 1).normal(1, 0.05, groups)


@pytest.mark.parametrize("groups", [8, 40])
def test_mean_latency_is_near_student_s_interval(groups):
    first, _ = latencies(groups)
    half = t.ppf(0.975, groups - 1) * first.std(ddof=1) / np.sqrt(groups)
    low, high = latency_interval(first, np.ones(groups))
    assert (low, high) == approx((first.mean() - half, first.mean() + half), abs=0.2 * half)


def test_ratio_and_difference_are_paired():
    first, second = latencies(20)
    once = np.ones(20)
    low, high = latency_ratio_interval(first, once, second, once)
    assert low < second.sum() / first.sum() < high < low + 0.06
    low, high = latency_ratio_interval(first, once, np.roll(second, 7), once)
    assert high > low + 0.1  # unpaired
    low, high = latency_difference_interval(first, once, second, once)
    assert low < (second - first).mean() < high


def test_equal_latencies_differ_by_nothing():
    first, once = latencies(9)[0], np.ones(9)
    assert latency_ratio_interval(first, once, first, once) == approx((1, 1))
    assert latency_difference_interval(first, once, first, once) == approx((0, 0))


def test_no_interval_of_few_groups_or_none_or_without_latency():
    for groups in (0, 1, MIN_GROUPS - 1):
        assert latency_interval(np.ones(groups), np.ones(groups)) is None
    first = np.array([1.0] + [0.0] * 9)
    assert latency_ratio_interval(first, np.ones(10), first, np.ones(10)) is None


def test_equal_inputs_give_equal_intervals():
    first, second = pair(700, 60, 40, 200)
    found = accuracy_difference_interval([first], [second])
    assert found == accuracy_difference_interval([first], [second])
    assert latency_interval(latencies(30)[0], np.ones(30)) == latency_interval(latencies(30)[0], np.ones(30))
