/* What the page shows and what its controls change. Latencies come from engine.js, their intervals from intervals.js.
 *
 * Everything that models, datasets or files said is put in as text, never as HTML; plotly.js, which reads some HTML in
 * labels, gets it escaped (`plain`).
 */
"use strict";

const WdmoePage = (() => {
  const ROWS_AT_ONCE = 25; // items that are drawn at once
  const PAPER_PIXELS = 680; // width of a figure in print
  const FIRST_MS = 40; // of solving before a change is first shown
  const PAINT_MS = 20; // left to the browser to show it
  const SLICE_MS = 80;
  const IDLE_MS = 60; // after the last change until intervals and the bandwidth sweep follow
  const OTHERS = ["#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999"]; // Okabe-Ito, beyond the four rows'
  const SYMBOLS = ["circle", "square", "triangle-up", "diamond", "cross", "x", "star", "hexagon", "pentagon"];
  const PER = { pass: "per forward pass", batch: "per batch" };
  const PHASE = { all: "all passes", prefill: "prefill", decode: "decode" };
  const SCOPE = { pass: "one split per pass", layer: "one split per layer" };
  const ALLOCATION = { uniform: "even split", optimal: "optimal split" };

  const facts = JSON.parse(document.getElementById("facts").textContent);
  const run = WdmoeEngine.load(JSON.parse(document.getElementById("counts").textContent));
  const intervals = WdmoeIntervals.make(facts.bootstrap);
  const own = WdmoeEngine.defaults(run); // null everywhere: each profile's own
  const first = run.models.length ? WdmoeEngine.own(run) : own; // numbers, for the controls' first places
  const models = new Map(facts.models.map((model) => [model.abbr, model]));
  const view = {
    ...facts.shown,
    allocation: "optimal",
    benchmark: facts.benchmarks[0],
    model: null,
    shown: new Set(facts.few),
  };
  let settings = structuredClone(own);
  let latest = { uniform: new Map(), optimal: new Map() }; // allocation -> model -> the engine's results
  let waiting = []; // datasets that the settings want solved and that are not yet
  let pending = false; // whether intervals follow
  let printing = false;
  let generation = 0; // of changes; what was begun for an older one is dropped

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
  const plain = (text) => shorten(String(text), 60).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const shorten = (text, letters) => (text.length > letters ? `${text.slice(0, letters - 1)}…` : text);
  const known = (value) => value !== null && value !== undefined && Number.isFinite(value);
  const ms = (seconds) => (1e3 * seconds).toFixed(3);
  const signed = (value, digits = 1) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const short = (value) => (known(value) ? Number(value.toPrecision(3)).toString() : "–");

  // ---- colours: one per method, the same in every figure

  const routed = facts.models.filter((model) => !model.dense);
  const selecting = routed.filter((model) => !model.is_vanilla);
  const vanillas = routed.filter((model) => model.is_vanilla);

  function colour(row, abbr) {
    const of = facts.rows[row].vanilla ? vanillas : selecting;
    const place = of.findIndex((model) => model.abbr === abbr);
    if (place > 0) return OTHERS[(place - 1) % OTHERS.length];
    return row === "vanilla_even" ? style("--vanilla") : facts.rows[row].colour;
  }

  const modelRow = (abbr) => (models.get(abbr).is_vanilla ? "vanilla_even" : "both");
  const modelColour = (abbr) => (models.get(abbr).dense ? "#999999" : colour(modelRow(abbr), abbr));
  const rowName = (row, abbr) => {
    const several = (facts.rows[row].vanilla ? vanillas : selecting).length > 1;
    return several ? `${row}, ${abbr}` : row;
  };
  const rowsOf = (abbr) =>
    Object.keys(facts.rows).filter((row) => facts.rows[row].vanilla === models.get(abbr).is_vanilla);

  /** [row, model] of everything in Table II's order; chosen: only of the models that figures show. */
  function allRows(chosen = false) {
    const pairs = Object.keys(facts.rows).flatMap((row) =>
      routed.filter((m) => m.is_vanilla === facts.rows[row].vanilla).map((m) => [row, m.abbr]),
    );
    return chosen ? pairs.filter(([, abbr]) => view.shown.has(abbr)) : pairs;
  }

  // ---- latencies: of the run's tables while the settings are its own, else of the engine

  const recorded = new Map();
  for (const values of facts.latency.records) {
    const record = Object.fromEntries(facts.latency.keys.map((key, place) => [key, values[place]]));
    recorded.set([record.row, record.model, record.dataset, record.scope, record.per, record.phase].join("\n"), record);
  }
  const recordOf = (row, abbr, benchmark, scope = view.scope, per = view.per, phase = view.phase) =>
    recorded.get([row, abbr, benchmark, scope, per, phase].join("\n"));

  /** Of an allocation under the settings: model -> the engine's results. */
  function computed(allocation, changed = {}) {
    const found = WdmoeEngine.compute(run, { ...settings, ...changed, allocation, scope: view.scope });
    return new Map(found.models.map((model) => [model.abbr, model]));
  }

  /** Sums over the batches of the same items, as intervals need them; null where nothing is measured or embedded. */
  function groupsOf(results, phase) {
    const parts = results.map((result) => result.groups(phase));
    const joined = (key) => parts.flatMap((part) => Array.from(part[key]));
    const items = joined("items").map((item) => item[2]),
      batches = sum(joined("batches"));
    if (!items.length) return null;
    const all = sum(items);
    return {
      latency_s: joined("latency_s"),
      count: { pass: joined("passes"), batch: items.map((number) => (number * batches) / all) },
    };
  }

  const isSolved = (allocation, abbr, benchmark) =>
    !waiting.some(
      (one) => one.allocation === allocation && one.model.abbr === abbr && facts.groups[benchmark].includes(one.name),
    );
  const isInViewSolved = () => !waiting.some((one) => facts.groups[view.benchmark].includes(one.name));

  /** -> Map of [row, model, benchmark] to {latency_s, low, high, saving, saving_low, saving_high, why}. */
  function latencyCells(withIntervals, benchmarks = facts.benchmarks, phase = view.phase) {
    const { per } = view;
    const found = new Map(),
      sums = new Map();
    for (const [row, abbr] of allRows()) {
      for (const benchmark of benchmarks) {
        const key = [row, abbr, benchmark].join("\n");
        const record = recordOf(row, abbr, benchmark, view.scope, per, phase);
        if (!record) continue;
        if (isOwn()) {
          found.set(key, {
            latency_s: record.latency_s,
            low: record.latency_low_s,
            high: record.latency_high_s,
            saving: record.saving,
            saving_low: record.saving_low,
            saving_high: record.saving_high,
            why: record.no_interval,
          });
          continue;
        }
        if (!isSolved(facts.rows[row].allocation, abbr, benchmark)) {
          if (cells.has(key))
            found.set(key, {
              ...cells.get(key),
              low: null,
              high: null,
              saving_low: null,
              saving_high: null,
              stale: true,
            });
          continue;
        }
        const model = latest[facts.rows[row].allocation].get(abbr),
          latency_s = model?.mean_s(benchmark, per, phase) ?? null;
        if (latency_s === null) continue;
        const cell = {
          latency_s,
          low: null,
          high: null,
          saving: null,
          saving_low: null,
          saving_high: null,
          why: record.no_interval,
        };
        const vanilla = models.get(abbr).vanilla,
          base = vanilla && ["vanilla_even", vanilla, benchmark].join("\n");
        found.set(key, cell);
        const before = found.get(base);
        if (before?.latency_s) cell.saving = 1 - latency_s / before.latency_s;
        if (withIntervals) {
          const groups = groupsOf(model.results_of(benchmark), phase),
            drawn = intervals.resampled(groups.latency_s, groups.count[per]);
          sums.set(key, drawn);
          [cell.low, cell.high] = intervals.mean(drawn) ?? [null, null];
          const ratio = base === key || record.no_interval ? null : intervals.ratio(sums.get(base), drawn);
          if (ratio) [cell.saving_low, cell.saving_high] = [1 - ratio[1], 1 - ratio[0]];
        }
      }
    }
    return found;
  }

  let cells = new Map();
  const cellOf = (row, abbr, benchmark) => cells.get([row, abbr, benchmark].join("\n"));

  // ---- tables

  /** A table from columns [{title, class}] and rows of cells: text, nodes, or {node or text, class, ...attributes}. */
  function table(caption, columns, rows, className = "") {
    const cell = (content, place) => {
      const plainCell =
        content === null || typeof content !== "object" || content instanceof Node || Array.isArray(content);
      const { content: inner, class: own_, ...attributes } = plainCell ? { content } : content;
      const name = place === 0 ? "th" : "td";
      const scope = place === 0 ? { scope: "row" } : {};
      return el(name, { class: own_ ?? columns[place].class, ...scope, ...attributes }, inner ?? "–");
    };
    return el(
      "table",
      { class: className },
      el("caption", {}, caption),
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          columns.map((column) => el("th", { scope: "col", class: column.class }, column.title)),
        ),
      ),
      el(
        "tbody",
        {},
        rows.map((row) => el("tr", {}, row.map(cell))),
      ),
    );
  }

  const swatch = (paint) => el("span", { class: "key", style: `background:${paint}`, "aria-hidden": "true" });

  function scrollable(id, ...content) {
    const node = byId(id);
    node.tabIndex = 0;
    node.setAttribute("role", "region");
    const caption = content.find(Boolean)?.querySelector?.("caption");
    node.setAttribute("aria-label", caption ? caption.textContent : "table");
    replace(id, ...content);
  }

  function notes(lines, title = "How to read these numbers") {
    return el(
      "details",
      { class: "notes" },
      el("summary", {}, title),
      el(
        "ul",
        {},
        lines.map((line) => el("li", {}, line)),
      ),
    );
  }

  /** Why a cell of a model and benchmark is empty: from the run's list of missing cells. */
  function whyEmpty(abbr, benchmark) {
    const start = `${abbr}, ${benchmark}: `;
    const line =
      facts.missing.find((one) => one.startsWith(start)) ?? facts.problems.find((one) => one.startsWith(start));
    return line
      ? line.slice(start.length)
      : models.get(abbr).dense
        ? "no experts, so nothing to wait for"
        : "not measured";
  }

  const empty = (why) => ({ content: shorten(why, 160), class: "empty", title: why });
  const bracket = (low, high, text) => (known(low) && known(high) ? `[${text(low)}, ${text(high)}]` : null);
  const intervalNode = (text) => (text ? el("span", { class: "interval" }, text) : null);

  function accuracyOf(abbr, benchmark) {
    return facts.accuracy.find(
      (one) =>
        one.model === abbr &&
        one.dataset === benchmark &&
        !["active_experts_per_token", "share_dropped"].includes(one.metric),
    );
  }

  function drawAccuracyTables() {
    const shares = (abbr, metric) =>
      facts.accuracy
        .filter((one) => one.model === abbr && one.metric === metric && facts.benchmarks.includes(one.dataset))
        .map((one) => one.value);
    const mean = (values, scale) => (values.length ? ((scale * sum(values)) / values.length).toFixed(3) : "–");
    const columns = [
      { title: "model" },
      ...facts.benchmarks.map((name) => ({ title: name })),
      { title: "active experts per token" },
      { title: "assignments dropped (%)" },
    ];
    const rows = facts.models.map((model) => [
      el("span", {}, swatch(modelColour(model.abbr)), model.abbr, el("span", { class: "interval" }, model.policy)),
      ...facts.benchmarks.map((benchmark) => {
        const found = accuracyOf(model.abbr, benchmark);
        if (!found) return empty(whyEmpty(model.abbr, benchmark));
        return {
          content: [found.value.toFixed(2), intervalNode(bracket(found.low, found.high, (x) => x.toFixed(1)))],
          "data-value": found.value,
        };
      }),
      mean(shares(model.abbr, "active_experts_per_token"), 1),
      mean(shares(model.abbr, "share_dropped"), 100),
    ]);
    scrollable("table-accuracy", table("Accuracy (%)", columns, rows));
    if (facts.tables.differences)
      scrollable(
        "table-differences",
        more(
          "Difference from vanilla, item by item",
          plainTable(facts.tables.differences, "Difference from vanilla, percentage points"),
        ),
      );
    replace("notes-accuracy", notes(facts.notes.table_1_accuracy));
  }

  const more = (title, ...content) => el("details", { class: "more" }, el("summary", {}, title), content);

  /** A table of the run as it stands in its summary folder. */
  function plainTable({ rows, notes: lines }, caption) {
    if (!rows.length) return el("p", {}, "no rows");
    const titles = Object.keys(rows[0]);
    const columns = titles.map((title, place) => ({ title, class: place ? "" : "text" }));
    return el(
      "div",
      {},
      el(
        "div",
        { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
        table(
          caption,
          columns,
          rows.map((row) => titles.map((title) => String(row[title]))),
        ),
      ),
      notes(lines, "Notes"),
    );
  }

  const rowHead = (row, abbr) =>
    el("span", {}, swatch(colour(row, abbr)), row, el("span", { class: "interval" }, abbr));

  function drawLatencyTable() {
    const columns = [{ title: "row" }, ...facts.benchmarks.map((name) => ({ title: name }))];
    const rows = allRows().map(([row, abbr]) => [
      rowHead(row, abbr),
      ...facts.benchmarks.map((benchmark) => {
        const cell = cellOf(row, abbr, benchmark);
        if (!cell)
          return empty(
            view.phase === "decode" && recordOf(row, abbr, benchmark, view.scope, view.per, "all")
              ? "no decode pass"
              : whyEmpty(abbr, benchmark),
          );
        const bounds = bracket(cell.saving_low, cell.saving_high, (x) => (100 * x).toFixed(1));
        const saving = row !== "vanilla_even" && known(cell.saving) && (bounds || (pending && !cell.why));
        return {
          content: [
            ms(cell.latency_s),
            intervalNode(bracket(cell.low, cell.high, ms)),
            saving ? el("span", { class: "saving" }, `${signed(100 * cell.saving)} % `, bounds ?? "") : null,
          ],
          class: cell.stale ? "stale" : "",
          "data-row": row,
          "data-model": abbr,
          "data-benchmark": benchmark,
          "data-value": cell.latency_s,
        };
      }),
    ]);
    for (const [title, key] of [
      ["tokens per batch", "tokens_per_batch"],
      ["passes per batch", "passes_per_batch"],
    ]) {
      rows.push([
        `${title}, vanilla`,
        ...facts.benchmarks.map((benchmark) => {
          const record = vanillas.map((model) => recordOf("vanilla_even", model.abbr, benchmark)).find(Boolean);
          return record ? record[key].toFixed(1) : "–";
        }),
      ]);
    }
    const caption = `Mean ${PER[view.per]} in ms, ${PHASE[view.phase]}, ${SCOPE[view.scope]}; its 95 % interval; saving against vanilla_even`;
    scrollable("table-latency", table(caption, columns, rows));
    const lacking = [...new Set([...cells.values()].map((cell) => cell.why).filter(Boolean))];
    const said = lacking.length ? ` No saving shown where: ${lacking.join("; ")}.` : "";
    byId("interval-note").textContent =
      (waiting.length
        ? "Grey numbers are being computed."
        : pending
          ? "Intervals follow in a moment."
          : "Intervals: batches of different items, drawn anew by the same method for every setting.") + said;
    byId("latency-lead").textContent =
      `Slowest device of each layer, summed over the layers; mean ${PER[view.per]}, ${PHASE[view.phase]}. Selection saves by sending fewer tokens to slow devices, the optimal split by giving them more bandwidth.`;
  }

  function drawCards() {
    const accuracies = [],
      savings = [];
    for (const model of facts.models.filter((one) => view.shown.has(one.abbr))) {
      const scored = facts.benchmarks.map((benchmark) => accuracyOf(model.abbr, benchmark));
      const known_ = scored.filter(Boolean);
      if (!known_.length) continue;
      const difference =
        facts.differences.find((one) => one.model === model.abbr && one.benchmark.startsWith("mean of ")) ??
        (facts.benchmarks.length === 1 ? facts.differences.find((one) => one.model === model.abbr) : null);
      const of =
        known_.length === facts.benchmarks.length
          ? `mean of ${known_.length} benchmarks`
          : `mean of the ${known_.length} measured of ${facts.benchmarks.length} benchmarks`;
      const lines = [
        el("div", { class: "value" }, `${(sum(known_.map((one) => one.value)) / known_.length).toFixed(1)} %`),
        el("div", {}, `accuracy, ${of}`),
      ];
      if (difference && known(difference.low))
        lines.push(
          el(
            "div",
            { class: "with" },
            `${signed(difference.difference, 2)} points [${signed(difference.low, 2)}, ${signed(difference.high, 2)}] against vanilla`,
          ),
        );
      accuracies.push(
        el(
          "div",
          { class: "card", style: `border-left-color:${modelColour(model.abbr)}` },
          lines,
          el("div", { class: "with" }, model.abbr),
        ),
      );
    }
    for (const [row, abbr] of allRows(true)) {
      if (row === "vanilla_even") continue;
      const told = facts.benchmarks
        .map((benchmark) => cellOf(row, abbr, benchmark))
        .filter((cell) => cell && known(cell.saving) && (known(cell.saving_low) || (pending && !cell.why)));
      if (!told.length) continue;
      const values = told.map((cell) => 100 * cell.saving),
        least = Math.min(...values),
        most = Math.max(...values);
      const text =
        least.toFixed(1) !== most.toFixed(1) ? `${least.toFixed(1)} to ${most.toFixed(1)} %` : `${least.toFixed(1)} %`;
      savings.push(
        el(
          "div",
          { class: "card", style: `border-left-color:${colour(row, abbr)}` },
          el("div", { class: "value" }, text),
          el("div", {}, "less waiting than vanilla_even"),
          el(
            "div",
            { class: "with" },
            `${rowName(row, abbr)}; over ${told.length} benchmark${told.length > 1 ? "s" : ""}, intervals below`,
          ),
        ),
      );
    }
    replace(
      "cards",
      [accuracies, savings].filter((cards) => cards.length).map((cards) => el("div", { class: "cards" }, cards)),
    );
  }

  function drawMissing() {
    const lines = [
      ...facts.missing.map((line) => `empty: ${line}`),
      ...facts.problems.map((line) => `not on this page: ${line}`),
    ];
    for (const { abbr, left_out } of run.models) {
      for (const [dataset, why] of Object.entries(left_out)) {
        if (!facts.missing.includes(`${abbr}, ${dataset}: ${why}`))
          lines.push(`does not follow the controls: ${abbr}, ${dataset}: ${why}`);
      }
    }
    const most = 8;
    replace(
      "missing",
      lines.slice(0, most).map((line) => el("li", {}, shorten(line, 300))),
      lines.length > most
        ? el(
            "li",
            {},
            more(
              `${lines.length - most} more`,
              el(
                "ul",
                {},
                lines.slice(most).map((line) => el("li", {}, line)),
              ),
            ),
          )
        : null,
    );
  }

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

  // ---- one benchmark

  /** Mean latency at every bandwidth of Figure 5, one point at a time, so that controls stay quick. */
  const sweep = { key: "", values: new Map() };
  let sweeping = false;
  const sweepRows = (chosen) => allRows(chosen).filter(([row]) => row === "vanilla_even" || row === "both");
  const bandwidthOf = () => settings.total_bandwidth_hz ?? first.total_bandwidth_hz;

  function drawFigure5() {
    const why = applicable().total_bandwidth_hz;
    if (!why.applies) {
      Plotly.purge("figure-5");
      replace(
        "figure-5",
        el("p", { class: "hint" }, why.reason ? `Not drawn: ${why.reason}.` : "Nothing measured to draw."),
      );
      return;
    }
    const traces = sweepRows(true).map(([row, abbr]) => {
      const there = facts.sweep_hz
        .map((hertz) => [hertz, sweep.values.get([row, abbr, view.benchmark, hertz].join("\n"))])
        .filter(([, value]) => known(value));
      return {
        type: "scatter",
        mode: "lines+markers",
        name: plain(rowName(row, abbr)),
        x: there.map(([hertz]) => hertz / 1e6),
        y: there.map(([, value]) => 1e3 * value),
        line: { color: colour(row, abbr) },
        marker: { symbol: row === "vanilla_even" ? "circle" : "diamond", size: 7 },
        hovertemplate: "%{x} MHz: %{y:.3f} ms<extra>%{fullData.name}</extra>",
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
    plot("figure-5", traces, {
      shapes,
      xaxis: { title: "total bandwidth (MHz)" },
      yaxis: { title: `latency ${PER[view.per]} (ms)`, rangemode: "tozero" },
    });
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
    if (!waiting.length) return;
    const step = () => {
      if (at !== generation || !waiting.length) return;
      const hertz = waiting.shift();
      for (const allocation of ["uniform", "optimal"]) {
        const found = computed(allocation, { total_bandwidth_hz: hertz });
        for (const [row, abbr] of rows.filter(([name]) => facts.rows[name].allocation === allocation)) {
          sweep.values.set(
            [row, abbr, view.benchmark, hertz].join("\n"),
            found.get(abbr)?.mean_s(view.benchmark, view.per, view.phase) ?? NaN,
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
    sweeping = true;
    if (printing) step();
    else setTimeout(step, 0);
  }

  function drawFigure7() {
    const traces = allRows(true)
      .map(([row, abbr], place) => {
        const results = latest[facts.rows[row].allocation].get(abbr)?.results_of(view.benchmark) ?? [];
        const x = results.length ? facts.groups[view.benchmark].flatMap((dataset) => facts.tokens[abbr][dataset]) : [];
        const y = results.flatMap((result) => Array.from(result.per_batch_s("all"), (value) => 1e3 * value));
        return {
          type: "scatter",
          mode: "markers",
          name: plain(rowName(row, abbr)),
          x,
          y,
          marker: { color: colour(row, abbr), symbol: SYMBOLS[place % 4], size: 7, opacity: 0.8 },
          hovertemplate: "%{x} tokens: %{y:.3f} ms<extra>%{fullData.name}</extra>",
        };
      })
      .filter((trace) => trace.x.length);
    plot("figure-7", traces, {
      xaxis: { title: "tokens in the batch" },
      yaxis: { title: "latency of the batch (ms)", rangemode: "tozero" },
    });
  }

  function drawFigure8() {
    const model =
      vanillas.find((one) => facts.pairs[one.abbr]?.[facts.groups[view.benchmark][0]]) ??
      routed.find((one) => facts.pairs[one.abbr]?.[facts.groups[view.benchmark][0]]);
    const parts = model
      ? facts.groups[view.benchmark].map((dataset) => facts.pairs[model.abbr][dataset]).filter(Boolean)
      : [];
    const paints = [style("--vanilla"), "#E69F00", "#0072B2"];
    const traces = (parts[0]?.layers ?? []).map((layer, place) => {
      const y = parts.flatMap((part) => part.shares[place]);
      return {
        type: "scatter",
        mode: y.length > 1 ? "lines+markers" : "markers",
        name: `layer ${layer}`,
        x: y.map((_, n) => n + 1),
        y,
        line: { color: paints[place], width: 1.5 },
        marker: { symbol: SYMBOLS[place], size: 6 },
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
      labels = rows.map(([row, abbr]) => plain(rowName(row, abbr)));
    const traces = ["prefill", "decode"]
      .map((phase) => ({
        type: "bar",
        orientation: "h",
        name: phase,
        y: labels,
        x: rows.map(
          ([row, abbr]) => 1e3 * (found[phase].get([row, abbr, view.benchmark].join("\n"))?.latency_s ?? NaN),
        ),
        marker: { color: phase === "prefill" ? "#56B4E9" : "#CC79A7" },
        hovertemplate: `%{x:.3f} ms<extra>${phase}</extra>`,
      }))
      .filter((trace) => trace.x.some(known));
    plot("figure-phases", traces, {
      barmode: view.per === "batch" ? "stack" : "group",
      xaxis: { title: `latency ${PER[view.per]} (ms)`, rangemode: "tozero" },
      yaxis: { autorange: "reversed" },
    });
  }

  function drawPhaseTable() {
    const found = phaseCells(),
      rows = allRows(true);
    const columns = [{ title: "row" }, { title: "prefill (ms)" }, { title: "decode (ms)" }];
    const cell = (phase, row, abbr) => {
      const value = found[phase].get([row, abbr, view.benchmark].join("\n"))?.latency_s;
      return known(value)
        ? { content: ms(value), "data-value": value, "data-row": row, "data-phase": phase }
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

  function drawLayers() {
    const results = chosenResults(),
      model = run.models.find((one) => one.abbr === view.model);
    const load = results.length ? pooledLayers(results, view.phase, "layer_device_load") : null;
    const of = `${view.model}, ${view.benchmark}, ${PHASE[view.phase]}`;
    byId("load-lead").textContent =
      "Tokens sent to each device in one layer of a forward pass, mean over the passes. Selection set it; no radio control changes it.";
    byId("time-lead").textContent =
      `Milliseconds until each device has answered all its tokens of a layer, mean over the passes, ${ALLOCATION[view.allocation]}, ${SCOPE[view.scope]}. Framed: the device that the layer waited for most often.`;
    if (!load) {
      const why =
        model?.left_out[view.benchmark] ??
        (results.length ? `no ${view.phase} pass` : whyEmpty(view.model, view.benchmark));
      for (const id of ["heat-load", "heat-time"]) replace(id, el("p", { class: "hint" }, why));
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
              ? `${best.join(", ")} (${(100 * most(layer)).toFixed(0)} %)`
              : "none";
        },
      }),
    );
    byId("heat-time").dataset.waited = JSON.stringify(waited);
  }

  // ---- channel and placement

  function changedProfile() {
    return WdmoeEngine.changed_profile(run, view.model, settings);
  }

  function waitedShare() {
    const results = chosenResults(),
      waited = results.length ? pooledLayers(results, view.phase, "waited_on") : null;
    return waited && waited[0].map((_, device) => sum(waited.map((ofLayer) => ofLayer[device])) / waited.length);
  }

  const expertsOf = (device) =>
    (models.get(view.model).device_of_expert ?? [])
      .map((place, expert) => (place === device ? expert + 1 : 0))
      .filter(Boolean);

  function drawChannel() {
    if (!run.models.some((one) => one.abbr === view.model)) {
      byId("channel-lead").textContent = "No model of this run has a trace, so there is no channel to draw.";
      return;
    }
    const profile = changedProfile(),
      waited = waitedShare(),
      measured = profile.rates === "measured";
    const elsewhere = expertsOf(-1);
    byId("channel-lead").textContent =
      `Profile ${profile.name}${isOwn() ? "" : " with the changes of the controls"}: ${measured ? "measured rates" : `${short(profile.total_bandwidth_hz / 1e6)} MHz, ${profile.path_loss.replace(/_/g, " ")} path loss, fading ${profile.fading.model}, base station ${profile.base_station.transmit_power_w} W`}; ${profile.payload_bits} bits per value. Colour: how often a layer of ${view.model} on ${view.benchmark} waited for the device.${elsewhere.length ? ` The base station itself holds ${elsewhere.length === 1 ? "expert" : "experts"} ${elsewhere.join(", ")}.` : ""}`;
    replace("map", mapOf(profile, waited, measured));
    const share = (device) => (waited ? `${(100 * waited[device]).toFixed(1)} %` : "–");
    const experts = (device) => expertsOf(device).join(", ") || "none";
    const columns = [
      { title: "device" },
      { title: "experts", class: "text" },
      ...(measured
        ? [{ title: "downlink (Mbit/s)" }, { title: "uplink (Mbit/s)" }, { title: "fixed (ms)" }]
        : [{ title: "metres" }, { title: "watts" }]),
      { title: "GFLOP/s" },
      { title: "waited for" },
    ];
    scrollable(
      "table-devices",
      table(
        "Devices",
        columns,
        profile.devices.map((device, k) => [
          device.name,
          experts(k),
          ...(measured
            ? [
                short(device.downlink_bit_per_s / 1e6),
                short(device.uplink_bit_per_s / 1e6),
                short(1e3 * (device.fixed_s ?? 0)),
              ]
            : [short(device.distance_m), short(device.transmit_power_w)]),
          short(device.compute_flops / 1e9),
          share(k),
        ]),
      ),
    );
  }

  function mapOf(profile, waited, measured) {
    const size = 360,
      centre = size / 2,
      reach = 118,
      far = Math.max(...profile.devices.map((device) => device.distance_m));
    const at = (metres) => (measured ? reach : 26 + (reach - 26) * (metres / far));
    const step = 10 ** Math.floor(Math.log10(far)),
      rings = [];
    for (
      let metres = far / step > 5 ? 2 * step : far / step > 2 ? step : step / 2, add = metres;
      metres <= far && !measured;
      metres += add
    )
      rings.push(metres);
    const low = ramp("--heat-low"),
      high = ramp("--heat-high"),
      most = waited ? Math.max(...waited, 1e-9) : 1;
    const title = svg("title");
    title.textContent =
      "Devices around the base station at their distances; the table beside it holds the same numbers";
    const picture = svg(
      "svg",
      { viewBox: `0 18 ${size} ${size - 30}`, role: "img", "aria-label": title.textContent },
      title,
    );
    for (const metres of rings) {
      const label = svg("text", { x: centre + 3, y: centre - at(metres) - 2, class: "soft" });
      label.textContent = `${short(metres)} m`;
      picture.append(svg("circle", { cx: centre, cy: centre, r: at(metres), class: "ring" }), label);
    }
    const count = profile.devices.length;
    const places = profile.devices.map((device, k) => {
      const angle = -Math.PI / 2 + (2 * Math.PI * (k + 0.5)) / count;
      return [
        centre + at(device.distance_m) * Math.cos(angle),
        centre + at(device.distance_m) * Math.sin(angle),
        angle,
      ];
    });
    for (const [x, y] of places) picture.append(svg("line", { x1: centre, y1: centre, x2: x, y2: y, class: "link" }));
    picture.append(
      svg("rect", { x: centre - 9, y: centre - 9, width: 18, height: 18, rx: 4, fill: style("--accent") }),
    );
    places.forEach(([x, y, angle], k) => {
      const rgb = low.map((from, n) => Math.round(from + ((high[n] - from) * (waited ? waited[k] : 0)) / most));
      const side = Math.cos(angle) > 0.3 ? "start" : Math.cos(angle) < -0.3 ? "end" : "middle";
      const dx = side === "start" ? 13 : side === "end" ? -13 : 0,
        dy = side === "middle" ? (Math.sin(angle) > 0 ? 24 : -22) : -2;
      const name = svg("text", { x: x + dx, y: y + dy, "text-anchor": side }),
        held = svg("text", { x: x + dx, y: y + dy + 12, "text-anchor": side, class: "soft" });
      name.textContent = shorten(profile.devices[k].name, 14);
      const experts = expertsOf(k);
      held.textContent = experts.length
        ? `expert${experts.length > 1 ? "s" : ""} ${shorten(experts.join(", "), 14)}`
        : "no expert";
      picture.append(
        svg("circle", { cx: x, cy: y, r: 9, fill: `rgb(${rgb})`, stroke: style("--ink"), "stroke-width": 1.5 }),
        name,
        held,
      );
    });
    return picture;
  }

  // ---- items

  let itemData = null; // read when the section is first seen
  let itemHits = [];
  let itemDrawn = 0;

  const answerOf = (dataset, item, place) => {
    const own_ = item[4][place];
    if (own_ !== null) return own_;
    const vanilla = models.get(dataset.models[place]).vanilla;
    return item[4][dataset.models.indexOf(vanilla)];
  };

  function readItems() {
    itemData = JSON.parse(byId("item-data").textContent);
    const some = itemData.datasets.filter((dataset) => dataset.items.length);
    replace(
      "item-dataset",
      el("option", { value: "" }, "all"),
      some.map((dataset) => el("option", { value: dataset.dataset }, dataset.dataset)),
    );
    const left = itemData.datasets
      .filter((dataset) => dataset.items.length < dataset.count)
      .map((dataset) => `${dataset.dataset}: ${dataset.items.length} of ${dataset.count}`);
    const changed = sum(itemData.datasets.map((dataset) => dataset.items.filter((item) => item[5]).length));
    byId("items-lead").textContent = !some.length
      ? "This run holds no answers that the page could show."
      : `What each model answered. Selection changed the answer of ${changed} items${left.length ? " shown here" : ""}. ${left.length ? `Not all items fit into the page; those that changed come first. Shown: ${left.join("; ")}. All are in predictions/.` : ""}`;
    if (itemData.problems.length)
      byId("items-lead").append(el("span", {}, ` Not readable: ${itemData.problems.join("; ")}.`));
    findItems();
  }

  const isRight = (dataset, item, place) => {
    const mark = dataset.right[dataset.models[place]]?.[item[0]];
    return mark === undefined ? null : mark === "1";
  };

  function findItems() {
    if (!itemData) return;
    const name = byId("item-dataset").value,
      words = byId("item-search").value.trim().toLowerCase();
    const changed = byId("item-changed").checked,
      differ = byId("item-wrong").checked;
    itemHits = [];
    for (const dataset of itemData.datasets.filter((one) => !name || one.dataset === name)) {
      for (const item of dataset.items) {
        if (changed && !item[5]) continue;
        if (
          differ &&
          new Set(dataset.models.map((_, place) => isRight(dataset, item, place)).filter((right) => right !== null))
            .size < 2
        )
          continue;
        if (
          words &&
          ![item[1], item[3], ...Object.values(item[2] ?? {}), ...item[4].filter((answer) => answer !== null)].some(
            (text) => text.toLowerCase().includes(words),
          )
        )
          continue;
        itemHits.push([dataset, item]);
      }
    }
    itemDrawn = 0;
    replace("item-list");
    const total = sum(itemData.datasets.map((dataset) => dataset.items.length));
    byId("item-count").textContent = `${itemHits.length} of ${total} items`;
    moreItems();
  }

  function moreItems() {
    for (const [dataset, item] of itemHits.slice(itemDrawn, itemDrawn + ROWS_AT_ONCE))
      byId("item-list").append(itemNode(dataset, item));
    itemDrawn = Math.min(itemHits.length, itemDrawn + ROWS_AT_ONCE);
    byId("item-more").classList.toggle("hidden", itemDrawn >= itemHits.length);
  }

  function itemNode(dataset, item) {
    const [number, question, , , , changed] = item;
    const lines = question
      .trim()
      .split("\n")
      .filter((line) => line.trim());
    const last = lines.slice((lines.at(-1)?.length ?? 99) < 25 ? -2 : -1).join(" ");
    const few = dataset.models.length <= 3 ? dataset.models.map((_, place) => place) : [];
    const node = el(
      "details",
      { class: "item" },
      el(
        "summary",
        {},
        el("span", { class: "of" }, `${dataset.dataset} ${number}`),
        el("span", { class: "line" }, shorten(last, 140)),
        changed ? el("span", { class: "mark changes" }, "answer changed") : null,
        few.map((place) => markOf(dataset, item, place)),
      ),
    );
    node.addEventListener(
      "toggle",
      () => node.open && node.childElementCount === 1 && node.append(itemBody(dataset, item)),
      { once: false },
    );
    return node;
  }

  function markOf(dataset, item, place) {
    const right = isRight(dataset, item, place),
      abbr = dataset.models[place];
    if (right === null) return null;
    return el("span", { class: `mark ${right ? "right" : "wrong"}` }, `${right ? "✓" : "✗"} ${shorten(abbr, 28)}`);
  }

  function itemBody(dataset, item) {
    const [, question, options, reference] = item;
    const rows = dataset.models.map((abbr, place) => {
      const answer = answerOf(dataset, item, place),
        right = isRight(dataset, item, place);
      const vanilla = models.get(abbr).vanilla,
        compared = vanilla && vanilla !== abbr && dataset.models.includes(vanilla);
      const verdict = [
        right === null ? "not told" : right ? "right" : "wrong",
        compared ? (item[4][place] === null ? "as vanilla" : "changed") : "",
      ]
        .filter(Boolean)
        .join(", ");
      const text = options && options[answer] !== undefined ? `${answer}: ${options[answer].trim()}` : answer;
      return [
        el("span", {}, swatch(modelColour(abbr)), abbr),
        { content: el("pre", {}, text), class: "text" },
        {
          content: el("span", { class: `mark ${right === null ? "" : right ? "right" : "wrong"}` }, verdict),
          class: "text",
        },
      ];
    });
    return el(
      "div",
      { class: "body" },
      el("pre", {}, question),
      options
        ? el(
            "ul",
            {},
            Object.entries(options).map(([label, text]) => el("li", {}, `${label}: ${text.trim()}`)),
          )
        : null,
      el(
        "p",
        { class: "hint" },
        `Reference: ${options && options[reference] !== undefined ? `${reference}: ${options[reference].trim()}` : reference}`,
      ),
      el(
        "div",
        { class: "scroll", tabindex: "0", role: "region", "aria-label": "answers" },
        table(
          "Answers",
          [{ title: "model" }, { title: "answer", class: "text" }, { title: "verdict", class: "text" }],
          rows,
        ),
      ),
    );
  }

  // ---- testbed and provenance

  function drawTestbed() {
    const titles = {
      table_3_testbed_accuracy: "Accuracy with the experts on the devices (%)",
      table_4_testbed_latency: "Measured waiting latency of one layer (ms per batch)",
      testbed_prediction: "Predicted beside measured waiting latency",
      testbed_events: "What happened to the devices",
    };
    const found = Object.keys(titles).filter((name) => facts.tables[name]);
    if (!found.length && !facts.figures.length) return;
    byId("testbed").hidden = false;
    replace(
      "testbed-body",
      found.map((name) => plainTable(facts.tables[name], titles[name])),
      facts.figures.map((name) =>
        el(
          "p",
          {},
          "Figure 10, latency of a layer against its tokens: ",
          el("a", { href: name }, name),
          " in this folder.",
        ),
      ),
    );
  }

  function drawProvenance() {
    const { packages, profiles, models: origins, notes: lines } = facts.provenance;
    const list = (pairs) =>
      el(
        "dl",
        {},
        pairs
          .filter(([, value]) => value !== null && value !== undefined && value !== "")
          .flatMap(([name, value]) => [
            el("dt", {}, name),
            el("dd", {}, typeof value === "object" ? JSON.stringify(value) : String(value)),
          ]),
      );
    replace(
      "provenance",
      lines.length
        ? el(
            "ul",
            { class: "notes" },
            lines.map((line) => el("li", {}, line)),
          )
        : null,
      facts.tables.paper_comparison ? plainTable(facts.tables.paper_comparison, "Ours beside the paper") : null,
      list(Object.entries(packages).map(([name, versions]) => [name, versions.join(" and ")])),
      profiles.map((one) => list(Object.entries(one))),
      origins.map((one) =>
        more(
          one.model,
          list(Object.entries(one).filter(([name]) => name !== "files" && name !== "datasets")),
          el(
            "ul",
            { class: "notes" },
            Object.entries(one.files).flatMap(([dataset, files]) =>
              Object.entries(files).map(([file, digest]) => el("li", {}, `${file}: SHA-256 ${digest}`)),
            ),
          ),
        ),
      ),
      facts.tables.frontier ? more("Frontier, every model", plainTable(facts.tables.frontier, "Frontier")) : null,
    );
  }

  // ---- controls

  const DEVICE_KEYS = ["distance_m", "transmit_power_w"];
  const applicable = () => WdmoeEngine.applicable(run, { ...settings, allocation: "optimal" });

  /** What differs from the run's own profile, in words. */
  function changes() {
    const found = [];
    if (settings.total_bandwidth_hz !== null)
      found.push(`total bandwidth ${short(settings.total_bandwidth_hz / 1e6)} MHz`);
    if (settings.payload_bits !== null) found.push(`payload ${settings.payload_bits} bit`);
    if (settings.fading === false) found.push("no fading");
    for (const device of settings.devices) {
      if (device.distance_m !== null) found.push(`${device.name} at ${short(device.distance_m)} m`);
      if (device.transmit_power_w !== null) found.push(`${device.name} with ${short(device.transmit_power_w)} W`);
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
              changed();
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
    const number = el("input", { type: "number", min: 0, step: "any", id: `${id}-number` });
    range.addEventListener("input", () => {
      number.value = range.value;
      take(number, scale, set);
    });
    number.addEventListener("input", () => {
      if (Number.isFinite(number.valueAsNumber)) range.value = number.value;
      take(number, scale, set);
    });
    replace(id, el("div", { class: "head" }, el("label", { for: `${id}-number` }, `${name} (${unit})`), number), range);
    return {
      range,
      number,
      show: (value) => {
        if (known(value)) range.value = number.value = Number((value / scale).toPrecision(6));
      },
    };
  }

  /** Take what a field holds; a value that the engine refuses stays in the field, marked, and changes nothing. */
  function take(field, scale, set) {
    const before = structuredClone(settings),
      value = field.value === "" ? NaN : Number(field.value) * scale;
    try {
      if (!(value > 0)) throw new Error("must be above 0");
      set(value);
      WdmoeEngine.changed_profile(run, 0, settings);
      field.removeAttribute("aria-invalid");
      field.title = "";
    } catch (error) {
      settings = before;
      field.setAttribute("aria-invalid", "true");
      field.title = error.message;
      return;
    }
    changed();
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
    choice("choose-scope", "scope", { pass: "pass", layer: "layer" }, "scope");
    byId("choose-allocation").title = "of heat maps, frontier and map; tables and figures of Table II show both";
    const several = new Set(facts.models.map((model) => model.profile_hash).filter(Boolean)).size > 1;
    const bandwidthMost = Math.max(200, (2 * (first.total_bandwidth_hz ?? 0)) / 1e6);
    sliders.total = slider("total", "total bandwidth", "MHz", 1e6, 1, bandwidthMost, 1, (value) => {
      settings.total_bandwidth_hz = several ? value : same(value, first.total_bandwidth_hz);
    });
    sliders.payload = slider("payload", "payload", "bit per value", 1, 1, 32, 1, (value) => {
      settings.payload_bits = several ? value : same(value, first.payload_bits);
    });
    byId("fading").addEventListener("change", (event) => {
      settings.fading = event.target.checked ? null : false;
      changed();
    });
    deviceFields = [];
    const rows = settings.devices.map((device, place) => {
      const start = first.devices.find((one) => one.name === device.name) ?? device;
      const fields = DEVICE_KEYS.map((key) => {
        const words = key === "distance_m" ? "distance in metres" : "transmit power in watts";
        const field = el("input", {
          type: "number",
          min: 0,
          step: "any",
          "aria-label": `${device.name}, ${words}`,
          "data-device": device.name,
          "data-key": key,
        });
        field.addEventListener("input", () =>
          take(field, 1, (value) => {
            settings.devices[place][key] = several ? value : same(value, start[key]);
          }),
        );
        deviceFields.push({ field, place, key, start: start[key] });
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
    for (const { field, place, key, start } of deviceFields) {
      gate([field], may[key]);
      field.value = Number((settings.devices[place][key] ?? start ?? 0).toPrecision(6));
      field.removeAttribute("aria-invalid");
    }
    byId("fading-why").textContent = may.fading.reason;
    byId("devices-why").textContent = [
      ...new Set([may.total_bandwidth_hz, may.distance_m, may.scope].map((one) => one.reason).filter(Boolean)),
    ].join("; ");
  }

  function reset() {
    settings = structuredClone(own);
    Object.assign(view, facts.shown, { allocation: "optimal" });
    for (const radio of byId("settings").querySelectorAll("input[type=radio]"))
      radio.checked = view[radio.name] === radio.value;
    showSettings();
    changed();
  }

  function save() {
    const profile = changedProfile(),
      text =
        `# ${profile.name}${isOwn() ? "" : `, changed: ${changes().join(", ")}`}\n`.replace(/[^\x20-\x7e\n]/g, "?") +
        WdmoeEngine.to_yaml(profile);
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
    byId("announce").textContent = changedNow
      ? `What if: ${shorten(different.join(", "), 200)}. These latencies are not the run's own; ${facts.caveat}, and accuracy stays as measured.`
      : "Every number here is the run's own, as in its tables. The controls ask what it would have waited under another channel.";
  }

  // ---- drawing

  const texts = () => {
    drawState();
    drawCards();
    drawLatencyTable();
    drawFrontierText();
    if (!isInViewSolved()) return; // they follow
    drawPhaseTable();
    drawLayers();
    drawChannel();
  };

  function redraw(ids = null) {
    if (typeof Plotly === "undefined") return;
    for (const figure of figures) {
      if (ids && !ids.includes(figure.id)) continue;
      figure.stale = true;
      if (figure.id === "figure-7" && !isInViewSolved()) continue;
      if (figure.visible) drawOne(figure);
    }
  }

  function drawOne(figure) {
    figure.stale = false;
    figure.draw();
  }

  const FOLLOWING = ["figure-6", "figure-frontier", "figure-5", "figure-7", "figure-phases"]; // what controls change
  let follow = 0;

  /** After a change of settings or view: what takes longer than FIRST_MS is shown when it is there. */
  function changed() {
    generation += 1;
    sweeping = false;
    clearTimeout(follow);
    for (const allocation of ["uniform", "optimal"]) latest[allocation] = computed(allocation);
    waiting = isOwn() ? [] : unsolved();
    solve(performance.now() + FIRST_MS);
    pending = !isOwn();
    cells = latencyCells(false);
    texts();
    redraw(FOLLOWING);
    const at = generation;
    follow = setTimeout(() => at === generation && afterwards(), waiting.length ? PAINT_MS : IDLE_MS);
  }

  /** Each dataset of each model that the settings want solved: even splits and the benchmark in view come first. */
  function unsolved() {
    const inView = new Set(facts.groups[view.benchmark]);
    const found = ["uniform", "optimal"].flatMap((allocation) =>
      [...latest[allocation].values()].flatMap((model) =>
        Object.keys(model.datasets).map((name) => ({ allocation, model, name })),
      ),
    );
    const urgency = ({ allocation, model, name }) =>
      allocation === "uniform" ? 0 : inView.has(name) ? (model.abbr === view.model ? 1 : 2) : 3;
    return found.sort((a, b) => urgency(a) - urgency(b));
  }

  function solve(until) {
    while (waiting.length && performance.now() < until) {
      const { model, name } = waiting.shift();
      model.datasets[name].mean_s("pass", "all");
    }
  }

  /** What follows a change: the rest of the numbers, then intervals, then the bandwidth sweep. */
  function afterwards() {
    const at = generation;
    const again = (ms) => {
      follow = setTimeout(() => at === generation && afterwards(), ms);
    };
    if (waiting.length) {
      solve(performance.now() + SLICE_MS);
      if (waiting.length) return again(0);
      cells = latencyCells(false);
      texts();
      redraw(FOLLOWING);
      return again(IDLE_MS);
    }
    follow = 0;
    if (pending) {
      pending = false;
      cells = latencyCells(true);
      drawCards();
      drawLatencyTable();
      redraw(["figure-6"]);
    }
    if (figures.find((figure) => figure.id === "figure-5")?.visible) sweepOn();
  }

  let figuresAt = 0; // ms after the page's start

  function picked() {
    view.benchmark = byId("benchmark").value;
    view.model = byId("model").value;
    generation += 1;
    sweeping = false;
    drawPhaseTable();
    drawLayers();
    drawChannel();
    redraw(["figure-5", "figure-7", "figure-8", "figure-phases"]);
    sweepOn();
  }

  function setTheme(theme) {
    const dark = theme === "dark" || (!theme && matchMedia("(prefers-color-scheme: dark)").matches);
    document.documentElement.dataset.theme = dark ? "dark" : "light";
  }

  function start() {
    const name = decodeURIComponent(location.pathname).split("/").at(-3) ?? ""; // RUN/summary/report.html
    const title = /^\d{8}_\d{6}$/.test(name) ? `Run ${name}` : "Run";
    document.title = `WDMoE: ${title.toLowerCase()}`;
    byId("subtitle").textContent = `${title}: ${facts.models
      .map((model) => `${model.abbr} (${model.policy})`)
      .slice(0, 4)
      .join(
        ", ",
      )}${facts.models.length > 4 ? ` and ${facts.models.length - 4} more` : ""}; ${facts.benchmarks.length} benchmark${facts.benchmarks.length > 1 ? "s" : ""}`;
    setTheme("");
    byId("theme").addEventListener("change", (event) => {
      setTheme(event.target.value);
      recolour();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      setTheme(byId("theme").value);
      recolour();
    });
    byId("print").addEventListener("click", () => window.print());
    if (window.innerWidth < 960) byId("controls").open = false;
    view.model = (selecting[0] ?? vanillas[0] ?? facts.models[0]).abbr;
    replace(
      "benchmark",
      facts.benchmarks.map((name) => el("option", { value: name }, name)),
    );
    replace(
      "model",
      routed.map((model) => el("option", { value: model.abbr, selected: model.abbr === view.model }, model.abbr)),
    );
    byId("benchmark").addEventListener("change", picked);
    byId("model").addEventListener("change", picked);
    if (facts.models.length > 2) makeModelChoice();
    makeControls();
    for (const id of ["item-dataset", "item-search", "item-changed", "item-wrong"])
      byId(id).addEventListener("input", findItems);
    byId("item-more").addEventListener("click", moreItems);
    drawAccuracyTables();
    drawMissing();
    replace("notes-latency", notes(facts.notes.table_2_latency_pass_per_batch_all));
    drawTestbed();
    drawProvenance();
    changed();
    new IntersectionObserver(
      (entries, observer) => {
        if (!entries.some((entry) => entry.isIntersecting)) return;
        observer.disconnect();
        readItems();
      },
      { rootMargin: "600px" },
    ).observe(byId("items"));
  }

  function makeModelChoice() {
    replace(
      "model-choice",
      el(
        "details",
        { class: "more" },
        el("summary", {}, "Models in the figures"),
        el(
          "div",
          { class: "pickers" },
          facts.models.map((model) =>
            el(
              "label",
              { class: "check" },
              el("input", {
                type: "checkbox",
                checked: view.shown.has(model.abbr),
                onchange: (event) => {
                  event.target.checked ? view.shown.add(model.abbr) : view.shown.delete(model.abbr);
                  generation += 1;
                  texts();
                  redraw();
                  sweepOn();
                },
              }),
              swatch(modelColour(model.abbr)),
              model.abbr,
            ),
          ),
        ),
      ),
    );
  }

  function recolour() {
    drawAccuracyTables();
    texts();
    redraw();
  }

  /** Start plotly.js, which takes a while, once all numbers stand on the screen. */
  function loadPlotly() {
    const script = el("script", {}, byId("plotly").textContent);
    document.body.append(script); // runs at once; the page's policy knows its digest
    byId("plotly").remove();
    drawFigures();
  }

  /** Figures are drawn when they come near the screen. */
  function drawFigures() {
    const draws = {
      "figure-accuracy": drawAccuracyFigure,
      "figure-6": drawFigure6,
      "figure-frontier": drawFrontier,
      "figure-5": drawFigure5,
      "figure-7": drawFigure7,
      "figure-8": drawFigure8,
      "figure-phases": drawPhases,
    };
    for (const [id, draw] of Object.entries(draws)) figures.push({ id, draw, stale: true, visible: false });
    const observer = new IntersectionObserver(
      (entries) => {
        for (const entry of entries) {
          const figure = figures.find((one) => one.id === entry.target.id);
          figure.visible = entry.isIntersecting;
          if (figure.visible && figure.stale) drawOne(figure);
          if (figure.visible && figure.id === "figure-5") sweepOn();
        }
      },
      { rootMargin: "200px" },
    );
    for (const { id } of figures) observer.observe(byId(id));
    requestAnimationFrame(() =>
      setTimeout(() => {
        figuresAt = performance.now();
      }, 0),
    );
    window.addEventListener("beforeprint", beforePrint);
    window.addEventListener("afterprint", () => {
      setTheme(byId("theme").value);
      recolour();
    });
  }

  /** Paper is light and narrow; what is folded up is not printed but for the notes. */
  function beforePrint() {
    document.documentElement.dataset.theme = "light";
    printing = true;
    drawAccuracyTables();
    texts();
    sweepOn();
    if (!itemData) readItems();
    for (const details of document.querySelectorAll("details.notes")) details.open = true;
    for (const figure of figures) drawOne(figure);
    printing = false;
  }

  start();
  requestAnimationFrame(() => setTimeout(loadPlotly, 0)); // after the first paint

  const isComputed = () => !waiting.length; // all numbers are those of the settings
  const isSettled = () => figures.length > 0 && isComputed() && !follow && !sweeping; // intervals and sweep have followed the last change

  return { changes, isComputed, isSettled, figuresAt: () => figuresAt };
})();
