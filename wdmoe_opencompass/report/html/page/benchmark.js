// ---- one benchmark

/** Mean latency at every bandwidth of Figure 5, one point at a time, so that controls stay quick. */
const sweep = { key: "", values: new Map() };
let sweeping = false;
const sweepRows = (chosen) => allRows(chosen).filter(([row]) => row === "vanilla_even" || row === "both");
const bandwidthOf = () => settings.total_bandwidth_hz ?? first.total_bandwidth_hz;

function drawFigure5() {
  const why = applicable().total_bandwidth_hz;
  if (!why.applies) {
    return hint("figure-5", why.reason ? `Not drawn: ${why.reason}.` : "Nothing measured to draw.");
  }
  const rows = sweepRows(true),
    names = named(rows);
  const traces = rows.map(([row, abbr], position) => {
    const there = facts.sweep_hz
      .map((hertz) => [hertz, sweep.values.get([row, abbr, view.benchmark, hertz].join("\n"))])
      .filter(([, value]) => known(value));
    return {
      type: "scatter",
      mode: "lines+markers",
      name: names[position].name,
      x: there.map(([hertz]) => hertz / 1e6),
      y: there.map(([, value]) => 1e3 * value),
      line: { color: styleOf(row, abbr).colour },
      marker: { symbol: styleOf(row, abbr).symbol, size: 7 },
      hovertemplate: `%{x} MHz: %{y:.3f} ms${names[position].extra}`,
    };
  });
  if (sweepLacks().length) {
    if (!byId("figure-5").childElementCount) replace("figure-5", el("p", { class: "hint" }, "Computing …"));
    return; // the last one stays until the new one is there
  }
  const now = bandwidthOf() / 1e6;
  const shapes = [
    {
      type: "line",
      x0: now,
      x1: now,
      yref: "paper",
      y0: 0,
      y1: 1,
      line: { color: style("--soft"), dash: "dash", width: 1 },
    },
  ];
  if (!traces.some((trace) => trace.x.length)) return hint("figure-5", whyNothing(rows));
  plot("figure-5", traces, {
    shapes,
    xaxis: { title: "total bandwidth (MHz)" },
    yaxis: { title: `latency ${PER[view.per]} (ms)`, rangemode: "tozero" },
  });
}

/** A mean in seconds; NaN without one, or if the engine could not compute it. */
const sound = (mean_s, model) => (known(mean_s) && !errorOf(model.results_of(view.benchmark)) ? mean_s : NaN);

/** Why a figure of the benchmark in view has nothing of these rows. */
function whyNothing(rows) {
  const whys = rows.map(([row, abbr]) => {
    const results = latest[facts.rows[row].allocation].get(abbr)?.results_of(view.benchmark) ?? [];
    return results.length ? (errorOf(results) ?? `no ${view.phase} pass`) : whyNoDetail(abbr, view.benchmark);
  });
  return `Nothing to draw: ${[...new Set(whys)].join("; ") || "no model is chosen"}.`;
}

/** The bandwidths that Figure 5 still lacks. */
function sweepLacks() {
  const key = JSON.stringify([{ ...settings, total_bandwidth_hz: null }, view.scope, view.per, view.phase]);
  if (sweep.key !== key) Object.assign(sweep, { key, values: new Map() });
  const lacking = (hertz) =>
    sweepRows(true).some(([row, abbr]) => !sweep.values.has([row, abbr, view.benchmark, hertz].join("\n")));
  return applicable().total_bandwidth_hz.applies ? facts.sweep_hz.filter(lacking) : [];
}

/** Compute what Figure 5 still lacks, then draw it; given up at the next change. */
function sweepOn() {
  const at = generation,
    rows = sweepRows(true),
    waiting = sweepLacks();
  sweeping = waiting.length > 0; // what an older change began has stopped
  if (!sweeping) return;
  const step = () => {
    if (at !== generation || !waiting.length) return;
    const hertz = waiting.shift();
    for (const allocation of ["uniform", "optimal"]) {
      const found = computeLatencies(allocation, { total_bandwidth_hz: hertz });
      for (const [row, abbr] of rows.filter(([name]) => facts.rows[name].allocation === allocation)) {
        sweep.values.set(
          [row, abbr, view.benchmark, hertz].join("\n"),
          sound(found.get(abbr)?.mean_s(view.benchmark, view.per, view.phase), found.get(abbr)),
        );
      }
    }
    if (waiting.length && printing) step();
    else if (waiting.length) setTimeout(step, 0);
    else {
      sweeping = false;
      redraw(["figure-5"]);
    }
  };
  if (printing) step();
  else setTimeout(step, 0);
}

