"""The `wdmoe` command: which commands there are, and in which order its help shows them."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from .. import __version__
from . import (
    allocate,
    calibrate,
    doctor,
    figures,
    place,
    plan,
    predict,
    profile,
    recording,
    replay,
    report,
    route,
    simulate,
    verify,
    watch,
)
from .options import EXIT_CODES, examples, new_app, run
from .testbed import app as testbed_app

BEFORE, DURING, AFTER = "Before a run", "During a run", "After a run"
LATENCY = "Latency, without a language model"
OTHERS = "More commands"

app = new_app(
    help="Accuracy and attention waiting latency of a wirelessly distributed Mixture-of-Experts model.",
    epilog="\n\n".join(
        [
            examples(
                "wdmoe doctor eval_configs/eval_quickstart.py",
                "wdmoe plan eval_configs/eval_quickstart.py",
                "opencompass eval_configs/eval_quickstart.py -w outputs/quickstart",
                "wdmoe report outputs/quickstart/TIME",
            ),
            EXIT_CODES,
            "Every command takes --json. Shell completion: wdmoe --install-completion",
        ]
    ),
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"wdmoe {__version__}")
        raise typer.Exit


@app.callback()
def version_of_wdmoe(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options before a command; `--version` prints and exits in its own callback."""


def _add(panel: str, name: str, command: Callable[..., Any], lines: tuple[str, ...]) -> None:
    app.command(name, epilog=examples(*lines), rich_help_panel=panel)(command)


_add(BEFORE, "doctor", doctor.doctor_command, doctor.EXAMPLES)
_add(BEFORE, "plan", plan.plan_command, plan.EXAMPLES)
_add(BEFORE, "calibrate", calibrate.calibrate_command, calibrate.EXAMPLES)
_add(DURING, "watch", watch.watch_command, watch.EXAMPLES)
_add(AFTER, "report", report.report_command, report.REPORT_EXAMPLES)
_add(AFTER, "verify", verify.verify_command, verify.EXAMPLES)
_add(AFTER, "compare", report.compare_command, report.COMPARE_EXAMPLES)
_add(AFTER, "frontier", report.frontier_command, report.FRONTIER_EXAMPLES)
_add(AFTER, "figures", figures.figures_command, figures.EXAMPLES)
_add(AFTER, "predict", predict.predict_command, predict.EXAMPLES)
_add(LATENCY, "allocate", allocate.allocate_command, allocate.EXAMPLES)
_add(LATENCY, "replay", replay.replay_command, replay.EXAMPLES)
_add(LATENCY, "simulate", simulate.simulate_command, simulate.EXAMPLES)
_add(LATENCY, "route", route.route_command, route.EXAMPLES)
_add(LATENCY, "place", place.place_command, place.EXAMPLES)
app.add_typer(profile.app, name="profile", rich_help_panel=OTHERS)
app.add_typer(recording.app, name="recording", rich_help_panel=OTHERS)
app.add_typer(testbed_app, name="testbed", rich_help_panel=OTHERS)


def main() -> None:
    """Entry point of `wdmoe`."""
    run(app, "wdmoe")
