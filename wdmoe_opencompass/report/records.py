"""The records of Tables I and II: accuracies and latencies of a run's models, with their intervals."""

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np

from ..allocation.base import Scope
from ..replay import pooled_mean, replay
from ..trace.format import PHASES
from .batches import OTHER_BATCHES, BatchSums, batch_sums, why_no_interval
from .runs import DENSE, ModelRun, vanilla_of, why_no_vanilla
from .statistics import Interval, latency_interval, latency_ratio_interval

SCOPES = get_args(Scope)
OPTIMISED = "optimal"
EVEN = "vanilla_even"  # the row that savings are relative to
ROWS = {  # row name -> (is it the vanilla model's trace, bandwidth allocation), in Table II's order
    "vanilla_even": (True, "uniform"),
    "selection_only": (False, "uniform"),
    "allocation_only": (True, OPTIMISED),
    "both": (False, OPTIMISED),
}
ROWS_ORDER = {row: number for number, row in enumerate(ROWS)}


def row_runs(runs: Sequence[ModelRun], row: str) -> list[ModelRun]:
    """The runs that make a row of Table II."""
    return [run for run in runs if run.policy != DENSE and run.is_vanilla == ROWS[row][0]]


def accuracy_records(runs: Sequence[ModelRun]) -> list[dict[str, Any]]:
    """Records (model, dataset, metric, value, ...): accuracy, active experts per token, share of assignments dropped.

    A group of datasets has its own records next to those of its datasets. An accuracy comes with its number of items
    and the ends of its 95 % interval, low and high; None where its evaluator does not tell the items apart.
    """
    none = dict(low=None, high=None, items=None)
    records: list[dict[str, Any]] = []
    for run in runs:
        for name in _names(run):
            accuracy = run.accuracy_of(name)
            if accuracy is not None:
                low, high = run.accuracy_interval_of(name) or (None, None)
                items = sum(len(items.right) for items in run.items_of(name)) or None
                of = dict(model=run.abbr, dataset=name, metric=accuracy[0], value=accuracy[1])
                records.append(of | dict(low=low, high=high, items=items))
            traces = run.traces_of(name)
            before, after = (
                sum(int(array.sum()) for array in arrays)
                for arrays in ([t.assignments_before for t in traces], [t.assignments for t in traces])
            )
            token_layers = sum(int(t.tokens.sum()) * t.metadata.layers for t in traces)
            if token_layers:
                active, dropped = after / token_layers, 1 - after / before
                for metric, value in (("active_experts_per_token", active), ("share_dropped", dropped)):
                    records.append(dict(model=run.abbr, dataset=name, metric=metric, value=value) | none)
    return records


def _names(run: ModelRun) -> list[str]:
    return list(dict.fromkeys([*run.accuracies, *run.traces, *run.groups]))


def latency_records(runs: Sequence[ModelRun]) -> list[dict[str, Any]]:
    """One record per row of Table II, dataset or group, scope, per (pass or batch) and phase; latency_s in seconds.

    A group's mean is over all passes or batches of its datasets. Scope `layer` comes first, `pass` is hindsight; a row
    without bandwidth allocation reads the same in both. saving is relative to the vanilla_even row of the model's
    `vanilla_of`, dataset, scope, per and phase; None where its batches are of other items. Both have the
    ends of their 95 % interval (`_low`, `_high`; None without one, for the reason in no_interval), drawn over groups of
    batches under the run's own channel draws.
    """
    return [record for record, _ in latency_cells(runs)]


def latency_cells(runs: Sequence[ModelRun]) -> list[tuple[dict[str, Any], BatchSums]]:
    """The records of `latency_records`, each with the sums over batches that its intervals come from."""
    cells: list[tuple[dict[str, Any], BatchSums]] = []
    for row, (_, method) in ROWS.items():
        for run in row_runs(runs, row):
            for name in _names(run):
                vanilla = vanilla_of(run, runs, name)
                reference = dict(vanilla=vanilla and vanilla.abbr, not_compared=why_no_vanilla(run, runs, name))
                cells += [(record | reference, sums) for record, sums in _cells_of(run, name, row, method)]
    baseline = {_cell(record, record["model"]): (record, sums) for record, sums in cells if record["row"] == EVEN}
    for record, sums in cells:
        base = baseline.get(_cell(record, record["vanilla"]))
        record |= _saving(record, sums, *base) if base else _NO_SAVING | dict(no_interval=record["not_compared"])
    return cells


_NO_SAVING = dict(saving=None, saving_low=None, saving_high=None, no_interval=None)


def _saving(
    record: dict[str, Any], sums: BatchSums, vanilla: dict[str, Any], vanilla_sums: BatchSums
) -> dict[str, Any]:
    saving = 1 - record["latency_s"] / vanilla["latency_s"] if vanilla["latency_s"] else None
    if record is vanilla or saving is None:
        return _NO_SAVING | dict(saving=saving)
    ratio, why = latency_ratio(vanilla_sums, sums, record["per"])
    low, high = (1 - ratio.high, 1 - ratio.low) if ratio else (None, None)
    saving = None if why == OTHER_BATCHES else saving
    return dict(saving=saving, saving_low=low, saving_high=high, no_interval=why)


def latency_ratio(first: BatchSums, second: BatchSums, per: str) -> tuple[Interval | None, str | None]:
    """-> (95 % interval of the ratio second / first of mean latencies, why there is none)."""
    why = why_no_interval(first, second)
    if why:
        return None, why
    counts = first.count(per), second.count(per)
    interval = latency_ratio_interval(first.latency_s, counts[0], second.latency_s, counts[1])
    return interval, None if interval else "some batches take no time"


def _cells_of(run: ModelRun, name: str, row: str, method: str) -> list[tuple[dict[str, Any], BatchSums]]:
    cells = []
    for scope in SCOPES:
        parts = [replay(trace, trace.metadata.profile, method, scope) for trace in run.traces_of(name)]
        for phase in ("all", *PHASES):
            sums = batch_sums(parts, phase)
            for per in ("pass", "batch"):
                latency_s = pooled_mean(parts, lambda part: part.waiting_latency_s, per, phase)
                if latency_s is None:
                    continue
                low, high = latency_interval(sums.latency_s, sums.count(per)) or (None, None)
                record = dict(
                    row=row,
                    model=run.abbr,
                    dataset=name,
                    scope=scope,
                    per=per,
                    phase=phase,
                    latency_s=latency_s,
                    latency_low_s=low,
                    latency_high_s=high,
                    allocation=method,
                    downlink_energy_j=pooled_mean(parts, lambda part: part.energy.downlink_j, per, phase),
                    uplink_energy_j=pooled_mean(parts, lambda part: part.energy.uplink_j, per, phase),
                    computation_energy_j=pooled_mean(parts, lambda part: part.energy.computation_j, per, phase),
                    tokens_per_batch=pooled_mean(parts, lambda part: part.trace.tokens, "batch", phase),
                    passes_per_batch=pooled_mean(parts, lambda p: np.ones(len(p.trace.tokens)), "batch", phase),
                )
                cells.append((record, sums))
    return cells


def _cell(record: dict[str, Any], model: str | None) -> tuple:
    return model, *(record[key] for key in ("dataset", "scope", "per", "phase"))
