"""Measured wall-clock of a run's batches, a JSON line each, in `*.speed.jsonl` next to the trace. No torch here.

It is a file of its own because equal runs have equal traces, and never equal times. A batch's line is written after its
counts are in the trace's journal: a batch whose line a kill has taken is not measured, and nothing else is lost.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .._util.atomic_write import write_whole
from .._util.bounded_read import read_regular
from ..errors import NotReadableNowError, TraceError
from .format import RoutingTrace
from .journal import Count

SPEED_SUFFIX = ".speed.jsonl"
MAX_SPEED_BYTES = 1 << 30
MAX_DEVICE_NAME = 200
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]


class BatchSpeed(BaseModel):
    """What one call of `generate` or `get_ppl` took by the wall-clock.

    end:       items that the run had answered after this batch, each possible answer of an item by itself: it names the
               batch, since batches follow each other
    items:     of this batch
    prefill_s, decode_s: see clock.PhaseClock; batch_s: the whole call, tokenizing and writing out the answers included
    device:    what the model ran on
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    end: Annotated[int, Field(ge=1, strict=True)]
    items: Count
    prefill_s: Seconds
    decode_s: Seconds
    batch_s: Seconds
    device: Annotated[str, Field(max_length=MAX_DEVICE_NAME)]


def append_speed(path: Path, speed: BatchSpeed) -> None:
    """Add the line of one batch."""
    with path.open("ab") as file:
        file.write(speed.model_dump_json().encode() + b"\n")


def keep_speed(path: Path, answered: int) -> None:
    """Of a run that goes on after `answered` items, forget the lines of batches that are redone, and torn ones."""
    if not path.exists():
        return
    kept = [speed.model_dump_json() + "\n" for speed in _lines(path) if speed.end <= answered]
    if kept:
        write_whole(path, *kept)
    else:
        path.unlink()


def measured_batches(path: Path, trace: RoutingTrace) -> dict[int, BatchSpeed]:
    """-> by number of the batch in its trace what was measured; empty where nothing was, or nothing can be read.

    A line that is torn, or of no batch of the trace, is left out, and of two lines of one batch the first.
    """
    if not path.exists():
        return {}
    ends = np.cumsum(trace.items, dtype=np.int64).tolist()
    number_of = {end: number for number, end in enumerate(ends)}
    found: dict[int, BatchSpeed] = {}
    for speed in _lines(path):
        number = number_of.get(speed.end)
        if number is not None and trace.items[number] == speed.items:
            found.setdefault(number, speed)
    return found


def _lines(path: Path) -> Iterator[BatchSpeed]:
    try:
        content = read_regular(path, MAX_SPEED_BYTES, TraceError, NotReadableNowError)
    except NotReadableNowError:
        raise
    except TraceError:  # something else of this name: nothing was measured
        return
    for line in content.split(b"\n"):
        try:
            yield BatchSpeed.model_validate_json(line)
        except ValidationError:
            continue
