"""The accuracy in a results file, or why there is none."""

import math
from dataclasses import dataclass
from typing import Any

from ..errors import show

# How OpenCompass's summarizer chooses the metric that it shows (a test compares them with its lists).
FIRST_METRICS = (
    "score",
    "auc_score",
    "accuracy",
    "humaneval_pass@1",
    "rouge1",
    "avg_toxicity_score",
    "bleurt_diff",
    "matthews_correlation",
    "truth",
    "f1",
    "exact_match",
    "extract_rate",
)
NO_METRICS = ("bp", "sys_len", "ref_len", "type")
NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}  # float as text -> as WdmoeEvalTask writes it
ROUNDING_PERCENT = 1e-6


@dataclass(frozen=True)
class Score:
    """The score of a dataset.

    metric: that OpenCompass shows first; None without any. percent: a finite number from 0 to 100 (our choice); None
    for the reason why_not.
    """

    metric: str | None = None
    percent: float | None = None
    why_not: str | None = None


def main_score(result: dict[str, Any]) -> Score:
    """-> the accuracy in a results file of OpenCompass.

    The first metric is not skipped if its value is not a number, or is a list or a dict, which OpenCompass skips:
    models would be compared by different metrics.
    """
    if "error" in result:
        return Score(why_not=f"the evaluation failed: {_text(result['error'])}")
    values = {
        name: value
        for name, value in result.items()
        if name in FIRST_METRICS
        or (name not in NO_METRICS and name != "details" and not isinstance(value, dict | list))
    }
    name = next((name for name in FIRST_METRICS if name in values), None)
    name = name or next((name for name, value in values.items() if _number(value) is not None), None)
    if name is None:
        told = "".join(f", {name} is {show(value)}" for name, value in values.items())
        return Score(next(iter(values), None), why_not=f"the evaluation gave no number{told[:300]}")
    number = _number(values[name])
    if number is None:
        return Score(name, why_not=f"the evaluation gave no number: its {name} is {show(values[name])}")
    if not math.isfinite(number):
        return Score(name, why_not=f"the evaluation gave no finite number: its {name} is {NOT_FINITE[str(number)]}")
    if not -ROUNDING_PERCENT <= number <= 100 + ROUNDING_PERCENT:
        return Score(
            name,
            why_not=f"its {name} is {number:g}, and an accuracy in % is from 0 to 100: no accuracy is shown for it",
        )
    return Score(name, number)


def metric_rank(name: str) -> int:
    """-> position of a metric in OpenCompass's order."""
    return FIRST_METRICS.index(name) if name in FIRST_METRICS else len(FIRST_METRICS)


def _number(value: Any) -> float | None:
    """-> a number as a float; None for anything else, including bool."""
    if isinstance(value, str):
        return float(value) if value in NOT_FINITE.values() else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return math.inf if value > 0 else -math.inf


def _text(value: Any) -> str:
    return " ".join(value.split())[:300] if isinstance(value, str) else show(value)
