"""Intervals and tests of accuracies and latencies, over plain arrays.

Accuracies and their differences are shares between 0 and 1, latencies seconds. Each method was chosen by its coverage
on simulated data of the sizes that occur (tests/report/test_coverage.py): 93 to 97 % at 95 %, and above where hardly
an item differs. Everything random starts from the same seed: equal inputs give equal intervals.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from ..latency import Array

Rights = NDArray[np.bool_]  # [items] whether each was answered right

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05
MIN_GROUPS = 6  # of batches; below it a bootstrap knows too little of how batches vary
ITEM_RESAMPLES, BATCH_RESAMPLES = 5000, 2000
RESAMPLES_AT_ONCE = 100
SEED = 0
TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)


class Interval(NamedTuple):
    """Both ends of a 95 % interval."""

    low: float
    high: float


def wilson_interval(correct: int, items: int) -> Interval | None:
    """Score interval of an accuracy (Wilson 1927, Journal of the American Statistical Association 22, 209-212).

    -> shares; None without items.
    """
    if items == 0:
        return None
    low, high = proportion_confint(correct, items, 1 - CONFIDENCE, method="wilson")
    return Interval(float(low) if correct else 0.0, float(high) if correct < items else 1.0)  # exact at both ends


def mcnemar_p(first: Rights, second: Rights) -> float:
    """Two-sided exact p of equal accuracy on the same items (McNemar 1947, Psychometrika 12, 153-157).

    first, second: [items] whether each model answered right
    Returns: p of the items that only one model answered right, which under the null hypothesis are binomial(., 1/2);
    1 without such items.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    return float(min(1.0, mcnemar([[0, only_first], [only_second, 0]], exact=True).pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values so that the chance of any false rejection among them stays below the level.

    Holm 1979, Scandinavian Journal of Statistics 6, 65-70; step-down, valid under any dependence.
    """
    count = len(p_values)
    order = np.argsort(p_values)
    adjusted = np.empty(count)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(np.sort(p_values) * np.arange(count, 0, -1)))
    return adjusted.tolist()  # statsmodels' multipletests gives the same, after it has collected all garbage


def accuracy_interval(strata: Sequence[Rights], weights: Sequence[float] | None = None) -> Interval | None:
    """Bootstrap interval of the mean accuracy over several benchmarks; see `_resample`.

    strata:  per benchmark [items] whether each was answered right; items are drawn within their benchmark
    weights: [benchmarks] of the mean, summing to 1; None: equal
    Returns: ends between 0 and 1; None if a benchmark has no item.
    """
    counts = [[right.sum(), (~right).sum()] for right in strata]
    return _item_interval(counts, (1, 0), weights)


def accuracy_difference_interval(
    first: Sequence[Rights], second: Sequence[Rights], weights: Sequence[float] | None = None
) -> Interval | None:
    """Bootstrap interval of mean accuracy second - first over several benchmarks, paired by item; see `_resample`.

    first, second: per benchmark [items] whether each model answered right
    weights: [benchmarks] of the mean, summing to 1; None: equal
    Returns: ends between -1 and 1; None if a benchmark has no item.
    """
    counts = []
    for a, b in zip(first, second, strict=True):
        only_first, only_second = (a & ~b).sum(), (b & ~a).sum()
        counts.append([only_second, only_first, len(a) - only_first - only_second])
    return _item_interval(counts, (1, -1, 0), weights)


def _item_interval(
    counts: Sequence[Sequence[int]], values: Sequence[int], weights: Sequence[float] | None
) -> Interval | None:
    table = np.array(counts, dtype=np.int64).reshape(-1, len(values))
    if not len(table) or not table.sum(axis=1).all():
        return None
    weight = np.full(len(table), 1 / len(table)) if weights is None else np.asarray(weights, dtype=float)
    value = np.array(values, dtype=float)
    estimate = float((table @ value / table.sum(axis=1)) @ weight)
    low, high = np.quantile(_resample(table, value, weight), TAILS)
    return Interval(min(float(low), estimate), max(float(high), estimate))


def _resample(counts: NDArray[np.int64], values: Array, weights: Array) -> Array:
    """Percentile bootstrap over items (Efron 1979, Annals of Statistics 7, 1-26), stratified by benchmark.

    counts: [benchmarks, outcomes] of items; values: [outcomes]; -> [ITEM_RESAMPLES] weighted means of the benchmarks'
    means. Drawing items with replacement is a multinomial draw of the outcomes' counts. Our choice: half a pseudo-item
    of each outcome, spread over the benchmarks (Jeffreys' prior), because without it an outcome that was not seen
    cannot be drawn: all-right answers would give an interval of no width, and the difference of two models that differ
    on 1 to 3 % of 50 items would be covered 47 % of the time.
    """
    items = counts.sum(axis=1)
    shares = counts + 0.5 / len(counts)
    shares /= shares.sum(axis=1, keepdims=True)
    resamples = np.random.default_rng(SEED).multinomial(items, shares, size=(ITEM_RESAMPLES, len(counts)))
    return (resamples @ values / items) @ weights


def latency_interval(latency_s: Array, count: Array) -> Interval | None:
    """Bootstrap interval of a mean latency, sum(latency) / sum(count); see `_batch_interval`.

    latency_s: [groups] latency summed over batches of the same items (s)
    count:     [groups] what the mean is per: passes or batches
    Returns:   ends (s); None with fewer than MIN_GROUPS groups, or if a resample sums to 0.
    """
    sums = _sums(latency_s, count)
    return None if sums is None else _batch_interval(sums[:, 0] / sums[:, 1], len(latency_s))


def latency_difference_interval(
    first_s: Array, first_count: Array, second_s: Array, second_count: Array
) -> Interval | None:
    """Bootstrap interval of mean latency second - first, paired by group of batches; see `_batch_interval`.

    first_s, second_s: [groups] latency summed over batches of the same items (s)
    first_count, second_count: [groups] what the means are per
    Returns: ends (s); None as in `latency_interval`.
    """
    sums = _sums(first_s, first_count, second_s, second_count)
    if sums is None:
        return None
    return _batch_interval(sums[:, 2] / sums[:, 3] - sums[:, 0] / sums[:, 1], len(first_s))


def latency_ratio_interval(first_s: Array, first_count: Array, second_s: Array, second_count: Array) -> Interval | None:
    """Bootstrap interval of mean latency second / first, on a logarithmic scale; a saving is 1 - ratio.

    first_s, second_s: [groups] latency summed over batches of the same items (s)
    first_count, second_count: [groups] what the means are per
    Returns: ends of the ratio; None as in `latency_interval`.
    """
    sums = _sums(first_s, first_count, second_s, second_count)
    if sums is None:
        return None
    interval = _batch_interval(np.log(sums[:, 2] / sums[:, 3] * sums[:, 1] / sums[:, 0]), len(first_s))
    return Interval(*map(float, np.exp(interval)))


def _sums(*columns: Array) -> Array | None:
    """-> [1 + BATCH_RESAMPLES, columns] sums over groups, the measured ones first; None where they carry no interval.

    None: fewer than MIN_GROUPS groups, or a resample of nothing but zeros.
    """
    groups = len(columns[0])
    if groups < MIN_GROUPS:
        return None
    sums = _resample_times(groups) @ np.stack(columns, axis=1).astype(np.float64)
    return sums if (sums > 0).all() else None


@lru_cache(maxsize=2)
def _resample_times(groups: int) -> Array:
    """-> [1 + BATCH_RESAMPLES, groups] how often each is in a resample; the first row takes each once."""
    rng = np.random.default_rng(SEED)
    times = np.ones((1 + BATCH_RESAMPLES, groups))  # filled chunk by chunk: all at once would double the memory
    for chunk in np.split(times[1:], BATCH_RESAMPLES // RESAMPLES_AT_ONCE):
        first_of_row = groups * np.arange(RESAMPLES_AT_ONCE)[:, None]
        picks = rng.integers(groups, size=chunk.shape) + first_of_row
        chunk[:] = np.bincount(picks.ravel(), minlength=chunk.size).reshape(chunk.shape)
    return times


def _batch_interval(values: Array, groups: int) -> Interval:
    """Percentile bootstrap over groups of batches, both halves widened for few groups.

    values: [1 + BATCH_RESAMPLES] the measured value, then that of each resample. A group is all batches of the same
    items (perplexity passes each item once per answer), because these are not independent. The factor is that of
    Student's t with groups - 1 degrees of freedom over a normal with the biased variance, sqrt(n / (n - 1)) t / z,
    after Hesterberg 2015, The American Statistician 69, 371-386, who moves the quantiles instead: with 10 groups the
    plain percentiles cover 90 %.
    """
    estimate, (low, high) = values[0], np.quantile(values[1:], TAILS)
    factor = np.sqrt(groups / (groups - 1)) * t.ppf(TAILS[1], groups - 1) / norm.ppf(TAILS[1])
    return Interval(float(estimate - factor * (estimate - low)), float(estimate + factor * (high - estimate)))
