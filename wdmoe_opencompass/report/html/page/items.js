// ---- items

let itemData = null; // read when the section is first seen
let itemHits = [];
let itemDrawn = 0;

const answerOf = (dataset, item, position) => {
  const own_ = item[4][position];
  if (own_ !== null) return own_;
  const vanilla = models.get(dataset.models[position]).vanilla;
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

const isRight = (dataset, item, position) => {
  const mark = at(dataset.right, dataset.models[position])?.[item[0]];
  return mark === undefined ? null : mark === "1";
};

function findItems() {
  if (!itemData) return;
  const name = byId("item-dataset").value,
    words = byId("item-search").value.trim().toLowerCase();
  const changed = byId("item-changed").checked,
    differ = byId("item-wrong").checked;
  itemHits = [];
  for (const dataset of itemData.datasets.filter((candidate) => !name || candidate.dataset === name)) {
    for (const item of dataset.items) {
      if (changed && !item[5]) continue;
      if (
        differ &&
        new Set(dataset.models.map((_, position) => isRight(dataset, item, position)).filter((right) => right !== null))
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
  const few = dataset.models.length <= 3 ? dataset.models.map((_, position) => position) : [];
  const node = el(
    "details",
    { class: "item" },
    el(
      "summary",
      {},
      el("span", { class: "of" }, `${dataset.dataset} ${number}`),
      el("span", { class: "line" }, shorten(last, 140)),
      changed ? el("span", { class: "mark changes" }, "answer changed") : null,
      few.map((position) => markOf(dataset, item, position)),
    ),
  );
  node.addEventListener(
    "toggle",
    () => node.open && node.childElementCount === 1 && node.append(itemBody(dataset, item)),
    { once: false },
  );
  return node;
}

function markOf(dataset, item, position) {
  const right = isRight(dataset, item, position),
    abbr = dataset.models[position];
  if (right === null) return null;
  return el("span", { class: `mark ${right ? "right" : "wrong"}` }, `${right ? "✓" : "✗"} ${shorten(abbr, 28)}`);
}

function withOption(options, label) {
  const text = at(options, label);
  return text === undefined ? label : `${label}: ${text.trim()}`;
}

function itemBody(dataset, item) {
  const [, question, options, reference] = item;
  const rows = dataset.models.map((abbr, position) => {
    const answer = answerOf(dataset, item, position),
      right = isRight(dataset, item, position);
    const vanilla = models.get(abbr).vanilla,
      isCompared = vanilla && vanilla !== abbr && dataset.models.includes(vanilla);
    const verdict = [
      right === null ? "not told" : right ? "right" : "wrong",
      isCompared ? (item[4][position] === null ? "as vanilla" : "changed") : "",
    ]
      .filter(Boolean)
      .join(", ");
    const text = withOption(options, answer);
    return [
      el("span", {}, swatch(modelStyle(abbr)), abbr),
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
    el("p", { class: "hint" }, `Reference: ${withOption(options, reference)}`),
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
