"""Answers that UTF-8 cannot hold are replaced before OpenCompass writes them: it would lose the whole dataset."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .._util.atomic_write import write_whole
from .._util.utf8_text import SURROGATE_ESCAPE, clean_value, count_surrogates

LOG = logging.getLogger(__name__)
REPLACED = "text that UTF-8 cannot hold (lone surrogates); U+FFFD replaces it"


def encodable_answers(model: Any, say: Callable[[str], None]) -> None:
    """Let a model's `generate` give text that can be written; `say` gets a sentence for each batch with other text."""
    generate = getattr(model, "generate", None)
    if generate is None or getattr(generate, "is_encodable", False):
        return

    def encodable(*arguments: Any, **others: Any) -> Any:
        answers = generate(*arguments, **others)
        count = count_surrogates(answers)
        if count:
            say(f"{count} of the answers of this batch held {REPLACED}")
        return clean_value(answers) if count else answers

    encodable.is_encodable = True  # type: ignore[attr-defined]
    model.generate = encodable


def make_encodable(predictions: Path) -> None:
    """Rewrite a predictions file that holds lone surrogates: OpenCompass could not write the scores of it.

    Somebody else's task may have left them, as `\\ud83d` in JSON. A file that is torn is left as it is.
    """
    content = predictions.read_bytes()
    if SURROGATE_ESCAPE.search(content) is None:
        return
    try:
        answers = json.loads(content)
    except (ValueError, RecursionError):
        return
    count = count_surrogates(answers)
    if count:
        write_whole(predictions, json.dumps(clean_value(answers), indent=4, ensure_ascii=False))
        LOG.warning("%s: %d texts held %s", predictions, count, REPLACED)
