"""Remains of an interruption: answers half written, predictions torn or without a trace, stale results."""

import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._util.atomic_write import remove_torn_writes, write_whole
from .._util.file_names import partial_file, sibling
from ..errors import NotReadableNowError, OtherVersionError, TraceError
from ..trace.format import EVENTS_SUFFIX, JOURNAL_SUFFIX, SEALED_SUFFIX, Journal, RoutingTrace, read_trace
from ..trace.journal import BlockJournal
from ..trace.recording import (
    RECORDING_JOURNAL_SUFFIX,
    RECORDING_SUFFIX,
    RecordingJournal,
    check_of_trace,
    read_recording,
)
from ..trace.speed import SPEED_SUFFIX
from ..trace.times import TIMES_JOURNAL_SUFFIX, TIMES_SUFFIX, TimesJournal, check_belongs, read_times
from .files import FAILURE_SUFFIX, read_whole

LOG = logging.getLogger(__name__)
UNFINISHED_SUFFIX = ".json.unfinished"
SEALED_SUFFIXES = (SEALED_SUFFIX, TIMES_SUFFIX, RECORDING_SUFFIX)
JOURNAL_SUFFIXES = (JOURNAL_SUFFIX, TIMES_JOURNAL_SUFFIX, RECORDING_JOURNAL_SUFFIX)
WRITTEN_WHOLE = (*SEALED_SUFFIXES, *JOURNAL_SUFFIXES, EVENTS_SUFFIX, SPEED_SUFFIX, FAILURE_SUFFIX)
PART = re.compile(r"\[(\d+): ?(\d+)\]")  # which items of a dataset OpenCompass's partitioners put into a part
LABEL = "label: "  # prefix of each possible answer of an item in OpenCompass's perplexity inferencer


@dataclass(frozen=True)
class MeasuredFile:
    """A file next to a trace that a setting of `wdmoe` asks for; check raises TraceError if it is of another trace."""

    setting: str
    journal: type[BlockJournal]
    read: Callable[[Path], Any]
    check: Callable[[Any, RoutingTrace], None]


MEASURED = (
    MeasuredFile("testbed", TimesJournal, read_times, check_belongs),
    MeasuredFile("record_routing", RecordingJournal, read_recording, check_of_trace),
)


def redo_unfinished(predictions: Path, results: Path, model_cfg: Any, dataset_cfg: Any) -> str | None:
    """Remove a predictions file that OpenCompass would wrongly take for finished; -> why, None if it is finished.

    predictions, results: a dataset's files, present or not. A predictions file is finished if it is whole. For a model
    with a `wdmoe` section, its sealed trace must also be whole and count the same items, and so must the measured times
    of a testbed and the recording of the router, if the config asks for them. Journals that do are sealed; others are
    removed if the config no longer asks for them. An unfinished file is kept as `DATASET.json.unfinished`. dataset_cfg:
    None if the config no longer has this part of a dataset. The caller holds the dataset's lock. Raises OSError or
    NotReadableNowError if a file cannot be read now.
    """
    for path in (partial_file(predictions), *(sibling(predictions, suffix) for suffix in WRITTEN_WHOLE)):
        remove_torn_writes(path)
    if not predictions.exists():
        return None
    why = _why_unfinished(predictions, model_cfg.get("wdmoe"), dataset_cfg)
    if why is None:
        partial_file(predictions).unlink(missing_ok=True)  # left by a kill between the last write and this
        return None
    sealed = (sibling(predictions, suffix) for suffix in SEALED_SUFFIXES)
    for path in (results, sibling(results, FAILURE_SUFFIX), *sealed):
        path.unlink(missing_ok=True)
    predictions.replace(sibling(predictions, UNFINISHED_SUFFIX))
    LOG.warning("%s: %s: it is run again", predictions, why)
    return why


def _why_unfinished(predictions: Path, wdmoe: Any, dataset_cfg: Any) -> str | None:
    answers = read_whole(predictions)
    if answers is None:
        return "the predictions are torn"
    if not answers:
        return "the predictions hold no answer"
    if dataset_cfg is None:
        return "the dataset is split otherwise now"
    if wdmoe is None:
        return None
    why = _why_untraced(predictions, answers, dataset_cfg)
    for kind in MEASURED:
        journal = sibling(predictions, kind.journal.suffix)
        if why is None and wdmoe.get(kind.setting):
            why = _why_without(kind, predictions)
        elif why is None and journal.exists() and _why_without(kind, predictions) is not None:
            journal.unlink(missing_ok=True)  # of an earlier config that asked for it: nothing will complete it
    return why


def _why_without(kind: MeasuredFile, predictions: Path) -> str | None:
    """Missing measurements cannot be reconstructed: if they are torn, the dataset is run again."""
    sealed, journal = sibling(predictions, kind.journal.sealed_suffix), sibling(predictions, kind.journal.suffix)
    try:
        trace = read_trace(sibling(predictions, SEALED_SUFFIX))
        if journal.exists():
            kind.check(kind.journal(journal).read(), trace)
            kind.journal(journal).seal(sealed)
        kind.check(kind.read(sealed), trace)
    except OtherVersionError:
        return None
    except NotReadableNowError:
        raise
    except TraceError as error:
        return str(error)
    return None


