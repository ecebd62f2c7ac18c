// ---- results

class DatasetResult {
  constructor(dataset, solution) {
    Object.assign(this, { name: dataset.name, passes: dataset.passes, batches: dataset.batches });
    Object.assign(this, { layers: dataset.layers, devices: dataset.devices, largest_gap: solution.gap });
    this.dataset = dataset;
    this.solution = solution;
    this.close_cells();
    this.fill();
    this.error = this.why_not_exact();
  }

  // latency, last device and shares of the wait of every solved layer
  close_cells() {
    const { devices, solution } = this;
    const count = solution.finish.length / devices;
    const times = new Float64Array(devices);
    solution.latency_s = new Float64Array(count);
    solution.last = new Int32Array(count);
    solution.waits = new Float64Array(solution.finish.length);
    for (let cell = 0; cell < count; cell++) {
      for (let k = 0; k < devices; k++) {
        const finish = solution.finish[cell * devices + k];
        times[k] = finish > 0 ? finish + (solution.further_s?.[cell] ?? 0) : finish;
      }
      close_cell(solution, cell, times);
    }
  }

  fill() {
    const { passes, layers, solution } = this;
    this.layer_latency_s = new Float64Array(passes * layers);
    this.waiting_device = new Int32Array(passes * layers);
    this.waiting_latency_s = new Float64Array(passes);
    for (let i = 0; i < passes * layers; i++) {
      this.layer_latency_s[i] = solution.latency_s[solution.of[i]];
      this.waiting_device[i] = solution.last[solution.of[i]];
      this.waiting_latency_s[Math.floor(i / layers)] += this.layer_latency_s[i];
    }
  }

  why_not_exact() {
    const { gap, accepted } = this.solution;
    if (!this.waiting_latency_s.every(Number.isFinite)) return "a latency is beyond what numbers can hold";
    if (gap <= accepted) return null;
    return `the optimal allocation is not proven: relative gap ${gap.toExponential(1)}, must be <= ${accepted}`;
  }

  is_phase(phase) {
    if (phase === "all") return () => true;
    check_choice("phase", phase, PHASES);
    const wanted = PHASES.indexOf(phase);
    return (pass) => this.dataset.phase[pass] === wanted;
  }

  mean_s(per, phase = "all") {
    return pooled_mean([this], per, phase);
  }

  per_batch_s(phase = "all") {
    return this.summed_by_batch(phase, this.waiting_latency_s);
  }

  passes_per_batch(phase = "all") {
    return this.summed_by_batch(phase, null);
  }

  summed_by_batch(phase, values) {
    const sums = new Float64Array(this.batches);
    const chosen = this.is_phase(phase);
    for (let pass = 0; pass < this.passes; pass++) {
      if (chosen(pass)) sums[this.dataset.batch_of[pass]] += values ? values[pass] : 1;
    }
    return sums;
  }

  groups(phase = "all") {
    const { parts, first_item, items } = this.dataset;
    const part_of = repeat(
      parts.map((part) => part.batches),
      this.batches,
    );
    const latency_s = this.per_batch_s(phase);
    const found = new Map();
    this.passes_per_batch(phase).forEach((passes, batch) => {
      if (!passes) return;
      const item = [parts[part_of[batch]].name, first_item[batch], items[batch]];
      const key = item.join("/");
      if (!found.has(key)) found.set(key, { item, latency_s: 0, passes: 0, batches: 0 });
      const group = found.get(key);
      group.latency_s += latency_s[batch];
      group.passes += passes;
      group.batches += 1;
    });
    const all = [...found.values()];
    const column = (name) => Float64Array.from(all, (group) => group[name]);
    const sums = { latency_s: column("latency_s"), passes: column("passes"), batches: column("batches") };
    return { items: all.map((group) => group.item), ...sums };
  }

  layer_device_time_s(phase = "all") {
    return this.mean_by_layer(phase, this.solution.finish, this.solution.of);
  }

  layer_device_load(phase = "all") {
    return this.mean_by_layer(phase, this.dataset.load, this.dataset.row_of);
  }

  waited_on(phase = "all") {
    return this.mean_by_layer(phase, this.solution.waits, this.solution.of);
  }

  // values: [cells, devices] of which `of` [passes, layers] tells the cell
  mean_by_layer(phase, values, of) {
    const { passes, layers, devices } = this;
    const chosen = this.is_phase(phase);
    const sums = Array.from({ length: layers }, () => new Float64Array(devices));
    let count = 0;
    for (let pass = 0; pass < passes; pass++) {
      if (!chosen(pass)) continue;
      count += 1;
      for (let layer = 0; layer < layers; layer++) {
        const start = of[pass * layers + layer] * devices;
        for (let k = 0; k < devices; k++) sums[layer][k] += values[start + k];
      }
    }
    return sums.map((row) => row.map((sum) => sum / Math.max(count, 1)));
  }
}

function close_cell(solution, cell, times) {
  const devices = times.length;
  let longest = 0;
  for (let k = 0; k < devices; k++) longest = Math.max(longest, times[k]);
  solution.latency_s[cell] = longest;
  solution.last[cell] = -1;
  if (!(longest > 0)) return;
  let together = 0;
  for (let k = devices - 1; k >= 0; k--) {
    if (times[k] < longest * (1 - TOGETHER)) continue;
    together += 1;
    solution.last[cell] = k;
  }
  for (let k = 0; k < devices; k++) {
    if (times[k] >= longest * (1 - TOGETHER)) solution.waits[cell * devices + k] = 1 / together;
  }
}

function pooled_mean(results, per, phase = "all") {
  check_choice("per", per, ["pass", "batch"]);
  let total = 0;
  let count = 0;
  for (const result of results) {
    const passes = result.passes_per_batch(phase);
    for (const sum of result.per_batch_s(phase)) total += sum;
    for (const number of passes) count += per === "pass" ? number : Number(number > 0);
  }
  return count ? total / count : null;
}

class ModelResult {
  constructor(model, settings) {
    const { abbr, routing, layers, devices, left_out, groups } = model;
    Object.assign(this, { abbr, routing, layers, devices, left_out, groups });
    this.profile = with_changes(model.profile, settings);
    this.datasets = Object.create(null);
    for (const [name, dataset] of Object.entries(model.datasets)) {
      set_when_read(this.datasets, name, () => {
        return new DatasetResult(dataset, solve(model, dataset, this.profile, settings));
      });
    }
  }

  results_of(name) {
    const found = (Object.hasOwn(this.groups, name) ? this.groups[name] : [name]).map(
      (dataset) => this.datasets[dataset],
    );
    return found.every(Boolean) ? found : [];
  }

  mean_s(name, per, phase = "all") {
    return pooled_mean(this.results_of(name), per, phase);
  }
}

function set_when_read(object, name, made) {
  let kept = null;
  Object.defineProperty(object, name, { enumerable: true, get: () => (kept ??= made()) });
}

function compute(run, settings) {
  check_settings(settings);
  return { settings, models: run.models.map((model) => new ModelResult(model, settings)) };
}
