// ---- optimal split of a whole pass

function pass_optimum(radio, dataset, layers, passes, varying) {
  const solver = new PassSolver(radio, dataset.layers, varying);
  const finish = new Float64Array(passes.layer.length * radio.devices);
  let gap = 0;
  for (let number = 0; number < passes.count; number++) {
    solver.take(dataset, layers, passes.layer, number * dataset.layers);
    gap = worse(gap, solver.solve());
    solver.write_finish(finish, number * dataset.layers * radio.devices);
  }
  const of = new Int32Array(dataset.passes * dataset.layers);
  for (let i = 0; i < of.length; i++) {
    of[i] = passes.of[Math.floor(i / dataset.layers)] * dataset.layers + (i % dataset.layers);
  }
  return { finish, of, gap, accepted: ACCEPTED_GAP.pass };
}

// Primal-dual interior point on the epigraph form: minimise sum_i T_i with T_i >= t_ik(b_k). The multipliers and the
// T_i are eliminated, which leaves one devices x devices system per step. For multipliers that sum to 1 in every
// layer, convexity gives the lower bound sum lambda t - sum_k S_k b_k + min_k S_k, S_k = sum_i lambda_ik dt_ik/db_k.
// Only devices and layers with load are held: [count] and [rows, count].
class PassSolver {
  constructor(radio, layers, varying) {
    this.radio = radio;
    this.varying = varying; // whether the channel differs between the layers
    this.summed = new LayerSolver(radio);
    this.curve = new Float64Array(4);
    this.device = new Int32Array(radio.devices);
    this.layer = new Int32Array(layers);
    this.draw = new Int32Array(layers);
    const cells = ["weight", "fixed", "finish", "slope", "curvature", "slack", "dual", "ratio", "centre", "residual"];
    for (const name of [...cells, "coupling", "d_slack", "d_dual", "best_finish", "split"]) {
      this[name] = new Float64Array(layers * radio.devices);
    }
    for (const name of ["share", "d_share", "right", "ones", "steep"]) this[name] = new Float64Array(radio.devices);
    for (const name of ["time", "d_time", "mass", "excess"]) this[name] = new Float64Array(layers);
    this.matrix = new Float64Array(radio.devices * radio.devices);
  }

  take(dataset, problems, layer, start) {
    const { devices, computation_s, unit_s } = this.radio;
    this.count = this.rows = 0;
    for (let k = 0; k < devices; k++) {
      if (is_used(dataset, problems, layer, start, k)) this.device[this.count++] = k;
    }
    for (let i = 0; i < dataset.layers; i++) {
      const problem = layer[start + i];
      const position = problems.row[problem] * devices;
      let busy = false;
      for (let n = 0; n < this.count; n++) {
        const k = this.device[n];
        const cell = this.rows * this.count + n;
        this.weight[cell] = dataset.load[position + k] * unit_s;
        this.fixed[cell] = dataset.evaluations[position + k] * computation_s[k];
        busy ||= this.weight[cell] > 0;
      }
      if (!busy) continue;
      this.layer[this.rows] = i;
      this.draw[this.rows++] = problems.draw[problem];
    }
    this.scale();
  }

  scale() {
    const { count, rows, device, radio } = this;
    this.unit_s = 0;
    this.active = 0;
    for (let i = 0; i < rows; i++) {
      let longest = 0;
      for (let n = 0; n < count; n++) {
        const cell = i * count + n;
        const even = radio.even_value[this.draw[i] * radio.devices + device[n]];
        longest = Math.max(longest, this.weight[cell] * even + this.fixed[cell]);
        if (this.weight[cell] > 0) this.active += 1;
      }
      this.unit_s += longest;
    }
    for (let cell = 0; cell < rows * count; cell++) {
      this.weight[cell] /= this.unit_s;
      this.fixed[cell] /= this.unit_s;
      this.split[cell] = 0.5;
    }
    this.smallest_gap = Math.max(MIN_PRODUCT * this.active, 0.2 * PASS_GAP);
  }

  // -> relative gap between the latency of the split found and its lower bound
  solve() {
    if (this.count === 0) return 0;
    this.first_split();
    if (this.count === 1) {
      this.evaluate();
      this.best_finish.set(this.finish);
      return 0;
    }
    this.start();
    const accepted = Math.max(PASS_GAP, 3 * this.smallest_gap);
    let best = Infinity;
    let lower = -Infinity;
    for (let step = 0; step < PASS_STEPS; step++) {
      const now = this.upper();
      if (now < best) {
        best = now;
        this.best_finish.set(this.finish);
      }
      lower = Math.max(lower, this.lower());
      if (!(best - lower > accepted * best)) break;
      this.newton_step();
    }
    return (best - lower) / best;
  }

