"""The paper's Tables I and II, and ours next to them, cell by cell."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import pandas as pd

from ..allocation import PRIMARY_SCOPE
from .formats import difference_cell
from .runs import ModelRun
from .statistics import Interval

BENCHMARKS = {  # as the paper writes them -> as OpenCompass's own configs abbreviate them
    "MMLU": "mmlu",
    "PIQA": "piqa",
    "ARC-E": "ARC-e",
    "ARC-C": "ARC-c",
    "HumanEval": "openai_humaneval",
    "GSM8K": "gsm8k",
    "BoolQ": "BoolQ",
    "MBPP": "mbpp",
}
MIXTRAL = "Mixtral-8x7B-Instruct-v0.1"
# (last part of the weights' path, policy) -> accuracy in percent, in the order of BENCHMARKS
TABLE_1 = {
    ("Llama-2-7b-hf", "dense"): (46.8, 78.3, 56.1, 40.3, 12.8, 16.7, 74.9, 14.8),
    ("Llama-2-13b-hf", "dense"): (55, 79.8, 71.8, 60.3, 18.9, 29.6, 82.4, 26.8),
    ("Llama-2-70b-hf", "dense"): (69.7, 82.5, 85.9, 78.3, 26.2, 63.5, 87.7, 39.6),
    ("Mistral-7B-v0.1", "dense"): (64.1, 81.6, 83.6, 74.2, 22.6, 47.5, 84.1, 32.0),
    (MIXTRAL, "top_k"): (70.0, 83.2, 92.8, 84.8, 47.6, 70.9, 88.72, 35.2),
    (MIXTRAL, "wlr"): (68.98, 83.51, 93.12, 86.78, 48.17, 71.29, 88.87, 37.4),
}
# row of Table II -> latency per batch (one forward pass) in ms, in the order of BENCHMARKS
TABLE_2 = {
    "vanilla_even": (298813.6, 37183.1, 36401.5, 40367.1, 572.6, 1661.6, 109957.8, 847.9),
    "selection_only": (258884.0, 33861.6, 35043.3, 37584.2, 527.3, 1491.5, 106806.9, 700.9),
    "allocation_only": (195383.3, 22114.1, 22774.5, 25598.4, 335.2, 1066.0, 66684.0, 538.1),
    "both": (172743.9, 19522.2, 21692.0, 23400.0, 305.9, 964.5, 63991.0, 448.2),
}
COMPARED = dict(scope=PRIMARY_SCOPE, per="pass", phase="all")  # of the latencies that are compared with the paper's
CANNOT_MATCH = "†"
TEXT = [
    "difference = ours - paper with the 95 % interval of ours, the paper's number taken as exact: it states no "
    "intervals, so nothing here is called significant; - if ours has no interval. "
    "Accuracy in %, latency in ms, mean per forward pass (scope layer, phase all), saving against vanilla_even in "
    "percentage points",
    "why per forward pass: a batch of Table II is one forward pass of about 64 sequences; why scope layer: it alone "
    "reaches the paper's savings, and one split for all layers cannot be run (evidence: docs/reconstruction.md)",
    f"{CANNOT_MATCH} cannot match: the paper states neither the devices' distances and FLOP/s nor N0 nor batch "
    "sizes; the values of the run's profile and their origin are listed above. Savings are ratios and can be "
    "compared with care.",
    "accuracy depends on prompts and answer extraction: the paper names OpenCompass but no dataset configs; the "
    "stock ARC configs read the dev set",
    "paper: arXiv 2411.06681, Tables I and II",
]
NO_COMPARISON = (
    "no comparison with the paper: none of this run's models has the paper's weights "
    f"({', '.join(sorted({weights for weights, _ in TABLE_1}))}) and policy"
)


def paper_comparison(runs: Sequence[ModelRun], latency: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """`ours | paper | difference` for every cell that the paper reports and these runs measured; else no rows."""
    return pd.DataFrame([*_accuracy_rows(runs), *_latency_rows(runs, latency)])


def _accuracy_rows(runs: Sequence[ModelRun]) -> list[dict[str, str]]:
    rows = []
    for run in runs:
        reported = TABLE_1.get((_weights(run), run.policy), ()) if is_papers(run) else ()
        for (name, benchmark), paper in zip(BENCHMARKS.items(), reported):
            ours = run.accuracy_of(benchmark)
            if ours:
                interval = run.accuracy_interval_of(benchmark)
                rows.append(_row("Table I", run.abbr, name, "accuracy (%)", ours[1], interval, paper, "{:.2f}"))
    return rows


def _latency_rows(runs: Sequence[ModelRun], latency: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    papers = {run.abbr for run in runs if (_weights(run), run.policy) in TABLE_1 and is_papers(run)}
    rows = []
    for row, reported in TABLE_2.items():
        for column, (name, benchmark) in enumerate(BENCHMARKS.items()):
            for record in latency:
                wanted = COMPARED | dict(row=row, dataset=benchmark)
                if record["model"] not in papers or not wanted.items() <= record.items():
                    continue
                label, ours_ms, paper_ms = f"{row}, {record['model']}", 1e3 * record["latency_s"], reported[column]
                interval = _scale(1e3, record["latency_low_s"], record["latency_high_s"])
                cells = _row("Table II", label, name, "latency (ms)", ours_ms, interval, paper_ms, "{:.1f}")
                rows.append(cells | dict(difference=f"{cells['difference']} {CANNOT_MATCH}"))
                if record["saving"] is not None and row != "vanilla_even":
                    ours, paper = 100 * record["saving"], 100 * (1 - paper_ms / TABLE_2["vanilla_even"][column])
                    interval = _scale(100, record["saving_low"], record["saving_high"])
                    rows.append(_row("Table II", label, name, "saving (%)", ours, interval, paper, "{:.1f}"))
    return rows


def _scale(scale: float, low: float | None, high: float | None) -> Interval | None:
    return None if low is None or high is None else Interval(scale * low, scale * high)


def _row(
    table: str,
    label: str,
    benchmark: str,
    quantity: str,
    ours: float,
    interval: Interval | None,
    paper: float,
    number: str,
) -> dict[str, str]:
    of_difference = interval and Interval(interval.low - paper, interval.high - paper)
    difference = difference_cell(ours - paper, of_difference, number)
    values = dict(ours=number.format(ours), paper=number.format(paper), difference=difference)
    return dict(table=table, row=label, benchmark=benchmark, quantity=quantity) | values


def is_papers(run: ModelRun) -> bool:
    """Whether a model has no adapter, which would make it another model than the paper's."""
    return not any(
        (run.identity_of(name) or run.asked_of(name)).get("peft_path") for name in (*run.accuracies, *run.traces)
    )


def adapter_notes(runs: Sequence[ModelRun]) -> list[str]:
    """One line for every model that is not compared with the paper's because of its adapter."""
    named = {weights for weights, _ in TABLE_1}
    return [
        f"{run.abbr}: not compared with the paper: an adapter (peft_path) makes it another model"
        for run in runs
        if _weights(run) in named and not is_papers(run)
    ]


def _weights(run: ModelRun) -> str:
    return PurePath(run.base[0]).name
