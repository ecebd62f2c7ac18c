// ---- start

function setTheme(theme) {
  const dark = theme === "dark" || (!theme && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
}

/** RUN of RUN/summary/report.html; "" if the path is not UTF-8. */
function folderName() {
  try {
    return decodeURIComponent(location.pathname).split("/").at(-3) ?? "";
  } catch {
    return "";
  }
}

function start() {
  const name = folderName();
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
  byId("benchmark").addEventListener("change", pickView);
  byId("model").addEventListener("change", pickView);
  if (facts.models.length > 2) makeModelChoice();
  makeControls();
  for (const id of ["item-dataset", "item-search", "item-changed", "item-wrong"])
    byId(id).addEventListener("input", findItems);
  byId("item-more").addEventListener("click", moreItems);
  drawAccuracyTables();
  drawMissing();
  replace("notes-latency", notes(facts.notes.table_2_latency_layer_per_batch_all));
  drawRequests();
  drawTestbed();
  drawProvenance();
  refresh();
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
            swatch(modelStyle(model.abbr)),
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

/** Start plotly.js, which takes a while, once all numbers are on the screen. */
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
        const figure = figures.find((figure) => figure.id === entry.target.id);
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
  window.addEventListener("afterprint", afterPrint);
  window.addEventListener("resize", fitWidths);
}

let unfolded = []; // for print

/** As it was before: theme, notes, and figures as wide as their containers. */
function afterPrint() {
  printing = false;
  for (const details of unfolded) details.open = false;
  unfolded = [];
  setTheme(byId("theme").value);
  recolour();
  for (const figure of figures) drawOne(figure); // of those out of sight too: none may be wider than the page
}

/** Print light and narrow; of folded parts only the notes are printed. */
function beforePrint() {
  document.documentElement.dataset.theme = "light";
  printing = true;
  drawAccuracyTables();
  texts();
  sweepOn();
  if (!itemData) readItems();
  unfolded = [...document.querySelectorAll("details.notes:not([open])")];
  for (const details of unfolded) details.open = true;
  for (const figure of figures) drawOne(figure);
}

start();
requestAnimationFrame(() => setTimeout(loadPlotly, 0)); // after the first paint

const isComputed = () => !waiting.length; // all numbers are those of the settings
const isSettled = () => figures.length > 0 && isComputed() && !follow && !sweeping; // intervals and sweep too

const isDrawn = (id) => figures.some((figure) => figure.id === id && !figure.stale) && !(id === "figure-5" && sweeping);

globalThis.WdmoePage = { changes, isComputed, isSettled, isDrawn, figuresAt: () => figuresAt };
