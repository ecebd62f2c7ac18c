// ---- styles: a colour, a symbol and a hatch per model, the same in every figure and table

const routed = facts.models.filter((model) => !model.dense);
const selecting = routed.filter((model) => !model.is_vanilla);
const vanillas = routed.filter((model) => model.is_vanilla);

const INK = "ink"; // black, or white in dark
const DENSE = "#999999"; // no other model's
const OTHERS = ["#CC79A7", "#56B4E9", "#D55E00", "#F0E442"]; // Okabe-Ito, beyond the four rows'
const COLOURS = ["#E69F00", "#0072B2", "#009E73", ...OTHERS, INK];
const HATCHES = [
  { optimal: "", uniform: "/" }, // while there are colours
  { optimal: "x", uniform: "\\" },
  { optimal: ".", uniform: "-" },
];
const SYMBOLS = [
  ...["circle", "square", "triangle-up", "diamond", "cross", "x", "star", "hexagon", "pentagon", "triangle-down"],
  ...[
    "bowtie",
    "hourglass",
    "star-square",
    "triangle-left",
    "star-diamond",
    "diamond-tall",
    "triangle-right",
    "hexagram",
  ],
];

/** The first vanilla and the first selecting model have a colour for each row, as the figures of the run's folder. */
const [leading, following] = [vanillas[0], selecting[0]].map((model) => model?.abbr);
const later = routed.filter(({ abbr }) => abbr !== leading && abbr !== following).map(({ abbr }) => abbr);
const denses = facts.models.filter((model) => model.dense).map(({ abbr }) => abbr);
const symbolOf = new Map(facts.models.map(({ abbr }, position) => [abbr, SYMBOLS[position % SYMBOLS.length]]));

/** {colour, symbol, hatch} of a row of a model. */
function styleOf(row, abbr) {
  const { allocation } = facts.rows[row];
  const symbol = symbolOf.get(abbr) + (allocation === "uniform" ? "-open" : "");
  if (abbr === leading || abbr === following)
    return { colour: row === "vanilla_even" ? style("--vanilla") : facts.rows[row].colour, symbol, hatch: "" };
  const position = later.indexOf(abbr),
    beyond = position - OTHERS.length;
  const colour = beyond < 0 ? OTHERS[position] : COLOURS[beyond % COLOURS.length];
  const cycle = beyond < 0 ? 0 : 1 + (Math.floor(beyond / COLOURS.length) % (HATCHES.length - 1));
  return { colour: colour === INK ? style("--vanilla") : colour, symbol, hatch: HATCHES[cycle][allocation] };
}

/** {colour, symbol, hatch} of a model, where figures and tables have one entry of it. */
function modelStyle(abbr) {
  const symbol = symbolOf.get(abbr);
  if (models.get(abbr).dense)
    return { colour: DENSE, symbol, hatch: ["", "/", "x", ".", "\\", "-"][denses.indexOf(abbr) % 6] };
  return { ...styleOf(abbr === leading ? "vanilla_even" : rowsOf(abbr).at(-1), abbr), symbol };
}

const bar = ({ colour, hatch }) => ({ color: colour, pattern: hatch ? { shape: hatch, size: 6 } : undefined });
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

/** A sample of a style for tables: CSS has no hatches, so they are made of gradients. */
function backgroundOf({ colour, hatch }) {
  const stripes = (angle) => `repeating-linear-gradient(${angle}deg,${colour} 0 2px,transparent 2px 4px)`;
  const drawn = {
    "/": stripes(-45),
    "\\": stripes(45),
    "-": stripes(0),
    x: `${stripes(-45)},${stripes(45)}`,
    ".": `radial-gradient(${colour} 35%,transparent 40%) 0 0/4px 4px`,
  };
  return drawn[hatch] ?? colour;
}
