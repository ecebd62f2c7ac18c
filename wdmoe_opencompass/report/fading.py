"""Table II's savings under other fading draws than the run's own."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..latency import Array
from ..replay import is_constant, replay_draws
from ..trace.format import RoutingTrace
from .batches import OTHER_BATCHES
from .formats import by_reason
from .records import ROWS
from .runs import ModelRun

DRAWS = 200
QUANTILES = (0.05, 0.5, 0.95)
MAX_LAYERS = 1024  # of a trace that are solved per draw where one draw holds for the whole run; see `replay_draws`
MAX_PROBLEMS = 10_000_000  # layers times draws of a trace whose fading changes within the run: about half a minute
SCOPE, PHASE = "layer", "all"  # of the savings that are drawn
NOTHING = dict(draws=None, saving_draws_low=None, saving_draws_median=None, saving_draws_high=None, no_draws=None)
NO_FADING = "its channel profile has no fading"
TOO_MANY = (
    f"its fading changes within the run, and {DRAWS} draws of all its passes are more than {MAX_PROBLEMS:,} layers to "
    "split the bandwidth in; `wdmoe replay --draws` does it"
)
TEXT = (
    f"rows of {DRAWS} draws: median saving against vanilla_even and its 5 to 95 % range over {DRAWS} fading draws, the "
    "first of them the run's own. Draw n is the same for both (common random numbers; if fading changes within a "
    "run: in passes of the same moment). Selection was made under the run's own draw and never saw the others. The "
    "range covers other fading, not other prompts"
)
SAMPLED = (
    f"a trace with more than {MAX_LAYERS:,} distinct layer loads: under the optimal split, {MAX_LAYERS:,} layers at "
    "points spread evenly over the tokens represent all (measured: 0.04 percentage points off at most, docs/fading.md)"
)


def add_draws(runs: Sequence[ModelRun], records: Sequence[dict[str, Any]]) -> None:
    """Add to each record of Table II its saving over fading draws.

    draws: their number; saving_draws_median, saving_draws_low, saving_draws_high: median, 5 and 95 % quantile. All are
    None except in scope `layer`, phase `all`, outside row vanilla_even. no_draws: the reason if one is missing.
    """
    by_name = {run.abbr: run for run in runs}
    draws = _Draws()
    for record in records:
        record |= NOTHING
        first = record["vanilla"]
        has_draws = (record["scope"], record["phase"]) == (SCOPE, PHASE) and record["row"] != "vanilla_even"
        if not has_draws or first is None:
            continue
        if record["no_interval"] == OTHER_BATCHES:
            record["no_draws"] = OTHER_BATCHES
            continue
        if record["saving"] is None:
            continue
        own = by_name[record["model"]].traces_of(record["dataset"])
        base = by_name[first].traces_of(record["dataset"])
        why = _why_not([*own, *base])
        if why:
            record["no_draws"] = why
            continue
        means = [
            draws.total_s(traces, ROWS[row][1]) / _count(traces, record["per"])
            for traces, row in ((base, "vanilla_even"), (own, record["row"]))
        ]
        low, median, high = (float(q) for q in np.quantile(1 - means[1] / means[0], QUANTILES))
        record |= dict(draws=DRAWS, saving_draws_low=low, saving_draws_median=median, saving_draws_high=high)


class _Draws:
    """Waiting latency of traces over the draws; each trace and allocation is computed once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, str], Array] = {}

    def total_s(self, traces: Sequence[RoutingTrace], method: str) -> Array:
        """-> [draws] latency (s) summed over all passes of the traces."""
        return np.sum([self._of_trace(trace, method) for trace in traces if len(trace.batch)], axis=0)

    def _of_trace(self, trace: RoutingTrace, method: str) -> Array:
        key = (id(trace), method)
        if key not in self._known:
            result = replay_draws(trace, trace.metadata.profile, method, SCOPE, DRAWS, max_layers=MAX_LAYERS)
            self._known[key] = result.mean_latency_s * len(trace.batch)
        return self._known[key]


def _count(traces: Sequence[RoutingTrace], per: str) -> int:
    return sum(len(trace.batch) if per == "pass" else len(np.unique(trace.batch)) for trace in traces)


def _why_not(traces: Sequence[RoutingTrace]) -> str | None:
    if any(trace.metadata.profile.fading.model == "none" for trace in traces):
        return NO_FADING
    changing = [trace for trace in traces if not is_constant(trace.metadata.profile)]
    if any(len(trace.batch) * trace.metadata.layers * DRAWS > MAX_PROBLEMS for trace in changing):
        return TOO_MANY
    return None


def draw_notes(runs: Sequence[ModelRun], records: Sequence[dict[str, Any]]) -> list[str]:
    """Lines under a table with rows of draws; none where no record of it has any."""
    missing = by_reason((record["no_draws"], record["dataset"]) for record in records)
    lines = [f"no range over draws on {where}: {why}" for why, where in missing.items()]
    if not any(record["draws"] for record in records):
        return lines
    is_sampled = any(_distinct_layers(trace) > MAX_LAYERS for run in runs for trace in run.all_traces)
    return [TEXT, *([SAMPLED] if is_sampled else []), *lines]


def _distinct_layers(trace: RoutingTrace) -> int:
    if trace.device_load.shape[0] * trace.device_load.shape[1] <= MAX_LAYERS or not is_constant(trace.metadata.profile):
        return 0
    both = np.concatenate([trace.device_load, trace.expert_evaluations], axis=2)
    return len(np.unique(both.reshape(-1, both.shape[2]), axis=0))
