// ---- controls

const DEVICE_KEYS = ["distance_m", "transmit_power_w"];
const applicable = () => WdmoeEngine.applicable(run, { ...settings, allocation: "optimal" });

/** What differs from the run's own profile, in words. */
function changes() {
  const found = [];
  if (settings.total_bandwidth_hz !== null)
    found.push(`total bandwidth ${exact(settings.total_bandwidth_hz / 1e6)} MHz`);
  if (settings.payload_bits !== null) found.push(`payload ${settings.payload_bits} bit`);
  if (settings.fading === false) found.push("no fading");
  for (const device of settings.devices) {
    if (device.distance_m !== null) found.push(`${device.name} at ${exact(device.distance_m)} m`);
    if (device.transmit_power_w !== null) found.push(`${device.name} with ${exact(device.transmit_power_w)} W`);
  }
  return found;
}

const isOwn = () => changes().length === 0;

function choice(id, name, values, key) {
  const label = el("span", { class: "name", id: `${id}-name` }, name);
  byId(id).setAttribute("role", "radiogroup");
  byId(id).setAttribute("aria-labelledby", `${id}-name`);
  replace(
    id,
    label,
    Object.entries(values).map(([value, text]) =>
      el(
        "label",
        {},
        el("input", {
          type: "radio",
          name: key,
          value,
          checked: view[key] === value,
          onchange: () => {
            view[key] = value;
            refresh();
          },
        }),
        text,
      ),
    ),
  );
}

/** A slider and a number for one value; set: takes the number in SI units. */
function slider(id, name, unit, scale, least, most, step, set) {
  const range = el("input", {
    type: "range",
    min: least,
    max: most,
    step,
    id: `${id}-range`,
    "aria-label": `${name} in ${unit}, slider`,
  });
  const number = el("input", { type: "number", min: step, step, id: `${id}-number`, "data-last": "" });
  const wrong = el("p", { class: "wrong", role: "alert", id: `${id}-wrong` });
  range.addEventListener("input", () => {
    number.value = range.value;
    take(number, wrong, name, unit, scale, set);
  });
  number.addEventListener("input", () => {
    if (take(number, wrong, name, unit, scale, set)) range.value = number.value;
  });
  const label = el("label", { for: `${id}-number` }, `${name} (${unit})`);
  replace(id, el("div", { class: "head" }, label, number), wrong, range);
  return {
    range,
    number,
    show: (value) => {
      if (known(value)) range.value = number.value = number.dataset.last = exact(value / scale);
      markRight(number, wrong);
    },
  };
}

const wrongs = new Map(); // field -> why its value is invalid

/** Say below the fields why their values are invalid. */
function sayWrong(message) {
  const own_ = [...wrongs].filter(([, { at: its }]) => its === message);
  message.replaceChildren(...own_.map(([, { text }]) => el("span", {}, text)));
}

function markWrong(field, message, text) {
  wrongs.set(field, { at: message, text });
  field.setAttribute("aria-invalid", "true");
  field.setAttribute("aria-describedby", message.id);
  sayWrong(message);
}

function markRight(field, message) {
  wrongs.delete(field);
  field.removeAttribute("aria-invalid");
  field.removeAttribute("aria-describedby");
  sayWrong(message);
}

/** Use a field's value; -> whether it is valid. An invalid value stays there, marked, and the last one still counts. */
function take(field, message, name, unit, scale, set) {
  const before = structuredClone(settings),
    value = field.value === "" ? NaN : Number(field.value) * scale;
  try {
    if (Number.isNaN(value)) throw new Error("value must be a number");
    set(value);
    WdmoeEngine.changed_profile(run, 0, settings);
  } catch (error) {
    settings = before;
    const why = error.message.replace(/^\S+( of .*?)? must/, "must").replace(/, got .*$/, "");
    markWrong(field, message, `${name}: ${inUnit(why, scale)}; still using ${field.dataset.last} ${unit}.`);
    return false;
  }
  field.dataset.last = exact(value / scale);
  markRight(field, message);
  refresh();
  return true;
}

/** The engine's sentence with its numbers as the field has them. */
const inUnit = (text, scale) =>
  text.replace(/-?\d[\d.e+-]*/gi, (number) => (scale === 1 ? number : exact(Number(number) / scale)));

const several = new Set(facts.models.map((model) => model.profile_hash).filter(Boolean)).size > 1; // profiles
/** If models have their own profiles: which values count, and which profile is saved. */
function drawProfiles() {
  byId("profiles-note").hidden = !several || !run.models.length;
  if (byId("profiles-note").hidden) return;
  const names = [...new Set(run.models.map((model) => model.profile.name))];
  const { profile } = run.models.find((model) => model.abbr === view.model) ?? run.models[0];
  byId("profiles-note").textContent = [
    `This run has several profiles (${names.join(", ")}). The controls begin with ${run.models[0].abbr}'s values, but`,
    "each model keeps its own until a control is moved; its value then holds for all of them.",
    `Save writes ${profile.name}, the profile of ${view.model}, which is chosen under "One benchmark in detail".`,
  ].join(" ");
}

const same = (value, of) => (value === of ? null : value); // back at the run's own: no change
let sliders = {};
let deviceFields = [];

