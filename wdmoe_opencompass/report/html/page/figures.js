// ---- figures (plotly)

const figures = []; // {id, draw, stale, visible}

function layoutOf(extra) {
  const ink = style("--ink"),
    line = style("--line");
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
  const narrow = window.innerWidth < 600;
  const { xaxis, yaxis, ...rest } = extra;
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: ink, family: "system-ui, sans-serif", size: narrow ? 11 : 13 },
    margin: { l: narrow ? 40 : 56, r: 12, t: 36, b: 40 },
    legend: { orientation: "h", y: 1.02, x: 0, yanchor: "bottom", maxheight: MAX_PIXELS },
    hovermode: "closest",
    xaxis: { ...axis, ...xaxis, title: xaxis?.title && { text: xaxis.title } },
    yaxis: { ...axis, ...yaxis, title: yaxis?.title && { text: yaxis.title } },
    ...rest,
  };
}

/** Words instead of a figure. */
function hint(id, text) {
  Plotly.purge(id);
  replace(id, el("p", { class: "hint" }, text));
}

function plot(id, traces, layout) {
  if (!traces.length) return hint(id, "Nothing measured to draw.");
  if (byId(id).querySelector(":scope > .hint")) byId(id).replaceChildren();
  const width = printing ? PAPER_PIXELS : byId(id).clientWidth,
    height = Math.max(heightOf(id, traces, width, layout.xaxis?.tickangle ? TALL_TICKS : 0), layout.height ?? 0);
  const config = { displaylogo: false, displayModeBar: false };
  Plotly.react(id, traces, { ...layoutOf(layout), width, height }, config);
  for (let grown = height, step = 0; step < 3; step++) {
    const lacks = leastPlot() - byId(id)._fullLayout._size.h; // a longer legend than it was taken for
    if (lacks <= 0) break;
    grown += Math.ceil(lacks) + 4;
    Plotly.relayout(id, { height: grown });
  }
}

const MAX_PIXELS = 20000; // of a legend: none is cut or scrolled
const TALL_TICKS = 90; // of upright tick labels
const leastPlot = () => (window.innerWidth < 600 ? 220 : 260);

/** Layout of a figure with as many legend rows as it needs. */
function heightOf(id, traces, width, ticks) {
  const names = traces.filter((trace) => trace.showlegend !== false).map((trace) => trace.name.length);
  const columns = Math.max(1, Math.floor((width - 70) / (50 + 7.2 * Math.max(...names, 0))));
  const legend = names.length > 1 ? 21 * Math.ceil(names.length / columns) : 0;
  return Math.max(byId(id).classList.contains("tall") ? 416 : 320, leastPlot() + 85 + legend + ticks);
}

/** Figures have the width of their container; those out of view are drawn when they come into view. */
let resizing = 0;
function fitWidths() {
  clearTimeout(resizing);
  resizing = setTimeout(() => redraw(), 150);
}

const bars = (own_, low, high, ink) => ({
  type: "data",
  symmetric: false,
  array: high.map((x, n) => (known(x) ? Math.max(0, x - own_[n]) : 0)),
  arrayminus: low.map((x, n) => (known(x) ? Math.max(0, own_[n] - x) : 0)),
  thickness: 1.4,
  width: 4,
  ...(ink ? { color: ink } : {}),
});

/** The benchmarks on an axis of numbers, so that equal short names stay apart; each has its label. */
function ticks() {
  const narrow = window.innerWidth < 600,
    texts = labels(facts.benchmarks, narrow ? 14 : 18);
  const room = (0.85 * Math.min(printing ? PAPER_PIXELS : window.innerWidth, 1000)) / texts.length,
    fits = 7.5 * Math.max(...texts.map((text) => text.length)) < room;
  return {
    tickmode: "array",
    tickvals: texts.map((_, position) => position),
    ticktext: texts.map(plain),
    tickangle: fits ? 0 : -90,
    tickfont: narrow ? { size: 10 } : undefined,
    ticklabeloverflow: "allow",
    range: [-0.5, texts.length - 0.5],
    zeroline: false,
  };
}

/** Short names of rows, and the long ones for what the pointer is on. */
function named(rows) {
  const names = rows.map(([row, abbr]) => rowName(row, abbr));
  const short_ = labels(names, 44);
  return names.map((name, position) => ({ name: plain(short_[position]), extra: `<extra>${plain(name)}</extra>` }));
}

