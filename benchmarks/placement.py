"""Placement of experts: exact solvers against the local search, and savings against the default placement.

Seeded random and planted co-selection of 8 experts on 4 devices, 2 experts each; more experts for the times. Give the
routing traces of a vanilla run to see the saving there (RUN/predictions/MODEL/*.trace.safetensors). Ends with one line
of JSON.
"""

import json
import sys
import time

import numpy as np

from wdmoe_opencompass import ExpertShape, load_profile
from wdmoe_opencompass.placement import (
    CoSelection,
    PlacementProblem,
    cap_greedy,
    compare_placements,
    exact,
    latency,
    local_search,
    modulo,
    transfers,
)
from wdmoe_opencompass.trace.format import read_trace

CASES, DEVICES, EXPERTS = 20, 4, 8
PROFILE = load_profile("paper_8_devices")
FOUR = PROFILE.model_copy(update=dict(devices=PROFILE.devices[:DEVICES]))


def random_counts(experts, layers, batches, top_k=2, seed=0):
    rng = np.random.default_rng(seed)
    pairs = rng.poisson(20 * rng.gamma(0.4, size=(layers * batches, experts * (experts - 1) // 2)))
    return CoSelection.of_pairs(pairs, experts, top_k, batches)


def planted_counts(seed=0, noise=0.3, tokens=500, layers=4):
    """Pairs of one planted group, but for a share of noise; -> counts, the plant."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.arange(EXPERTS) % DEVICES)
    first, second = np.triu_indices(EXPERTS, 1)
    liked = np.where(group[first] == group[second], 1.0, 0.0)
    shares = (1 - noise) * liked / liked.sum() + noise / len(liked)
    return CoSelection.of_pairs(rng.multinomial(tokens, shares, size=layers), EXPERTS, 2, 1), group


def seconds(work):
    started = time.perf_counter()
    answer = work()
    return answer, time.perf_counter() - started


def small_cases():
    """Both objectives, 2 layers: is the local search's placement the proven optimum, and how long does each take."""
    gaps, times = [], {"exact_s": [], "local_search_s": []}
    for seed in range(CASES):
        for objective in (transfers(DEVICES), latency(FOUR, ExpertShape())):
            problem = PlacementProblem(random_counts(EXPERTS, 2, 8, seed=seed), objective, EXPERTS // DEVICES)
            found, local_s = seconds(lambda: local_search(problem))  # noqa: B023
            answer, exact_s = seconds(lambda: exact(problem, modulo(EXPERTS, DEVICES)))  # noqa: B023
            assert answer.is_proven
            gaps.append(problem.cost(found) / answer.cost - 1)
            times["exact_s"].append(exact_s)
            times["local_search_s"].append(local_s)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    print(
        f"{EXPERTS} experts on {DEVICES} devices, {2 * CASES} cases, 2 layers: exact {medians['exact_s']:.3f} s,",
        end=" ",
    )
    print(f"local search {medians['local_search_s']:.3f} s, largest gap {max(gaps):.1e}")
    return medians | dict(local_search_gap_max=max(gaps))


def plants():
    found, savings, rival = 0, [], []
    for seed in range(CASES):
        counts, group = planted_counts(seed)
        problem = PlacementProblem(counts, transfers(DEVICES), EXPERTS // DEVICES)
        placement, default = local_search(problem), problem.cost(modulo(EXPERTS, DEVICES))
        found += bool(((placement[:, None] == placement) == (group[:, None] == group)).all())
        savings.append(1 - problem.cost(placement) / default)
        rival.append(1 - problem.cost(cap_greedy(problem)) / default)
    print(
        f"planted groups: {found} of {CASES} found, transfers saved {100 * np.mean(savings):.1f} % on average", end=" "
    )
    print(f"(CAP's greedy {100 * np.mean(rival):.1f} %)")
    return dict(
        plants_found_share=found / CASES,
        planted_saving_percent=100 * float(np.mean(savings)),
        planted_saving_cap_percent=100 * float(np.mean(rival)),
    )


def many_experts():
    """Local search alone, as large as Qwen3-30B-A3B: 48 layers, 128 experts, 8 per token, on 8 devices."""
    problem = PlacementProblem(random_counts(128, 48, 20, top_k=8), latency(PROFILE, ExpertShape(2048, 768)), 16)
    found, taken = seconds(lambda: local_search(problem, restarts=3))
    saving = 100 * (1 - problem.cost(found) / problem.cost(modulo(128, 8)))
    print(f"128 experts, 48 layers, 20 batches: 4 descents in {taken:.1f} s, random counts, saving {saving:.1f} %")
    return dict(large_local_search_s=taken)


def recorded(paths):
    """The saving on recorded traces, on four devices, under each objective."""
    figures = {}
    for objective, key in (("latency", "latency_saving_percent"), ("transfers", "transfers_saving_percent")):
        answer = compare_placements([read_trace(path) for path in paths], devices=DEVICES, objective=objective)
        *_, rival, ours = answer.records()
        print(
            f"recorded, least {objective}: ours {ours[key]:.2f} % ({ours['status']}), CAP's greedy {rival[key]:.2f} %"
        )
        figures |= {f"recorded_{key}": ours[key], f"recorded_{key.replace('saving', 'saving_cap')}": rival[key]}
    return figures


def main(paths):
    figures = small_cases() | plants() | many_experts()
    if paths:
        figures |= recorded(paths)
    print(json.dumps({name: float(f"{value:.4g}") for name, value in figures.items()}))


if __name__ == "__main__":
    main(sys.argv[1:])
