"""Failures and returns of a live testbed's devices during a run, as a table."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from .._util.file_names import files_below
from ..trace.format import EVENTS_SUFFIX
from .formats import write_json, write_table
from .provenance import footnote, provenance
from .runs import ModelRun
from .summary_files import EVENTS

COLUMNS = ["model", "dataset", "device", "event", "times", "tokens taken over", "by", "first reason"]
FACTS = dict(device=str, kind=str, reason=str, by=str, tokens=int)  # what every event tells
MAX_REASON_LENGTH = 120
TEXT = (
    "timeout, unavailable, refused, bad_reply, failed: a message without a usable answer, its tokens were computed "
    "elsewhere, or a health check (no tokens); rejoined: the device came back. No answer is lost or counted twice."
)


def event_records(predictions: Path) -> list[dict[str, Any]]:
    """Every event of a run, with its model and dataset; lines that are torn, or no events, are left out."""
    records = []
    for path in files_below(predictions, EVENTS_SUFFIX):
        for line in path.read_bytes().split(b"\n"):
            try:
                event = json.loads(line)
                is_event = all(isinstance(event[key], kind) for key, kind in FACTS.items())
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
            if is_event:
                records.append(event | (_by_path(path.relative_to(predictions)) | _model_and_dataset(event)))
    return records


def _model_and_dataset(event: dict[str, Any]) -> dict[str, str]:
    return {key: event[key] for key in ("model", "dataset") if isinstance(event.get(key), str)}


def _by_path(path: Path) -> dict[str, str]:
    """By the file's path: events of older runs do not name their model and dataset."""
    model, *names = path.parts
    return dict(model=model, dataset="/".join(names).removesuffix(EVENTS_SUFFIX))


def event_table(records: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per model, dataset, device and kind of event."""
    keys = [(event["model"], event["dataset"], event["device"], event["kind"]) for event in records]
    rows = []
    for key, times in Counter(keys).items():
        mine = [record for record, its_key in zip(records, keys, strict=True) if its_key == key]
        by = ", ".join(sorted({record["by"] for record in mine} - {""}))
        reason = " ".join(mine[0]["reason"].split()).replace("|", "/")[:MAX_REASON_LENGTH]
        rows.append([*key, times, sum(record["tokens"] for record in mine), by, reason])
    return pd.DataFrame(rows, columns=COLUMNS)


def write_events(predictions: Path, folder: Path, runs: Sequence[ModelRun] = ()) -> list[str]:
    """Write the table into `folder` if anything happened; -> a sentence for the screen, or nothing."""
    records = event_records(predictions)
    if not records:
        return []
    write_json(folder / f"{EVENTS}_all.json", records)
    write_table(folder / EVENTS, event_table(records), footnote(runs, TEXT), provenance(runs))
    faults = sum(event["kind"] != "rejoined" for event in records)
    tokens = sum(event["tokens"] for event in records)
    return [f"devices failed {faults} times, {tokens} tokens were taken over: {folder / EVENTS}.md\n"]
