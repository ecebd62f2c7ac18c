"""What an interruption leaves: answers half written, predictions that are torn or lack their trace, stale results."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OtherVersion, TraceError
from ..files import remove_torn_writes, write_whole
from ..routing.times import TIMES_JOURNAL_SUFFIX, TIMES_SUFFIX, TimesJournal, check_belongs, read_times
from ..routing.trace import EVENTS_SUFFIX, JOURNAL_SUFFIX, SEALED_SUFFIX, Journal, RoutingTrace, read_trace

LOG = logging.getLogger(__name__)
WRITTEN_WHOLE = (SEALED_SUFFIX, JOURNAL_SUFFIX, TIMES_SUFFIX, TIMES_JOURNAL_SUFFIX, EVENTS_SUFFIX)
LABEL = "label: "  # how OpenCompass's perplexity inferencer calls each possible answer of an item


def beside(predictions: Path, suffix: str) -> Path:
    """`DATASET.json` -> `DATASET<suffix>` in the same folder."""
    return predictions.with_name(predictions.name.removesuffix(".json") + suffix)


def redo_unfinished(predictions: Path, results: Path, model_cfg: Any, dataset_cfg: Any) -> str | None:
    """Take away what OpenCompass would take for finished though it is not; -> why, None where nothing was wrong.

    predictions, results: a dataset's files, whether they are there or not. A predictions file is finished if it is
    whole and, of a model with a `wdmoe` section, its sealed trace is whole and counts the same items, and so are the
    measured times of a testbed; journals that do are sealed. What is not finished is kept under another name,
    `DATASET.json.unfinished`. To be called by who holds the dataset's lock. Raises OSError where a file cannot be read
    now.
    """
    for path in (_partial(predictions), *(beside(predictions, suffix) for suffix in WRITTEN_WHOLE)):
        remove_torn_writes(path)
    if not predictions.exists():
        return None
    why = _why_unfinished(predictions, model_cfg.get("wdmoe"), dataset_cfg["infer_cfg"]["inferencer"])
    if why is None:
        _partial(predictions).unlink(missing_ok=True)  # a kill between the last write and this
        return None
    for path in (results, beside(predictions, SEALED_SUFFIX), beside(predictions, TIMES_SUFFIX)):
        path.unlink(missing_ok=True)
    predictions.replace(predictions.with_name(f"{predictions.name}.unfinished"))
    LOG.warning("%s: %s: it is run again", predictions, why)
    return why


def _why_unfinished(predictions: Path, wdmoe: Any, inferencer: Any) -> str | None:
    answers = read_whole(predictions)
    if answers is None:
        return "the predictions are torn"
    if wdmoe is None:
        return None
    why = _why_untraced(predictions, answers, inferencer)
    return _why_without_times(predictions) if why is None and wdmoe.get("testbed") else why


def _why_untraced(predictions: Path, answers: dict[str, Any], inferencer: Any) -> str | None:
    sealed, journal = beside(predictions, SEALED_SUFFIX), beside(predictions, JOURNAL_SUFFIX)
    why = "there is no routing trace of these predictions"
    if journal.exists():  # first: a sealed one beside it may be older
        try:
            if counts(Journal(journal).joined(), answers, inferencer):
                Journal(journal).seal(sealed)
                return None
            why = "the routing trace lacks items of the predictions"
        except OtherVersion:
            return None  # whole, but of an earlier version: the tables say so
        except TraceError as error:
            why = str(error)
    if sealed.exists():
        try:
            if counts(read_trace(sealed), answers, inferencer):
                journal.unlink(missing_ok=True)  # a kill between sealing and taking it away
                return None
            why = "the routing trace is not of the items of the predictions"
        except OtherVersion:
            return None
        except TraceError as error:
            why = str(error)
    return why


def _why_without_times(predictions: Path) -> str | None:
    """Measured times cannot be made up: a dataset whose times are torn is run again."""
    sealed, journal = beside(predictions, TIMES_SUFFIX), beside(predictions, TIMES_JOURNAL_SUFFIX)
    try:
        trace = read_trace(beside(predictions, SEALED_SUFFIX))
        if journal.exists():
            check_belongs(TimesJournal(journal).joined(), trace)
            TimesJournal(journal).seal(sealed)
        check_belongs(read_times(sealed), trace)
    except OtherVersion:
        return None
    except TraceError as error:
        return str(error)
    return None


def read_whole(path: Path) -> dict[str, Any] | None:
    """-> a predictions or results file of OpenCompass; None where it is torn, or not one."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def counts(trace: RoutingTrace, answers: dict[str, Any], inferencer: Any = None) -> bool:
    """Whether a trace has every item of a predictions file, each as often as its inferencer runs it.

    Of an inferencer that runs items as often as it likes, any trace will do.
    """
    times = times_run(answers, inferencer)
    if times is None:
        return True
    items = np.zeros(len(answers), dtype=int)
    for first, count in zip(trace.first_item.tolist(), trace.items.tolist(), strict=True):
        if first + count > len(items):
            return False
        items[first : first + count] += 1
    return bool((items == times).all())


def times_run(answers: dict[str, Any], inferencer: Any) -> int | None:
    """-> how often each item of a predictions file enters the model; None where its inferencer does not tell.

    Generation runs an item once, perplexity once per possible answer. inferencer: its config
    """
    kind = str(getattr(inferencer.get("type"), "__name__", inferencer.get("type"))) if inferencer else ""
    kind = kind.rpartition(".")[2]
    first = next(iter(answers.values()), None)
    labels = sum(key.startswith(LABEL) for key in first) if isinstance(first, dict) else 0
    if kind == "GenInferencer" and answers:
        return 1
    if kind == "PPLInferencer" and labels:
        return labels
    return None


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
    if not answers:  # some inferencers go on from this one, whose counts are not known
        predictions.with_name(f"tmp_{predictions.name}").unlink(missing_ok=True)
    if answers:
        write_whole(partial, "".join(json.dumps(answer) + "\n" for answer in answers))
    else:
        partial.unlink(missing_ok=True)


def _partial(predictions: Path) -> Path:
    return predictions.with_name(Path(f"tmp_{predictions.name}").with_suffix(".jsonl").name)
