"""Speed of the run itself on its machine: measured wall-clock time; no latency of the tables depends on it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .._util.file_names import dataset_file
from ..trace.format import PHASES, RoutingTrace
from ..trace.speed import SPEED_SUFFIX, BatchSpeed, measured_batches
from .runs import DENSE, ModelRun

TEXT = (
    "measured wall-clock time of this run on its machine, with whatever else ran there; nothing in it is simulated. "
    "Prefill: real tokens over the time of the forward passes over the prompts. Decode: real tokens of the "
    "later passes over the time from the first of them to the end of the generation, including the choice of tokens; "
    "the token that the prefill gives is not counted. s per item: the calls of `generate` or `get_ppl` over the items, "
    "with tokenizing but without loading the model and scoring. All three include selection, recording, and the first "
    "batch, in which a machine warms up. On a testbed they also include the network and the devices' computing, and "
    "the table names the base station's device"
)
COLUMNS = ("model", "dataset", "prefill (tokens/s)", "decode (tokens/s)", "s per item", "device", "dtype", "batch size")


def speed_records(runs: Sequence[ModelRun], predictions: Path) -> list[dict[str, Any]]:
    """One record per model and dataset or group with measured batches.

    prefill_tokens_per_s, decode_tokens_per_s: None without such passes; seconds_per_item; prompts, prompts_measured:
    items of all batches, each possible answer by itself, and those of the batches that were measured; device: all that
    it ran on; dtype; batch_sizes: the distinct ones that the config names for the datasets, a dataset's own inferencer
    before the model; none where the config is not known. predictions: the folder that the traces lie in.
    """
    records = []
    for run in runs:
        if run.policy == DENSE:
            continue
        for name in dict.fromkeys([*run.traces, *run.groups]):
            parts = [(t, _measured(predictions, run.abbr, t)) for t in run.traces_of(name)]
            if any(measured for _, measured in parts):
                sizes = dict(batch_sizes=_batch_sizes(run, name))
                records.append(dict(model=run.abbr, dataset=name) | _record(parts) | sizes)
    return records


def _batch_sizes(run: ModelRun, name: str) -> list[int]:
    sizes = (run.own_batch_sizes.get(dataset, run.batch_size) for dataset in run.datasets_of(name))
    return sorted({size for size in sizes if size is not None})


def _measured(predictions: Path, model: str, trace: RoutingTrace) -> dict[int, BatchSpeed]:
    return measured_batches(dataset_file(predictions, model, trace.metadata.dataset, SPEED_SUFFIX), trace)


def _record(parts: Sequence[tuple[RoutingTrace, dict[int, BatchSpeed]]]) -> dict[str, Any]:
    tokens = dict.fromkeys(PHASES, 0)
    seconds = dict.fromkeys(PHASES, 0.0)
    batch_s, measured, prompts, items = 0.0, 0, 0, 0
    for trace, speeds in parts:
        of_phase = {p: np.bincount(trace.batch, trace.tokens * trace.is_phase(p), len(trace.items)) for p in PHASES}
        for number, speed in speeds.items():
            batch_s += speed.batch_s
            measured += speed.items
            for phase, value in (("prefill", speed.prefill_s), ("decode", speed.decode_s)):
                seconds[phase] += value
                tokens[phase] += int(of_phase[phase][number])
        prompts += int(trace.items.sum())
        items += len(np.unique(trace.item_numbers))
    rates = {p: tokens[p] / seconds[p] if tokens[p] and seconds[p] else None for p in PHASES}
    return dict(
        prefill_tokens_per_s=rates["prefill"],
        decode_tokens_per_s=rates["decode"],
        seconds_per_item=batch_s / measured * prompts / items,
        prompts=prompts,
        prompts_measured=measured,
        device="; ".join(dict.fromkeys(speed.device for _, speeds in parts for speed in speeds.values())),
        dtype=", ".join(dict.fromkeys(trace.metadata.dtype for trace, _ in parts)),
    )


def speed_table(records: Sequence[dict[str, Any]], benchmarks: Sequence[str]) -> pd.DataFrame:
    """One row per model and benchmark."""
    rows = [
        (
            record["model"],
            record["dataset"],
            *(_rate(record[f"{phase}_tokens_per_s"]) for phase in PHASES),
            f"{record['seconds_per_item']:.4g}",
            record["device"],
            record["dtype"],
            ", ".join(map(str, record["batch_sizes"])) or "-",
        )
        for record in records
        if record["dataset"] in benchmarks
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(str)


def _rate(tokens_per_s: float | None) -> str:
    return "-" if tokens_per_s is None else f"{tokens_per_s:.1f}"


def speed_notes(records: Sequence[dict[str, Any]]) -> list[str]:
    """A line for every dataset with unmeasured batches: their lines were lost in a kill."""
    return [
        f"{record['model']}, {record['dataset']}: measured on {record['prompts_measured']} of its "
        f"{record['prompts']} prompts"
        for record in records
        if record["prompts_measured"] < record["prompts"]
    ]
