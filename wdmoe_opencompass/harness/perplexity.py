"""Perplexity of a batch of texts that depends on none of the batch's other texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from ..errors import ModelError

MAX_SHOWN = 60  # characters of a text in an error


def exact_perplexity(
    model: Any, tokenizer: Any, texts: Sequence[str], max_seq_len: int, mask_length: Sequence[int] | None = None
) -> NDArray[np.float64]:
    """Cross-entropy per token of every text, independent of the batch size and of padding up to rounding.

    model:       a causal language model; it is run once, on all texts
    tokenizer:   that of the model
    texts:       [rows] each is cut from the left to `max_seq_len` tokens
    max_seq_len: maximum length of a text (tokens)
    mask_length: [rows] tokens at the beginning of a text that are read but not scored; None scores all
    Returns: [rows] (nats) sum over the scored tokens / (tokens - `mask_length`): what OpenCompass's own class gives a
    text that is alone in its batch, unless the text holds the padding token. (A text's first token has no prediction
    and is counted all the same.) Raises ModelError for a text without a token to score. Source: our choice.

    Padding goes to the right, where a causal model's real tokens do not see it and keep their positions. OpenCompass
    pads to the left and scores a short text's first token from the last padding token. A text's own tokens are those
    of its attention mask: a real token equal to the padding token is scored here, but neither scored nor counted by
    OpenCompass.
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
    lengths = tokens["attention_mask"].sum(dim=1).tolist()
    scored_from = [0] * len(lengths) if mask_length is None else list(mask_length)
    _check_scored(texts, lengths, scored_from)
    logits = model(**tokens)[0]  # [rows, tokens, vocabulary]
    sums = [
        cross_entropy(row[first : length - 1].float(), ids[first + 1 : length], reduction="sum").item()
        for row, ids, length, first in zip(
            logits, tokens["input_ids"], lengths, (max(count - 1, 0) for count in scored_from), strict=True
        )
    ]  # row by row: all logits as float32 would take twice the memory of a half-precision model's
    return np.array(sums) / (np.array(lengths) - np.array(scored_from))


def _check_scored(texts: Sequence[str], lengths: Sequence[int], masked: Sequence[int]) -> None:
    """Raise ModelError where nothing is scored: a score of 0 or NaN could make that text the answer."""
    for text, length, mask in zip(texts, lengths, masked, strict=True):
        if length <= max(mask, 1):  # the first token has no prediction
            shown = repr(text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "...")
            raise ModelError(
                f"wdmoe.perplexity 'exact': nothing to score in {shown}: length {length} tokens, mask {mask} tokens; "
                "it must be longer than its mask and than its first token, which has no prediction"
            )
