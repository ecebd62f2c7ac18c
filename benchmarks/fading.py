"""What 200 paired fading draws add to a run's tables, and how far a sample of a large trace's layers is off.

python benchmarks/fading.py [RUN_FOLDER...]

A synthetic trace at Mixtral-8x7B's size: PASSES passes of 32 layers, every hundredth a prefill of thousands of tokens.
Of run folders: the seconds that the draws of Table II take. Ends with one line of JSON; seconds are the processor's.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.allocation import PROFILES, trace_of
from wdmoe_opencompass.replay import replay_draws
from wdmoe_opencompass.report.fading import DRAWS, MAX_LAYERS, add_draws
from wdmoe_opencompass.report.records import latency_cells
from wdmoe_opencompass.report.runs import runs_from_traces

PASSES, LAYERS, SEQUENCES, EXACT_DRAWS = 3000, 32, 64, 20


def large_trace():
    """Loads around a popularity of each layer's experts; decoding sequences end one by one."""
    rng = np.random.default_rng(0)
    popularity = rng.dirichlet(np.full(8, 8.0), size=LAYERS)
    place = np.arange(PASSES) % 100
    tokens = np.where(place == 0, SEQUENCES * rng.integers(100, 1500, PASSES), SEQUENCES - place // 2)
    load = [[rng.multinomial(2 * n, rng.dirichlet(30 * p)) for p in popularity] for n in tokens]
    load = np.array(load, dtype=np.int32)
    trace = trace_of(PASSES, PROFILES[0])
    return replace(trace, arrays=trace.arrays | dict(device_load=load, expert_evaluations=load))


def seconds(work):
    started = time.process_time()
    answer = work()
    return answer, time.process_time() - started


def synthetic():
    trace, profile = large_trace(), PROFILES[0]

    def drawn(method, draws=DRAWS, max_layers=MAX_LAYERS):
        return replay_draws(trace, profile, method, "layer", draws, max_layers=max_layers)

    even, even_s = seconds(lambda: drawn("uniform"))
    best, best_s = seconds(lambda: drawn("optimal"))
    exact = drawn("optimal", EXACT_DRAWS, None)
    first = slice(EXACT_DRAWS)
    off = (best.mean_latency_s[first] - exact.mean_latency_s) / even.mean_latency_s[first]
    return dict(even_row_s=even_s, optimal_row_s=best_s, sample_off_points=100 * float(np.abs(off).max()))


def of_run(folder):
    runs = runs_from_traces(Path(folder))
    records = [record for record, _ in latency_cells(runs)]
    return seconds(lambda: add_draws(runs, records))[1]


def main(*folders):
    figures = synthetic()
    for folder in folders:
        figures[f"{Path(folder).name}_s"] = of_run(folder)
    print(json.dumps({name: float(f"{value:.3g}") for name, value in figures.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
