// ---- where the time goes: layers x devices

const ramp = (name) => style(name).split(",").map(Number);

/** A heat map as a table: rows of layers, columns of devices. */
function heatTable(caption, devices, values, text, marked, last) {
  const low = ramp("--heat-low"),
    high = ramp("--heat-high"),
    most = Math.max(...values.flat(), 0) || 1;
  const paint = (value) => {
    const rgb = low.map((from, n) => Math.round(from + (high[n] - from) * (value / most)));
    const [r, g, b] = rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    const light = 0.2126 * r + 0.7152 * g + 0.0722 * b;
    return `background:rgb(${rgb});color:${light > 0.18 ? "#000" : "#fff"}`;
  };
  const columns = [
    { title: "layer" },
    ...devices.map((name) => ({ title: name })),
    ...(last ? [{ title: last.title, class: "text" }] : []),
  ];
  const rows = values.map((ofLayer, layer) => [
    `layer ${layer + 1}`,
    ...ofLayer.map((value, device) => ({
      content: text(value),
      class: marked?.(layer, device) ? "waits" : "",
      style: paint(value),
      "data-value": value,
    })),
    ...(last ? [{ content: last.text(layer), class: "text" }] : []),
  ]);
  return table(caption, columns, rows, "heat");
}

/** Mean over the datasets of a benchmark of [layers][devices], weighted by passes. */
function pooledLayers(results, phase, name) {
  const weights = results.map((result) => sum(Array.from(result.passes_per_batch(phase))));
  const total = sum(weights),
    parts = results.map((result) => result[name](phase));
  return total
    ? parts[0].map((ofLayer, i) =>
        Array.from(ofLayer, (_, k) => sum(parts.map((part, n) => (weights[n] * part[i][k]) / total))),
      )
    : null;
}

function chosenResults() {
  return latest[view.allocation].get(view.model)?.results_of(view.benchmark) ?? [];
}

/** Why the layers of a model on a benchmark are not shown, though its table may have a number. */
function whyNoDetail(abbr, benchmark) {
  return (recordOf("vanilla_even", abbr, benchmark) ?? recordOf("both", abbr, benchmark))
    ? (whyFixed(abbr, benchmark) ?? whyEmpty(abbr, benchmark))
    : whyEmpty(abbr, benchmark);
}

function drawLayers() {
  const results = chosenResults(),
    model = run.models.find((model) => model.abbr === view.model);
  const load = results.length ? pooledLayers(results, view.phase, "layer_device_load") : null;
  const of = `${view.model}, ${view.benchmark}, ${PHASE[view.phase]}`;
  byId("load-lead").textContent =
    "Tokens sent to each device in one layer of a forward pass, mean over the passes. Selection set it; no radio control changes it.";
  byId("time-lead").textContent =
    `Milliseconds until each device has answered all its tokens of a layer, mean over the passes, ${ALLOCATION[view.allocation]}, ${SCOPE[view.scope]}. Framed: the device that the layer waited for most often.`;
  if (!load) {
    const why = results.length ? `no ${view.phase} pass` : whyNoDetail(view.model, view.benchmark);
    for (const id of ["heat-load", "heat-time"]) replace(id, el("p", { class: "hint" }, why));
    return;
  }
  const error = errorOf(results);
  if (error) {
    scrollable("heat-load", heatTable(`Device load in tokens per pass: ${of}`, model.devices, load, short));
    replace("heat-time", el("p", { class: "hint" }, error));
    return;
  }
  const time = pooledLayers(results, view.phase, "layer_device_time_s"),
    waited = pooledLayers(results, view.phase, "waited_on");
  const most = (layer) => Math.max(...waited[layer]),
    isMost = (layer, device) => most(layer) > 0 && waited[layer][device] > most(layer) - 1e-9;
  scrollable("heat-load", heatTable(`Device load in tokens per pass: ${of}`, model.devices, load, short));
  scrollable(
    "heat-time",
    heatTable(`Device time in ms per pass: ${of}`, model.devices, time, (value) => short(1e3 * value), isMost, {
      title: "waited for",
      text: (layer) => {
        const best = model.devices.filter((_, device) => isMost(layer, device));
        return best.length > 3
          ? `${best.length} devices finish together`
          : best.length
            ? `${best.join(", ")} (${fixed(100 * most(layer), 0)} %)`
            : "none";
      },
    }),
  );
  byId("heat-time").dataset.waited = JSON.stringify(waited);
}
