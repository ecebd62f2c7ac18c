"""Fit the synthetic router to published statistics of Mixtral-8x7B-Instruct.

    python -m wdmoe_opencompass.simulation.fit

Fitted are HumanEval's column and the loads of whole MMLU subjects; GSM8K's column and HumanEval's prompt are held out.
The values that come out, rounded, are the defaults of `router.RouterStatistics`, except two, which no statistic here
depends on or tells: `held_tokens` is our choice, and `tail`, which moves nothing of the top-2, is fitted to Table II of
the paper by `tools/fit_profile.py`.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from .router import RouterStatistics, SyntheticRouter
from .statistics import expert_counts, largest_over_mean, sample_statistics

# Mixtral-8x7B-Instruct, top-2 weights scaled to sum 1; sources in docs/reconstruction.md. Loads and pairs: mean over
# the layers, worst layer.
HUMANEVAL_DECODE: dict[str, Any] = dict(
    tokens=338,
    first_weight=0.717,
    ratio_quantiles=(0.06, 0.21, 0.41, 0.67, 0.93),
    ratio_by_depth=(0.45, 0.49, 0.35, 0.33),
    largest_load=(1.47, 1.88),
    largest_pair=(0.119, 0.205),
    share_an_expert=0.65,
    same_first=0.27,
)
GSM8K_DECODE: dict[str, Any] = dict(
    tokens=247,
    first_weight=0.694,
    ratio_quantiles=(0.10, 0.26, 0.47, 0.72, 0.94),
    ratio_by_depth=(0.50, 0.52, 0.45, 0.37),
    largest_load=(1.52, 1.88),
    largest_pair=(0.130, 0.260),
    share_an_expert=0.59,
    same_first=0.22,
)
HUMANEVAL_PREFILL: dict[str, Any] = dict(
    tokens=135, first_weight=0.713, ratio_quantiles=(0.07, 0.22, 0.42, 0.67, 0.90), largest_load=(1.64, 2.03)
)
# Seven MMLU subjects: tokens per subject (thousands, rounded), largest over mean load of a layer
MMLU_TOKENS = (7_200, 12_400, 10_400, 12_600, 56_300, 1_900, 4_700)
MMLU_SUBJECTS = (1.22, 1.45)  # mean over the layers: from the most even subject to the least
MMLU_SUBJECT_MEAN = 1.31
MMLU_TOGETHER = (1.19, 1.35)

FITTED = ("spread", "corpus_sd", "topic_sd", "sequence_sd", "held_share", "kinship")
# Plain numbers, far from the answer: one spread for all layers, equal preferences. tail and held_tokens are not fitted.
START = RouterStatistics(spread=(2.0,) * 4, corpus_sd=0.1, topic_sd=0.1, sequence_sd=0.1, held_share=0.25, kinship=0.25)
SAMPLES, MODELS = 16, 2
MAX_SUBJECT_TOKENS, QUESTION_TOKENS = 6_000, 150  # of a subject that are simulated; of a question (assumption)
TOLERANCE = dict(first_weight=0.01, ratio=0.02, load=0.03, pair=0.01, consecutive=0.02)


def simulate_samples(statistics: RouterStatistics, tokens: int, samples: int, seed: int = 0) -> dict[str, Any]:
    """Statistics of sequences, each of a topic and of a model of its own; mean over the samples.

    Loads and pairs come as (mean, worst) over the layers, each the mean over the samples.
    """
    found = []
    for sample in range(samples):
        generator = np.random.default_rng((seed, sample))
        router = SyntheticRouter(seed * 1000 + sample, statistics)
        preferences = router.sequences(generator, router.topic(generator), 1)
        values = sample_statistics(router.route(generator, preferences, np.zeros(tokens, dtype=np.int64)))
        for name in ("largest_load", "largest_pair"):
            values[name] = np.array([values[name].mean(), values[name].max()])
        found.append(values)
    return {name: np.mean([values[name] for values in found], axis=0) for name in found[0]}


def simulate_subjects(statistics: RouterStatistics, seed: int = 0) -> list[NDArray[np.float64]]:
    """-> [subjects] expert counts [layers, experts] of MMLU's seven subjects under one model.

    Of a large subject MAX_SUBJECT_TOKENS are drawn, and their counts scaled to all of them.
    """
    router = SyntheticRouter(seed, statistics)
    counts = []
    for subject, total in enumerate(MMLU_TOKENS):
        generator = np.random.default_rng((seed, 100 + subject))
        tokens = min(total, MAX_SUBJECT_TOKENS)
        sequence = np.arange(tokens) // QUESTION_TOKENS
        preferences = router.sequences(generator, router.topic(generator), int(sequence[-1]) + 1)
        drawn = expert_counts(router.route(generator, preferences, sequence).expert_index)
        counts.append(drawn * (total / tokens))
    return counts


def subject_loads(statistics: RouterStatistics, models: int) -> tuple[float, float]:
    """-> largest over mean load: mean over layers and subjects, and of all subjects together; mean over `models`."""
    alone, together = [], []
    for seed in range(models):
        counts = simulate_subjects(statistics, seed)
        alone.append(np.mean([largest_over_mean(subject).mean() for subject in counts]))
        together.append(largest_over_mean(np.sum(counts, axis=0)).mean())
    return float(np.mean(alone)), float(np.mean(together))


def with_values(values: NDArray, base: RouterStatistics) -> RouterStatistics:
    """The statistics with the fitted values, in the order of FITTED, the quarters' spread first."""
    quarters = len(base.spread)
    numbers = dict(zip(FITTED[1:], map(float, values[quarters:]), strict=True))
    return replace(base, spread=tuple(map(float, values[:quarters])), **numbers)


