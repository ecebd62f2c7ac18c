// ---- where a profile's values come from, as in channel/origin.py

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
  const words = Object.keys(ORIGIN_NAMES).filter((key) => numbers.has(`${name},${key}`));
  if (words.length === 1) return `devices[*].${name}`;
  const own_numbers = numbers.get(`${name},${word}`);
  const ranges = [];
  for (const number of own_numbers) {
    const last = ranges.at(-1);
    if (last && last[1] === number - 1) last[1] = number;
    else ranges.push([number, number]);
  }
  if (ranges.length > MAX_RANGES) {
    const all = words.reduce((count, key) => count + numbers.get(`${name},${key}`).length, 0);
    return `devices[${own_numbers.length} of ${all}].${name}`;
  }
  const listed = ranges.map(([from, to]) => (from === to ? String(from) : `${from}-${to}`)).join(",");
  return `devices[${listed}].${name}`;
}
