"""A generator of router outputs that resemble Mixtral-8x7B-Instruct's: synthetic routing, no model. NumPy only.

The logit of expert e for a token, in layer l, is

    z = spread_l * (corpus + topic + sequence + sqrt(held_share) * held + sqrt(1 - held_share) * own)

with independent normal parts: `corpus` is the model's own preference of a layer, `topic` that of a benchmark or
subject, `sequence` that of a prompt with its answer, `held` is shared by a run of consecutive tokens, `own` is the
token's. The first three have the standard deviations that `RouterStatistics` states, the last two unit variance and,
for two experts that go together, a correlation (`kinship`). Logits below the second are then drawn toward it (`tail`),
which changes neither the top-2 nor their ratio, but what lies outside them.

This is our model, not Mixtral's weights: what makes the top-2 is fitted to published statistics of the real router, but
for `held_tokens`, which is chosen; `tail` is fitted to Table II of the paper. docs/reconstruction.md says to which. It
knows nothing of language, and the layers are independent of each other.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LAYERS, EXPERTS, TOP_K = 32, 8, 2
Array32 = NDArray[np.float32]


@dataclass(frozen=True)
class RouterStatistics:
    """The generator's values; `python -m wdmoe_opencompass.simulation.fit` fits all but the two that say otherwise.

    spread:        [quarters of the depth] standard deviation of a token's logits; linear between the quarters' middles
    corpus_sd:     standard deviation of a layer's preferences over a whole corpus, in units of a token's
    topic_sd:      the same of a benchmark or an MMLU subject
    sequence_sd:   the same of one prompt with its answer
    held_share:    share of a token's variance that consecutive tokens may share
    held_tokens:   how many tokens share it, on average; our choice
    kinship:       correlation of a token's logits for two experts of a layer that go together; each has one partner
    tail:          factor on the distance of the logits below the second to the second; fitted to Table II by
                   `tools/fit_profile.py`
    """

    spread: tuple[float, ...] = (2.02, 1.54, 2.71, 2.70)
    corpus_sd: float = 0.04
    topic_sd: float = 0.146
    sequence_sd: float = 0.135
    held_share: float = 0.47
    held_tokens: float = 3.0
    kinship: float = 0.52
    tail: float = 0.29

    def spread_of_layers(self) -> Array32:
        """-> [layers] standard deviation of a token's logits."""
        middles = (np.arange(len(self.spread)) + 0.5) * LAYERS / len(self.spread) - 0.5
        return np.interp(np.arange(LAYERS), middles, self.spread).astype(np.float32)


class RouterOutputs(NamedTuple):
    """What the routers say about some tokens.

    expert_index:  [tokens, layers, 2] the experts of highest weight, descending
    weights:       [tokens, layers, 2] their weights, which sum to 1 as Mixtral's do
    probabilities: [tokens, layers, experts] the full softmax
    """

    expert_index: NDArray[np.int64]
    weights: Array32
    probabilities: Array32


class SyntheticRouter:
    """The routers of all layers of one model; everything is drawn from the generators it is given.

    preferences: [layers, experts] the corpus part of the logits, one for all topics
    partner:     [layers, experts] the expert that each goes together with
    """

    def __init__(self, seed: int, statistics: RouterStatistics | None = None):
        self.statistics = statistics or RouterStatistics()
        self.spread = self.statistics.spread_of_layers()
        generator = np.random.default_rng((seed, 0))
        self.preferences = _normal(generator, self.statistics.corpus_sd, LAYERS, EXPERTS)
        self.partner = _partners(generator)

    def topic(self, generator: np.random.Generator) -> Array32:
        """-> [layers, experts] preferences of a topic new to the model, the corpus's included."""
        return self.preferences + _normal(generator, self.statistics.topic_sd, LAYERS, EXPERTS)

    def sequences(self, generator: np.random.Generator, topic: Array32, count: int) -> Array32:
        """-> [layers, experts, sequences] preferences of prompts of a topic, the topic's included."""
        own = _normal(generator, self.statistics.sequence_sd, LAYERS, EXPERTS, count)
        return topic[:, :, None] + own

    def route(self, generator: np.random.Generator, preferences: Array32, sequence: NDArray) -> RouterOutputs:
        """Route consecutive tokens of some sequences.

        preferences: [layers, experts, sequences]; sequence: [tokens] which one each token belongs to, tokens of one
        sequence next to each other in their order.
        """
        statistics, tokens = self.statistics, len(sequence)
        segment = _segments(generator, sequence, statistics.held_tokens)
        segments = int(segment[-1]) + 1 if tokens else 0
        mixing = np.float32(np.tan(np.arcsin(statistics.kinship) / 2))  # solves kinship = 2 m / (1 + m^2)
        index = np.empty((LAYERS, TOP_K, tokens), dtype=np.int64)
        weights = np.empty((LAYERS, TOP_K, tokens), dtype=np.float32)
        probabilities = np.empty((LAYERS, EXPERTS, tokens), dtype=np.float32)
        for layer in range(LAYERS):  # one at a time, so that the work stays in the processor's caches
            held = _normal(generator, statistics.held_share**0.5, EXPERTS, segments)
            logits = _normal(generator, (1 - statistics.held_share) ** 0.5, EXPERTS, tokens)
            logits += held[:, segment]
            logits = (logits + mixing * logits[self.partner[layer]]) / np.float32((1 + mixing**2) ** 0.5)
            logits += preferences[layer][:, sequence]
            logits *= self.spread[layer]
            index[layer], weights[layer], probabilities[layer] = _outputs(logits, statistics.tail)
        return RouterOutputs(index.transpose(2, 0, 1), weights.transpose(2, 0, 1), probabilities.transpose(2, 0, 1))


def _partners(generator: np.random.Generator) -> NDArray[np.int64]:
    """-> [layers, experts] the experts of each layer in pairs, at random."""
    order = generator.permuted(np.tile(np.arange(EXPERTS), (LAYERS, 1)), axis=1)
    partner = np.empty_like(order)
    np.put_along_axis(partner, order, order.reshape(LAYERS, -1, 2)[:, :, ::-1].reshape(LAYERS, EXPERTS), axis=1)
    return partner


def _normal(generator: np.random.Generator, deviation: float, *shape: int) -> Array32:
    values = generator.standard_normal(shape, dtype=np.float32)
    values *= np.float32(deviation)
    return values


def _segments(generator: np.random.Generator, sequence: NDArray, held_tokens: float) -> NDArray[np.int64]:
    """-> [tokens] number of the run of tokens each belongs to; runs have geometric lengths and end with a sequence."""
    starts = generator.random(len(sequence)) < 1 / held_tokens
    if len(sequence):
        starts[0] = False
    starts[1:] |= sequence[1:] != sequence[:-1]
    return np.cumsum(starts)


def _outputs(logits: Array32, tail: float) -> tuple[NDArray[np.int64], Array32, Array32]:
    """Top-2, their weights and the softmax; logits: [experts, tokens], overwritten; all have the tokens last."""
    token = np.arange(logits.shape[1])
    first = logits.argmax(axis=0)
    highest = logits[first, token]
    logits[first, token] = np.finfo(np.float32).min
    second = logits.argmax(axis=0)
    gap = logits[second, token] - highest  # [tokens], <= 0
    logits -= highest + gap
    logits *= np.float32(tail)
    logits += gap
    logits[first, token] = 0
    probabilities = np.exp(logits, out=logits)
    probabilities /= probabilities.sum(axis=0)
    ratio = np.exp(gap)
    return np.stack([first, second]), np.stack([1 / (1 + ratio), ratio / (1 + ratio)]), probabilities
