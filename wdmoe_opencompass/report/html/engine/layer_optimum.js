// ---- optimal split of one layer

function layer_optimum(radio, dataset, layers) {
  const { devices } = radio;
  const solver = new LayerSolver(radio);
  const finish = new Float64Array(layers.count * devices);
  let gap = 0;
  for (let number = 0; number < layers.count; number++) {
    solver.take(dataset, layers.row[number], layers.draw[number]);
    gap = worse(gap, solver.solve());
    solver.write_finish(finish, number * devices);
  }
  return { finish, of: layers.of, gap, accepted: ACCEPTED_GAP.layer };
}

// Time of device k: weight_k f(b_k) + fixed_k, in units of the problem's even-split latency; only loaded devices are
// held. At the optimum all finish together: Newton on the logarithms of the shares, coupled by the common finish time
// T. The weights 1 / |dt_k / db_k|, normalised, give a lower bound on every other split by convexity.
class LayerSolver {
  constructor(radio) {
    this.radio = radio;
    this.curve = new Float64Array(4);
    const names = ["down", "up", "weight", "fixed", "even_value", "even_slope"];
    const found = ["share", "split", "communication", "softness", "finish", "work", "offset", "step"];
    for (const name of [...names, ...found]) this[name] = new Float64Array(radio.devices);
    this.device = new Int32Array(radio.devices);
  }

  take(dataset, row, draw) {
    const { devices, down, up, even_value, even_slope, computation_s, unit_s } = this.radio;
    this.count = 0;
    for (let k = 0; k < devices; k++) {
      const position = row * devices + k;
      if (!(dataset.load[position] > 0)) continue;
      const at = draw * devices + k;
      const weight = dataset.load[position] * unit_s;
      this.add(k, weight, dataset.evaluations[position] * computation_s[k]);
      this.set_link(this.count - 1, down[at], up[at], even_value[at], even_slope[at]);
    }
    this.scale();
  }

  add(device, weight, fixed) {
    this.device[this.count] = device;
    this.weight[this.count] = weight;
    this.fixed[this.count] = fixed;
    this.count += 1;
  }

  set_link(n, down, up, even_value, even_slope) {
    this.down[n] = down;
    this.up[n] = up;
    this.even_value[n] = even_value;
    this.even_slope[n] = even_slope;
  }

  scale() {
    let longest = 0;
    for (let n = 0; n < this.count; n++) {
      longest = Math.max(longest, this.weight[n] * this.even_value[n] + this.fixed[n]);
    }
    this.unit_s = longest > 0 ? longest : 1;
    for (let n = 0; n < this.count; n++) {
      this.weight[n] /= this.unit_s;
      this.fixed[n] /= this.unit_s;
      this.split[n] = 0.5;
    }
  }

  // -> relative gap between the latency of the split found and its lower bound
  solve() {
    if (this.count === 0) return 0;
    this.guess();
    for (let step = 0; ; step++) {
      this.evaluate();
      const gap = (this.slowest - this.bound) / this.slowest;
      if (gap <= LAYER_GAP || step === LAYER_STEPS - 1 || Number.isNaN(gap)) return gap;
      this.newton_step();
    }
  }

  // the optimum if f were offset + scale / b, as it is to first order at the even split: Newton on T alone
  guess() {
    const { count, work, offset, share } = this;
    const { devices } = this.radio;
    let finish = -Infinity; // before the root of a convex, falling function
    for (let n = 0; n < count; n++) {
      const scale = -this.even_slope[n] / (devices * devices);
      work[n] = this.weight[n] * scale;
      offset[n] = this.fixed[n] + this.weight[n] * (this.even_value[n] - devices * scale);
      finish = Math.max(finish, offset[n] + work[n]);
    }
    for (let step = 0; step < FIRST_GUESS_STEPS; step++) {
      let sum = -1;
      let steep = 0;
      for (let n = 0; n < count; n++) {
        const inverse = 1 / Math.max(finish - offset[n], work[n], TINY); // work: what is left for it, but for rounding
        sum += work[n] * inverse;
        steep += work[n] * inverse * inverse;
      }
      finish += sum / steep;
    }
    for (let n = 0; n < count; n++) share[n] = work[n] / Math.max(finish - offset[n], work[n], TINY);
    normalise(share, count);
  }

  evaluate() {
    const { curve, radio } = this;
    let slowest = 0;
    let mixed = 0;
    let mixing = 0;
    for (let n = 0; n < this.count; n++) {
      curve[SPLIT] = this.split[n];
      both_directions(radio.duplex, this.down[n], this.up[n], this.share[n], curve, false);
      this.split[n] = curve[SPLIT];
      this.communication[n] = this.weight[n] * curve[VALUE];
      this.finish[n] = this.communication[n] + this.fixed[n];
      const flatness = 1 / Math.max(-this.weight[n] * curve[SLOPE], TINY);
      this.softness[n] = this.communication[n] * flatness;
      slowest = Math.max(slowest, this.finish[n]);
      mixed += this.finish[n] * flatness;
      mixing += flatness;
    }
    this.slowest = slowest;
    this.bound = mixed / mixing;
  }

  // One step on log(communication_k(b_k)) = log(T - fixed_k), sum_k b_k = 1. Softness is b over the elasticity of
  // communication in b, which is in (0, 1).
  newton_step() {
    const { count, share, step, fixed, communication, softness } = this;
    let target = this.bound;
    for (let n = 0; n < count; n++) target = Math.max(target, fixed[n] + 0.05 * communication[n]);
    let weighted = 0;
    let softness_sum = 0;
    for (let n = 0; n < count; n++) {
      const inverse = 1 / (target - fixed[n]);
      step[n] = Math.log(communication[n] * inverse);
      weighted += softness[n] * step[n];
      softness_sum += softness[n] * inverse;
    }
    const shift = weighted / softness_sum;
    for (let n = 0; n < count; n++) {
      const wanted = ((step[n] - shift / (target - fixed[n])) * softness[n]) / share[n];
      share[n] *= Math.exp(Math.min(Math.max(wanted, -LARGEST_LOG_STEP), LARGEST_LOG_STEP));
    }
    normalise(share, count);
  }

  write_finish(finish, position) {
    for (let n = 0; n < this.count; n++) finish[position + this.device[n]] = this.finish[n] * this.unit_s;
  }
}

function normalise(share, count) {
  let sum = 0;
  for (let n = 0; n < count; n++) sum += share[n];
  for (let n = 0; n < count; n++) share[n] /= sum;
}