function drawAccuracyFigure() {
  const shown = facts.models.filter((model) => view.shown.has(model.abbr));
  const names = labels(
    shown.map((model) => model.abbr),
    44,
  );
  const traces = shown.map((model, position) => {
    const found = facts.benchmarks.map((benchmark) => accuracyOf(model.abbr, benchmark));
    const there = found.map((record, n) => [record, n]).filter(([record]) => record);
    const x = there.map(
        ([, n]) => n + (shown.length > 1 ? (shown.length > 4 ? 0.6 : 0.3) * (position / (shown.length - 1) - 0.5) : 0),
      ),
      y = there.map(([record]) => record.value);
    return {
      type: "scatter",
      mode: "markers",
      name: plain(names[position]),
      x,
      y,
      error_y: bars(
        y,
        there.map(([record]) => record.low),
        there.map(([record]) => record.high),
      ),
      marker: { color: modelStyle(model.abbr).colour, symbol: modelStyle(model.abbr).symbol, size: 9 },
      text: there.map(([record, n]) => {
        const bounds = bracket(record.low, record.high, (v) => fixed(v, 1)) ?? "";
        return `${plain(facts.benchmarks[n])}: ${fixed(record.value, 2)} % ${bounds}${record.items ? `, ${record.items} items` : ""}`;
      }),
      hovertemplate: `%{text}<extra>${plain(model.abbr)}</extra>`,
    };
  });
  plot(
    "figure-accuracy",
    traces.filter((trace) => trace.x.length),
    { xaxis: ticks(), yaxis: { title: "accuracy (%)", rangemode: "tozero" } },
  );
}

function drawFigure6() {
  const rows = allRows(true),
    names = named(rows),
    width = 0.84 / Math.max(1, rows.length);
  const traces = rows.map(([row, abbr], position) => {
    const base = models.get(abbr).vanilla;
    const there = facts.benchmarks
      .map((benchmark, n) => [cellOf(row, abbr, benchmark), base && cellOf("vanilla_even", base, benchmark), n])
      .filter(([cell, before]) => known(cell?.saving) && before?.latency_s && !cell.fixed === !before.fixed);
    const y = there.map(([cell, before]) => cell.latency_s / before.latency_s);
    const ratio = (name) =>
      there.map(([cell]) => (row !== "vanilla_even" && known(cell[name]) ? 1 - cell[name] : null));
    return {
      type: "bar",
      name: names[position].name,
      width,
      x: there.map(([, , n]) => n - 0.42 + (position + 0.5) * width),
      y,
      error_y: bars(y, ratio("saving_high"), ratio("saving_low"), style("--soft")),
      marker: { ...bar(styleOf(row, abbr)), opacity: there.map(([cell]) => (cell.fixed ? 0.35 : 1)) },
      text: there.map(([cell]) => short(1e3 * cell.latency_s)),
      textposition: window.innerWidth < 700 || rows.length * facts.benchmarks.length > 20 ? "none" : "outside",
      textangle: 0,
      cliponaxis: false,
      customdata: there.map(([cell, , n]) => [
        ms(cell.latency_s),
        plain(facts.benchmarks[n]),
        cell.fixed ? `, ${NOT_FOLLOWING}` : "",
      ]),
      hovertemplate: `%{customdata[1]}: %{customdata[0]} ms, %{y:.3f} of vanilla%{customdata[2]}${names[position].extra}`,
    };
  });
  plot(
    "figure-6",
    traces.filter((trace) => trace.x.length),
    { barmode: "overlay", xaxis: ticks(), yaxis: { title: "latency / vanilla_even", rangemode: "tozero" } },
  );
}

/** Whether a frontier record is of a model that answered; routed without one, it has a share kept instead. */
const hasAccuracy = (record) => record.quality === "accuracy";

/** -> [a record's cell of a benchmark, the cell that it is compared with]. */
function frontierCells(record) {
  const reference = facts.frontier.find(
    (other) =>
      other.policy === "top_k" &&
      (other.payload_bits >= 16 || !hasAccuracy(other)) &&
      other.family.join("\n") === record.family.join("\n"),
  );
  const row = rowsOf(record.model).find((name) => facts.rows[name].allocation === view.allocation);
  return [
    (benchmark) => cellOf(row, record.model, benchmark),
    (benchmark) => reference && cellOf("vanilla_even", reference.model, benchmark),
  ];
}

/** Those that the frontier's records are over; records of earlier summaries are over all. */
const scoredBenchmarks = () => facts.frontier[0]?.benchmarks ?? facts.benchmarks;

/** Those where every point has a latency that follows the controls: not every benchmark has decode passes. */
const frontierBenchmarks = () =>
  scoredBenchmarks().filter((benchmark) =>
    facts.frontier.every((record) =>
      frontierCells(record).every((cell) => known(cell(benchmark)?.latency_s) && !cell(benchmark).fixed),
    ),
  );
const isTableView = () => isOwn() && Object.entries(facts.shown).every(([key, value]) => view[key] === value);
const countOf = (n) => `${n} benchmark${n === 1 ? "" : "s"}`;

