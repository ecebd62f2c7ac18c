// ---- counts: what counts.py packed, decoded once

function decode(packed) {
  const text = atob(packed.data);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new ARRAYS[packed.dtype](bytes.buffer);
}

function load(counts) {
  if (counts.format !== 1) throw new Error(`counts of format ${counts.format} are not known to this page`);
  return { models: counts.models.map(loaded_model) };
}

function loaded_model(packed) {
  const datasets = Object.create(null); // a dataset may have any name, __proto__ too
  for (const [name, dataset] of Object.entries(packed.datasets)) datasets[name] = loaded_dataset(name, dataset, packed);
  return { ...packed, run_draws: packed.run_draws ? loaded_draws(packed.run_draws) : null, datasets };
}

// unit exponential draws of both directions, [draws, layers or 1, devices] each; one and the same where `up` lacks
function loaded_draws(packed) {
  const down = decode(packed.down);
  return { down, up: packed.up ? decode(packed.up) : down };
}

function loaded_dataset(name, packed, model) {
  const load = Float64Array.from(decode(packed.load));
  const extra = packed.extra ? decode(packed.extra) : null;
  const phase = decode(packed.phase);
  return {
    name,
    passes: packed.passes,
    batches: packed.batches,
    layers: model.layers,
    devices: model.devices.length,
    parts: packed.parts,
    load, // [rows, devices]
    evaluations: extra ? load.map((tokens, i) => tokens + extra[i]) : load,
    row_of: packed.index ? Int32Array.from(decode(packed.index)) : range(packed.rows), // [passes, layers]
    batch_of: repeat(decode(packed.passes_of_batch), packed.passes),
    first_item: decode(packed.first_item),
    items: decode(packed.items),
    phase,
    draws: packed.draws ? loaded_draws(packed.draws) : null,
    draw_of: packed.draw ? decode(packed.draw) : null, // [passes]
    draws_by_layer: model.profile.fading.coherence === "layer",
    found: {}, // distinct problems, kept from one computation to the next
  };
}

function range(length) {
  return Int32Array.from({ length }, (_, i) => i);
}

function repeat(times, total) {
  const numbers = new Int32Array(total);
  let position = 0;
  times.forEach((count, number) => {
    numbers.fill(number, position, position + count);
    position += count;
  });
  return numbers;
}
