// ---- 95 % intervals of latencies, the bootstrap of report/statistics.py with its own random numbers

/** -> a function that draws whole numbers below `limit`, the same ones every time (Mulberry32, seed 0). */
function drawsBelow(limit) {
  let state = 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * limit);
  };
}

/** NumPy's default quantile: linear between order statistics. */
function quantile(sorted, share) {
  const position = share * (sorted.length - 1),
    below = Math.floor(position),
    above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (position - below) * (sorted[above] - sorted[below]);
}

/** -> {resample(latency_s, count) -> sums, mean(sums), ratio(first sums, second sums)}
 *
 * widening: {groups: factor}; latency_s, count: [groups]; mean and ratio -> [low, high], or null without one.
 */
function makeIntervals({ resamples, min_groups, tails, widening }) {
  /** Sums over groups: the measured one first, then that of each resample; null if they allow no interval. */
  function resample(latency_s, count) {
    const groups = latency_s.length;
    if (groups < min_groups || widening[groups] === undefined) return null;
    const draw = drawsBelow(groups),
      sums = { groups, latency_s: new Float64Array(1 + resamples), count: new Float64Array(1 + resamples) };
    for (let row = 0; row <= resamples; row++) {
      for (let number = 0; number < groups; number++) {
        const group = row ? draw() : number;
        sums.latency_s[row] += latency_s[group];
        sums.count[row] += count[group];
      }
      if (!(sums.latency_s[row] > 0 && sums.count[row] > 0)) return null;
    }
    return sums;
  }

  /** values: the measured one, then one of each resample; sorts them. */
  function interval(values, groups) {
    const estimate = values[0],
      sorted = values.subarray(1).sort();
    const [low, high] = tails.map((share) => quantile(sorted, share));
    return [estimate - widening[groups] * (estimate - low), estimate + widening[groups] * (high - estimate)];
  }

  return {
    resample,
    mean: (sums) =>
      sums &&
      interval(
        sums.latency_s.map((total, n) => total / sums.count[n]),
        sums.groups,
      ),
    ratio(first, second) {
      if (!first || !second) return null;
      const logarithm = (_, n) =>
        Math.log(((second.latency_s[n] / second.count[n]) * first.count[n]) / first.latency_s[n]);
      return interval(first.latency_s.map(logarithm), first.groups).map(Math.exp);
    },
  };
}
