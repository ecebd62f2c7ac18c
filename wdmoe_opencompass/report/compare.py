"""Two runs side by side: differences B - A of what both measured, and the names of what only one measured."""

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..allocation import PRIMARY_SCOPE, SCOPE_LABELS
from ..identity import DATASET_FACTS, compare_facts
from ..identity.facts import plain, sentence
from .batches import BatchSums
from .differences import SIGNIFICANT, Benchmarks, difference_text, p_cells, paired_records
from .formats import brackets, by_reason, difference_cell
from .items import ItemResults
from .records import latency_ratio
from .runs import ModelRun
from .statistics import Interval, latency_difference_interval
from .summary_files import WRITE_AGAIN
from .tables import BATCH_METHOD

Records = dict[str, Any]  # a run's accuracy, latency, origin, items and batches records, and its groups
COLUMNS = ["quantity", "model", "row", "benchmark", "A", "B", "B - A", "B / A", "McNemar p", "Holm p", "significant"]
TEXT = (
    "B - A with its 95 % interval, accuracy in percentage points; - without one, because items.json or batches.json of "
    "the runs do not hold the same items or batches, or too few. Latency: scope "
    f"{PRIMARY_SCOPE}, phase all, mean per batch",
    "accuracy: paired bootstrap over items (5000 resamples within each dataset, half a pseudo-item of each outcome), "
    "uncorrected",
    f"latency: {BATCH_METHOD}",
    SIGNIFICANT,
)


def item_records(runs: Sequence[ModelRun]) -> list[dict[str, Any]]:
    """Which items each model answered right, as text of 1 and 0 in the dataset's order."""
    return [
        dict(
            model=run.abbr, dataset=dataset, right="".join("01"[int(x)] for x in items.right), items_digest=items.digest
        )
        for run in runs
        for dataset, items in run.items.items()
    ]


def identity_records(runs: Sequence[ModelRun]) -> list[dict[str, Any]]:
    """What each model's answers to each dataset depend on: model, policy, dataset, facts; all that says what differs.

    facts: of the package `identity`; asked: what the configs said, for where facts are not known.
    """
    return [
        dict(
            model=run.abbr,
            policy=run.policy,
            dataset=dataset,
            facts=plain(run.identity_of(dataset)),
            asked=plain(run.asked_of(dataset)),
        )
        for run in runs
        for dataset in dict.fromkeys((*run.accuracies, *run.traces))
    ]


def batch_records(cells: Sequence[tuple[dict[str, Any], BatchSums]]) -> list[dict[str, Any]]:
    """Latency in seconds per group of batches, for the cells of Table II with scope layer, per batch, phase all."""
    return [
        dict(
            **{key: record[key] for key in ("row", "model", "dataset", "scope")},
            items=sums.items,
            latency_s=sums.latency_s.tolist(),
            passes=sums.passes.tolist(),
            batches=sums.batches.tolist(),
        )
        for record, sums in cells
        if _is_shown(record)
    ]


def comparison_table(a: Records, b: Records) -> pd.DataFrame:
    """-> rows of COLUMNS; no row for what only one run has.

    Accuracies have no difference if the datasets of that name, or their metrics, are not the same in both runs.
    """
    rows = []
    others = _other_datasets(a, b)
    paired = _paired(a, b, others.keys() | _other_metrics(a, b).keys())
    for key, (ours, theirs) in _pairs(_accuracies(a), _accuracies(b)).items():
        record = paired.get((key[0], key[2]))
        cells = {"B - A": difference_text(record)} | p_cells(record) if record else {}
        rows.append(_row("accuracy (%)", key, f"{ours:.2f}", f"{theirs:.2f}") | cells)
    sums_a, sums_b = _batches(a), _batches(b)
    for key, (ours, theirs) in _pairs(_latencies(a), _latencies(b)).items():
        row = _row("latency per batch (ms)", key, f"{ours:.3f}", f"{theirs:.3f}")
        if key in sums_a and key in sums_b and (key[0], key[2]) not in others:
            row |= _latency_cells(ours, theirs, sums_a[key], sums_b[key])
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS).fillna("-")


