/*
The latency engine of the page: recomputes every latency of a run from its embedded counts, Eq. (2) to (11) of the
paper (arXiv 2411.06681) and the bandwidth allocations of wdmoe_opencompass/allocation. One plain script; it sets the
global WdmoeEngine and module.exports where that exists. All quantities are in SI units, as their names say.

WdmoeEngine.load(counts) -> run            counts: what counts.py makes; decoded once
WdmoeEngine.defaults(run) -> settings      what the user may change; null everywhere: each profile's own value
    {total_bandwidth_hz, payload_bits,     null or a number
     fading,                               null or true: the run's own draw; false: as a profile with fading.model none
     allocation: 'uniform' | 'optimal', scope: 'layer' | 'pass', the latter in hindsight: it needs the loads of all layers
     devices: [{name, distance_m, transmit_power_w}, ...]}   every device of any model, matched by name
WdmoeEngine.own(run, number = 0) -> settings with a model's own numbers in place of null, for the sliders' first places
WdmoeEngine.limits -> {key: {above, least, most, whole, unit}}          what a profile allows, as far as it makes sense
WdmoeEngine.known -> {path_loss, duplex, fading, rates, scopes, allocations, phases}: names that the engine knows
WdmoeEngine.applicable(run, settings) -> {key: {applies, reason}}       reason: why not, or for which models not; or ''
    keys: total_bandwidth_hz, payload_bits, distance_m, transmit_power_w, fading, allocation, scope
WdmoeEngine.compute(run, settings) -> {settings, models: [model, ...]}; throws an Error (one sentence) on bad settings
    model: {abbr, routing, profile (the changed one), layers, devices: [names], left_out: {dataset: reason},
            groups: {benchmark: [datasets]}, datasets: {name: DatasetResult}, each computed when it is first read,
            results_of(name): the DatasetResults of a dataset or group, [] where one is left out,
            mean_s(name, per, phase): their pooled mean, or null}
    DatasetResult, with phase 'all' | 'prefill' | 'decode' (default 'all') and per 'pass' | 'batch':
        passes, batches, layers, devices          numbers
        error                                     null, or why its numbers are no optimum or not finite (one sentence)
        largest_gap                               of all allocations solved: (latency - lower bound) / latency
        layer_latency_s   Float64Array [passes * layers]   attention waiting latency, Eq. (11)
        waiting_latency_s Float64Array [passes]            summed over the layers
        waiting_device    Int32Array [passes * layers]     the device that finishes last; -1 without load; the first
                                                           of several that finish together (within TOGETHER)
        mean_s(per, phase)           as pooled_mean of replay.py; null without any such pass
        per_batch_s(phase)           Float64Array [batches] sums of the batch's passes; 0 where it has no such pass
        passes_per_batch(phase)      Float64Array [batches]
        groups(phase)                {items: [[part, first item, items], ...], latency_s, passes, batches}: sums over
                                     the batches of the same items, as BatchSums of report/batches.py
        layer_device_time_s(phase)   [layers] arrays [devices], mean seconds of each device, t_k^i of Eq. (10)
        layer_device_load(phase)     [layers] arrays [devices], mean tokens per pass, Eq. (9)
        waited_on(phase)             [layers] arrays [devices], share of the passes in which the layer waited on the
                                     device; n devices that finish together count 1 / n each (under an optimal
                                     allocation of scope layer all loaded ones do)
        Means and shares are over the passes of the phase, 0 without any.
WdmoeEngine.pooled_mean([DatasetResult, ...], per, phase) -> seconds or null: several datasets read as one
WdmoeEngine.changed_profile(run, model number or abbr, settings) -> the channel profile with the changes, plain object
WdmoeEngine.to_yaml(profile) -> text of a profile file: `wdmoe profile validate` takes it, and `wdmoe replay` with it
    gives the page's numbers; its `origin` states what it did, so a changed value is the user's own
WdmoeEngine.origin_sentence(profile) -> which values come from the paper, a fit, an assumption, a tool or the user, as
    channel/origin.py says it

counts = {format: 1, most_bytes, models: [{abbr, routing, profile, profile_hash, hidden_size, ffn_size, layers, devices,
    groups, run_draws, left_out, datasets: {name: {passes, batches, parts: [{name, batches}], rows, load, extra, index,
    passes_of_batch, first_item, items, phase, draws, draw}}}]}; packed arrays are {dtype, data}, see counts.py. The
profile is as its file has it, but for a fading seed beyond 2^53, which is a text.

Every result depends on the counts and the settings alone, not on what was computed before. It agrees with `wdmoe
replay`: uniform and measured to rounding, optimal of scope layer to 1e-9, optimal of scope pass to the gap of 1e-7 that
both prove (per pass; single layers of a pass can differ by more where several splits are equally good).
*/
(function (root) {
  "use strict";

  const ACTIVATION_FLOPS = 4; // eta of Eq. (5), our choice, as in latency.py
  const SMALL_SNR = 1e-4; // below it log1p(u) - u / (1 + u) loses digits and is taken from its series
  const SPLIT_STEPS = 100;
  const SPLIT_TOLERANCE = 1e-9; // Newton squares it in the step that meets it
  const LAYER_STEPS = 100;
  const FIRST_GUESS_STEPS = 3;
  const LAYER_GAP = 1e-10; // a tenth of what is promised; latencies are shown with far fewer digits
  const LARGEST_LOG_STEP = 3;
  const PASS_STEPS = 100;
  const PASS_GAP = 1e-7;
  const MIN_PRODUCT = 4e-12; // of a slack and its multiplier; with smaller ones the bound loses digits
  const CENTRING = 0.1;
  const TO_BOUNDARY = 0.999;
  const SHARE_TO_BOUNDARY = 0.7;
  const ACCEPTED_GAP = { layer: 1e-9, pass: 1e-6 };
  const ROUNDING = 1e-12; // a lower bound above the upper one by more is no bound
  const TOGETHER = 1e-6; // relative difference of finish times that count as equal
  const TINY = 1e-300; // keeps a division by 0 finite
  const PHASES = ["prefill", "decode"];
  const ALLOCATIONS = ["uniform", "optimal"];
  const SCOPES = ["layer", "pass"];
  const DUPLEX_MODES = ["shared", "frequency_division"];
  const FADING_MODELS = ["none", "rayleigh"];
  const RATES = ["physical", "measured"];
  const ARRAYS = {
    uint8: Uint8Array,
    uint16: Uint16Array,
    uint32: Uint32Array,
    int32: Int32Array,
    float64: Float64Array,
  };

  const PATH_LOSS_MODELS = {
    free_space: (distance_m, frequency_hz) => 32.4 + 20 * Math.log10(frequency_hz / 1e9) + 20 * Math.log10(distance_m),
  };

  const limits = {
    total_bandwidth_hz: { above: 0, least: 1, most: 1e15, unit: "Hz" },
    payload_bits: { least: 1, most: 64, whole: true, unit: "bit" },
    distance_m: { above: 0, least: 1e-4, most: 1e14, unit: "m" },
    transmit_power_w: { above: 0, least: 1e-12, most: 1e9, unit: "W" },
  };
  const DEVICE_KEYS = ["distance_m", "transmit_power_w"];
  const PROFILE_KEYS = ["total_bandwidth_hz", "payload_bits"];

  // ---- Counts -------------------------------------------------------------------------------------------------

  function decoded(packed) {
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
    for (const [name, one] of Object.entries(packed.datasets)) datasets[name] = loaded_dataset(name, one, packed);
    return { ...packed, run_draws: packed.run_draws ? loaded_draws(packed.run_draws) : null, datasets };
  }

  // unit exponential draws of both directions, [draws, layers or 1, devices] each; one and the same where `up` lacks
  function loaded_draws(packed) {
    const down = decoded(packed.down);
    return { down, up: packed.up ? decoded(packed.up) : down };
  }

  function loaded_dataset(name, packed, model) {
    const load = Float64Array.from(decoded(packed.load));
    const extra = packed.extra ? decoded(packed.extra) : null;
    const phase = decoded(packed.phase);
    return {
      name,
      passes: packed.passes,
      batches: packed.batches,
      layers: model.layers,
      devices: model.devices.length,
      parts: packed.parts,
      load, // [rows, devices]
      evaluations: extra ? load.map((tokens, i) => tokens + extra[i]) : load,
      row_of: packed.index ? Int32Array.from(decoded(packed.index)) : counted(packed.rows), // [passes, layers]
      batch_of: repeated(decoded(packed.passes_of_batch), packed.passes),
      first_item: decoded(packed.first_item),
      items: decoded(packed.items),
      phase,
      draws: packed.draws ? loaded_draws(packed.draws) : null,
      draw_of: packed.draw ? decoded(packed.draw) : null, // [passes]
      draws_by_layer: model.profile.fading.coherence === "layer",
      found: {}, // distinct problems, kept from one computation to the next
    };
  }

  function counted(length) {
    return Int32Array.from({ length }, (_, i) => i);
  }

  function repeated(times, total) {
    const numbers = new Int32Array(total);
    let place = 0;
    times.forEach((count, number) => {
      numbers.fill(number, place, place + count);
      place += count;
    });
    return numbers;
  }

  // ---- Settings and profiles ----------------------------------------------------------------------------------

  function defaults(run) {
    const names = [...new Set(run.models.flatMap((model) => model.devices))];
    const devices = names.map((name) => ({ name, distance_m: null, transmit_power_w: null }));
    const nothing = { total_bandwidth_hz: null, payload_bits: null, fading: null };
    return { ...nothing, allocation: "optimal", scope: "layer", devices };
  }

  function own(run, number = 0) {
    const { profile } = run.models[number];
    return {
      ...defaults(run),
      total_bandwidth_hz: profile.total_bandwidth_hz,
      payload_bits: profile.payload_bits,
      fading: profile.fading.model !== "none",
      devices: profile.devices.map((one) => Object.fromEntries(["name", ...DEVICE_KEYS].map((key) => [key, one[key]]))),
    };
  }

  function check_settings(settings) {
    check_choice("allocation", settings.allocation, ALLOCATIONS);
    check_choice("scope", settings.scope, SCOPES);
    if (![null, true, false].includes(settings.fading ?? null)) {
      throw new Error(`fading must be one of true, false or null, got ${settings.fading}`);
    }
    for (const key of PROFILE_KEYS) check_number(key, settings[key], limits[key]);
    for (const device of settings.devices ?? []) {
      for (const key of DEVICE_KEYS) check_number(`${key} of ${device.name}`, device[key], limits[key]);
    }
  }

  function check_choice(key, value, choices) {
    if (!choices.includes(value)) throw new Error(`${key} must be one of ${choices.join(", ")}, got ${value}`);
  }

  function check_number(key, value, limit) {
    if (value === null || value === undefined) return;
    if (typeof value !== "number" || !Number.isFinite(value)) throw new Error(`${key} must be a number, got ${value}`);
    if (value <= limit.above) throw new Error(`${key} must be > ${limit.above}, got ${value}`);
    if (value < limit.least || value > limit.most) {
      throw new Error(`${key} must be between ${limit.least} and ${limit.most}, got ${value}`);
    }
    if (limit.whole && !Number.isInteger(value)) throw new Error(`${key} must be a whole number, got ${value}`);
  }

  function changed_profile(run, model, settings) {
    check_settings(settings);
    const found = typeof model === "number" ? run.models[model] : run.models.find((one) => one.abbr === model);
    if (!found) throw new Error(`the run has no model ${model}`);
    return with_changes(found.profile, settings);
  }

  // nobody receives more than is sent, whatever a path-loss formula of the far field says near the antenna
  function check_mean_gains(profile) {
    if (profile.rates === "measured") return;
    const of_amplitude = profile.fading.model === "none" ? 1 : 4 / Math.PI;
    for (const { name, distance_m } of profile.devices) {
      const loss_db = PATH_LOSS_MODELS[profile.path_loss](distance_m, profile.carrier_frequency_hz);
      if (of_amplitude * 10 ** (-loss_db / 10) > 1) {
        throw new Error(`distance_m of ${name} must be farther for a mean power gain of at most 1, got ${distance_m}`);
      }
    }
  }

  function with_changes(own_profile, settings) {
    const profile = JSON.parse(JSON.stringify(own_profile));
    for (const key of PROFILE_KEYS) profile[key] = settings[key] ?? profile[key];
    if (settings.fading === false) profile.fading.model = "none";
    const changes = new Map((settings.devices ?? []).map((device) => [device.name, device]));
    for (const device of profile.devices) {
      for (const key of DEVICE_KEYS) device[key] = changes.get(device.name)?.[key] ?? device[key];
    }
    check_mean_gains(profile);
    return profile;
  }

  const WHY_NOT = {
    measured: "the profile's rates are measured: there is no bandwidth to split, no path and no fading",
    no_fading: "the profile has no fading",
    uniform: "the uniform allocation is the same in both scopes",
    one_device: "there is only one device",
  };

  function why_not(key, profile, settings) {
    if (key === "payload_bits") return null;
    if (profile.rates === "measured") return WHY_NOT.measured;
    if (key === "fading" && profile.fading.model === "none") return WHY_NOT.no_fading;
    if (["allocation", "scope"].includes(key) && profile.devices.length === 1) return WHY_NOT.one_device;
    return key === "scope" && settings?.allocation === "uniform" ? WHY_NOT.uniform : null;
  }

  function applicable(run, settings = null) {
    const keys = [...PROFILE_KEYS, ...DEVICE_KEYS, "fading", "allocation", "scope"];
    return Object.fromEntries(keys.map((key) => [key, applicability(run, key, settings)]));
  }

  function applicability(run, key, settings) {
    const reasons = run.models.map((model) => why_not(key, model.profile, settings));
    const applies = reasons.some((reason) => reason === null);
    const distinct = [...new Set(reasons.filter((reason) => reason !== null))];
    if (!applies) return { applies, reason: distinct.join("; ") };
    const lines = distinct.map((reason) => {
      const abbrs = run.models.filter((_, i) => reasons[i] === reason).map((model) => model.abbr);
      return `changes nothing for ${abbrs.join(", ")}: ${reason}`;
    });
    return { applies, reason: lines.join("; ") };
  }

  // ---- Origins, as in channel/origin.py -----------------------------------------------------------------------

  const OWN = "own";
  const ORIGINS = {
    paper: "from the paper",
    fitted: "fitted to the paper's Table II",
    assumption: "assumption",
    computed: "computed by wdmoe place",
    measured: "measured by wdmoe testbed measure",
  };
  const ORIGIN_NAMES = { ...ORIGINS, [OWN]: "own" };
  const NO_VALUES = new Set(["name", "rates", "origin"]);
  const NOT_READ_IF_MEASURED = new Set([
    "carrier_frequency_hz",
    "total_bandwidth_hz",
    "noise_psd_dbm_per_hz",
    "path_loss",
    "duplex",
  ]);
  const NOT_READ_WITHOUT_FADING = new Set(["fading.coherence", "fading.seed"]);
  const MAX_RANGES = 6;
  const DEVICE_PATH = /^devices\[(\d{1,7})\]\.(\w+)$/;

  function origin_sentence(profile) {
    const found = new Map(Object.keys(ORIGIN_NAMES).map((word) => [word, new Set()]));
    const numbers = new Map(); // "key of a device, word" -> numbers of devices
    for (const [path, value] of profile_values(profile)) {
      const word = origin_of(profile.origin ?? {}, path, value);
      const [, number, name] = DEVICE_PATH.exec(path) ?? [];
      found.get(word).add(name ? `devices.${name}` : path);
      if (!name) continue;
      const key = `${name},${word}`;
      if (!numbers.has(key)) numbers.set(key, []);
      numbers.get(key).push(Number(number));
    }
    const words = [...found].filter(([, keys]) => keys.size);
    if (words.length === 1) return `${ORIGIN_NAMES[words[0][0]]}: every value`;
    const named = (key, word) => (key.startsWith("devices.") ? of_devices(key.slice(8), word, numbers) : key);
    return words
      .map(([word, keys]) => `${ORIGIN_NAMES[word]}: ${[...keys].map((key) => named(key, word)).join(", ")}`)
      .join("; ");
  }

  function profile_values(profile) {
    const values = Object.entries(profile).flatMap(([key, value]) => {
      if (key === "devices") {
        return value.flatMap((device, number) =>
          Object.entries(device)
            .filter(([name]) => name !== "name")
            .map(([name, held]) => [`devices[${number}].${name}`, held]),
        );
      }
      if (typeof value !== "object" || NO_VALUES.has(key)) return [[key, value]];
      return Object.entries(value)
        .filter(([, held]) => typeof held !== "object" || Object.keys(held).length)
        .map(([name, held]) => [`${key}.${name}`, held]);
    });
    return values.filter(([path]) => is_read(path, profile));
  }

  function is_read(path, profile) {
    if (NO_VALUES.has(path)) return false;
    if (profile.rates === "measured") {
      if (NOT_READ_IF_MEASURED.has(path) || path.startsWith("fading.") || path.endsWith("].distance_m")) return false;
    }
    return profile.fading.model !== "none" || !NOT_READ_WITHOUT_FADING.has(path);
  }

  function origin_of(origin, path, value) {
    const latest_first = Object.keys(ORIGINS).reverse();
    return latest_first.find((word) => is_stated(origin[word] ?? {}, path, value)) ?? OWN;
  }

  function is_stated(statements, path, value) {
    const match = Object.hasOwn(statements, path) ? null : DEVICE_PATH.exec(path);
    let stated = statements[match ? `devices[*].${match[2]}` : path];
    if (match && Array.isArray(stated)) stated = stated[Number(match[1])];
    if (typeof value !== "object" || typeof stated !== "object") return stated === value;
    const keys = Object.keys(value);
    return keys.length === Object.keys(stated).length && keys.every((key) => stated[key] === value[key]);
  }

  function of_devices(name, word, numbers) {
    const words = Object.keys(ORIGIN_NAMES).filter((one) => numbers.has(`${name},${one}`));
    if (words.length === 1) return `devices[*].${name}`;
    const own_numbers = numbers.get(`${name},${word}`);
    const ranges = [];
    for (const number of own_numbers) {
      const last = ranges.at(-1);
      if (last && last[1] === number - 1) last[1] = number;
      else ranges.push([number, number]);
    }
    if (ranges.length > MAX_RANGES) {
      const all = words.reduce((count, one) => count + numbers.get(`${name},${one}`).length, 0);
      return `devices[${own_numbers.length} of ${all}].${name}`;
    }
    const listed = ranges.map(([from, to]) => (from === to ? String(from) : `${from}-${to}`)).join(",");
    return `devices[${listed}].${name}`;
  }

  // ---- YAML ---------------------------------------------------------------------------------------------------

  const WHOLE_NUMBERS = new Set(["payload_bits", "seed", "fading.seed"]);

  function to_yaml(profile) {
    const { name, ...content } = profile; // a profile is named by its file
    return yaml_lines(content, "").join("\n") + "\n";
  }

  function yaml_lines(mapping, indent) {
    return Object.entries(mapping).flatMap(([key, value]) => yaml_entry(yaml_key(key), key, value, indent));
  }

  function yaml_entry(written, key, value, indent) {
    if (Array.isArray(value) && value.some((item) => item !== null && typeof item === "object")) {
      return [`${indent}${written}:`, ...value.flatMap((item) => yaml_item(item, indent))];
    }
    if (Array.isArray(value)) {
      return [`${indent}${written}: [${value.map((item) => yaml_scalar(key, item)).join(", ")}]`];
    }
    if (typeof value !== "object") return [`${indent}${written}: ${yaml_scalar(key, value)}`];
    const lines = yaml_lines(value, indent + "  ");
    return lines.length ? [`${indent}${written}:`, ...lines] : [`${indent}${written}: {}`];
  }

  function yaml_item(mapping, indent) {
    const [first, ...others] = yaml_lines(mapping, indent + "    ");
    return [`${indent}  - ${first.trimStart()}`, ...others];
  }

  function yaml_key(key) {
    return /^\w+$/.test(key) ? key : JSON.stringify(key); // placement.experts has numbers as keys
  }

  function yaml_scalar(key, value) {
    if (WHOLE_NUMBERS.has(key)) return String(value); // a seed beyond 2^53 is kept as text
    if (typeof value !== "number") return JSON.stringify(value);
    const text = String(value); // YAML 1.1 takes 1e-7 for a text, 1.0e-7 for a number
    const [digits, exponent] = text.split("e");
    const fraction = digits.includes(".") ? digits : digits + ".0";
    return exponent ? `${fraction}e${exponent}` : fraction;
  }

  // ---- One token on one device, Eq. (2) to (8) ----------------------------------------------------------------

  const VALUE = 0;
  const SLOPE = 1;
  const CURVATURE = 2;
  const SPLIT = 3; // of frequency division: the downlink's share, and where its search begins
  const down_curve = new Float64Array(4);
  const up_curve = new Float64Array(4);

  // 1 / (b ln(1 + snr / b)) and its derivatives in b: convex and falling; without a curvature that was not asked for
  function one_direction(snr, bandwidth, out, curvature) {
    const u = snr / bandwidth;
    const log = u > 0.5 ? Math.log(1 + u) : Math.log1p(u);
    const ratio = u / (1 + u);
    const rate_slope = u < SMALL_SNR ? u * u * (0.5 - u * (2 / 3 - 0.75 * u)) : log - ratio;
    const inverse = 1 / (bandwidth * log);
    const square = inverse * inverse;
    out[VALUE] = inverse;
    out[SLOPE] = -rate_slope * square;
    if (curvature) out[CURVATURE] = (2 * rate_slope * rate_slope * inverse + (ratio * ratio) / bandwidth) * square;
  }

  function both_directions(duplex, snr_down, snr_up, bandwidth, out, curvature) {
    if (duplex === "frequency_division") {
      divided_directions(snr_down, snr_up, bandwidth, out);
      return;
    }
    one_direction(snr_down, bandwidth, out, curvature);
    one_direction(snr_up, bandwidth, up_curve, curvature);
    out[VALUE] += up_curve[VALUE];
    out[SLOPE] += up_curve[SLOPE];
    if (curvature) out[CURVATURE] += up_curve[CURVATURE];
  }

  // least sum of two convex functions under a common budget: slopes agree, curvatures add like resistances
  function divided_directions(snr_down, snr_up, bandwidth, out) {
    out[SPLIT] = downlink_share(snr_down, snr_up, bandwidth, out[SPLIT] || 0.5);
    one_direction(snr_down, out[SPLIT] * bandwidth, down_curve, true);
    one_direction(snr_up, (1 - out[SPLIT]) * bandwidth, up_curve, true);
    out[VALUE] = down_curve[VALUE] + up_curve[VALUE];
    out[SLOPE] = 0.5 * (down_curve[SLOPE] + up_curve[SLOPE]);
    const sum = down_curve[CURVATURE] + up_curve[CURVATURE];
    out[CURVATURE] = (down_curve[CURVATURE] * up_curve[CURVATURE]) / sum;
  }

  function downlink_share(snr_down, snr_up, bandwidth, start) {
    let low = 0;
    let high = 1;
    let share = start;
    for (let step = 0; step < SPLIT_STEPS; step++) {
      one_direction(snr_down, share * bandwidth, down_curve, true);
      one_direction(snr_up, (1 - share) * bandwidth, up_curve, true);
      const excess = up_curve[SLOPE] - down_curve[SLOPE]; // > 0: the downlink is the one to gain more
      if (excess > 0) low = share;
      else high = share;
      let moved = share + excess / ((down_curve[CURVATURE] + up_curve[CURVATURE]) * bandwidth);
      if (!(moved > low && moved < high)) moved = 0.5 * (low + high);
      const change = Math.abs(moved - share);
      share = moved;
      if (change <= SPLIT_TOLERANCE * Math.min(share, 1 - share)) break;
    }
    return share;
  }

  function expert_flop(hidden_size, ffn_size) {
    const per_hidden_value = 4 * hidden_size * ffn_size + 2 * ffn_size * hidden_size; // Eq. (5)
    return per_hidden_value + ACTIVATION_FLOPS * ffn_size + ffn_size;
  }

  // What the times of a dataset depend on besides its counts. Bandwidth is a share of the total; `unit_s` turns the
  // curves' values into seconds per token.
  function radio_of(model, dataset, profile) {
    const payload_bit = profile.payload_bits * model.hidden_size; // Eq. (4)
    const flop = expert_flop(model.hidden_size, model.ffn_size);
    const radio = {
      devices: profile.devices.length,
      duplex: profile.duplex,
      computation_s: Float64Array.from(profile.devices, (device) => flop / device.compute_flops),
      unit_s: (payload_bit * Math.LN2) / profile.total_bandwidth_hz,
      measured: profile.rates === "measured" ? measured_link(profile, payload_bit) : null,
    };
    if (!radio.measured) set_snr(radio, profile, power_gains(model, dataset, profile));
    return radio;
  }

  function measured_link(profile, payload_bit) {
    const { devices, base_station } = profile;
    return {
      token_s: devices.map((one) => payload_bit / one.downlink_bit_per_s + payload_bit / one.uplink_bit_per_s),
      fixed_s: devices.map((one) => one.fixed_s ?? 0),
      burst: devices.map((one) => (one.burst_bit ?? 0) / payload_bit),
      message_s: base_station.message_s ?? 0,
      shared_token_s: base_station.shared_bit_per_s ? (2 * payload_bit) / base_station.shared_bit_per_s : 0,
    };
  }

  // {down, up}: [draws, devices] each; one row where the channel is one for all passes
  function power_gains(model, dataset, profile) {
    const path_loss_db = PATH_LOSS_MODELS[profile.path_loss];
    if (!path_loss_db) throw new Error(`path-loss model ${profile.path_loss} is not known to this page`);
    const amplitude = profile.devices.map((device) => {
      return 10 ** (-path_loss_db(device.distance_m, profile.carrier_frequency_hz) / 20);
    });
    if (profile.fading.model === "none") {
      const without_fading = Float64Array.from(amplitude, (a) => a * a);
      return { down: without_fading, up: without_fading };
    }
    const gain = (draw, i) => ((4 * amplitude[i % amplitude.length] ** 2) / Math.PI) * draw;
    const { down, up } = dataset.draws ?? model.run_draws;
    return { down: down.map(gain), up: up.map(gain) };
  }

  function set_snr(radio, profile, gains) {
    const noise_w = (10 ** (profile.noise_psd_dbm_per_hz / 10) / 1000) * profile.total_bandwidth_hz;
    const { devices } = profile;
    radio.down = gains.down.map((gain) => (profile.base_station.transmit_power_w * gain) / noise_w);
    radio.up = gains.up.map((gain, i) => (devices[i % devices.length].transmit_power_w * gain) / noise_w);
    radio.even_value = new Float64Array(gains.down.length); // of the even split
    radio.even_slope = new Float64Array(gains.down.length);
    const out = new Float64Array(4);
    for (let i = 0; i < gains.down.length; i++) {
      out[SPLIT] = 0.5;
      both_directions(radio.duplex, radio.down[i], radio.up[i], 1 / devices.length, out, false);
      radio.even_value[i] = out[VALUE];
      radio.even_slope[i] = out[SLOPE];
    }
  }

  // ---- Distinct problems --------------------------------------------------------------------------------------

  // A layer of a pass is known by its row of counts and its draw of the channel.
  function layer_problems(dataset, varying) {
    const key = varying ? "varying_layers" : "layers";
    dataset.found[key] ??= varying ? distinct_layers(dataset) : constant_layers(dataset);
    return dataset.found[key];
  }

  function constant_layers(dataset) {
    const count = dataset.load.length / dataset.devices;
    return { count, row: counted(count), draw: new Int32Array(count), of: dataset.row_of };
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

  // ---- Solutions ----------------------------------------------------------------------------------------------

  // -> {finish: [cells, devices] seconds until each device has answered, of: [passes, layers] cells, gap, accepted}
  function solved(model, dataset, profile, settings) {
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
      const place = layers.row[problem] * devices + device;
      const token = even_value[layers.draw[problem] * devices + device] * unit_s;
      finish[i] = dataset.load[place] * token + dataset.evaluations[place] * computation_s[device];
    }
    return { finish, of: layers.of, gap: 0, accepted: 0 };
  }

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

  // NaN, and a lower bound above the upper one, are no proof at all
  function worse(gap, other) {
    return other >= -ROUNDING ? Math.max(gap, other) : Infinity;
  }

  // ---- Optimal split of one layer -----------------------------------------------------------------------------

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
        const place = row * devices + k;
        if (!(dataset.load[place] > 0)) continue;
        const at = draw * devices + k;
        const weight = dataset.load[place] * unit_s;
        this.add(k, weight, dataset.evaluations[place] * computation_s[k]);
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

    write_finish(finish, place) {
      for (let n = 0; n < this.count; n++) finish[place + this.device[n]] = this.finish[n] * this.unit_s;
    }
  }

  function normalise(share, count) {
    let sum = 0;
    for (let n = 0; n < count; n++) sum += share[n];
    for (let n = 0; n < count; n++) share[n] /= sum;
  }

  // ---- Optimal split of a whole pass --------------------------------------------------------------------------

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
        const place = problems.row[problem] * devices;
        let busy = false;
        for (let n = 0; n < this.count; n++) {
          const k = this.device[n];
          const cell = this.rows * this.count + n;
          this.weight[cell] = dataset.load[place + k] * unit_s;
          this.fixed[cell] = dataset.evaluations[place + k] * computation_s[k];
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
      this.least_gap = Math.max(MIN_PRODUCT * this.active, 0.2 * PASS_GAP);
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
      const accepted = Math.max(PASS_GAP, 3 * this.least_gap);
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
      const aim = Math.max(CENTRING * products, this.least_gap) / this.active;
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
        const place = start + this.layer[i] * this.radio.devices;
        for (let n = 0; n < this.count; n++) {
          finish[place + this.device[n]] = this.best_finish[i * this.count + n] * this.unit_s;
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

  // ---- Results ------------------------------------------------------------------------------------------------

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
      const part_of = repeated(
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
          return new DatasetResult(dataset, solved(model, dataset, this.profile, settings));
        });
      }
    }

    results_of(name) {
      const found = (Object.hasOwn(this.groups, name) ? this.groups[name] : [name]).map((dataset) => this.datasets[dataset]);
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

  const known = {
    path_loss: Object.keys(PATH_LOSS_MODELS),
    duplex: DUPLEX_MODES,
    fading: FADING_MODELS,
    rates: RATES,
    scopes: SCOPES,
    allocations: ALLOCATIONS,
    phases: PHASES,
  };
  const WdmoeEngine = {
    load,
    defaults,
    own,
    limits,
    known,
    applicable,
    compute,
    pooled_mean,
    changed_profile,
    origin_sentence,
    to_yaml,
  };
  root.WdmoeEngine = WdmoeEngine;
  if (typeof module !== "undefined" && module.exports) module.exports = WdmoeEngine;
})(typeof globalThis !== "undefined" ? globalThis : this);
