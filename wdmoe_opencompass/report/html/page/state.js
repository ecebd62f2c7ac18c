// ---- what is shown and set

const ROWS_AT_ONCE = 25; // items that are drawn at once
const PAPER_PIXELS = 680; // width of a figure in print
const FIRST_MS = 40; // of solving before a change is first shown
const PAINT_MS = 20; // left to the browser to show it
const SLICE_MS = 80;
const IDLE_MS = 60; // after the last change until intervals and the bandwidth sweep follow
const PER = { pass: "per forward pass", batch: "per batch" };
const PHASE = { all: "all passes", prefill: "prefill", decode: "decode" };
const SCOPE = { layer: "one split per layer", pass: "one split per pass, in hindsight" };
const ALLOCATION = { uniform: "even split", optimal: "optimal split" };

const facts = JSON.parse(document.getElementById("facts").textContent);
const run = WdmoeEngine.load(JSON.parse(document.getElementById("counts").textContent));
const intervals = makeIntervals(facts.bootstrap);
const own = WdmoeEngine.defaults(run); // null everywhere: each profile's own
const first = run.models.length ? WdmoeEngine.own(run) : own; // numbers, for the controls' initial positions
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
