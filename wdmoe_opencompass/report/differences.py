"""Which differences between two models' answers to the same items are more than chance."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .formats import difference_cell
from .items import ItemResults
from .metrics import share_metrics
from .runs import ModelRun, not_compared_notes, vanilla_of
from .statistics import (
    SIGNIFICANCE,
    Interval,
    accuracy_difference_interval,
    holm,
    mcnemar_p,
)

Benchmarks = Mapping[str, Sequence[ItemResults]]  # benchmark -> the results of each dataset that it is made of
OTHER_ITEMS = "not the same items in both"


def significant_words(family: str) -> str:
    """What *significant* means beneath a table; family: what Holm's correction is over."""
    return (
        "significant: McNemar's exact test (1947) on the items that only one of the models got right gives p below "
        f"{SIGNIFICANCE} after Holm's correction (1979) {family}"
    )


SIGNIFICANT = significant_words("over the benchmarks of a model; models are not corrected for each other")
METHOD = (
    "difference: model - vanilla in percentage points; 95 % intervals, uncorrected, by a paired bootstrap over items "
    "(5000 resamples within each dataset, half a pseudo-item of each outcome): an interval without 0 need not be "
    "significant. A benchmark of several datasets: plain mean of their differences, p over all their items"
)

IN_CELLS = (
    "in round brackets: difference from vanilla in percentage points with its 95 % interval, paired item by item; "
    f"*: significant, McNemar's exact p below {SIGNIFICANCE} after Holm's correction over the benchmarks of a "
    "model; models are not corrected for each other"
)


def cell_notes(records: Sequence[dict[str, Any]]) -> list[str]:
    """Lines under Table I on the differences in its cells, and which vanilla each model is compared with."""
    models_of: dict[str, dict[str, None]] = {}
    for record in records:
        models_of.setdefault(record["vanilla"], {})[record["model"]] = None
    lines = [f"difference from {vanilla}: {', '.join(models)}" for vanilla, models in models_of.items()]
    return [IN_CELLS, *lines] if lines else []


def paired_records(first: Benchmarks, second: Benchmarks, alone: Sequence[str] = ()) -> list[dict[str, Any]]:
    """One record per benchmark that both have of the same items, then one of their mean where there are several.

    difference, low, high: accuracy second - first in percentage points; only_first, only_second: items that one alone
    got right. holm_p is corrected over the benchmarks except those of `alone` (datasets shown next to their group);
    significant is whether it is below SIGNIFICANCE.
    """
    pairs = {name: (first[name], second[name]) for name in first if same_items(first[name], second.get(name, ()))}
    records = [_record(name, [pair], mcnemar_p(*_join(pair))) for name, pair in pairs.items()]
    family = [record for record in records if record["benchmark"] not in alone]
    for record, p in zip(family, holm([record["mcnemar_p"] for record in family]), strict=True):
        record |= dict(holm_p=p, significant=p < SIGNIFICANCE)
    if len(family) > 1:
        chosen = [pairs[record["benchmark"]] for record in family]
        records.append(_record(f"mean of {len(family)} benchmarks", chosen, None))
    return records


def same_items(first: Sequence[ItemResults], second: Sequence[ItemResults]) -> bool:
    """Whether both are answers to the same, known items."""
    return 0 < len(first) == len(second) and all(a.same_items(b) for a, b in zip(first, second))


Pair = tuple[Sequence[ItemResults], Sequence[ItemResults]]


def _join(pair: Pair) -> list[np.ndarray]:
    return [np.concatenate([results.right for results in side]) for side in pair]


