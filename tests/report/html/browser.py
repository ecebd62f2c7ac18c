"""Debian's Chromium without a screen, and what a page did in it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.debian import UnavailableError, require

PROGRAM, PACKAGE = "chromium", "chromium"


@contextmanager
def chromium() -> Iterator:
    """A browser; UnavailableError, with the reason, where there can be none."""
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        raise UnavailableError("playwright is not installed: pip install -e '.[test]'") from None
    require([PROGRAM], [PACKAGE])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which(PROGRAM), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """A page opened in its own context, with all that it asked for and complained of."""

    def __init__(self, browser, path: Path, width=1280, height=900, scheme="light"):
        self.context = browser.new_context(viewport=dict(width=width, height=height), color_scheme=scheme)
        self.context.set_default_timeout(120_000)  # of a machine that does other things too
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda line: line.type in ("error", "warning") and self.complaints.append(line.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(path.as_uri())
        self.settled()
        self.page.evaluate("globalThis.asOpened = [...document.querySelectorAll('select')].map((node) => node.value)")

    def close(self):
        self.context.close()

    def restored(self):
        """As it was opened: settings, choices and filters."""
        self.page.evaluate(
            """() => {
              for (const node of document.querySelectorAll("#items input")) {
                const before = [node.value, node.checked];
                [node.value, node.checked] = ["", false];
                if (before[0] || before[1]) node.dispatchEvent(new Event("input"));
              }
              document.querySelectorAll("select").forEach((node, index) => {
                if (node.value === asOpened[index]) return;
                node.value = asOpened[index];
                for (const kind of ["input", "change"]) node.dispatchEvent(new Event(kind));
              });
            }"""
        )
        self.page.click("#reset")
        self.settled()

    def all_seen(self):
        """Scroll through the page, so that everything that is drawn when it is seen is drawn."""
        for id_ in self.page.evaluate("[...document.querySelectorAll('.figure, #items')].map((node) => node.id)"):
            self.seen(id_)

    def seen(self, id_: str) -> None:
        """Scroll to a figure, or to the items, and wait until it is drawn as the controls want it."""
        self.page.evaluate(f"document.getElementById('{id_}').scrollIntoView({{behavior: 'instant'}})")
        if id_ == "items":
            self.page.wait_for_function("() => document.getElementById('item-count').textContent")
        else:
            self.page.wait_for_function("(id) => WdmoePage.isDrawn(id)", arg=id_)
        self.settled()

    def open_item(self) -> str:
        """Unfold the first item that is listed; -> its text, which the browser adds after the click."""
        self.page.click("#item-list summary >> nth=0")
        return self.page.inner_text("#item-list .body")

    def settled(self):
        """Plotly.js, intervals and the bandwidth sweep are there."""
        self.page.wait_for_function("() => WdmoePage.isSettled()")

    def set(self, selector: str, value) -> None:
        self.page.eval_on_selector(
            selector,
            "(node, value) => { node.value = value; node.dispatchEvent(new Event('input', {bubbles: true})); }",
            str(value),
        )
        self.computed()

    def click(self, selector: str) -> None:
        self.page.click(selector)
        self.computed()

    def computed(self):
        """All numbers are those of the controls."""
        self.page.wait_for_function("() => WdmoePage.isComputed()")

    def cells(self) -> dict[tuple[str, str, str], float]:
        """Latency in seconds by row, model and benchmark, as the table has it."""
        read = "nodes => nodes.map(({dataset: d}) => [[d.row, d.model, d.benchmark], Number(d.value)])"
        return {tuple(key): value for key, value in self.page.eval_on_selector_all("#table-latency [data-row]", read)}
