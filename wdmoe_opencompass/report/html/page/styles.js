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
