"""Perplexity of a batch of texts that depends on none of the batch's other texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy


def exact_perplexity(
    model: Any, tokenizer: Any, texts: Sequence[str], max_seq_len: int, mask_length: Sequence[int] | None = None
) -> NDArray[np.float64]:
    """Cross-entropy per token of every text, independent of the batch size and of padding up to rounding.

    model:       a causal language model; it is run once, on all texts
    texts:       [rows] each is cut from the left to `max_seq_len` tokens
    mask_length: [rows] the first so many tokens of a text are read but not scored; None scores all

    Returns [rows] nats: the sum over the scored tokens, divided by the number of tokens less `mask_length`; NaN where
    that leaves none. It is what OpenCompass's own class gives a text that is alone in its batch. (A text's first token
    has no prediction, and is counted all the same.)

    Padding goes to the right, where a causal model's real tokens do not see it and keep their positions. OpenCompass
    pads to the left and scores a short text's first token from the last padding token. A text's own tokens are those
    of its attention mask: one that happens to be the padding token is scored.
    """
    tokens = tokenizer(
        list(texts),
        return_tensors="pt",
        padding=True,
        padding_side="right",
        truncation=True,
        add_special_tokens=True,
        max_length=max_seq_len,
    ).to(model.device)
    logits = model(**tokens)[0]  # [rows, tokens, vocabulary]
    lengths = tokens["attention_mask"].sum(dim=1).tolist()
    scored_from = [0] * len(lengths) if mask_length is None else list(mask_length)
    sums = [
        cross_entropy(row[first : length - 1].float(), ids[first + 1 : length], reduction="sum").item()
        for row, ids, length, first in zip(
            logits, tokens["input_ids"], lengths, (max(count - 1, 0) for count in scored_from), strict=True
        )
    ]  # row by row: all logits as float32 would take twice the memory of a half-precision model's
    counts = np.array(lengths) - np.array(scored_from)
    return np.where(counts > 0, np.array(sums) / np.maximum(counts, 1), np.nan)
