"""`wdmoe doctor`."""

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
    "wdmoe doctor",
    "wdmoe doctor eval_configs/eval_quickstart.py --json",
)


def doctor_command(
    config: Annotated[
        Path | None, typer.Argument(help="OpenCompass config: also check what its models and datasets need.")
    ] = None,
    work_dir: Annotated[
        Path, typer.Option("--work-dir", "-w", help="Where the run will write, as opencompass's -w.")
    ] = Path("outputs"),
    as_json: AsJson = False,
) -> None:
    """Check this machine before a run. Each finding has its fix; exit code 1 if there is a problem."""
    if config is not None:
        check_file(config, "config file")
    with (
        Progress("looking at this machine", 1) as progress,
        redirect_stdout(io.StringIO()),  # OpenCompass and its loaders print a lot
        redirect_stderr(io.StringIO()),
    ):
        from ..doctor import examine

        findings = examine(config, work_dir, progress.advance)
    problems, warnings = (sum(finding.status == status for finding in findings) for status in ("problem", "warning"))
    if as_json:
        print_json(dict(findings=[asdict(finding) for finding in findings], problems=problems, warnings=warnings))
    else:
        print_table([dict(status=finding.status, check=finding.check, found=finding.found) for finding in findings])
        print()
        for finding in findings:
            if finding.fix is not None:
                print(f"{finding.status}, {finding.check}: {finding.fix}")
        print(f"{problems} problems, {warnings} warnings")
    if problems:
        raise typer.Exit(CHECK_FAILED)
