"""What an interruption leaves: answers half written, predictions that are torn or lack their trace, stale results."""

import json
import logging
from pathlib import Path
from typing import Any

from ..errors import TraceError
from ..files import write_whole
from ..routing.times import TIMES_JOURNAL_SUFFIX, TIMES_SUFFIX
from ..routing.trace import JOURNAL_SUFFIX, SEALED_SUFFIX, Journal, RoutingTrace, read_trace

LOG = logging.getLogger(__name__)
LABEL = "label: "  # how OpenCompass's perplexity inferencer calls each possible answer of an item


def beside(predictions: Path, suffix: str) -> Path:
    """`DATASET.json` -> `DATASET<suffix>` in the same folder."""
    return predictions.with_name(predictions.name.removesuffix(".json") + suffix)


def redo_unfinished(predictions: Path, results: Path, is_traced: bool) -> str | None:
    """Take away what OpenCompass would take for finished though it is not; -> why, None where nothing was wrong.

    predictions, results: a dataset's files, whether they are there or not. A predictions file is finished if it is
    whole and, where is_traced, its sealed trace is whole and counts the same items; a journal that does is sealed.
    Results are finished if they are whole and not older than the predictions.
    """
    if not predictions.exists():
        return None
    why = _why_unfinished(predictions, is_traced)
    if why is None:
        return None
    for path in (predictions, beside(predictions, SEALED_SUFFIX), beside(predictions, TIMES_SUFFIX), results):
        path.unlink(missing_ok=True)
    LOG.warning("%s: %s: it is run again", predictions, why)
    return why


def _why_unfinished(predictions: Path, is_traced: bool) -> str | None:
    answers = read_whole(predictions)
    if answers is None:
        return "the predictions are torn"
    if not is_traced:
        return None
    sealed, journal = beside(predictions, SEALED_SUFFIX), beside(predictions, JOURNAL_SUFFIX)
    why = "there is no routing trace of these predictions"
    if sealed.exists():
        try:
            if counts(read_trace(sealed), answers):
                journal.unlink(missing_ok=True)  # a kill between sealing and taking it away
                return None
            why = "the routing trace is not of the items of the predictions"
        except TraceError as error:
            why = str(error)
    if journal.exists():
        try:
            whole = Journal(journal).joined()
            if counts(whole, answers):
                Journal(journal).seal(sealed)
                return None
            why = "the routing trace lacks items of the predictions"
        except TraceError as error:
            why = str(error)
    return why


def read_whole(path: Path) -> dict[str, Any] | None:
    """-> a predictions or results file of OpenCompass; None where it is torn, or not one."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def counts(trace: RoutingTrace, answers: dict[str, Any]) -> bool:
    """Whether a trace has every item of a predictions file as often as it was run: once, or once per possible answer.

    An inferencer that asks several times per item (self-consistency) is known by nothing but a whole multiple.
    """
    if not answers:
        return False
    first = next(iter(answers.values()))
    labels = sum(key.startswith(LABEL) for key in first) if isinstance(first, dict) else 0
    run = int(trace.items.sum())
    return run == labels * len(answers) if labels else run > 0 and run % len(answers) == 0


def redo_stale_results(predictions: Path, results: Path) -> None:
    """Take away results that are torn, or older than the predictions that they are of."""
    if not results.exists():
        return
    is_older = predictions.exists() and results.stat().st_mtime_ns < predictions.stat().st_mtime_ns
    if is_older or read_whole(results) is None:
        results.unlink(missing_ok=True)
        LOG.warning("%s: %s: it is evaluated again", results, "older than its predictions" if is_older else "torn")


# -- answers of a generation task that was interrupted ---------------------------------------------------------------
def whole_answers(predictions: Path) -> list[dict[str, Any]]:
    """-> the answers that OpenCompass kept of an interrupted dataset, up to the first that is torn."""
    kept: list[dict[str, Any]] = []
    try:
        lines = _partial(predictions).read_bytes().split(b"\n")
    except OSError:
        return kept
    for line in lines[:-1]:  # what no line end closes is torn
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(answer, dict) or str(answer.get("idx")) != str(len(kept)):
            break
        kept.append(answer)
    return kept


def keep_answers(predictions: Path, answers: list[dict[str, Any]]) -> None:
    """Leave these answers, and no others, for OpenCompass to go on from.

    Its reader throws all of them away where one line is torn, or holds a character that ``str.splitlines`` takes for a
    line end: here they are escaped.
    """
    partial = _partial(predictions)
    if answers:
        write_whole(partial, "".join(json.dumps(answer) + "\n" for answer in answers))
    else:
        partial.unlink(missing_ok=True)


def _partial(predictions: Path) -> Path:
    return predictions.with_name(Path(f"tmp_{predictions.name}").with_suffix(".jsonl").name)


def forget_journals(predictions: Path) -> None:
    """Take away the journals of a dataset that is run anew."""
    for suffix in (JOURNAL_SUFFIX, TIMES_JOURNAL_SUFFIX):
        beside(predictions, suffix).unlink(missing_ok=True)
