// ---- small helpers

const byId = (id) => document.getElementById(id);

/** An element with attributes and children; strings become text. */
function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "class") node.className = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "style") node.style.cssText = value;
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const replace = (id, ...children) => byId(id).replaceChildren(...children.flat().filter(Boolean));
/** For plotly.js, which reads some HTML, and %{...} in templates. */
const plain = (text) =>
  String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/%/g, "&#37;");
/** Own values of objects with untrusted keys, such as "constructor". */
const at = (object, ...keys) =>
  keys.reduce((found, key) => (found && Object.hasOwn(found, key) ? found[key] : undefined), object);
const shorten = (text, letters) => (text.length > letters ? `${text.slice(0, letters - 1)}…` : text);
const known = (value) => value !== null && value !== undefined && Number.isFinite(value);
const ms = (seconds) => fixed(1e3 * seconds, 3);
const signed = (value, digits = 1) => `${value < 0 ? "−" : "+"}${fixed(Math.abs(value), digits)}`;
const styles = new Map(); // asking the browser makes it lay out what has changed
/** A colour of the theme in use. */
function style(name) {
  const key = `${document.documentElement.dataset.theme} ${name}`;
  if (!styles.has(key)) styles.set(key, getComputedStyle(document.documentElement).getPropertyValue(name).trim());
  return styles.get(key);
}
const sum = (values) => values.reduce((total, value) => total + value, 0);
const short = (value) => (known(value) ? Number(value.toPrecision(3)).toString() : "–");
const exact = (value) => (known(value) ? Number(value.toPrecision(14)).toString() : "–"); // what somebody set

/** As Python writes a number: of two equally near, the even one. */
function fixed(value, digits) {
  const all = value.toFixed(digits + 30); // every digit of a tie
  if (!/\.\d*50{29}$/.test(all)) return value.toFixed(digits);
  const below = all.slice(0, -30).replace(/\.$/, "");
  return "02468".includes(below.at(-1)) ? below : value.toFixed(digits);
}

/** Names shortened in the middle to that many letters; different names stay different. */
function labels(names, letters) {
  const cut = (text, most) =>
    text.length > most
      ? `${text.slice(0, Math.ceil((most - 1) / 2))}…${text.slice(text.length - Math.floor((most - 1) / 2))}`
      : text;
  const found = names.map((name) => cut(name, letters));
  const unlike = new Map(found.map((text) => [text, new Set(names.filter((_, n) => found[n] === text))]));
  return found.map((text, n) => {
    const alike = [...unlike.get(text)];
    return alike.length > 1 ? `${alike.indexOf(names[n]) + 1}: ${text}` : text;
  });
}