def notes_of(a: Records, b: Records) -> list[str]:
    """Lines under the table: methods, both runs' origins, and what only one run has."""
    notes = list(TEXT)
    for name, records in (("A", a), ("B", b)):
        notes += [f"{name}: {origin['text']}" for origin in records["origin"]]
        if _accuracies(records) and not records["items"]:
            notes.append(
                f"{name}: which items were answered right is not in its summary: its evaluators do not tell, as the "
                f"notes of its Table I say, or it is of an earlier version; {WRITE_AGAIN}"
            )
        if any(_scope_of_batches(record) != PRIMARY_SCOPE for record in records["batches"]):
            notes.append(
                f"{name}: its batches.json holds latencies of scope {SCOPE_LABELS['pass']}, so differences of "
                f"latencies have no interval; {WRITE_AGAIN}"
            )
    if {o["profile_hash"] for o in a["origin"]} != {o["profile_hash"] for o in b["origin"]}:
        notes.append("the runs were made under different channel profiles: their latencies are of different systems")
    notes += _identity_notes(a, b) + _metric_notes(a, b)
    scored = [sorted({o.get("perplexity", "stock") for o in records["origin"]}) for records in (a, b)]
    if scored[0] != scored[1]:
        notes.append(
            f"texts were scored in different ways (perplexity of A: {', '.join(scored[0])}; of B: "
            f"{', '.join(scored[1])}): accuracies of tasks ranked by perplexity differ for that too"
        )
    for what, of in (("accuracy", _accuracies), ("latency", _latencies)):
        for name, mine, other in (("A", of(a), of(b)), ("B", of(b), of(a))):
            alone = sorted({f"{model} on {benchmark}" for model, _, benchmark in mine.keys() - other.keys()})
            if alone:
                notes.append(f"only {name} has the {what} of: {', '.join(alone)}")
    return notes


def _facts_of(a: Records, b: Records) -> dict[tuple[str, str], dict[str, str]]:
    """-> (model, dataset) that both runs have -> every fact that they have not in common, in words."""
    first, second = ({(r["model"], r["dataset"]): r for r in run.get("identity", [])} for run in (a, b))
    found = {}
    for key in first.keys() & second.keys():
        are_known = first[key]["facts"] and second[key]["facts"]
        pair = [record[key]["facts" if are_known else "asked"] for record in (first, second)]
        found[key] = compare_facts(*pair)
    return found


