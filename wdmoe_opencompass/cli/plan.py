"""`wdmoe plan`."""

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .._util.given_paths import check_file
from .console import Progress, print_json, print_table
from .options import CHECK_FAILED, AsJson

EXAMPLES = (
    "wdmoe plan eval_configs/eval_quickstart.py",
    "wdmoe plan eval_configs/eval_wdmoe_mixtral_8x7b_instruct.py --json",
)


def plan_command(
    config: Annotated[Path, typer.Argument(help="OpenCompass config, as given to the opencompass command.")],
    as_json: AsJson = False,
) -> None:
    """Show what a run would read, compute and write, without loading weights; exit code 1 if it could not work."""
    check_file(config, "config file")
    with (
        Progress(f"looking at {config}"),
        redirect_stdout(io.StringIO()),  # OpenCompass and its loaders print a lot
        redirect_stderr(io.StringIO()),
    ):
        from ..harness.plan.make import make_plan

        plan = make_plan(config)
    if as_json:
        print_json(asdict(plan) | dict(can_work=not plan.problems))
    else:
        for rows in (plan.model_rows(), plan.dataset_rows(), plan.run_rows()):
            print_table(rows)
            print()
        for kind, sentences in (("note", plan.notes), ("problem", plan.problems)):
            for sentence in sentences:
                print(f"{kind}: {sentence}")
        print("this run cannot work" if plan.problems else "this run can work")
    if plan.problems:
        raise typer.Exit(CHECK_FAILED)
