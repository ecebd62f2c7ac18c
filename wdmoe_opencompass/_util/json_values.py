"""JSON values changed throughout: every number or text of a nested one, and its keys."""

from collections.abc import Callable
from typing import Any


def same(key: Any) -> Any:
    """Leave a key as it is."""
    return key


def map_values(value: Any, change: Callable[[Any], Any], change_key: Callable[[Any], Any] = same) -> Any:
    """-> the value with `change` applied to all that is neither mapping nor list, and `change_key` to all keys.

    Lists stay lists, tuples tuples; a class of either becomes a list.
    """
    if isinstance(value, dict):
        return {change_key(key): map_values(part, change, change_key) for key, part in value.items()}
    if isinstance(value, list | tuple):
        kind = tuple if type(value) is tuple else list
        return kind(map_values(part, change, change_key) for part in value)
    return change(value)