function makeControls() {
  byId("caveat").textContent =
    `What would the recorded run wait under another channel? The ${facts.caveat}: the experts that each token kept stay as they were, so no answer and no accuracy changes with these controls.${run.models.length ? "" : " This run left no trace that the page can read: nothing follows them."}`;
  choice("choose-per", "mean", { batch: "per batch", pass: "per pass" }, "per");
  choice("choose-phase", "phase", { all: "all", prefill: "prefill", decode: "decode" }, "phase");
  choice("choose-allocation", "split", { uniform: "even", optimal: "optimal" }, "allocation");
  choice("choose-scope", "scope", { layer: "layer", pass: "pass (hindsight)" }, "scope");
  byId("choose-allocation").title = "of heat maps, frontier and map; tables and figures of Table II show both";
  const bandwidthMost = Math.max(200, (2 * (first.total_bandwidth_hz ?? 0)) / 1e6);
  sliders.total = slider("total", "total bandwidth", "MHz", 1e6, 1, bandwidthMost, 1, (value) => {
    settings.total_bandwidth_hz = several ? value : same(value, first.total_bandwidth_hz);
  });
  sliders.payload = slider("payload", "payload", "bit per value", 1, 1, 32, 1, (value) => {
    settings.payload_bits = several ? value : same(value, first.payload_bits);
  });
  byId("fading").addEventListener("change", (event) => {
    settings.fading = event.target.checked ? null : false;
    refresh();
  });
  deviceFields = [];
  const rows = settings.devices.map((device, position) => {
    const start = first.devices.find((other) => other.name === device.name) ?? device;
    const fields = DEVICE_KEYS.map((key) => {
      const words = key === "distance_m" ? "distance in metres" : "transmit power in watts";
      const step = key === "distance_m" ? 5 : 0.05; // of the arrow keys; any other value can be typed
      const field = el("input", {
        type: "number",
        min: step,
        step,
        "aria-label": `${device.name}, ${words}`,
        "data-device": device.name,
        "data-key": key,
      });
      field.addEventListener("input", () =>
        take(
          field,
          byId("devices-wrong"),
          `${device.name}, ${words.split(" in ")[0]}`,
          key === "distance_m" ? "m" : "W",
          1,
          (value) => {
            settings.devices[position][key] = several ? value : same(value, start[key]);
          },
        ),
      );
      deviceFields.push({ field, position, key, start: start[key] });
      return field;
    });
    return el("div", { class: "device-row" }, el("span", { class: "name", title: device.name }, device.name), fields);
  });
  replace(
    "device-controls",
    el(
      "div",
      { class: "device-row head", "aria-hidden": "true" },
      el("span", {}, "device"),
      el("span", {}, "m"),
      el("span", {}, "W"),
    ),
    rows,
  );
  byId("reset").addEventListener("click", reset);
  byId("save").addEventListener("click", save);
  byId("settings").addEventListener("submit", (event) => event.preventDefault());
  showSettings();
}

/** Put the settings into the controls; those that do nothing are disabled, with the reason. */
function showSettings() {
  const may = applicable();
  sliders.total.show(settings.total_bandwidth_hz ?? first.total_bandwidth_hz);
  sliders.payload.show(settings.payload_bits ?? first.payload_bits);
  byId("fading").checked = settings.fading !== false && may.fading.applies;
  const gate = (nodes, { applies, reason }) =>
    nodes.forEach((node) => {
      node.disabled = !applies || !run.models.length;
      node.title = reason;
    });
  for (const node of byId("settings").querySelectorAll("input, button")) node.disabled = !run.models.length;
  gate([sliders.total.range, sliders.total.number], may.total_bandwidth_hz);
  gate([sliders.payload.range, sliders.payload.number], may.payload_bits);
  gate([byId("fading")], may.fading);
  gate([...byId("choose-scope").querySelectorAll("input")], may.scope);
  gate([...byId("choose-allocation").querySelectorAll("input")], may.allocation);
  for (const { field, position, key, start } of deviceFields) {
    gate([field], may[key]);
    field.value = field.dataset.last = exact(settings.devices[position][key] ?? start ?? 0);
    markRight(field, byId("devices-wrong"));
  }
  byId("fading-why").textContent = may.fading.reason;
  byId("devices-why").textContent = [
    ...new Set([may.total_bandwidth_hz, may.distance_m, may.scope].map((control) => control.reason).filter(Boolean)),
  ].join("; ");
}

function reset() {
  settings = structuredClone(own);
  Object.assign(view, facts.shown, { allocation: "optimal" });
  for (const radio of byId("settings").querySelectorAll("input[type=radio]"))
    radio.checked = view[radio.name] === radio.value;
  showSettings();
  refresh();
}

function save() {
  const profile = changedProfile(),
    head = `# ${profile.name}${isOwn() ? "" : `, changed: ${changes().join(", ")}`}\n`;
  const text = head.replace(/[^\x20-\x7e\n]/g, "?") + WdmoeEngine.to_yaml(profile);
  const link = el("a", {
    href: URL.createObjectURL(new Blob([text], { type: "application/yaml" })),
    download: `${profile.name}${isOwn() ? "" : "_what_if"}.yaml`,
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function drawState() {
  const different = changes(),
    changedNow = different.length > 0;
  byId("state").textContent = changedNow
    ? `${different.length} change${different.length > 1 ? "s" : ""}`
    : "the run's own";
  byId("controls").classList.toggle("changed", changedNow);
  byId("announce").classList.toggle("changed", changedNow);
  drawProfiles();
  byId("announce").textContent = changedNow
    ? `What if: ${shorten(different.join(", "), 200)}. These latencies are not the run's own; ${facts.caveat}, and ` +
      "accuracy stays as measured."
    : "Every number here is the run's own, as in its tables. The controls ask what it would have waited under " +
      "another channel.";
}
