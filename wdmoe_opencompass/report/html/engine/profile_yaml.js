// ---- a profile as YAML

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