def _other_datasets(a: Records, b: Records) -> dict[tuple[str, str], dict[str, str]]:
    """-> (model, dataset or group) that asks or scores otherwise in one run than in the other -> what differs."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for (model, dataset), differences in _facts_of(a, b).items():
        own = {name: values for name, values in differences.items() if name.partition(".")[0] in DATASET_FACTS}
        if own:
            groups = [name for run in (a, b) for name, members in run["groups"].items() if dataset in members]
            found |= {(model, name): own for name in (dataset, *groups)}
    return found


def _other_metrics(a: Records, b: Records) -> dict[tuple[str, str], tuple[str, str]]:
    """-> (model, dataset or group) with one metric in A and another in B -> both metrics."""
    first, second = ({(r["model"], r["dataset"]): r["metric"] for r in _scored(run)} for run in (a, b))
    both = {key: (first[key], second[key]) for key in first.keys() & second.keys()}
    groups = [group for run in (a, b) for group in run["groups"].items()]
    names = {name for name, _ in groups}  # a group's metric is that of its datasets
    found = {key: pair for key, pair in both.items() if key[1] not in names and pair[0] != pair[1]}
    for model, dataset in list(found):
        for key in ((model, name) for name, members in groups if dataset in members):
            found |= {key: both[key]} if key in both else {}
    return found


def _metric_notes(a: Records, b: Records) -> list[str]:
    """One line for each pair of metrics that are next to each other."""
    pairs = sorted(_other_metrics(a, b).items())
    where = by_reason((metrics, f"{model} on {dataset}") for (model, dataset), metrics in pairs)
    return [
        f"not one metric, so no difference of accuracies is shown: {names}: {first} in A, {second} in B"
        for (first, second), names in where.items()
    ]


def _identity_notes(a: Records, b: Records) -> list[str]:
    """Lines on everything but the channel that differs between the models of one name, and on what is not known."""
    lines = []
    for name, run in (("A", a), ("B", b)):
        if _accuracies(run) and not run.get("identity", []):
            lines.append(
                f"{name}: what its answers depend on (weights, adapter, arguments) is not in its summary, so nothing "
                f"here says that the runs differ in nothing else; {WRITE_AGAIN}"
            )
    facts = sorted(_facts_of(a, b).items())
    found = by_reason(((model, sentence(differ)), dataset) for (model, dataset), differ in facts if differ)
    lines += [f"{model} on {where} differs, A against B: {what}" for (model, what), where in found.items()]
    others = sorted({name for _, name in _other_datasets(a, b)})
    if others:
        lines.append(f"no difference is shown on {', '.join(others)}: the runs did not ask or score the same there")
    policies = [{r["model"]: r["policy"] for r in run.get("identity", [])} for run in (a, b)]
    lines += [
        f"{model}: policy {policies[0][model]} in A, {policies[1][model]} in B"
        for model in policies[0]
        if policies[0][model] != policies[1].get(model, policies[0][model])
    ]
    return lines


Key = tuple[str, str, str]  # model, row of Table II or "-", benchmark


def _is_shown(record: dict[str, Any]) -> bool:
    return (record["scope"], record["per"], record["phase"]) == (PRIMARY_SCOPE, "batch", "all")


def _scored(run: Records) -> list[dict[str, Any]]:
    """The records of accuracies."""
    ours = ("active_experts_per_token", "share_dropped")
    scored = (r for r in run["accuracy"] if r["metric"] not in ours)
    return [r for r in scored if math.isfinite(r["value"])]  # earlier versions wrote NaN


def _accuracies(run: Records) -> dict[Key, float]:
    return {(r["model"], "-", r["dataset"]): r["value"] for r in _scored(run)}


def _latencies(run: Records) -> dict[Key, float]:
    return {(r["model"], r["row"], r["dataset"]): 1e3 * r["latency_s"] for r in run["latency"] if _is_shown(r)}


def _batches(run: Records) -> dict[Key, BatchSums]:
    return {
        (r["model"], r["row"], r["dataset"]): BatchSums(
            [tuple(item) for item in r["items"]],
            *(np.array(r[name], dtype=float) for name in ("latency_s", "passes", "batches")),
        )
        for r in run["batches"]
        if _scope_of_batches(r) == PRIMARY_SCOPE
    }


def _scope_of_batches(record: dict[str, Any]) -> str:
    """Records of earlier versions name no scope: theirs was `pass`."""
    return str(record.get("scope", "pass"))


def _items(run: Records, model: str, others: Collection[tuple[str, str]]) -> Benchmarks:
    datasets = {
        r["dataset"]: [ItemResults(np.array(list(r["right"])) == "1", r["items_digest"])]
        for r in run["items"]
        if r["model"] == model and (model, r["dataset"]) not in others
    }
    groups = {
        name: [datasets[member][0] for member in members]
        for name, members in run["groups"].items()
        if all(member in datasets for member in members)
    }
    return datasets | groups


def _paired(a: Records, b: Records, others: Collection[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """-> (model, benchmark) -> its paired record; datasets of a group are not in the correction of p values.

    others: models and benchmarks to leave out
    """
    members = [dataset for groups in (a["groups"], b["groups"]) for names in groups.values() for dataset in names]
    models = dict.fromkeys(record["model"] for record in a["items"])
    return {
        (model, record["benchmark"]): record
        for model in models
        for record in paired_records(_items(a, model, others), _items(b, model, others), members)
    }


def _latency_cells(a_ms: float, b_ms: float, a: BatchSums, b: BatchSums) -> dict[str, str]:
    ratio, _ = latency_ratio(a, b, "batch")
    if ratio is None:
        return {}
    found = latency_difference_interval(a.latency_s, a.count("batch"), b.latency_s, b.count("batch"))
    difference = found and Interval(1e3 * found.low, 1e3 * found.high)
    return {
        "B - A": difference_cell(b_ms - a_ms, difference, "{:.3f}"),
        "B / A": f"{b_ms / a_ms:.3f} {brackets(ratio, '{:.3f}')[0]}",
    }


def _pairs(a: dict[Key, float], b: dict[Key, float]) -> dict[Key, tuple[float, float]]:
    return {key: (value, b[key]) for key, value in a.items() if key in b}


def _row(quantity: str, key: Key, a: str, b: str) -> dict[str, str]:
    model, row, benchmark = key
    return dict(quantity=quantity, model=model, row=row, benchmark=benchmark, A=a, B=b) | {"B - A": "-"}
