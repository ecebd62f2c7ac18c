"""Model runs of two families for the accuracy and latency frontier."""

from tests.builders.table_runs import items_of, run_of
from tests.builders.traces import trace_of

BENCHMARKS = ["m_1", "piqa"]


def runs():
    """Vanilla; a policy with other loads and worse answers; one of another profile, without a vanilla."""
    vanilla, other, alone = (
        run_of(abbr, policy, groups={}) for abbr, policy in (("vanilla", "top_k"), ("b", "wlr"), ("c", "wlr"))
    )
    for run, seed in ((vanilla, 1), (other, 7), (alone, 9)):
        run.traces = {name: [trace_of(seed=seed + n, batches=8)] for n, name in enumerate(BENCHMARKS)}
    other.accuracies["piqa"] = ("accuracy", 75.0)
    other.items["piqa"] = items_of(75)
    alone.base = ("other weights", alone.base[1])
    return [vanilla, other, alone]
