/* 95 % intervals of latencies, the same as report/statistics.py draws: bootstrap over groups of batches of the same
 * items, NumPy's generator (PCG64, seed 0) included, so that equal latencies give equal intervals.
 *
 * WdmoeIntervals.make(bootstrap) -> {mean(latency_s, count), ratio(first_s, first_count, second_s, second_count)}
 *   bootstrap: {resamples, least_groups, tails, stretch: {groups: factor}}
 *   each -> [low, high], or null where there is none
 */
"use strict";

const WdmoeIntervals = (() => {
  const MASK_64 = (1n << 64n) - 1n, MASK_128 = (1n << 128n) - 1n;
  const MULTIPLIER = 0x2360ed051fc65da44385df649fccf645n;
  // np.random.PCG64(0).state
  const STATE = 35399562948360463058890781895381311971n, INCREMENT = 87136372517582989555478159403783844777n;

  /** The 32-bit words of NumPy's default_rng(0), low half of each 64-bit word first. */
  function words() {
    let state = STATE, kept = null;
    return () => {
      if (kept !== null) {
        const word = kept;
        kept = null;
        return word;
      }
      state = (state * MULTIPLIER + INCREMENT) & MASK_128;
      const folded = (state >> 64n) ^ (state & MASK_64), turn = state >> 122n;
      const word = ((folded >> turn) | (folded << ((64n - turn) & 63n))) & MASK_64;
      kept = Number(word >> 32n);
      return Number(word & 0xffffffffn);
    };
  }

  /** -> [resamples * groups] how often each group is in a resample. */
  function timesDrawn(groups, resamples) {
    const next = words(), drawn = new Uint16Array(resamples * groups);
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
    const place = share * (sorted.length - 1), below = Math.floor(place), above = Math.min(below + 1, sorted.length - 1);
    return sorted[below] + (place - below) * (sorted[above] - sorted[below]);
  }

  function make(bootstrap) {
    const known = new Map();

    function drawnOf(groups) {
      if (!known.has(groups)) known.set(groups, timesDrawn(groups, bootstrap.resamples));
      return known.get(groups);
    }

    /** columns: of [groups] numbers; value: sums of the columns -> what the interval is of. */
    function interval(columns, value) {
      const groups = columns[0].length, stretch = bootstrap.stretch[groups];
      if (groups < bootstrap.least_groups || stretch === undefined) return null;
      const drawn = drawnOf(groups), values = new Float64Array(bootstrap.resamples), sums = new Array(columns.length);
      for (let resample = 0; resample < bootstrap.resamples; resample++) {
        sums.fill(0);
        for (let group = 0, place = resample * groups; group < groups; group++, place++) {
          const times = drawn[place];
          if (times) for (let column = 0; column < columns.length; column++) sums[column] += times * columns[column][group];
        }
        if (!sums.every((sum) => sum > 0)) return null;
        values[resample] = value(sums);
      }
      const estimate = value(columns.map((column) => column.reduce((sum, one) => sum + one, 0)));
      values.sort();
      const [low, high] = bootstrap.tails.map((share) => quantile(values, share));
      return [estimate - stretch * (estimate - low), estimate + stretch * (high - estimate)];
    }

    return {
      mean: (latency_s, count) => interval([latency_s, count], ([sum, per]) => sum / per),
      ratio(first_s, first_count, second_s, second_count) {
        const logarithm = ([a, b, c, d]) => Math.log(((c / d) * b) / a);
        const found = interval([first_s, first_count, second_s, second_count], logarithm);
        return found && found.map(Math.exp);
      },
    };
  }

  return { make, timesDrawn };
})();

if (typeof module !== "undefined") module.exports = WdmoeIntervals;