def _why_untraced(predictions: Path, answers: dict[str, Any], dataset_cfg: Any) -> str | None:
    sealed, journal = sibling(predictions, SEALED_SUFFIX), sibling(predictions, JOURNAL_SUFFIX)
    why: str | None = "there is no routing trace of these predictions"
    if journal.exists():  # first: a sealed trace next to it may be older
        try:
            why = why_not_of(Journal(journal).read(), answers, dataset_cfg)
            if why is None and not Journal(journal).is_torn():
                Journal(journal).seal(sealed)
                return None
            why = why or "the routing trace is torn"
        except NotReadableNowError:
            raise
        except TraceError as error:
            why = str(error)
    if sealed.exists():
        try:
            why = why_not_of(read_trace(sealed), answers, dataset_cfg)
            if why is None:
                journal.unlink(missing_ok=True)  # left by a kill between sealing and removal
        except OtherVersionError:
            return None  # whole, but of an earlier version: the tables say so
        except NotReadableNowError:
            raise
        except TraceError as error:
            why = str(error)
    return why


def why_not_of(
    trace: RoutingTrace, answers: dict[str, Any], dataset_cfg: Any, test_range: str | None = None
) -> str | None:
    """Why a trace is not of a predictions file; None if it has every item as often as the inferencer runs it.

    If the inferencer may run items any number of times, each must occur at least once. test_range: of the items that
    were run, if it is not the config's
    """
    wanted = str(dataset_cfg.get("reader_cfg", {}).get("test_range", "")) if test_range is None else test_range
    if trace.metadata.test_range != wanted:
        return f"the routing trace is of test_range {trace.metadata.test_range!r}, not {wanted!r}"
    items = np.zeros(len(answers), dtype=int)
    for first, count in zip(trace.first_item.tolist(), trace.items.tolist(), strict=True):
        if first + count > len(items):
            return "the routing trace has other items than the predictions"
        items[first : first + count] += 1
    times = _times_run(answers, dataset_cfg.get("infer_cfg", {}).get("inferencer"))
    is_fit = (items >= 1).all() if times is None else (items == times).all()
    return None if is_fit else "the routing trace misses items of the predictions, or has some too often"


def why_not_parts_of(traces: Sequence[RoutingTrace], dataset_cfg: Any) -> str | None:
    """Why these traces are not those of a dataset's successive parts, with each item in one of them; else None."""
    whole = str(dataset_cfg.get("reader_cfg", {}).get("test_range", ""))
    end = 0
    for trace in traces:
        found = PART.fullmatch(trace.metadata.test_range.removeprefix(whole))
        if not trace.metadata.test_range.startswith(whole) or found is None or int(found[1]) != end:
            ranges = ", ".join(trace.metadata.test_range or "all items" for trace in traces)
            return f"its parts do not follow each other: {ranges}"
        end = int(found[2])
    return None


def _times_run(answers: dict[str, Any], inferencer: Any) -> int | None:
    """-> how often each item enters the model; None if the inferencer does not say.

    Generation runs an item once, perplexity once per possible answer.
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
    """Remove results that are torn, hold an error instead of a score, or are older than their predictions.

    A noted reason for missing results is removed too, and they are evaluated again.
    """
    sibling(results, FAILURE_SUFFIX).unlink(missing_ok=True)
    if not results.exists():
        return
    content = read_whole(results)
    if content is None:
        why = "torn"
    elif "error" in content:
        why = "its evaluation failed"
    elif predictions.exists() and results.stat().st_mtime_ns < predictions.stat().st_mtime_ns:
        why = "older than its predictions"
    else:
        return
    results.unlink(missing_ok=True)
    LOG.warning("%s: %s: it is evaluated again", results, why)


def remove_torn_results(results: Path) -> bool:
    """Remove torn results, with which OpenCompass cannot write its table; -> whether they were torn."""
    if not results.exists() or read_whole(results) is not None:
        return False
    results.unlink(missing_ok=True)
    LOG.warning("%s: torn: start again with -r to evaluate it again", results)
    return True


def whole_answers(predictions: Path) -> list[dict[str, Any]]:
    """-> the answers that OpenCompass kept of an interrupted dataset, up to the first torn one."""
    kept: list[dict[str, Any]] = []
    try:
        lines = partial_file(predictions).read_bytes().split(b"\n")
    except OSError:
        return kept
    for line in lines[:-1]:  # without a line end it is torn
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(answer, dict) or str(answer.get("idx")) != str(len(kept)):
            break
        kept.append(answer)
    return kept


def keep_answers(predictions: Path, answers: list[dict[str, Any]]) -> None:
    """Leave exactly these answers for OpenCompass to resume from.

    Its reader discards all of them if a line is torn, or holds a character that ``str.splitlines`` takes for a line
    end: these are escaped.
    """
    partial = partial_file(predictions)
    if not answers:  # some inferencers resume from this file, with unknown counts
        partial_file(predictions, ".json").unlink(missing_ok=True)
    if answers:
        write_whole(partial, "".join(json.dumps(answer) + "\n" for answer in answers))
    else:
        partial.unlink(missing_ok=True)
