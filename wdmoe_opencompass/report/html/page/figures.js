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
    legend: { orientation: "h", y: 1.02, x: 0, yanchor: "bottom" },
    hovermode: "closest",
    xaxis: { ...axis, ...xaxis, title: xaxis?.title && { text: xaxis.title } },
    yaxis: { ...axis, ...yaxis, title: yaxis?.title && { text: yaxis.title } },
    ...rest,
  };
}

function plot(id, traces, layout) {
  if (!traces.length) {
    byId(id).replaceChildren(el("p", { class: "hint" }, "Nothing measured to draw."));
    return;
  }
  if (byId(id).querySelector(":scope > .hint")) byId(id).replaceChildren();
  Plotly.react(id, traces, layoutOf(printing ? { ...layout, width: PAPER_PIXELS } : layout), {
    responsive: true,
    displaylogo: false,
    displayModeBar: false,
  });
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
const ticks = () => ({
  tickvals: facts.benchmarks.map((_, place) => place),
  ticktext: facts.benchmarks.map((name) => plain(shorten(name, 18))),
  range: [-0.5, facts.benchmarks.length - 0.5],
  zeroline: false,
});

function drawAccuracyFigure() {
  const shown = facts.models.filter((model) => view.shown.has(model.abbr));
  const traces = shown.map((model, place) => {
    const found = facts.benchmarks.map((benchmark) => accuracyOf(model.abbr, benchmark));
    const there = found.map((one, n) => [one, n]).filter(([one]) => one);
    const x = there.map(
        ([, n]) => n + (shown.length > 1 ? (shown.length > 4 ? 0.6 : 0.3) * (place / (shown.length - 1) - 0.5) : 0),
      ),
      y = there.map(([one]) => one.value);
    return {
      type: "scatter",
      mode: "markers",
      name: plain(model.abbr),
      x,
      y,
      error_y: bars(
        y,
        there.map(([one]) => one.low),
        there.map(([one]) => one.high),
      ),
      marker: { color: modelColour(model.abbr), symbol: SYMBOLS[place % SYMBOLS.length], size: 9 },
      text: there.map(
        ([one, n]) =>
          `${plain(facts.benchmarks[n])}: ${one.value.toFixed(2)} % ${bracket(one.low, one.high, (v) => v.toFixed(1)) ?? ""}${one.items ? `, ${one.items} items` : ""}`,
      ),
      hovertemplate: "%{text}<extra>%{fullData.name}</extra>",
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
    width = 0.84 / Math.max(1, rows.length);
  const traces = rows.map(([row, abbr], place) => {
    const base = models.get(abbr).vanilla;
    const there = facts.benchmarks
      .map((benchmark, n) => [cellOf(row, abbr, benchmark), base && cellOf("vanilla_even", base, benchmark), n])
      .filter(([cell, before]) => cell && before && before.latency_s);
    const y = there.map(([cell, before]) => cell.latency_s / before.latency_s);
    const ratio = (name) =>
      there.map(([cell]) => (row !== "vanilla_even" && known(cell[name]) ? 1 - cell[name] : null));
    const first = facts.rows[row].vanilla ? vanillas[0].abbr : selecting[0]?.abbr;
    return {
      type: "bar",
      name: plain(rowName(row, abbr)),
      width,
      x: there.map(([, , n]) => n - 0.42 + (place + 0.5) * width),
      y,
      error_y: bars(y, ratio("saving_high"), ratio("saving_low"), style("--soft")),
      marker: {
        color: colour(row, abbr),
        pattern: abbr === first || !["selection_only", "allocation_only"].includes(row) ? undefined : { shape: "/" },
      },
      text: there.map(([cell]) => short(1e3 * cell.latency_s)),
      textposition: window.innerWidth < 700 || rows.length * facts.benchmarks.length > 20 ? "none" : "outside",
      textangle: 0,
      cliponaxis: false,
      customdata: there.map(([cell, , n]) => [ms(cell.latency_s), plain(facts.benchmarks[n])]),
      hovertemplate: "%{customdata[1]}: %{customdata[0]} ms, %{y:.3f} of vanilla<extra>%{fullData.name}</extra>",
    };
  });
  plot(
    "figure-6",
    traces.filter((trace) => trace.x.length),
    { barmode: "overlay", xaxis: ticks(), yaxis: { title: "latency / vanilla_even", rangemode: "tozero" } },
  );
}

/** Frontier records, latency as the settings give it: geometric mean over the benchmarks of the ratios to vanilla. */
function frontierPoints() {
  const isTable = isOwn() && Object.entries(facts.shown).every(([key, value]) => view[key] === value);
  const ending = view.allocation === "uniform" ? "_even" : "";
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
      const reference = facts.frontier.find(
        (one) => one.policy === "top_k" && one.payload_bits >= 16 && one.family.join() === record.family.join(),
      );
      const row = rowsOf(record.model).find((name) => facts.rows[name].allocation === view.allocation);
      const ratios = facts.benchmarks
        .map((benchmark) => {
          const cell = cellOf(row, record.model, benchmark),
            before = reference && cellOf("vanilla_even", reference.model, benchmark);
          return cell && before ? cell.latency_s / before.latency_s : NaN;
        })
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
          o.record.accuracy >= point.record.accuracy &&
          o.ratio <= point.ratio &&
          (o.record.accuracy > point.record.accuracy || o.ratio < point.ratio),
      );
      return { ...point, front: point.front ?? !beaten };
    });
}

function drawFrontier() {
  const points = frontierPoints();
  const nodes = points.length > 1 ? points : [];
  const many = facts.frontier.length > 12;
  const traces = nodes.map(({ record, ratio, low, high, front }, place) => ({
    type: "scatter",
    mode: "markers",
    name: plain(record.model),
    x: [ratio],
    y: [record.accuracy],
    showlegend: !many,
    error_x: known(low) ? bars([ratio], [low], [high]) : undefined,
    error_y: known(record.accuracy_low)
      ? bars([record.accuracy], [record.accuracy_low], [record.accuracy_high])
      : undefined,
    marker: {
      color: modelColour(record.model),
      symbol: SYMBOLS[place % SYMBOLS.length],
      size: 11,
      line: { width: front ? 2 : 0, color: style("--ink") },
    },
    hovertemplate: `%{y:.1f} %, %{x:.3f} of vanilla's latency${front ? ", on front" : ""}<extra>%{fullData.name}</extra>`,
  }));
  const fronts = new Map();
  for (const point of nodes.filter((one) => one.front)) {
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
      y: members.map((p) => p.record.accuracy),
      line: { shape: "hv", color: style("--soft"), width: 1, dash: "dot" },
      hoverinfo: "skip",
    });
    first = false;
  }
  plot("figure-frontier", traces, {
    xaxis: { title: `latency, ${ALLOCATION[view.allocation]}; vanilla_even = 1` },
    yaxis: {
      title: `accuracy (%), mean of ${facts.benchmarks.length} benchmark${facts.benchmarks.length > 1 ? "s" : ""}`,
    },
  });
}

function drawFrontierText() {
  byId("frontier-lead").textContent =
    facts.frontier.length > 1
      ? `One point per model: mean accuracy, and latency under the ${ALLOCATION[view.allocation]} relative to vanilla under the even split (geometric mean over the benchmarks). Ringed points are not beaten by another of the same payload. ${isOwn() ? "" : "Intervals of the latency are shown for the run's own settings alone."}`
      : "No two models of this run have the same weights and profile and everything measured, so there is nothing to compare.";
}