def _record(benchmark: str, pairs: Sequence[Pair], p: float | None) -> dict[str, Any]:
    first, second = ([results.right for pair in pairs for results in pair[side]] for side in (0, 1))
    weights = [1 / len(pairs) / len(pair[0]) for pair in pairs for _ in pair[0]]
    difference = sum(w * (b.mean() - a.mean()) for w, a, b in zip(weights, first, second, strict=True))
    low, high = accuracy_difference_interval(first, second, weights) or (None, None)
    return dict(
        benchmark=benchmark,
        items=sum(map(len, first)),
        difference=100 * float(difference),
        low=None if low is None else 100 * low,
        high=None if high is None else 100 * high,
        only_first=sum(int((a & ~b).sum()) for a, b in zip(first, second, strict=True)),
        only_second=sum(int((b & ~a).sum()) for a, b in zip(first, second, strict=True)),
        mcnemar_p=p,
        holm_p=None,
        significant=None,
    )


def difference_records(runs: Sequence[ModelRun], benchmarks: Sequence[str]) -> list[dict[str, Any]]:
    """Records of `paired_records` for every model (second) and the vanilla that differs only in policy (first)."""
    records = []
    for run in runs:
        for vanilla, names in _vanillas(run, runs, benchmarks):
            first, second = ({name: model.items_of(name) for name in names} for model in (vanilla, run))
            records += [dict(model=run.abbr, vanilla=vanilla.abbr) | record for record in paired_records(first, second)]
    return records


def _vanillas(run: ModelRun, runs: Sequence[ModelRun], benchmarks: Sequence[str]) -> list[tuple[ModelRun, list[str]]]:
    """-> (vanilla, the benchmarks on which a model is compared with it); nothing for a vanilla itself.

    Benchmarks on which their accuracies are of different metrics are left out.
    """
    found: dict[str, tuple[ModelRun, list[str]]] = {}
    for benchmark in benchmarks:
        vanilla = vanilla_of(run, runs, benchmark)
        if vanilla is not None and vanilla is not run and share_metrics(run, vanilla, benchmark):
            found.setdefault(vanilla.abbr, (vanilla, []))[1].append(benchmark)
    return list(found.values())


def difference_table(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Rows (model, benchmark, items, ...) of `difference_records`, as cells."""
    return pd.DataFrame(
        {
            "model": record["model"],
            "benchmark": record["benchmark"],
            "items": str(record["items"]),
            "difference (points)": difference_text(record),
            "only vanilla right": str(record["only_first"]),
            "only model right": str(record["only_second"]),
        }
        | p_cells(record)
        for record in records
    )


def difference_text(record: dict[str, Any]) -> str:
    """A record's difference with its interval."""
    interval = None if record["low"] is None else Interval(record["low"], record["high"])
    return difference_cell(record["difference"], interval)


def p_cells(record: dict[str, Any]) -> dict[str, str]:
    """A record's p values and what they mean, as cells."""
    significant = {None: "-", True: "yes", False: "no"}[record["significant"]]
    return {"McNemar p": _p(record["mcnemar_p"]), "Holm p": _p(record["holm_p"]), "significant": significant}


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def difference_notes(runs: Sequence[ModelRun], benchmarks: Sequence[str]) -> list[str]:
    """Lines under the table: the methods, what each model is compared with, and what could not be compared."""
    notes = [METHOD, SIGNIFICANT]
    pairs = [(run, *pair) for run in runs for pair in _vanillas(run, runs, benchmarks)]
    for run, vanilla, names in pairs:
        lacking = [b for b in names if not same_items(vanilla.items_of(b), run.items_of(b))]
        other = [b for b in lacking if vanilla.items_of(b) and run.items_of(b)]
        notes += [f"{run.abbr} against {vanilla.abbr}, {b}: {OTHER_ITEMS}" for b in other]
        if set(lacking) - set(other):
            unknown = ", ".join(b for b in lacking if b not in other)
            notes.append(f"{run.abbr} against {vanilla.abbr}, {unknown}: which items are right is not known for both")
    against = dict.fromkeys(vanilla.abbr for _, vanilla, _ in pairs)
    return [*notes, *not_compared_notes(runs, benchmarks), f"vanilla: {', '.join(against)}"]
