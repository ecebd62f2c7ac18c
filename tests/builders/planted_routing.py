"""Router outputs with experts that are chosen together, and how a placement of them is counted."""

import itertools

import numpy as np

from tests import oracles
from wdmoe_opencompass.placement import (
    CoSelection,
)


def routing(rows, tokens, experts, top_k, seed=0):
    """-> [rows, tokens, top_k] random choices in which some experts like each other."""
    rng = np.random.default_rng(seed)
    liking = rng.gamma(0.5, size=(rows, experts))
    scores = np.log(liking)[:, None] + rng.gumbel(size=(rows, tokens, experts))
    return np.argsort(-scores, axis=2)[:, :, :top_k]


def counted(chosen, experts, batches=1):
    """Co-selection of [rows, tokens, top_k] choices, counted token by token."""
    numbers = {pair: n for n, pair in enumerate(itertools.combinations(range(experts), 2))}
    pairs = np.zeros((len(chosen), len(numbers)), dtype=np.int32)
    for row, tokens in enumerate(chosen.tolist()):
        for token in tokens:
            for pair in itertools.combinations(sorted(token), 2):
                pairs[row, numbers[pair]] += 1
    return CoSelection.of_pairs(pairs, experts, chosen.shape[2], batches)


def replayed(chosen, place, objective):
    """Cost of each row, token by token with the oracle of Eq. (9)."""
    rows = []
    for tokens in chosen.tolist():
        sent, computed = oracles.loads(tokens, [True] * len(tokens), list(place), objective.devices)
        busy = [
            q * a + e * b
            for q, e, a, b in zip(sent, computed, objective.per_token, objective.per_evaluation, strict=True)
        ]
        rows.append(max(busy) if objective.largest else sum(busy))
    return rows


def planted(groups, experts_per_group, seed):
    """Tokens choose both experts of one group; -> counts, group of each expert."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(np.arange(groups), experts_per_group))
    chosen = [
        [rng.choice(np.flatnonzero(group == rng.integers(groups)), 2, replace=False) for _ in range(200)]
        for _ in range(4)
    ]
    return counted(np.array(chosen), len(group), batches=2), group
