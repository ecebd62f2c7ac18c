// ---- settings, and profiles with their changes

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
    devices: profile.devices.map((device) =>
      Object.fromEntries(["name", ...DEVICE_KEYS].map((key) => [key, device[key]])),
    ),
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
  const found = typeof model === "number" ? run.models[model] : run.models.find(({ abbr }) => abbr === model);
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
