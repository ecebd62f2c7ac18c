// ---- distinct problems, and their solutions

// A layer of a pass is known by its row of counts and its draw of the channel.
function layer_problems(dataset, varying) {
  const key = varying ? "varying_layers" : "layers";
  dataset.found[key] ??= varying ? distinct_layers(dataset) : constant_layers(dataset);
  return dataset.found[key];
}

function constant_layers(dataset) {
  const count = dataset.load.length / dataset.devices;
  return { count, row: range(count), draw: new Int32Array(count), of: dataset.row_of };
}

function distinct_layers(dataset) {
  const { passes, layers, devices, draws, draw_of, row_of, draws_by_layer } = dataset;
  const moments = draws.down.length / devices;
  const numbers = new Map();
  const of = new Int32Array(passes * layers);
  const row = [];
  const draw = [];
  for (let i = 0; i < of.length; i++) {
    const number = draw_of[Math.floor(i / layers)];
    const moment = draws_by_layer ? number * layers + (i % layers) : number;
    const key = row_of[i] * moments + moment;
    if (!numbers.has(key)) {
      numbers.set(key, row.length);
      row.push(row_of[i]);
      draw.push(moment);
    }
    of[i] = numbers.get(key);
  }
  return { count: row.length, row: Int32Array.from(row), draw: Int32Array.from(draw), of };
}

// Passes whose layers are all alike: {count, layer: [count * layers] layer problems, of: [passes]}.
function pass_problems(dataset, varying) {
  const key = varying ? "varying_passes" : "passes";
  dataset.found[key] ??= distinct_passes(dataset, layer_problems(dataset, varying).of);
  return dataset.found[key];
}

function distinct_passes({ passes, layers }, layer_of) {
  const numbers = new Map();
  const layer = [];
  const of = new Int32Array(passes);
  for (let pass = 0; pass < passes; pass++) {
    const own_layers = layer_of.subarray(pass * layers, (pass + 1) * layers);
    const key = own_layers.join();
    if (!numbers.has(key)) {
      numbers.set(key, numbers.size);
      layer.push(...own_layers);
    }
    of[pass] = numbers.get(key);
  }
  return { count: numbers.size, layer: Int32Array.from(layer), of };
}

// -> {finish: [cells, devices] seconds until each device has answered, of: [passes, layers] cells, gap, accepted}
function solve(model, dataset, profile, settings) {
  const radio = radio_of(model, dataset, profile);
  const varying = profile.fading.model !== "none" && dataset.draws !== null;
  const layers = layer_problems(dataset, varying);
  if (radio.measured) return at_fixed_rates(radio, dataset, layers);
  if (settings.allocation === "uniform" || radio.devices === 1) return evenly_split(radio, dataset, layers);
  if (settings.scope === "layer") return layer_optimum(radio, dataset, layers);
  return pass_optimum(radio, dataset, layers, pass_problems(dataset, varying), varying);
}

function at_fixed_rates(radio, dataset, layers) {
  const { devices, computation_s, measured } = radio;
  const finish = new Float64Array(dataset.load.length);
  for (let i = 0; i < finish.length; i++) {
    const tokens = dataset.load[i];
    const device = i % devices;
    const limited = Math.max(tokens - measured.burst[device], 0);
    if (tokens > 0) finish[i] = limited * measured.token_s[device] + measured.fixed_s[device];
    finish[i] += dataset.evaluations[i] * computation_s[device];
  }
  return { finish, of: layers.of, gap: 0, accepted: 0, further_s: further_s(finish, dataset.load, measured, devices) };
}

// [cells] seconds by which all messages but the slowest delay the last answer
function further_s(finish, load, { message_s, shared_token_s }, devices) {
  const seconds = new Float64Array(load.length / devices);
  for (let cell = 0; cell < seconds.length; cell++) {
    const start = cell * devices;
    let slowest = start;
    for (let i = start; i < start + devices; i++) if (finish[i] > finish[slowest]) slowest = i;
    for (let i = start; i < start + devices; i++) {
      if (i !== slowest && load[i] > 0) seconds[cell] += message_s + load[i] * shared_token_s;
    }
  }
  return seconds;
}

function evenly_split(radio, dataset, layers) {
  const { devices, computation_s, even_value, unit_s } = radio;
  const finish = new Float64Array(layers.count * devices);
  for (let i = 0; i < finish.length; i++) {
    const problem = Math.floor(i / devices);
    const device = i % devices;
    const position = layers.row[problem] * devices + device;
    const token = even_value[layers.draw[problem] * devices + device] * unit_s;
    finish[i] = dataset.load[position] * token + dataset.evaluations[position] * computation_s[device];
  }
  return { finish, of: layers.of, gap: 0, accepted: 0 };
}

// NaN, and a lower bound above the upper one, are no proof at all
function worse(gap, other) {
  return other >= -ROUNDING ? Math.max(gap, other) : Infinity;
}