  // the split that is optimal for the layers' summed loads
  first_split() {
    const { count, rows, summed } = this;
    summed.count = 0;
    for (let n = 0; n < count; n++) {
      let weight = 0;
      let fixed = 0;
      for (let i = 0; i < rows; i++) {
        weight += this.weight[i * count + n];
        fixed += this.fixed[i * count + n];
      }
      summed.add(this.device[n], weight, fixed);
      this.set_mean_link(n);
    }
    summed.scale();
    summed.solve();
    for (let n = 0; n < count; n++) this.share[n] = summed.share[n];
  }

  set_mean_link(n) {
    const { devices, duplex, down, up, even_value, even_slope } = this.radio;
    const at = this.draw[0] * devices + this.device[n];
    if (!this.varying) {
      this.summed.set_link(n, down[at], up[at], even_value[at], even_slope[at]);
      return;
    }
    let mean_down = 0;
    let mean_up = 0;
    for (let i = 0; i < this.rows; i++) {
      mean_down += down[this.draw[i] * devices + this.device[n]] / this.rows;
      mean_up += up[this.draw[i] * devices + this.device[n]] / this.rows;
    }
    this.curve[SPLIT] = 0.5;
    both_directions(duplex, mean_down, mean_up, 1 / devices, this.curve, false);
    this.summed.set_link(n, mean_down, mean_up, this.curve[VALUE], this.curve[SLOPE]);
  }

  start() {
    const { count, rows, share, weight, slack, dual, time } = this;
    // away from the boundary: a device that the summed problem starved must be able to move
    for (let n = 0; n < count; n++) share[n] = 0.9 * share[n] + 0.1 / count;
    this.evaluate();
    for (let i = 0; i < rows; i++) {
      let slowest = 0;
      for (let n = 0; n < count; n++) slowest = Math.max(slowest, this.finish[i * count + n]);
      time[i] = 1.1 * slowest + 1e-3;
      let sum = 0;
      for (let cell = i * count; cell < (i + 1) * count; cell++) {
        const active = weight[cell] > 0;
        slack[cell] = active ? time[i] - this.finish[cell] : 1;
        dual[cell] = active ? 1 / slack[cell] : 0;
        sum += dual[cell];
      }
      for (let cell = i * count; cell < (i + 1) * count; cell++) dual[cell] /= sum;
    }
  }

  evaluate() {
    const { radio, curve, count, rows, device, weight } = this;
    for (let i = 0; i < rows; i++) {
      for (let n = 0; n < count; n++) {
        const cell = i * count + n;
        if (i > 0 && !this.varying) {
          this.copy_curve(cell, n);
          continue;
        }
        const at = this.draw[i] * radio.devices + device[n];
        curve[SPLIT] = this.split[cell];
        both_directions(radio.duplex, radio.down[at], radio.up[at], this.share[n], curve, true);
        this.split[cell] = curve[SPLIT];
        this.finish[cell] = curve[VALUE];
        this.slope[cell] = curve[SLOPE];
        this.curvature[cell] = curve[CURVATURE];
      }
    }
    for (let cell = 0; cell < rows * count; cell++) {
      this.finish[cell] = weight[cell] * this.finish[cell] + this.fixed[cell];
      this.slope[cell] *= weight[cell];
      this.curvature[cell] *= weight[cell];
    }
  }

  copy_curve(cell, n) {
    this.finish[cell] = this.finish[n];
    this.slope[cell] = this.slope[n];
    this.curvature[cell] = this.curvature[n];
  }

  upper() {
    const { count, rows, finish } = this;
    let sum = 0;
    for (let i = 0; i < rows; i++) {
      let slowest = 0;
      for (let n = 0; n < count; n++) slowest = Math.max(slowest, finish[i * count + n]);
      sum += slowest;
    }
    return sum;
  }

  lower() {
    const { count, rows, finish, slope, dual, share, steep } = this;
    steep.fill(0);
    let bound = 0;
    for (let i = 0; i < rows; i++) {
      let total = 0;
      for (let cell = i * count; cell < (i + 1) * count; cell++) total += dual[cell];
      for (let n = 0; n < count; n++) {
        const mixing = dual[i * count + n] / (total > 0 ? total : 1);
        steep[n] += mixing * slope[i * count + n];
        bound += mixing * finish[i * count + n];
      }
    }
    let lowest = Infinity;
    for (let n = 0; n < count; n++) {
      bound -= steep[n] * share[n];
      lowest = Math.min(lowest, steep[n]);
    }
    return bound + lowest;
  }

  // one Newton step towards a tenth of the present complementarity
  newton_step() {
    this.centre_cells();
    this.fill_system();
    this.solve_system();
    this.directions();
    this.move();
  }

  centre_cells() {
    const { count, rows, weight, slack, dual, ratio, centre, residual, coupling, mass, excess } = this;
    let products = 0;
    for (let cell = 0; cell < rows * count; cell++) products += dual[cell] * slack[cell];
    const aim = Math.max(CENTRING * products, this.smallest_gap) / this.active;
    for (let i = 0; i < rows; i++) {
      mass[i] = 0;
      excess[i] = -1;
      for (let cell = i * count; cell < (i + 1) * count; cell++) {
        const inverse = weight[cell] > 0 ? 1 / slack[cell] : 0;
        ratio[cell] = dual[cell] * inverse;
        residual[cell] = this.time[i] - this.finish[cell] - slack[cell];
        centre[cell] = aim * inverse - ratio[cell] * residual[cell];
        coupling[cell] = ratio[cell] * this.slope[cell];
        mass[i] += ratio[cell];
        excess[i] += centre[cell];
      }
    }
  }

