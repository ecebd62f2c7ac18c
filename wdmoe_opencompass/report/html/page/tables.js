// ---- tables

/** A table from columns [{title, class}] and rows of cells: text, nodes, or {node or text, class, ...attributes}. */
function table(caption, columns, rows, className = "") {
  const cell = (content, column) => {
    const plainCell =
      content === null || typeof content !== "object" || content instanceof Node || Array.isArray(content);
    const { content: inner, class: own_, ...attributes } = plainCell ? { content } : content;
    const name = column === 0 ? "th" : "td";
    const scope = column === 0 ? { scope: "row" } : {};
    return el(name, { class: own_ ?? columns[column].class, ...scope, ...attributes }, inner ?? "–");
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

const swatch = (look) => el("span", { class: "key", style: `background:${backgroundOf(look)}`, "aria-hidden": "true" });

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
    facts.missing.find((reason) => reason.startsWith(start)) ?? facts.problems.find((reason) => reason.startsWith(start));
  if (line) return line.slice(start.length);
  return models.get(abbr).dense ? "no experts, so nothing to wait for" : "not measured";
}

const empty = (why) => ({ content: shorten(why, 160), class: "empty", title: why });
const bracket = (low, high, text) => (known(low) && known(high) ? `[${text(low)}, ${text(high)}]` : null);
const intervalNode = (text) => (text ? el("span", { class: "interval" }, text) : null);

function accuracyOf(abbr, benchmark) {
  return facts.accuracy.find(
    (record) =>
      record.model === abbr &&
      record.dataset === benchmark &&
      !["active_experts_per_token", "share_dropped"].includes(record.metric),
  );
}

/** `(difference from vanilla [low, high] *)`, with the mark where it is significant; null without an interval. */
function differenceOf(abbr, benchmark) {
  const found = facts.differences.find((record) => record.model === abbr && record.benchmark === benchmark);
  const interval = found && bracket(found.low, found.high, (x) => signed(x, 1));
  return interval ? `(${signed(found.difference, 2)} ${interval}${found.significant ? " *" : ""})` : null;
}

function drawAccuracyTables() {
  const shares = (abbr, metric) =>
    facts.accuracy
      .filter((record) => record.model === abbr && record.metric === metric && facts.benchmarks.includes(record.dataset))
      .map((record) => record.value);
  const mean = (values, scale) => (values.length ? fixed((scale * sum(values)) / values.length, 3) : "–");
  const columns = [
    { title: "model" },
    ...facts.benchmarks.map((name) => ({ title: name })),
    { title: "active experts per token" },
    { title: "assignments dropped (%)" },
  ];
  const rows = facts.models.map((model) => [
    el("span", {}, swatch(modelStyle(model.abbr)), model.abbr, el("span", { class: "interval" }, model.policy)),
    ...facts.benchmarks.map((benchmark) => {
      const found = accuracyOf(model.abbr, benchmark);
      if (!found) return empty(whyEmpty(model.abbr, benchmark));
      return {
        content: [
          fixed(found.value, 2),
          intervalNode(bracket(found.low, found.high, (x) => fixed(x, 1))),
          intervalNode(differenceOf(model.abbr, benchmark)),
        ],
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

/** A table of the run, unchanged from its summary folder. */
function plainTable({ rows, notes: lines }, caption) {
  if (!rows.length) return el("p", {}, "no rows");
  const titles = Object.keys(rows[0]);
  const columns = titles.map((title, column) => ({ title, class: column ? "" : "text" }));
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

const rowHead = (row, abbr, title = row, note = abbr) =>
  el("span", {}, swatch(styleOf(row, abbr)), title, el("span", { class: "interval" }, note));

function drawLatencyTable() {
  const columns = [{ title: "row" }, ...facts.benchmarks.map((name) => ({ title: name }))];
  const rowOf = (row, abbr) => [
    rowHead(row, abbr),
    ...facts.benchmarks.map((benchmark) => {
      const cell = cellOf(row, abbr, benchmark);
      if (!cell)
        return empty(
          view.phase === "decode" && recordOf(row, abbr, benchmark, view.scope, view.per, "all")
            ? "no decode pass"
            : whyEmpty(abbr, benchmark),
        );
      if (cell.error) return { ...empty(cell.error), "data-error": benchmark };
      const bounds = bracket(cell.saving_low, cell.saving_high, (x) => fixed(100 * x, 1));
      const saving = row !== "vanilla_even" && known(cell.saving) && (bounds || (pending && !cell.why));
      return {
        content: [
          ms(cell.latency_s),
          intervalNode(bracket(cell.low, cell.high, ms)),
          saving ? el("span", { class: "saving" }, `${signed(100 * cell.saving)} % `, bounds ?? "") : null,
          cell.fixed ? el("span", { class: "interval" }, NOT_FOLLOWING) : null,
        ],
        title: cell.fixed,
        class: cell.stale || cell.fixed ? "stale" : "",
        "data-row": row,
        "data-model": abbr,
        "data-benchmark": benchmark,
        "data-value": cell.latency_s,
      };
    }),
  ];
  const rows = allRows().flatMap(([row, abbr]) => [rowOf(row, abbr), ...drawsRow(row, abbr)]);
  rows.push(...batchRows());
  const caption = `Mean ${PER[view.per]} in ms, ${PHASE[view.phase]}, ${SCOPE[view.scope]}; its 95 % interval; saving against vanilla_even`;
  scrollable("table-latency", table(caption, columns, rows));
  const lacking = [...new Set([...cells.values()].map((cell) => cell.why).filter(Boolean))];
  const said = lacking.length ? ` No saving shown where: ${lacking.join("; ")}.` : "";
  byId("interval-note").textContent =
    (waiting.length
      ? "Grey numbers are being computed."
      : pending
        ? "Intervals follow in a moment."
        : "Intervals: batches of different items, drawn again by the same method for every setting.") +
    said +
    ([...cells.values()].some((cell) => cell.fixed)
      ? ` Numbers marked "${NOT_FOLLOWING}" are still the run's own: their counts are not on this page.`
      : "");
  byId("origin-note").textContent = isOwn() ? "" : changedOrigins();
  byId("latency-lead").textContent =
    `Slowest device of each layer, summed over the layers; mean ${PER[view.per]}, ${PHASE[view.phase]}. Selection saves by sending fewer tokens to slow devices, the optimal split by giving them more bandwidth.`;
}

/** Origin of the changed profiles' values; the tables' notes are about the run's own. */
function changedOrigins() {
  const lines = run.models.map(({ abbr }) => {
    const profile = WdmoeEngine.changed_profile(run, abbr, settings);
    return `${profile.name} as changed: ${WdmoeEngine.origin_sentence(profile)}.`;
  });
  return [...new Set(lines), "The notes below are of the run's own profile."].join(" ");
}

/** The run's own savings over many fading draws, below a row that has any in view; they follow no control. */
function drawsRow(row, abbr) {
  const records = facts.benchmarks.map((benchmark) => recordOf(row, abbr, benchmark));
  const draws = records.find((record) => record?.draws)?.draws;
  if (!draws) return [];
  const title = `Median saving over ${draws} fading draws and its 5 to 95 % range, under the run's own profile; selection never saw the other draws.`;
  const cellsOfRow = records.map((record) => {
    if (!record?.draws) return "–";
    const range = bracket(record.saving_draws_low, record.saving_draws_high, (x) => fixed(100 * x, 1));
    return {
      content: [`${signed(100 * record.saving_draws_median)} % `, intervalNode(range)],
      title,
      class: isOwn() ? "" : "stale",
      "data-draws": row,
      "data-model": abbr,
      "data-benchmark": record.dataset,
      "data-value": record.saving_draws_median,
    };
  });
  const note = isOwn() ? abbr : `${abbr}, ${NOT_FOLLOWING}`;
  return [[rowHead(row, abbr, `${row}, ${draws} draws`, note), ...cellsOfRow]];
}

function batchRows() {
  const sizes = [
    ["tokens per batch", "tokens_per_batch"],
    ["passes per batch", "passes_per_batch"],
  ];
  const even = allRows().filter(([row]) => facts.rows[row].allocation === "uniform");
  return sizes.flatMap(([title, key]) =>
    even.map(([row, abbr]) => [
      `${title}, ${abbr}`,
      ...facts.benchmarks.map((benchmark) => {
        const record = recordOf(row, abbr, benchmark);
        return record ? fixed(record[key], 1) : "–";
      }),
    ]),
  );
}

function drawCards() {
  const accuracies = [],
    savings = [];
  for (const model of facts.models.filter((model) => view.shown.has(model.abbr))) {
    const scored = facts.benchmarks.map((benchmark) => accuracyOf(model.abbr, benchmark));
    const known_ = scored.filter(Boolean);
    if (!known_.length) continue;
    const difference =
      facts.differences.find((record) => record.model === model.abbr && record.benchmark.startsWith("mean of ")) ??
      (facts.benchmarks.length === 1 ? facts.differences.find((record) => record.model === model.abbr) : null);
    const of =
      known_.length === facts.benchmarks.length
        ? `mean of ${known_.length} benchmarks`
        : `mean of the ${known_.length} measured of ${facts.benchmarks.length} benchmarks`;
    const lines = [
      el("div", { class: "value" }, `${fixed(sum(known_.map((record) => record.value)) / known_.length, 1)} %`),
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
        { class: "card", style: `border-left-color:${modelStyle(model.abbr).colour}` },
        lines,
        el("div", { class: "with" }, swatch(modelStyle(model.abbr)), model.abbr),
      ),
    );
  }
  for (const [row, abbr] of allRows(true)) {
    if (row === "vanilla_even") continue;
    const told = facts.benchmarks
      .map((benchmark) => cellOf(row, abbr, benchmark))
      .filter(
        (cell) => cell && !cell.fixed && known(cell.saving) && (known(cell.saving_low) || (pending && !cell.why)),
      );
    if (!told.length) continue;
    const values = told.map((cell) => 100 * cell.saving),
      least = Math.min(...values),
      most = Math.max(...values);
    const text =
      fixed(least, 1) !== fixed(most, 1) ? `${fixed(least, 1)} to ${fixed(most, 1)} %` : `${fixed(least, 1)} %`;
    savings.push(
      el(
        "div",
        { class: "card", style: `border-left-color:${styleOf(row, abbr).colour}` },
        el("div", { class: "value" }, text),
        el("div", {}, "less waiting than vanilla_even"),
        el(
          "div",
          { class: "with" },
          swatch(styleOf(row, abbr)),
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
