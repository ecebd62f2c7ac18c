"""The pictures of README and docs, from runs of the quickstart's small model.

    make pictures                                 uses the last runs in outputs/quickstart and outputs/policies

Where a run is not there, it is made: two minutes for the quickstart, twenty for all policies, on two cores. The page's
pictures need Chromium (Debian's package of that name).
"""

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.debian import UnavailableError  # noqa: E402
from tests.report.html.browser import Visit, chromium  # noqa: E402
from wdmoe_opencompass.errors import TraceError  # noqa: E402
from wdmoe_opencompass.report.html.page import write_page  # noqa: E402
from wdmoe_opencompass.report.runs import runs_from_traces  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"
RUNS = {"quickstart": "eval_configs/eval_quickstart.py", "policies": "eval_configs/eval_policies.py"}
FIGURES = {
    "quickstart_bandwidth.png": ("quickstart", "figure_5_bandwidth.png"),
    "quickstart_frontier.png": ("policies", "frontier.png"),
}
PHONE = dict(width=390, height=844)


def last_run(name):
    """-> the folder of the last finished run of a config; it is run where there is none."""
    work_dir = ROOT / "outputs" / name
    if not finished(work_dir):
        environment = {key: value for key, value in os.environ.items() if key != "COMPASS_DATA_CACHE"}
        environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [Path(sys.executable).with_name("opencompass"), RUNS[name], "-w", str(work_dir)]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return finished(work_dir)[-1]


def finished(work_dir):
    """-> the folders of finished runs whose traces can be read today, the last one last."""
    folders = sorted(path for path in work_dir.glob("*") if (path / "summary" / "manifest.json").exists())
    return [folder for folder in folders if is_readable(folder)]


def is_readable(folder):
    """Whether all traces of a run can be read."""
    try:
        return bool(runs_from_traces(folder))
    except TraceError:
        return False


def photograph(page, name, part=None, changes=(), **view):
    """Write a picture of the page as one sees it: from its top, or from a part of it; changes: (control, value)."""
    with ExitStack() as stack:
        browser = stack.enter_context(chromium())
        visit = Visit(browser, page, **view)
        for control, value in changes:
            visit.set(control, value)
        visit.all_seen()
        is_changed = visit.page.inner_text("#announce").startswith("What if")
        if is_changed != bool(changes):
            raise SystemExit(f"error: {name}: the page does not follow its controls")
        top = f"document.querySelector('{part}').getBoundingClientRect().top + scrollY - 64" if part else "0"
        visit.page.evaluate(f"scrollTo({{top: {top}, behavior: 'instant'}})")
        visit.settled()
        visit.page.wait_for_timeout(500)
        visit.page.screenshot(path=str(PICTURES / name))
        visit.close()


def main():
    """All of them."""
    for name, (run, figure) in FIGURES.items():
        shutil.copy(last_run(run) / "summary" / figure, PICTURES / name)
    with tempfile.TemporaryDirectory() as work:
        copy = shutil.copytree(last_run("quickstart"), Path(work) / "quickstart")
        page, content = write_page(copy)
        if content.left_out:
            raise SystemExit(f"error: {copy}: the page lacks {content.left_out}")
        try:
            photograph(page, "page_light.png")
            photograph(page, "page_dark.png", "#latency", [("#total-number", 60)], scheme="dark")
            photograph(page, "page_phone.png", "#latency", **PHONE)
        except UnavailableError as reason:
            raise SystemExit(f"error: {reason}") from None
    print(f"pictures: {PICTURES}")


if __name__ == "__main__":
    main()
