"""Text that UTF-8 can hold: no file of ours has a lone surrogate, half of a letter beyond U+FFFF.

Python's strings may hold one: from a tokenizer that decodes bytes by itself, or from `\\ud83d` in JSON that was cut.
We write U+FFFD, the replacement character, instead.
"""

import re
from typing import Any

from .json_values import map_values

SURROGATE = re.compile("[\ud800-\udfff]")
SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")  # in JSON; of a whole letter, or of a lone half
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def clean_text(text: str) -> str:
    """Replace every lone surrogate by U+FFFD; two halves that belong together become their letter."""
    if SURROGATE.search(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def clean_value(value: Any) -> Any:
    """Apply `clean_text` to every text of a JSON value, keys too."""
    return map_values(value, _replaced, _replaced)


def _replaced(value: Any) -> Any:
    return clean_text(value) if isinstance(value, str) else value


def count_surrogates(value: Any) -> int:
    """How many texts of a JSON value hold a lone surrogate."""
    if isinstance(value, str):
        return int(SURROGATE.search(value) is not None)
    if isinstance(value, dict):
        return sum(count_surrogates(key) + count_surrogates(part) for key, part in value.items())
    return sum(map(count_surrogates, value)) if isinstance(value, list | tuple) else 0
