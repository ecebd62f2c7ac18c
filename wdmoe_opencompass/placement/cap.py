"""CAP's greedy placement, the rival: Shi et al., arXiv 2607.05116 [note], Section V-D of WDMoE made precise.

Known from a summary of the paper only; no public code. Where the summary is silent, the line says "our choice".
"""

import numpy as np

from .co_selection import CoSelection, DeviceIndex
from .problem import PlacementProblem


def affinity(counts: CoSelection) -> np.ndarray:
    """``a_ij = #(i and j chosen) / #(i or j chosen)``, [experts, experts]; over all layers and batches (our choice)."""
    first, second = np.triu_indices(counts.experts, 1)
    single, both = counts.counts.sum(axis=0), counts.pairs.sum(axis=0, dtype=float)
    either = single[first] + single[second] - both
    matrix = np.zeros((counts.experts, counts.experts))
    matrix[first, second] = matrix[second, first] = both / np.where(either > 0, either, 1.0)
    return matrix


def cap_greedy(problem: PlacementProblem) -> DeviceIndex:
    """-> [experts] the placement on CAP's front with the smallest cost (CAP: the smallest modelled latency).

    Greedy: experts of highest weighted degree seed the devices, then round robin each device takes the free expert with
    the largest sum of a to it. Then experts are swapped between the most and the least loaded device; every step is a
    point (communication, largest load / mean load), and the points that no other betters in both are the front.

    Our choices: fast devices (least time for one token) come first; load counts (token, expert) pairs; of all swaps
    between the two devices the one that leaves the smaller larger load is made, while it lowers that load. Every device
    is a node of its own, so communication is the sum of ``a_ij`` over pairs on different devices.
    """
    weight = affinity(problem.counts)
    load = problem.counts.counts.sum(axis=0)
    steps = [_greedy(problem, weight)]
    while (swapped := _balanced(steps[-1], load, problem.devices)) is not None:
        steps.append(swapped)
    return min(_front(steps, weight, load, problem.devices), key=problem.cost)


def _greedy(problem: PlacementProblem, weight: np.ndarray) -> DeviceIndex:
    objective, experts = problem.objective, problem.counts.experts
    devices = np.argsort(objective.per_token + objective.per_evaluation, kind="stable")
    placement = np.full(experts, -1)
    seeds = np.argsort(-weight.sum(axis=1), kind="stable")[: problem.devices]
    placement[seeds] = devices[: len(seeds)]
    for turn in range(experts - len(seeds)):
        device = devices[turn % problem.devices]
        free = np.flatnonzero(placement < 0)
        placement[free[weight[np.ix_(free, placement == device)].sum(axis=1).argmax()]] = device
    return placement


def _balanced(placement: DeviceIndex, load: np.ndarray, devices: int) -> DeviceIndex | None:
    """-> the placement after the best swap between the most and the least loaded device; None where none helps."""
    of_device = np.bincount(placement, weights=load, minlength=devices)
    most, least = int(of_device.argmax()), int(of_device.argmin())
    here, there = np.flatnonzero(placement == most), np.flatnonzero(placement == least)
    if most == least or not len(there):
        return None
    moved = load[here][:, None] - load[there]  # [here, there]
    larger = np.maximum(of_device[most] - moved, of_device[least] + moved)
    one, other = np.unravel_index(larger.argmin(), larger.shape)
    if not larger[one, other] < of_device[most]:
        return None
    swapped = placement.copy()
    swapped[here[one]], swapped[there[other]] = least, most
    return swapped


def _front(steps: list[DeviceIndex], weight: np.ndarray, load: np.ndarray, devices: int) -> list[DeviceIndex]:
    points = np.array(
        [
            (
                weight[placement[:, None] != placement].sum() / 2,
                np.bincount(placement, weights=load, minlength=devices).max() * devices / load.sum(),
            )
            for placement in steps
        ]
    )
    bettered = [((points <= point).all(axis=1) & (points < point).any(axis=1)).any() for point in points]
    return [placement for placement, is_bettered in zip(steps, bettered, strict=True) if not is_bettered]
