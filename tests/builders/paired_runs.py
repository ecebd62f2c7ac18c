"""Model runs on the same items, one worse than the other by a known share."""

import numpy as np

from tests.builders.traces import trace_of
from wdmoe_opencompass.report.items import ItemResults
from wdmoe_opencompass.report.runs import ModelRun


def items(right, of="items"):
    return ItemResults(np.array(right, dtype=bool), of)


def draw(seed, share, size=200):
    return items(np.random.default_rng(seed).random(size) < share, f"items {seed}")


def worse(results, share, seed=9):
    """The same answers, a share of the right ones lost."""
    kept = np.random.default_rng(seed).random(len(results.right)) >= share
    return ItemResults(results.right & kept, results.digest)


def run_of(abbr, policy, base=("w", "p"), lost=0.0, traces=True):
    found = {"m_1": worse(draw(1, 0.5), lost), "m_2": worse(draw(2, 0.8, 50), lost), "piqa": worse(draw(3, 0.9), lost)}
    return ModelRun(
        abbr,
        policy,
        base,
        accuracies={name: ("accuracy", 100 * one.right.mean()) for name, one in found.items()},
        traces={name: [trace_of(seed=len(name), batches=8)] for name in found} if traces else {},
        groups={"mmlu": ["m_1", "m_2"]},
        items=found,
    )


BENCHMARKS = ["mmlu", "piqa"]
