"""Simulated latency of single requests: percentiles of the waiting latency over the items of a benchmark."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..allocation.base import Scope
from ..replay import replay
from .records import ROWS, ROWS_ORDER, row_runs
from .runs import ModelRun
from .tables import column_of

PERCENTILES = (50, 90, 99)
SCOPE: Scope = "layer"
TEXT = (
    f"attention waiting latency of one request (item) in ms, simulated; in each cell the {PERCENTILES[0]}th, "
    f"{PERCENTILES[1]}th and {PERCENTILES[2]}th percentile over the requests, interpolated linearly: with "
    "fewer than 100 requests, the 99th lies between the two longest latencies. Eq. (11) summed over the MoE layers and "
    "over the forward passes of the request, under the run's own channel draw; bandwidth scope: layer"
)
LOCKSTEP = (
    "a request waits from the first pass of its batch to the one that gives its last token. Its batch runs in "
    "lockstep: each pass takes as long as the tokens of all its requests make it, so another batch size gives other "
    "latencies. Where answers are ranked by perplexity a request waits once per possible answer; "
    "requests of one perplexity batch wait equally long: the 99th percentile rests on the number of batches"
)
NO_QUEUE = "the base station's computing and time in a queue before the batch begins are not included"


def request_records(runs: Sequence[ModelRun]) -> list[dict[str, Any]]:
    """One record per row of Table II and dataset or group: requests and percentiles of their latency, in seconds.

    A group's percentiles are over the requests of all its datasets. batch_sizes: the different ones of these datasets.
    """
    records = []
    for row, (_, method) in ROWS.items():
        for run in row_runs(runs, row):
            for name in dict.fromkeys([*run.traces, *run.groups]):
                parts = [replay(trace, trace.metadata.profile, method, SCOPE) for trace in run.traces_of(name)]
                latency_s = np.concatenate([part.request_latency_s for part in parts]) if parts else np.zeros(0)
                if len(latency_s):
                    record = dict(row=row, model=run.abbr, dataset=name, scope=SCOPE, allocation=method)
                    counts = dict(requests=len(latency_s), batch_sizes=_batch_sizes(run, name))
                    records.append(record | counts | percentiles(latency_s))
    return records


def _batch_sizes(run: ModelRun, benchmark: str) -> list[int]:
    """As the config names them; without a config, requests in the largest batch."""
    sizes = [
        run.own_batch_sizes.get(name, run.batch_size) or max(int(t.items.max(initial=0)) for t in run.traces[name])
        for name in run.datasets_of(benchmark)
    ]
    return sorted(set(sizes))


def percentiles(latency_s: np.ndarray) -> dict[str, float | None]:
    """Percentiles of the latency.

    latency_s: [requests] waiting latency (s)
    Returns:   `latency_p50_s` and so on for PERCENTILES (s); all None without a request.
    """
    values = np.percentile(latency_s, PERCENTILES).tolist() if len(latency_s) else [None] * len(PERCENTILES)
    return {f"latency_p{percent}_s": value for percent, value in zip(PERCENTILES, values, strict=True)}


def request_table(records: Sequence[dict[str, Any]], benchmarks: Sequence[str]) -> pd.DataFrame:
    """Table II's rows by benchmarks, in each cell the percentiles in ms; then batch sizes and numbers of requests."""
    of = {(record["row"], record["model"], record["dataset"]): record for record in records}
    names = sorted(dict.fromkeys((row, model) for row, model, _ in of), key=lambda name: ROWS_ORDER[name[0]])
    rows = [
        {"row": row, "model": model} | {column_of(b): _cell(of.get((row, model, b))) for b in benchmarks}
        for row, model in names
    ]
    sizes: dict[str, dict[str, str]] = {}
    for record in records:
        sizes.setdefault(record["model"], {})[record["dataset"]] = ", ".join(map(str, record["batch_sizes"]))
    rows += [
        {"row": "batch size", "model": m} | {column_of(b): own.get(b, "-") for b in benchmarks}
        for m, own in sizes.items()
    ]
    counts = {record["dataset"]: str(record["requests"]) for record in reversed(records)}
    of_benchmark = {column_of(b): counts.get(b, "-") for b in benchmarks}
    return pd.DataFrame([*rows, {"row": "requests", "model": "-"} | of_benchmark])


def _cell(record: dict[str, Any] | None) -> str:
    if record is None:
        return "-"
    return " / ".join(f"{1e3 * record[f'latency_p{percent}_s']:.3f}" for percent in PERCENTILES)
