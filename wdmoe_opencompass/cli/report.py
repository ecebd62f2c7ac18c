"""`wdmoe report`, `wdmoe compare` and `wdmoe frontier`: what a run's summary folder holds."""

from pathlib import Path
from typing import Annotated

import typer

from .._util.given_paths import check_run_folder
from ..errors import WdmoeError
from .console import Progress, print_aside, print_json, print_markdown
from .options import CHECK_FAILED, AsJson, Format, Formatted, format_of

REPORT_EXAMPLES = (
    "wdmoe report outputs/quickstart/TIME",
    "wdmoe report outputs/quickstart/TIME --format tex > tables.tex",
    "wdmoe report outputs/quickstart/TIME --html",
)
COMPARE_EXAMPLES = ("wdmoe compare outputs/a/TIME outputs/b/TIME --format csv",)
OPTIONAL_RECORDS = ("items", "batches", "identity")  # not in the summaries of older runs
TITLES = {
    "requests": "Waiting latency of single requests, simulated",
    "speed": "Speed of the run, measured wall-clock",
}
FRONTIER_EXAMPLES = ("wdmoe frontier outputs/policies/TIME --json",)


def report_command(
    run_folder: Annotated[Path, typer.Argument(help="OpenCompass's time-stamped folder.")],
    form: Formatted = None,
    html: Annotated[bool, typer.Option("--html", help="Write the whole run as one page: summary/report.html.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print a run's main tables, or write its page; exit code 1 if a cell is empty, with the reason for each."""
    from ..report.summary_files import MAIN, MAIN_TABLES_FILE, MISSING_FILE, REQUESTS, SPEED, read_summary

    if html and form is not None:
        raise WdmoeError(f"--html writes a page, so it excludes --format {form}; --json says where it is")
    form = format_of(form, as_json)
    check_run_folder(run_folder)
    summary = run_folder / "summary"
    missing = read_summary(run_folder, MISSING_FILE, list)
    further = [name for name in (REQUESTS, SPEED) if (summary / f"{name}.json").is_file()]  # not in older runs
    if html:
        _write_page(run_folder, as_json)
    elif form is None or form == Format.md:
        text = (summary / MAIN_TABLES_FILE).read_text()
        text = "\n".join([text, *(f"{TITLES[name]}:\n\n" + (summary / f"{name}.md").read_text() for name in further)])
        print_markdown(text) if form is None else print(text)
        print(f"all formats: {summary}")
    elif form == Format.json:
        print_json({name: read_summary(run_folder, f"{name}.json", dict) for name in (*MAIN, *further)})
    else:
        print("\n".join((summary / f"{name}.{form.value}").read_text() for name in (*MAIN, *further)), end="")
    for cell in missing:
        print_aside(f"empty: {cell}")
    if missing:
        raise typer.Exit(CHECK_FAILED)


def _write_page(run_folder: Path, as_json: bool) -> None:
    from ..report.html.page import write_page
    from ..report.publication import list_in_manifest

    with Progress(f"writing the page of {run_folder}"):
        path, page = write_page(run_folder)
        list_in_manifest(run_folder, [path])
    if as_json:
        print_json(dict(page=str(path), bytes=path.stat().st_size, data_bytes=page.data_bytes, left_out=page.left_out))
        return
    print(path)
    for sentence in page.left_out:
        print_aside(f"left out: {sentence}")


def compare_command(
    run_a: Annotated[Path, typer.Argument(help="Time-stamped folder of one run.")],
    run_b: Annotated[Path, typer.Argument(help="Time-stamped folder of another.")],
    form: Formatted = None,
    as_json: AsJson = False,
) -> None:
    """Differences between two runs, B - A, with intervals and p values: accuracy and latency that both measured."""
    from ..report.compare import comparison_table, notes_of
    from ..report.formats import format_table
    from ..report.summary_files import WRITE_AGAIN, read_summary

    form = format_of(form, as_json)
    for folder in (run_a, run_b):
        check_run_folder(folder)
    records = [
        {name: read_summary(folder, f"{name}.json", list) for name in ("accuracy", "latency", "origin")}
        | {name: read_summary(folder, f"{name}.json", list, []) for name in OPTIONAL_RECORDS}
        | dict(groups=read_summary(folder, "groups.json", dict))
        for folder in (run_a, run_b)
    ]
    try:
        with Progress("comparing"):
            table, notes = comparison_table(*records), notes_of(*records)
    except (KeyError, TypeError, AttributeError, ValueError) as error:  # records of another version, or changed by hand
        raise WdmoeError(
            f"{run_a} or {run_b}: its summary holds other records than this version writes "
            f"({type(error).__name__}: {error}); {WRITE_AGAIN}"
        ) from None
    text = format_table(table, notes, (form or Format.md).value)
    print_markdown(text) if form is None else print(text, end="")


def frontier_command(
    run_folder: Annotated[Path, typer.Argument(help="OpenCompass's time-stamped folder.")],
    form: Formatted = None,
    as_json: AsJson = False,
) -> None:
    """Accuracy against waiting latency of every policy of a run, with intervals; exit code 1 if there is only one.

    What `wdmoe route` or `wdmoe simulate` left has no accuracy: the share of the router's weight kept is shown instead.
    """
    from ..report.summary_files import FRONTIER, FRONTIER_RECORDS_FILE, MISSING_FILE, read_summary

    form = format_of(form, as_json)
    check_run_folder(run_folder)
    summary = run_folder / "summary"
    if len(read_summary(run_folder, FRONTIER_RECORDS_FILE, list)) < 2:
        print_aside(
            f"{run_folder}: no two models of the same weights and profile with everything measured to compare; what is "
            f"empty, and why: summary/{MISSING_FILE}"
        )
        raise typer.Exit(CHECK_FAILED)
    text = (summary / f"{FRONTIER}.{(form or Format.md).value}").read_text()
    print_markdown(text) if form is None else print(text, end="")
    if form is None or form == Format.md:
        print(f"\nfigure: {summary / FRONTIER}.png, .pdf")
