"""Two runs side by side: what both measured, as differences B - A; what only one measured, by name."""

from typing import Any

import pandas as pd

Records = dict[str, list[dict[str, Any]]]  # a run's accuracy, latency and origin records


def compared(a: Records, b: Records) -> pd.DataFrame:
    """-> rows (quantity, model, row, benchmark, A, B, B - A); no row for what only one run has."""
    rows = []
    for key, (ours, theirs) in _pairs(_accuracies(a), _accuracies(b)).items():
        rows.append(_row("accuracy (%)", key, ours, theirs, "{:.2f}"))
    for key, (ours, theirs) in _pairs(_latencies(a), _latencies(b)).items():
        row = _row("latency per batch (ms)", key, ours, theirs, "{:.3f}")
        rows.append(row | {"B / A": f"{theirs / ours:.3f}" if ours else "-"})
    columns = ["quantity", "model", "row", "benchmark", "A", "B", "B - A", "B / A"]
    return pd.DataFrame(rows, columns=columns).fillna("-")


def notes_of(a: Records, b: Records) -> list[str]:
    """Lines under the table: that these are plain differences, both runs' origins, and what only one run has."""
    notes = [
        "plain differences without intervals: nothing here says whether a difference is more than chance; latency: "
        "scope pass, phase all, mean per batch"
    ]
    for name, records in (("A", a), ("B", b)):
        notes += [f"{name}: {origin['text']}" for origin in records["origin"]]
    if {o["profile_hash"] for o in a["origin"]} != {o["profile_hash"] for o in b["origin"]}:
        notes.append("the runs were made under different channel profiles: their latencies are of different systems")
    for what, of in (("accuracy", _accuracies), ("latency", _latencies)):
        for name, mine, other in (("A", of(a), of(b)), ("B", of(b), of(a))):
            alone = sorted({f"{model} on {benchmark}" for model, _, benchmark in mine.keys() - other.keys()})
            if alone:
                notes.append(f"only {name} has the {what} of: {', '.join(alone)}")
    return notes


Key = tuple[str, str, str]  # model, row of Table II or "-", benchmark


def _accuracies(run: Records) -> dict[Key, float]:
    ours = ("active_experts_per_token", "share_dropped")
    return {(r["model"], "-", r["dataset"]): r["value"] for r in run["accuracy"] if r["metric"] not in ours}


def _latencies(run: Records) -> dict[Key, float]:
    chosen = [r for r in run["latency"] if (r["scope"], r["per"], r["phase"]) == ("pass", "batch", "all")]
    return {(r["model"], r["row"], r["dataset"]): 1e3 * r["latency_s"] for r in chosen}


def _pairs(a: dict[Key, float], b: dict[Key, float]) -> dict[Key, tuple[float, float]]:
    return {key: (value, b[key]) for key, value in a.items() if key in b}


def _row(quantity: str, key: Key, a: float, b: float, number: str) -> dict[str, str]:
    model, row, benchmark = key
    values = {"A": number.format(a), "B": number.format(b), "B - A": ("{:+" + number[2:]).format(b - a)}
    return dict(quantity=quantity, model=model, row=row, benchmark=benchmark) | values
