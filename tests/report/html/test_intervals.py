"""The page's intervals of changed settings against those of the tables, which use other random numbers."""

from importlib.resources import files

import numpy as np
import pytest
from scipy.stats import norm, t

from tests.report.html.javascript import NOTHING, available, javascript
from wdmoe_opencompass.report.statistics import (
    BATCH_RESAMPLES,
    MIN_GROUPS,
    TAILS,
    latency_interval,
    latency_ratio_interval,
)

SCRIPT = (files("wdmoe_opencompass.report.html") / "page" / "intervals.js").read_text()
INTERVALS = """([bootstrap, cases]) => {
  const intervals = makeIntervals(bootstrap);
  return cases.map(([before_s, after_s, count]) => {
    const [before, after] = [before_s, after_s].map((latency_s) => intervals.resample(latency_s, count));
    return [intervals.mean(after), intervals.ratio(before, after)];
  });
}"""
GROUPS = (MIN_GROUPS - 1, MIN_GROUPS, 10, 25, 100)


def case(rng, groups):
    """-> before_s, after_s, count: [groups]."""
    before_s = rng.lognormal(0, 0.5, groups)
    return before_s, before_s * rng.uniform(0.5, 0.9, groups), rng.integers(1, 20, groups).astype(float)


def test_they_are_those_of_the_tables_but_for_the_random_numbers():
    if not available():
        pytest.skip(NOTHING)
    rng = np.random.default_rng(0)
    cases = [case(rng, groups) for groups in GROUPS for _ in range(10)]
    widening = {n: (n / (n - 1)) ** 0.5 * t.ppf(TAILS[1], n - 1) / norm.ppf(TAILS[1]) for n in GROUPS}
    bootstrap = dict(resamples=BATCH_RESAMPLES, min_groups=MIN_GROUPS, tails=TAILS, widening=widening)
    with javascript(available()[0]) as evaluate:
        found = evaluate(SCRIPT, INTERVALS, [bootstrap, [[column.tolist() for column in columns] for columns in cases]])
    off = []  # ends, in widths of the interval
    for (before_s, after_s, count), both in zip(cases, found, strict=True):
        wanted = latency_interval(after_s, count), latency_ratio_interval(before_s, count, after_s, count)
        if len(count) < MIN_GROUPS:
            assert both == [None, None] == list(wanted)
            continue
        off += [np.subtract(ends, want) / (want.high - want.low) for ends, want in zip(both, wanted)]
    assert np.abs(off).max() < 0.2
    assert np.abs(off).mean() < 0.05
    assert np.abs(np.mean(off, axis=0)).max() < 0.02  # neither wider nor moved
