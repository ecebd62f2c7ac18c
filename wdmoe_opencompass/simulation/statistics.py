"""Statistics of routed tokens, each the one that is published of the real router (docs/reconstruction.md)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .router import EXPERTS, RouterOutputs

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
QUARTERS = 4


def sample_statistics(outputs: RouterOutputs) -> dict[str, Any]:
    """Of consecutive tokens of one sequence; what a recording of one answer or one prompt tells.

    first_weight: mean of the first weight, the two summing to 1. ratio_quantiles: of the second over the first.
    ratio_by_depth: its median in each quarter of the layers. largest_load, largest_pair: [layers] of the most loaded
    expert over the mean, and share of the tokens of the most frequent pair. share_an_expert, same_first: of consecutive
    tokens. outside: mean weight of the full softmax outside the top-2.
    """
    index, weights = outputs.expert_index, outputs.weights
    ratio = weights[..., 1] / weights[..., 0]  # [tokens, layers]
    top_k = np.take_along_axis(outputs.probabilities, index, axis=2).sum(axis=2)
    shared = (index[1:, :, :, None] == index[:-1, :, None, :]).any(axis=(2, 3))
    return dict(
        first_weight=float(weights[..., 0].mean()),
        ratio_quantiles=np.quantile(ratio, QUANTILES),
        ratio_by_depth=np.array([np.median(part) for part in np.split(ratio, QUARTERS, axis=1)]),
        largest_load=largest_over_mean(expert_counts(index)),
        largest_pair=_largest_pair(index),
        share_an_expert=float(shared.mean()),
        same_first=float((index[1:, :, 0] == index[:-1, :, 0]).mean()),
        outside=float(1 - top_k.mean()),
    )


def expert_counts(expert_index: NDArray) -> NDArray[np.int64]:
    """[tokens, layers, k] -> [layers, experts] tokens that chose each expert."""
    layers = expert_index.shape[1]
    flat = expert_index + EXPERTS * np.arange(layers)[:, None]
    return np.bincount(flat.ravel(), minlength=layers * EXPERTS).reshape(layers, EXPERTS)


def largest_over_mean(counts: NDArray) -> NDArray[np.float64]:
    """[..., experts] -> [...] load of the most loaded expert over the mean load."""
    return counts.max(axis=-1) / counts.mean(axis=-1)


def _largest_pair(index: NDArray) -> NDArray[np.float64]:
    low, high = index.min(axis=2), index.max(axis=2)
    pair = low * EXPERTS + high + EXPERTS**2 * np.arange(index.shape[1])
    counts = np.bincount(pair.ravel(), minlength=index.shape[1] * EXPERTS**2)
    return counts.reshape(index.shape[1], -1).max(axis=1) / len(index)
