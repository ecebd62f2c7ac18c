"""Simulated coverage of every interval, for the sizes and the dependence that occur: 93 to 97 % at 95 %.

A discrete count has no interval that covers exactly 95 % at each single accuracy; coverage is averaged over a band of
them. Where fewer than three of a benchmark's items are expected to differ between two models the intervals of
differences cover more than 97 %: no item differing says little, and the interval says so.
"""

from functools import lru_cache

import numpy as np
import pytest
from scipy.stats import binom

from wdmoe_opencompass.report.statistics import (
    accuracy_difference_interval,
    accuracy_interval,
    latency_difference_interval,
    latency_interval,
    latency_ratio_interval,
    wilson_interval,
)

LOW, HIGH = 0.93, 0.97
REPEATS = 1500


def assert_covers(hits, low=LOW, high=HIGH):
    """The measured coverage lies between the bounds, but for one and a half standard errors of the simulation."""
    noise = 1.5 * np.sqrt(0.95 * 0.05 / len(hits))
    assert low - noise <= np.mean(hits) <= high + noise, np.mean(hits)


def covers(interval, truth):
    return interval.low - 1e-12 <= truth <= interval.high + 1e-12


@pytest.mark.parametrize("items", [50, 100, 250, 1000])
@pytest.mark.parametrize("band", [(0.2, 0.5), (0.5, 0.8), (0.8, 0.9), (0.9, 0.98)])
def test_wilson_intervals_cover_exactly_computed(items, band):
    """No simulation: binomial probabilities of every count, averaged over 200 accuracies of the band."""
    counts = np.arange(items + 1)
    low, high = np.array([wilson_interval(int(count), items) for count in counts]).T
    shares = np.linspace(*band, 200)[:, None]
    coverage = (binom.pmf(counts, items, shares) * ((low <= shares) & (shares <= high))).sum(axis=1)
    assert LOW <= coverage.mean() <= HIGH
    assert coverage.min() > 0.91


def answers(counts):
    """-> the two models' answers with these numbers of items that only the first, only the second, neither, got right.

    An item that both got right counts as one that neither did: no function looks at it otherwise.
    """
    first, second, rest = counts
    times = [first, second, rest]
    return np.repeat([True, False, False], times), np.repeat([False, True, False], times)


@lru_cache
def difference_interval(*counts):
    pairs = [answers(one) for one in counts]
    return accuracy_difference_interval([first for first, _ in pairs], [second for _, second in pairs])


CELLS = [(50, 0.2, 0.5), (100, 0.03, 0.1), (250, 0.03, 0.1), (1000, 0.01, 0.03)]
SLOW_CELLS = [(50, 0.1, 0.2), (100, 0.1, 0.2), (100, 0.2, 0.5), (250, 0.01, 0.03), (250, 0.1, 0.2), (250, 0.2, 0.5),
              (1000, 0.03, 0.1), (1000, 0.1, 0.2), (1000, 0.2, 0.5)]  # fmt: skip


def difference_hits(rng, items, low, high, benchmarks=1, repeats=REPEATS):
    hits = []
    for _ in range(repeats):
        differing = rng.uniform(low, high, benchmarks)
        first = differing * rng.uniform(0.25, 0.75)
        shares = np.stack([first, differing - first, 1 - differing], axis=1)
        counts = rng.multinomial(items, shares)
        truth = (shares[:, 1] - shares[:, 0]).mean()
        hits.append(covers(difference_interval(*map(tuple, counts.tolist())), truth))
    return hits


@pytest.mark.parametrize(
    ("items", "low", "high"), CELLS + [pytest.param(*cell, marks=pytest.mark.slow) for cell in SLOW_CELLS]
)
def test_accuracy_differences_cover(items, low, high):
    """low, high: band of the share of items that one model alone gets right, 0.5 where accuracies are independent."""
    assert_covers(difference_hits(np.random.default_rng(1), items, low, high))


@pytest.mark.parametrize(("items", "low", "high"), [(50, 0.01, 0.05), (100, 0.005, 0.03), (250, 0.002, 0.01)])
def test_accuracy_differences_cover_more_where_hardly_an_item_differs(items, low, high):
    assert_covers(difference_hits(np.random.default_rng(2), items, low, high), high=1)


@pytest.mark.slow
@pytest.mark.parametrize(("benchmarks", "items"), [(2, 100), (5, 50), (8, 250), (57, 50)])
@pytest.mark.parametrize("band", [(0.02, 0.1), (0.1, 0.4)])
def test_differences_of_means_over_benchmarks_cover(benchmarks, items, band):
    assert_covers(difference_hits(np.random.default_rng(3), items, *band, benchmarks, 800))


@pytest.mark.parametrize("benchmarks", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (5, 57))])
@pytest.mark.parametrize("band", [pytest.param((0.2, 0.8), marks=pytest.mark.slow), (0.8, 0.98)])
def test_means_of_accuracies_cover(benchmarks, band):
    rng, hits = np.random.default_rng(4), []
    for _ in range(800):
        shares = rng.uniform(*band, benchmarks)
        rights = [np.arange(100) < rng.binomial(100, share) for share in shares]
        hits.append(covers(accuracy_interval(rights), shares.mean()))
    assert_covers(hits)


def prompt_lengths(rng, shape):
    """Tokens of prompts: an eighth of every length is common to all, the rest as long-tailed as an exponential."""
    return 0.125 + 0.875 * rng.exponential(1, shape)


@pytest.mark.parametrize("groups", [10, *(pytest.param(n, marks=pytest.mark.slow) for n in (6, 8, 30, 100))])
@pytest.mark.parametrize("prompts", [8, pytest.param(25, marks=pytest.mark.slow)])
@pytest.mark.parametrize("noise", [pytest.param(0.05, marks=pytest.mark.slow), 0.3])
def test_latencies_their_savings_and_differences_cover(groups, prompts, noise):
    """Batches of `prompts` long-tailed prompts; a second run's latency is 0.7 of it times own noise per batch.

    Groups vary around their mean by 18 to 45 % (standard deviation); the quickstart's by 1 to 4 %.
    """
    rng = np.random.default_rng(5)
    once, hits = np.ones(groups), {"mean": [], "ratio": [], "difference": []}
    for _ in range(REPEATS):
        first = prompt_lengths(rng, (groups, prompts)).mean(axis=1)
        second = 0.7 * first * np.exp(noise * rng.standard_normal(groups) - noise**2 / 2)
        hits["mean"].append(covers(latency_interval(first, once), 1))
        hits["ratio"].append(covers(latency_ratio_interval(first, once, second, once), 0.7))
        hits["difference"].append(covers(latency_difference_interval(first, once, second, once), -0.3))
    for found in hits.values():
        assert_covers(found)
