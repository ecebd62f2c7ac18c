"""Which items of a dataset a model answered right, from what OpenCompass's evaluators leave in a result file."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import WdmoeError
from .statistics import Rights

NUMBER = re.compile(r"[0-9]+")
TOLERANCE_PERCENT = 0.005  # some evaluators round to two decimals
FRACTION_TOLERANCE = 0.05  # relative: fractions are rounded to two decimals too
NO_DETAILS = "its evaluator names no item right or wrong (--dump-eval-details False, or a score that is no share)"


@dataclass(frozen=True)
class ItemResults:
    """right: [items] in the dataset's order; digest: of what the answers were held against, equal for every model."""

    right: Rights
    digest: str

    def same_items(self, other: "ItemResults") -> bool:
        """Whether both are answers to the same items."""
        return len(self.right) == len(other.right) and self.digest == other.digest


def item_results(result: Mapping[str, Any], metric: str, percent: float) -> ItemResults:
    """Find which items were answered right; their share must be the accuracy that the same file reports.

    result:  content of a `results/<model>/<dataset>.json`. Its `details` are a list, or a dict by item number that also
             has `type`; an item's `correct` (or `is_correct`: programs, code) is a bool, or a list with one bool per
             repetition. If an evaluator gives no details, OpenCompass writes only predictions and references. Then only
             the rule of `AccEvaluator`, equal texts, is applied here.
    metric:  the metric that OpenCompass shows first; percent: its value
    Returns: [items] right or wrong, and a digest of the items. Raises WdmoeError with the reason if they are unknown.
    """
    details = _details(result)
    right = np.array([_is_right(detail, metric) for detail in details], dtype=bool)
    if abs(100 * right.mean() - percent) > TOLERANCE_PERCENT:
        raise WdmoeError(
            f"{right.sum()} of its {len(right)} items are marked right, which is not the reported {metric} of "
            f"{percent:.2f} %{_fraction(percent, right.mean())}"
        )
    references = [_reference(detail) for detail in details]
    return ItemResults(right, hashlib.sha256(json.dumps(references, default=str).encode()).hexdigest())


def _fraction(percent: float, share: float) -> str:
    """The end of a sentence where an accuracy is the share of right items itself, a number from 0 to 1; else empty."""
    is_one = 0 < percent <= 1 and math.isclose(percent, share, rel_tol=FRACTION_TOLERANCE)
    return f": it looks like a fraction, for its items say {100 * share:.1f} %" if is_one else ""


def _details(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    details = result.get("details")
    if isinstance(details, Mapping):
        numbered = {number: detail for number, detail in details.items() if NUMBER.fullmatch(number)}
        details = [numbered[str(number)] for number in range(len(numbered)) if str(number) in numbered]
        if len(details) != len(numbered):
            raise WdmoeError("its details lack items")
    if not isinstance(details, list) or not details or not all(isinstance(detail, Mapping) for detail in details):
        raise WdmoeError(NO_DETAILS)
    return details


def _is_right(detail: Mapping[str, Any], metric: str) -> bool:
    for key in ("correct", "is_correct"):
        if key in detail:
            given = detail[key] if isinstance(detail[key], list) else [detail[key]]
            if len(given) != 1:
                raise WdmoeError(f"each item was answered {len(given)} times")
            if not isinstance(given[0], bool):
                raise WdmoeError(NO_DETAILS)
            return given[0]
    if metric == "accuracy" and {"predictions", "references"} <= detail.keys():
        return str(detail["predictions"]) == str(detail["references"])
    raise WdmoeError(NO_DETAILS)


def _reference(detail: Mapping[str, Any]) -> Any:
    """What the answer was compared with; the same for every model."""
    for key in ("references", "answer", "task_id", "reference"):
        if key in detail:
            return detail[key]
    programs = detail.get("programs")  # MBPP: [program, its tests]
    last = programs[-1] if isinstance(programs, list) and programs else None
    return last[-1] if isinstance(last, list) and last else None