/** Frontier records, latency as the settings give it: geometric mean over the benchmarks of the ratios to vanilla. */
function frontierPoints() {
  const isTable = isTableView();
  const ending = view.allocation === "uniform" ? "_even" : "";
  const over = isTable ? scoredBenchmarks() : frontierBenchmarks();
  return facts.frontier
    .map((record) => {
      if (isTable)
        return {
          record,
          ratio: record[`latency_ratio${ending}`],
          low: record[`latency_ratio${ending}_low`],
          high: record[`latency_ratio${ending}_high`],
          front: view.allocation === "optimal" ? record.on_front : null,
        };
      const [own_, before] = frontierCells(record);
      const ratios = over
        .map((benchmark) => own_(benchmark)?.latency_s / before(benchmark)?.latency_s)
        .filter((ratio) => ratio > 0);
      return {
        record,
        ratio: ratios.length ? Math.exp(sum(ratios.map(Math.log)) / ratios.length) : NaN,
        low: null,
        high: null,
        front: null,
      };
    })
    .filter((point) => known(point.ratio))
    .map((point, _, all) => {
      const alike = all.filter(
        (other) =>
          other.record.family.join() === point.record.family.join() &&
          other.record.payload_bits === point.record.payload_bits,
      );
      const beaten = alike.some(
        (o) =>
          o.record.quality_percent >= point.record.quality_percent &&
          o.ratio <= point.ratio &&
          (o.record.quality_percent > point.record.quality_percent || o.ratio < point.ratio),
      );
      return { ...point, front: point.front ?? !beaten };
    });
}

function drawFrontier() {
  const points = frontierPoints();
  const nodes = points.length > 1 ? points : [];
  const names = labels(
    nodes.map(({ record }) => record.model),
    44,
  );
  const many = facts.frontier.length > 12;
  const traces = nodes.map(({ record, ratio, low, high, front }, position) => ({
    type: "scatter",
    mode: "markers",
    name: plain(names[position]),
    x: [ratio],
    y: [record.quality_percent],
    showlegend: !many,
    error_x: known(low) ? bars([ratio], [low], [high]) : undefined,
    error_y: known(record.accuracy_low)
      ? bars([record.accuracy], [record.accuracy_low], [record.accuracy_high])
      : undefined,
    marker: {
      color: modelStyle(record.model).colour,
      symbol: modelStyle(record.model).symbol,
      size: 11,
      line: { width: front ? 2 : 0, color: style("--ink") },
    },
    hovertemplate: `%{y:.1f} %, %{x:.3f} of vanilla's latency${front ? ", on front" : ""}<extra>${plain(record.model)}</extra>`,
  }));
  const fronts = new Map();
  for (const point of nodes.filter((node) => node.front)) {
    const key = `${point.record.family.join()} ${point.record.payload_bits}`;
    fronts.set(key, [...(fronts.get(key) ?? []), point]);
  }
  let first = true;
  for (const members of fronts.values()) {
    members.sort((a, b) => a.ratio - b.ratio);
    traces.push({
      type: "scatter",
      mode: "lines",
      name: "front",
      showlegend: first,
      x: members.map((p) => p.ratio),
      y: members.map((p) => p.record.quality_percent),
      line: { shape: "hv", color: style("--soft"), width: 1, dash: "dot" },
      hoverinfo: "skip",
    });
    first = false;
  }
  plot("figure-frontier", traces, {
    xaxis: { title: `latency of ${frontierOver()}, ${ALLOCATION[view.allocation]}; vanilla_even = 1` },
    yaxis: { title: frontierQuality() },
  });
}

/** Title of the frontier's vertical axis. */
function frontierQuality() {
  const first = facts.frontier[0];
  return !first || hasAccuracy(first)
    ? `accuracy (%), mean of ${countOf(scoredBenchmarks().length)}`
    : `${first.quality} (%), no accuracy: routed without a model`;
}

/** What the latencies of the frontier are the mean of. */
function frontierOver() {
  const over = isTableView() ? scoredBenchmarks().length : frontierBenchmarks().length;
  const of = over < facts.benchmarks.length ? `${over} of ${facts.benchmarks.length} benchmarks` : countOf(over);
  return view.phase === "all" ? of : `${PHASE[view.phase]} on ${of}`;
}

function drawFrontierText() {
  const quality = facts.frontier[0]?.quality ?? "accuracy";
  byId("h-frontier").textContent = `${quality[0].toUpperCase()}${quality.slice(1)} against latency`;
  const lines = [
    quality === "accuracy"
      ? "One point per model: mean accuracy, and latency under the"
      : `One point per policy, no accuracy: routed without a model. Shown are ${quality} (%), and latency under the`,
    `${ALLOCATION[view.allocation]} relative to vanilla under the even split (geometric mean over ${frontierOver()}).`,
    "Ringed points are not beaten by another of the same payload.",
  ];
  if (scoredBenchmarks().length < facts.benchmarks.length)
    lines.push("Benchmarks on which no model has an accuracy are left out.");
  if (!isTableView() && frontierBenchmarks().length < scoredBenchmarks().length)
    lines.push("Benchmarks without such a pass, or that do not follow the controls, are in no latency here.");
  if (!isTableView())
    lines.push(
      "Intervals of the latency are shown for the run's own settings alone, per batch, all passes, one split per layer.",
    );
  byId("frontier-lead").textContent =
    facts.frontier.length > 1
      ? lines.join(" ")
      : "No two models of this run have the same weights and profile and everything measured, so there is nothing to compare.";
}
