"""JavaScript for tests: in Node.js where it is installed, else in a headless Chromium, else not at all."""

import importlib.util
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

NOTHING = "neither Node.js (node) nor playwright with a Chromium (chromium) is installed"
# typed arrays as lists; what JSON has no number for as text
AS_JSON = """(value) => JSON.stringify(value, (_, one) =>
  ArrayBuffer.isView(one) ? Array.from(one) :
  typeof one === "number" && !Number.isFinite(one) ? String(one) : one)"""


class Evaluate(Protocol):
    """Runs a plain script and gives what a function makes of an argument after it, as JSON has it."""

    def __call__(self, script: str, function: str, argument: Any = None) -> Any: ...


def available() -> list[str]:
    """What this machine can run JavaScript in, best first."""
    chromium = shutil.which("chromium") and importlib.util.find_spec("playwright")
    return [name for name, there in (("node", shutil.which("node")), ("chromium", chromium)) if there]


@contextmanager
def javascript(kind: str) -> Iterator[Evaluate]:
    """An evaluator in `node` or `chromium`."""
    if kind == "node":
        yield _in_node
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        try:
            yield partial(_in_page, browser)
        finally:
            browser.close()


def _in_node(script: str, function: str, argument: Any = None) -> Any:
    program = f"""
      const [script, argument] = JSON.parse(require("fs").readFileSync(0, "utf8")), vm = require("vm");
      vm.runInThisContext(script);
      process.stdout.write(({AS_JSON})(vm.runInThisContext({json.dumps(f"({function})")})(argument)) ?? "null");
    """
    done = subprocess.run(["node", "-e", program], input=json.dumps([script, argument]), capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


def _in_page(browser: Any, script: str, function: str, argument: Any = None) -> Any:
    page = browser.new_page()
    try:
        page.add_script_tag(content=script)
        answer = page.evaluate(f"(text) => ({AS_JSON})(({function})(JSON.parse(text))) ?? null", json.dumps(argument))
        return None if answer is None else json.loads(answer)
    finally:
        page.close()
