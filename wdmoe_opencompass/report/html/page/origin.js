// ---- requests, speed, testbed and provenance

function drawRequests() {
  const titles = {
    requests: "Simulated waiting latency of a request (ms): 50th / 90th / 99th percentile",
    speed: "Measured speed of this run (wall-clock)",
  };
  const found = Object.keys(titles).filter((name) => facts.tables[name]);
  byId("requests").hidden = !found.length;
  replace(
    "requests-body",
    found.map((name) => plainTable(facts.tables[name], titles[name])),
  );
}

function drawTestbed() {
  const titles = {
    table_3_testbed_accuracy: "Accuracy with the experts on the devices (%)",
    table_4_testbed_latency: "Measured waiting latency of one layer (ms per batch)",
    testbed_prediction: "Predicted and measured waiting latency",
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

/** -> {word: keys} of a profile's values as text. */
const originWords = (origin) =>
  Object.entries(origin ?? {})
    .map(([word, keys]) => `${word}: ${keys.join(", ")}`)
    .join("; ");

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
    facts.tables.paper_comparison ? plainTable(facts.tables.paper_comparison, "Ours next to the paper") : null,
    list(Object.entries(packages).map(([name, versions]) => [name, versions.join(" and ")])),
    profiles.map((profile) => list(Object.entries({ ...profile, origin: originWords(profile.origin) }))),
    origins.map((model) =>
      more(
        model.model,
        list(Object.entries(model).filter(([name]) => name !== "files" && name !== "datasets")),
        el(
          "ul",
          { class: "notes" },
          Object.entries(model.files).flatMap(([dataset, files]) =>
            Object.entries(files).map(([file, digest]) => el("li", {}, `${file}: SHA-256 ${digest}`)),
          ),
        ),
      ),
    ),
    facts.tables.frontier ? more("Frontier, every model", plainTable(facts.tables.frontier, "Frontier")) : null,
  );
}
