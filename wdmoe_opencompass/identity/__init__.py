"""What makes two models, two datasets and two runs the same.

Answers are the same in kind if everything but the selection policy and the channel is equal that they depend on: the
facts of `facts.py`. Files count by their content (`content.py`), never by their path. No torch and no OpenCompass here.
"""

from .content import MAX_WHOLE_BYTES, adapter_digest, weights_digest
from .facts import DATASET_FACTS, Facts, arguments_of, compare_facts, describe, key_of

__all__ = [
    "DATASET_FACTS",
    "MAX_WHOLE_BYTES",
    "Facts",
    "adapter_digest",
    "arguments_of",
    "compare_facts",
    "describe",
    "key_of",
    "weights_digest",
]
