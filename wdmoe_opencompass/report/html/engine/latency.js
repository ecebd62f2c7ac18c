// ---- one token on one device, Eq. (2) to (8)

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
    token_s: devices.map((device) => payload_bit / device.downlink_bit_per_s + payload_bit / device.uplink_bit_per_s),
    fixed_s: devices.map((device) => device.fixed_s ?? 0),
    burst: devices.map((device) => (device.burst_bit ?? 0) / payload_bit),
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