function drawFigure7() {
  const rows = allRows(true),
    names = named(rows);
  const traces = rows
    .map(([row, abbr], position) => {
      const found = latest[facts.rows[row].allocation].get(abbr)?.results_of(view.benchmark) ?? [];
      const results = errorOf(found) ? [] : found;
      const x = results.length
        ? facts.groups[view.benchmark].flatMap((dataset) => at(facts.tokens, abbr, dataset))
        : [];
      const y = results.flatMap((result) => Array.from(result.per_batch_s("all"), (value) => 1e3 * value));
      return {
        type: "scatter",
        mode: "markers",
        name: names[position].name,
        x,
        y,
        marker: { color: styleOf(row, abbr).colour, symbol: styleOf(row, abbr).symbol, size: 7, opacity: 0.8 },
        hovertemplate: `%{x} tokens: %{y:.3f} ms${names[position].extra}`,
      };
    })
    .filter((trace) => trace.x.length);
  if (!traces.length) return hint("figure-7", whyNothing(rows));
  plot("figure-7", traces, {
    xaxis: { title: "tokens in the batch" },
    yaxis: { title: "latency of the batch (ms)", rangemode: "tozero" },
  });
}

function drawFigure8() {
  const has = (model) => at(facts.pairs, model.abbr, facts.groups[view.benchmark][0]);
  const model = vanillas.find(has) ?? routed.find(has);
  const parts = model
    ? facts.groups[view.benchmark].map((dataset) => at(facts.pairs, model.abbr, dataset)).filter(Boolean)
    : [];
  const paints = [style("--vanilla"), "#E69F00", "#0072B2"];
  const traces = (parts[0]?.layers ?? []).map((layer, position) => {
    const y = parts.flatMap((part) => part.shares[position]);
    return {
      type: "scatter",
      mode: y.length > 1 ? "lines+markers" : "markers",
      name: `layer ${layer}`,
      x: y.map((_, n) => n + 1),
      y,
      line: { color: paints[position], width: 1.5 },
      marker: { symbol: SYMBOLS[position], size: 6 },
    };
  });
  plot("figure-8", traces, {
    xaxis: { title: `batch${model ? `, ${plain(model.abbr)}` : ""}` },
    yaxis: { title: "largest share of tokens", rangemode: "tozero" },
  });
}

function phaseCells() {
  const pick = (phase) => latencyCells(false, [view.benchmark], phase);
  return { prefill: pick("prefill"), decode: pick("decode") };
}

function drawPhases() {
  const found = phaseCells(),
    rows = allRows(true),
    shown = labels(
      rows.map(([row, abbr]) => rowName(row, abbr)),
      window.innerWidth < 600 ? 18 : 44,
    );
  const traces = ["prefill", "decode"]
    .map((phase) => ({
      type: "bar",
      orientation: "h",
      name: phase,
      y: rows.map((_, position) => position),
      text: rows.map(([row, abbr]) => plain(rowName(row, abbr))),
      textposition: "none",
      x: rows.map(([row, abbr]) => 1e3 * (found[phase].get([row, abbr, view.benchmark].join("\n"))?.latency_s ?? NaN)),
      marker: { color: phase === "prefill" ? "#56B4E9" : "#CC79A7" },
      hovertemplate: `%{text}: %{x:.3f} ms<extra>${phase}</extra>`,
    }))
    .filter((trace) => trace.x.some(known));
  plot("figure-phases", traces, {
    height: 140 + 24 * rows.length,
    barmode: view.per === "batch" ? "stack" : "group",
    xaxis: { title: `latency ${PER[view.per]} (ms)`, rangemode: "tozero" },
    yaxis: {
      tickmode: "array",
      tickvals: rows.map((_, position) => position),
      ticktext: shown.map(plain),
      range: [rows.length - 0.5, -0.5],
      zeroline: false,
    },
  });
}

function drawPhaseTable() {
  const found = phaseCells(),
    rows = allRows(true);
  const columns = [{ title: "row" }, { title: "prefill (ms)" }, { title: "decode (ms)" }];
  const cell = (phase, row, abbr) => {
    const { latency_s: value, fixed: unable, error } = found[phase].get([row, abbr, view.benchmark].join("\n")) ?? {};
    if (error) return empty(error);
    const content = unable ? [ms(value), el("span", { class: "interval" }, NOT_FOLLOWING)] : ms(value ?? 0);
    return known(value)
      ? { content, "data-value": value, "data-row": row, "data-phase": phase, class: unable ? "stale" : "" }
      : empty(
          recordOf(row, abbr, view.benchmark, view.scope, view.per, "all")
            ? `no ${phase} pass`
            : whyEmpty(abbr, view.benchmark),
        );
  };
  scrollable(
    "table-phases",
    table(
      `${view.benchmark}: waiting latency ${PER[view.per]} by phase`,
      columns,
      rows.map(([row, abbr]) => [rowHead(row, abbr), cell("prefill", row, abbr), cell("decode", row, abbr)]),
    ),
  );
  byId("phases-lead").textContent =
    view.per === "batch"
      ? "A prefill passes all tokens of the prompts at once, each decode pass one token per sequence; the parts of a batch add up."
      : "A prefill passes all tokens of the prompts at once, each decode pass one token per sequence.";
}
