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
let follow = 0; // the timer of what follows; no change of view stops it

function followIn(ms) {
  clearTimeout(follow);
  follow = setTimeout(afterwards, ms);
}

/** After a change of settings or view: what takes longer than FIRST_MS is shown when it is there. */
function refresh() {
  generation += 1;
  sweeping = false;
  for (const allocation of ["uniform", "optimal"]) latest[allocation] = computeLatencies(allocation);
  waiting = isOwn() ? [] : findUnsolved();
  solve(performance.now() + FIRST_MS);
  pending = !isOwn();
  cells = latencyCells(false);
  texts();
  redraw(FOLLOWING);
  followIn(waiting.length ? PAINT_MS : IDLE_MS);
}

/** Each dataset of each model that the settings want solved: even splits and the benchmark in view come first. */
function findUnsolved() {
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
  if (waiting.length) {
    solve(performance.now() + SLICE_MS);
    if (waiting.length) return followIn(0);
    cells = latencyCells(false);
    texts();
    redraw(FOLLOWING);
    return followIn(IDLE_MS);
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

function pickView() {
  view.benchmark = byId("benchmark").value;
  view.model = byId("model").value;
  generation += 1;
  sweeping = false;
  drawProfiles();
  drawPhaseTable();
  drawLayers();
  drawChannel();
  redraw(["figure-5", "figure-7", "figure-8", "figure-phases"]);
  sweepOn();
}