  // (diagonal - coupling' mass^-1 coupling) d_share + nu = right
  fill_system() {
    const { count, rows, matrix, right, ones, coupling, mass, excess, slope } = this;
    matrix.fill(0);
    for (let n = 0; n < count; n++) {
      right[n] = 0;
      ones[n] = 1;
    }
    for (let i = 0; i < rows; i++) {
      for (let n = 0; n < count; n++) {
        const cell = i * count + n;
        const scaled = coupling[cell] / mass[i];
        right[n] += scaled * excess[i] - this.centre[cell] * slope[cell];
        matrix[n * count + n] += this.dual[cell] * this.curvature[cell] + coupling[cell] * slope[cell];
        for (let m = n; m < count; m++) matrix[n * count + m] -= scaled * coupling[i * count + m];
      }
    }
  }

  solve_system() {
    const { count, right, ones, d_share } = this;
    eliminate(this.matrix, right, ones, count);
    let along = 0;
    let across = 0;
    for (let n = 0; n < count; n++) {
      along += right[n];
      across += ones[n];
    }
    for (let n = 0; n < count; n++) d_share[n] = right[n] - (along / across) * ones[n];
  }

  directions() {
    const { count, rows, weight, slope, coupling, d_share, d_time, d_slack, d_dual } = this;
    for (let i = 0; i < rows; i++) {
      let sum = this.excess[i];
      for (let n = 0; n < count; n++) sum += coupling[i * count + n] * d_share[n];
      d_time[i] = sum / this.mass[i];
      for (let n = 0; n < count; n++) {
        const cell = i * count + n;
        const change = d_time[i] - slope[cell] * d_share[n];
        d_dual[cell] = this.centre[cell] - this.dual[cell] - this.ratio[cell] * change;
        d_slack[cell] = weight[cell] > 0 ? change + this.residual[cell] : 0;
      }
    }
  }

  move() {
    const { count, rows, share, slack, dual, time } = this;
    const cells = rows * count;
    let length = Math.min(SHARE_TO_BOUNDARY * to_boundary(share, this.d_share, count), 1);
    length = Math.min(TO_BOUNDARY * to_boundary(slack, this.d_slack, cells), length);
    const dual_length = Math.min(TO_BOUNDARY * to_boundary(dual, this.d_dual, cells), 1);
    for (let n = 0; n < count; n++) share[n] += length * this.d_share[n];
    normalise(share, count);
    for (let i = 0; i < rows; i++) time[i] += length * this.d_time[i];
    for (let cell = 0; cell < cells; cell++) {
      slack[cell] += length * this.d_slack[cell];
      dual[cell] += dual_length * this.d_dual[cell];
    }
    this.evaluate();
  }

  write_finish(finish, start) {
    for (let i = 0; i < this.rows; i++) {
      const position = start + this.layer[i] * this.radio.devices;
      for (let n = 0; n < this.count; n++) {
        finish[position + this.device[n]] = this.best_finish[i * this.count + n] * this.unit_s;
      }
    }
  }
}

function is_used(dataset, problems, layer, start, device) {
  for (let i = 0; i < dataset.layers; i++) {
    if (dataset.load[problems.row[layer[start + i]] * dataset.devices + device] > 0) return true;
  }
  return false;
}

// the largest step length that keeps every value >= 0; a value of 0 has a step of 0
function to_boundary(value, step, count) {
  let fastest = 0;
  for (let n = 0; n < count; n++) {
    if (-step[n] > fastest * value[n]) fastest = -step[n] / Math.max(value[n], TINY);
  }
  return 1 / Math.max(fastest, TINY);
}

// Elimination in a symmetric positive definite matrix, of which the upper triangle is read: no pivots are needed.
// Both right-hand sides become the solutions.
function eliminate(matrix, right, ones, size) {
  for (let column = 0; column < size; column++) {
    const start = column * size;
    for (let n = column + 1; n < size; n++) {
      const factor = matrix[start + n] / matrix[start + column];
      for (let m = n; m < size; m++) matrix[n * size + m] -= factor * matrix[start + m];
      right[n] -= factor * right[column];
      ones[n] -= factor * ones[column];
    }
  }
  for (let n = size - 1; n >= 0; n--) {
    for (let m = n + 1; m < size; m++) {
      right[n] -= matrix[n * size + m] * right[m];
      ones[n] -= matrix[n * size + m] * ones[m];
    }
    right[n] /= matrix[n * size + n];
    ones[n] /= matrix[n * size + n];
  }
}
