// ---- latencies: of the run's tables while the settings are its own, else of the engine

const recorded = new Map();
for (const values of facts.latency.records) {
  const record = Object.fromEntries(facts.latency.keys.map((key, position) => [key, values[position]]));
  recorded.set([record.row, record.model, record.dataset, record.scope, record.per, record.phase].join("\n"), record);
}
const recordOf = (row, abbr, benchmark, scope = view.scope, per = view.per, phase = view.phase) =>
  recorded.get([row, abbr, benchmark, scope, per, phase].join("\n"));

/** Of an allocation under the settings: model -> the engine's results. */
function computeLatencies(allocation, changed = {}) {
  const found = WdmoeEngine.compute(run, { ...settings, ...changed, allocation, scope: view.scope });
  return new Map(found.models.map((model) => [model.abbr, model]));
}

/** Sums over the batches of the same items, as intervals need them; null where nothing is measured or embedded. */
function groupsOf(results, phase) {
  const parts = results.map((result) => result.groups(phase));
  const joined = (key) => parts.flatMap((part) => Array.from(part[key]));
  const items = joined("items").map((item) => item[2]),
    batches = sum(joined("batches"));
  if (!items.length) return null;
  const all = sum(items);
  return {
    latency_s: joined("latency_s"),
    count: { pass: joined("passes"), batch: items.map((number) => (number * batches) / all) },
  };
}

const isSolved = (allocation, abbr, benchmark) =>
  !waiting.some(
    (part) => part.allocation === allocation && part.model.abbr === abbr && facts.groups[benchmark].includes(part.name),
  );
const isInViewSolved = () => !waiting.some((part) => facts.groups[view.benchmark].includes(part.name));

const NO_BOUNDS = { low: null, high: null, saving_low: null, saving_high: null };
const NOT_FOLLOWING = "does not follow the controls";

/** Why the page cannot compute a model's latencies on a benchmark; null if it can. */
function whyFixed(abbr, benchmark) {
  const model = run.models.find((model) => model.abbr === abbr);
  if (!model) return "its trace could not be read";
  const lacking = facts.groups[benchmark].find((name) => !at(model.datasets, name));
  return lacking === undefined ? null : (at(model.left_out, lacking) ?? "its trace could not be read");
}

/** The engine's reason why there is no number, or null. */
const errorOf = (results) => results.map((result) => result.error).find(Boolean) ?? null;

/** -> Map of [row, model, benchmark] to {latency_s, low, high, saving, saving_low, saving_high, why}.
 *
 * fixed: why it stays the run's own whatever the controls say; error: why latency_s is null.
 */
function latencyCells(withIntervals, benchmarks = facts.benchmarks, phase = view.phase) {
  const { per } = view;
  const found = new Map(),
    sums = new Map();
  for (const [row, abbr] of allRows()) {
    for (const benchmark of benchmarks) {
      const key = [row, abbr, benchmark].join("\n");
      const record = recordOf(row, abbr, benchmark, view.scope, per, phase);
      if (!record) continue;
      const unable = isOwn() ? null : whyFixed(abbr, benchmark);
      if (isOwn() || unable) {
        found.set(key, {
          latency_s: record.latency_s,
          low: record.latency_low_s,
          high: record.latency_high_s,
          saving: record.saving,
          saving_low: record.saving_low,
          saving_high: record.saving_high,
          why: record.no_interval,
          fixed: unable,
        });
        continue;
      }
      if (!isSolved(facts.rows[row].allocation, abbr, benchmark)) {
        if (cells.has(key)) found.set(key, { ...cells.get(key), ...NO_BOUNDS, stale: true });
        continue;
      }
      const model = latest[facts.rows[row].allocation].get(abbr),
        error = errorOf(model.results_of(benchmark)),
        latency_s = error ? null : model.mean_s(benchmark, per, phase);
      if (error) found.set(key, { latency_s, ...NO_BOUNDS, saving: null, why: null, error });
      if (latency_s === null) continue;
      const cell = { latency_s, ...NO_BOUNDS, saving: null, why: record.no_interval };
      const vanilla = models.get(abbr).vanilla,
        base = vanilla && ["vanilla_even", vanilla, benchmark].join("\n");
      found.set(key, cell);
      const before = found.get(base);
      const isComparable = known(record.saving); // the tables refuse a saving against batches of other items
      if (before?.latency_s && !before.fixed && isComparable) cell.saving = 1 - latency_s / before.latency_s;
      if (withIntervals) {
        const groups = groupsOf(model.results_of(benchmark), phase),
          drawn = intervals.resample(groups.latency_s, groups.count[per]);
        sums.set(key, drawn);
        [cell.low, cell.high] = intervals.mean(drawn) ?? [null, null];
        const without = base === key || record.no_interval || !sums.has(base);
        const ratio = without ? null : intervals.ratio(sums.get(base), drawn);
        if (ratio) [cell.saving_low, cell.saving_high] = [1 - ratio[1], 1 - ratio[0]];
      }
    }
  }
  return found;
}

let cells = new Map();
const cellOf = (row, abbr, benchmark) => cells.get([row, abbr, benchmark].join("\n"));