def residuals(statistics: RouterStatistics) -> NDArray[np.float64]:
    """Differences to HumanEval's column and to MMLU's loads, each in units of its tolerance."""
    target = HUMANEVAL_DECODE
    ours = simulate_samples(statistics, target["tokens"], SAMPLES)
    alone, together = subject_loads(statistics, MODELS)
    parts = [
        (ours["first_weight"] - target["first_weight"]) / TOLERANCE["first_weight"],
        (ours["ratio_quantiles"] - target["ratio_quantiles"]) / TOLERANCE["ratio"],
        (ours["ratio_by_depth"] - target["ratio_by_depth"]) / TOLERANCE["ratio"],
        (ours["largest_load"][0] - target["largest_load"][0]) / TOLERANCE["load"],
        (ours["largest_pair"][0] - target["largest_pair"][0]) / TOLERANCE["pair"],
        (ours["share_an_expert"] - target["share_an_expert"]) / TOLERANCE["consecutive"],
        (ours["same_first"] - target["same_first"]) / TOLERANCE["consecutive"],
        (alone - MMLU_SUBJECT_MEAN) / TOLERANCE["load"],
        (together - MMLU_TOGETHER[0]) / TOLERANCE["load"],
    ]
    return np.concatenate([np.atleast_1d(part) for part in parts])


def fit_router(start: RouterStatistics = START) -> RouterStatistics:
    """Least squares over FITTED under common random numbers; what is not in FITTED stays as it is."""
    first = np.array([*start.spread, *(getattr(start, name) for name in FITTED[1:])])
    upper = np.array([10.0] * len(start.spread) + [1.0, 1.0, 1.0, 0.95, 0.95])
    answer = least_squares(
        lambda values: residuals(with_values(values, start)),
        first,
        bounds=(np.full_like(first, 0.01), upper),
        diff_step=0.03,
        x_scale=np.maximum(first, 0.1),
        max_nfev=8,
    )
    return with_values(answer.x, start)


def main() -> None:
    """Print the fitted values, and each statistic next to the published one, held-out ones included."""
    fitted = fit_router()
    print(fitted)
    for name, target in (("fit", HUMANEVAL_DECODE), ("held out", GSM8K_DECODE), ("held out", HUMANEVAL_PREFILL)):
        ours = simulate_samples(fitted, target["tokens"], SAMPLES, seed=1)
        for key in target.keys() - {"tokens"}:
            print(f"{name}, {target['tokens']} tokens, {key}: {np.round(ours[key], 3)} | {target[key]}")
        print(f"outside the top-2: {ours['outside']:.3f}")
    loads = np.round(subject_loads(fitted, 2 * MODELS), 3)
    print(f"MMLU, a subject and all together: {loads} | {MMLU_SUBJECT_MEAN} {MMLU_TOGETHER[0]}")


if __name__ == "__main__":
    main()
