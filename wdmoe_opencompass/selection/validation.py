"""Checks of a policy's parameters; each failure is one sentence that names policy, parameter, rule and value."""

import math
import operator
from collections.abc import Collection, Sequence
from numbers import Integral, Real
from typing import Any

from ..errors import PolicyError

SIGNS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def broken_rule(policy: str, name: str, rule: str, value: object) -> PolicyError:
    """-> the error to raise."""
    return PolicyError(f"selection policy {policy!r}: {name} must be {rule}, got {value!r}")


def check_number(
    policy: str, name: str, value: Any, rule: str, whole: bool = False, may_be_infinite: bool = False
) -> None:
    """Raise PolicyError unless `value` is a number that follows `rule`, such as ``>= 0 and <= 1``."""
    kind = Integral if whole else Real
    limits = [part.split() for part in rule.split(" and ")]
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    is_number = is_number and (may_be_infinite or math.isfinite(value))
    if not is_number or not all(SIGNS[sign](value, float(limit)) for sign, limit in limits):
        raise broken_rule(policy, name, f"a whole number {rule}" if whole else rule, value)


def check_choice(policy: str, name: str, value: Any, known: Collection[Any]) -> None:
    """Raise PolicyError unless `value` is one of the known ones."""
    if value not in known:
        raise broken_rule(policy, name, " or ".join(map(str, known)), value)


def check_per_layer(policy: str, name: str, value: Any, rule: str) -> None:
    """Raise PolicyError unless `value` is a number that follows `rule`, or a list of such, one per MoE layer."""
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        for layer, number in enumerate(value):
            check_number(policy, f"{name}[{layer}]", number, rule)
    else:
        check_number(policy, name, value, rule)


def of_layer(policy: str, name: str, value: float | Sequence[float], layer: int) -> float:
    """-> the number of one MoE layer, counted from 0; PolicyError where the list ends before it."""
    if not isinstance(value, Sequence):
        return value
    if layer >= len(value):
        raise PolicyError(f"selection policy {policy!r}: {name} is of {len(value)} MoE layers, this model has more")
    return value[layer]
