/* 95 % intervals of latencies, the same as report/statistics.py draws: bootstrap over groups of batches of the same
 * items, NumPy's generator (PCG64, seed 0) included, so that equal latencies give equal intervals.
 *
 * WdmoeIntervals.make(bootstrap) -> {resampled(latency_s, count) -> sums, mean(sums), ratio(first sums, second sums)}
 *   bootstrap: {resamples, least_groups, tails, stretch: {groups: factor}}
 *   latency_s, count: [groups]; mean and ratio -> [low, high], or null where there is none
 */
"use strict";

const WdmoeIntervals = (() => {
  const MASK_64 = (1n << 64n) - 1n,
    MASK_128 = (1n << 128n) - 1n;
  const MULTIPLIER = 0x2360ed051fc65da44385df649fccf645n;
  // np.random.PCG64(0).state
  const STATE = 35399562948360463058890781895381311971n,
    INCREMENT = 87136372517582989555478159403783844777n;

  /** The 32-bit words of NumPy's default_rng(0), low half of each 64-bit word first. */
  function words() {
    let state = STATE,
      kept = null;
    return () => {
      if (kept !== null) {
        const word = kept;
        kept = null;
        return word;
      }
      state = (state * MULTIPLIER + INCREMENT) & MASK_128;
      const folded = (state >> 64n) ^ (state & MASK_64),
        turn = state >> 122n;
      const word = ((folded >> turn) | (folded << ((64n - turn) & 63n))) & MASK_64;
      kept = Number(word >> 32n);
      return Number(word & 0xffffffffn);
    };
  }

  /** -> [resamples * groups] how often each group is in a resample. */
  function timesDrawn(groups, resamples) {
    const next = words(),
      drawn = new Uint16Array(resamples * groups);
    const least = (2 ** 32 - groups) % groups; // Lemire's rejection
    for (let resample = 0; resample < resamples; resample++) {
      for (let draw = 0; draw < groups; draw++) {
        let product, low;
        do {
          product = next() * groups;
          low = product % 2 ** 32;
        } while (low < least);
        drawn[resample * groups + Math.floor(product / 2 ** 32)]++;
      }
    }
    return drawn;
  }

  /** NumPy's default quantile: linear between order statistics. */
  function quantile(sorted, share) {
    const place = share * (sorted.length - 1),
      below = Math.floor(place),
      above = Math.min(below + 1, sorted.length - 1);
    return sorted[below] + (place - below) * (sorted[above] - sorted[below]);
  }

  function make(bootstrap) {
    const known = new Map();

    function drawnOf(groups) {
      if (!known.has(groups)) known.set(groups, timesDrawn(groups, bootstrap.resamples));
      return known.get(groups);
    }

    /** Sums over groups: the measured one first, then that of each resample; null where they carry no interval. */
    function resampled(latency_s, count) {
      const groups = latency_s.length;
      if (groups < bootstrap.least_groups || bootstrap.stretch[groups] === undefined) return null;
      const drawn = drawnOf(groups),
        sums = { groups, latency_s: [], count: [] };
      for (const [name, column] of [
        ["latency_s", latency_s],
        ["count", count],
      ]) {
        const values = (sums[name] = new Float64Array(1 + bootstrap.resamples));
        for (let group = 0; group < groups; group++) values[0] += column[group];
        for (let resample = 1, place = 0; resample < values.length; resample++) {
          let total = 0;
          for (let group = 0; group < groups; group++, place++) total += drawn[place] * column[group];
          values[resample] = total;
        }
        for (const value of values) if (!(value > 0)) return null;
      }
      return sums;
    }

    /** values: the measured one, then one of each resample; sorts them. */
    function interval(values, groups) {
      const estimate = values[0],
        sorted = values.subarray(1).sort(),
        stretch = bootstrap.stretch[groups];
      const [low, high] = bootstrap.tails.map((share) => quantile(sorted, share));
      return [estimate - stretch * (estimate - low), estimate + stretch * (high - estimate)];
    }

    return {
      resampled,
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

  return { make, timesDrawn };
})();

if (typeof module !== "undefined") module.exports = WdmoeIntervals;
