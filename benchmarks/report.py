"""How quickly the page of a run opens and follows its controls, in a headless Chromium.

python benchmarks/report.py [RUN_FOLDER...]

Without folders: a synthetic run of eight benchmarks and 2,000 recorded forward passes of 8 layers and 8 devices. Prints
one line per run, and ends with one line of JSON: load_s until all numbers and controls are there, figures_s until the
first figures are drawn, change_ms from a control's event to the next frame that shows new numbers, all_ms until all of
them are shown (medians of CHANGES, and the slowest first), the page's size and that of its data.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.report.html.browser import Visit, chromium
from tests.report.html.synthetic import write_run
from wdmoe_opencompass.report.html.page import write_page

# dataset -> (batches, passes of each): with two models 2,000 recorded passes
SIZES = {f"ranked_{n}": (25, 1) for n in range(4)} | {f"generated_{n}": (9, 25) for n in range(4)}
LAYERS = 8
CHANGES = [(selector, value) for value in (20, 35, 60, 75, 110) for selector in ("#total-number", "#payload-number")]
SECONDS = "performance.getEntriesByType('navigation')[0].loadEventEnd / 1000"
CHANGE = """([selector, value]) => new Promise((done) => {
  const field = document.querySelector(selector), begun = performance.now();
  field.value = value;
  field.dispatchEvent(new Event("input", { bubbles: true }));
  let first = 0;
  const look = () => {
    first = first || performance.now() - begun;
    if (WdmoePage.isComputed()) done([first, performance.now() - begun]);
    else requestAnimationFrame(() => setTimeout(look, 0));
  };
  requestAnimationFrame(() => setTimeout(look, 0));
})"""


def measure(browser, folder):
    path, page = write_page(folder)
    visit = Visit(browser, path)
    load_s, figures_s = visit.page.evaluate(SECONDS), visit.page.evaluate("WdmoePage.figuresAt() / 1000")
    changes = []
    for number, (selector, value) in enumerate(CHANGES):
        wanted = min(32, value // 5) if "payload" in selector else value
        changes.append(visit.page.evaluate(CHANGE, [selector, str(wanted + number)]))
        visit.settled()
    visit.close()
    first, every = zip(*changes)
    return dict(
        run=folder.name,
        load_s=round(load_s, 3),
        figures_s=round(figures_s, 3),
        change_ms=round(statistics.median(first), 1),
        slowest_change_ms=round(max(first), 1),
        all_ms=round(statistics.median(every), 1),
        html_mb=round(path.stat().st_size / 1e6, 2),
        data_mb=round(page.data_bytes / 1e6, 2),
    )


def main(*folders):
    with tempfile.TemporaryDirectory() as work, chromium() as browser:
        runs = [Path(folder).resolve() for folder in folders]
        runs = runs or [write_run(Path(work) / "eight_benchmarks", sizes=SIZES, layers=LAYERS)]
        found = [measure(browser, folder) for folder in runs]
    for figures in found:
        print(", ".join(f"{key} {value}" for key, value in figures.items()))
    print(json.dumps(found[0] if len(found) == 1 else dict(runs=found)))


if __name__ == "__main__":
    main(*sys.argv[1:])
