"""Fit `paper_8_devices` to Table II of the paper: python tools/fit_profile.py (some three minutes on one core).

Two numbers, the distances of the nearest and the farthest device, solve two equations: over the eight benchmarks the
mean saving of allocation alone and the mean log latency of the first row are the paper's. Both are taken at the median
over fading draws, so that no single draw decides. Then a third, the softmax weight outside the top-2 (the generator's
`tail`), is solved for so that the mean saving of selection alone is the paper's under the profile's own draw.

Two numbers are chosen by their order, not fitted: FLOP/s (Figure 5 falls nearly as 1 / bandwidth, so computing hardly
counts) and the batch size. The spacing of the devices between, even in dB of path loss, is a choice too. The profile
holds the distances rounded; what is printed compares both.
"""

from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import brentq, root

from wdmoe_opencompass.allocation import allocate
from wdmoe_opencompass.channel.profile import ChannelProfile, load_profile
from wdmoe_opencompass.channel.propagation import Channel, draw_channel, mean_amplitude
from wdmoe_opencompass.latency import link_budget
from wdmoe_opencompass.report.paper import TABLE_2
from wdmoe_opencompass.routing.channel_state import ChannelStates
from wdmoe_opencompass.routing.route import CPU
from wdmoe_opencompass.selection import build_policy
from wdmoe_opencompass.selection.base import Routing
from wdmoe_opencompass.simulation import run
from wdmoe_opencompass.simulation.benchmarks import BENCHMARKS, router_passes
from wdmoe_opencompass.simulation.router import RouterStatistics, SyntheticRouter
from wdmoe_opencompass.simulation.statistics import expert_counts

FLOPS, BATCH_SIZE = 1e13, 64  # chosen, not fitted
SEED, DRAWS = 0, 100
EVERY_DECODE_PASS, MAX_BATCHES = 32, 6
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SELECTION_BENCHMARKS = ("PIQA", "ARC-C", "BoolQ")  # selection saves alike on all: it reads weights, not loads
PAPER = {row: np.array(values) for row, values in TABLE_2.items()}
PAPER_SAVING = {row: 1 - values / PAPER["vanilla_even"] for row, values in PAPER.items()}


def benchmark_loads(benchmark):
    """-> counts [passes, layers, devices] of some passes of a benchmark, and how many passes each represents."""
    loads, weights, decoded = [], [], 0
    few = replace(benchmark, batches=min(benchmark.batches, MAX_BATCHES))
    for router_pass in router_passes(few, SyntheticRouter(SEED), BATCH_SIZE, SEED):
        if router_pass.phase == "prefill":
            loads.append(expert_counts(router_pass.expert_index))
            weights.append(1.0)
        else:
            if decoded % EVERY_DECODE_PASS == EVERY_DECODE_PASS // 2:
                loads.append(expert_counts(router_pass.expert_index))
                weights.append(0.0)
            decoded += 1
    weights = np.array(weights)
    weights[weights == 0] = decoded / max(1, (weights == 0).sum())
    return np.array(loads, dtype=float), weights


def profile_with(nearest_m, farthest_m, **changes):
    """The profile with its devices spaced evenly in dB between two distances."""
    content = load_profile("paper_8_devices").model_dump(exclude={"origin"}) | changes
    distances = np.geomspace(nearest_m, farthest_m, len(content["devices"]))
    content["devices"] = [
        device | dict(distance_m=float(distance), compute_flops=FLOPS)
        for device, distance in zip(content["devices"], distances, strict=True)
    ]
    return ChannelProfile.model_validate(content)


def over_draws(profile, all_loads, fading):
    """-> [draws, benchmarks] latency per pass in ms under an even split, and saving of the optimal one.

    fading: [draws, devices] power gains over their means
    """
    gains = 4 / np.pi * mean_amplitude(profile) ** 2 * fading
    latency_ms, saving = [], []
    for loads, weights in all_loads:
        shape = (len(gains), *loads.shape)
        repeated = np.broadcast_to(loads, shape).reshape(-1, *loads.shape[1:])
        of_passes = np.repeat(gains, len(loads), axis=0)[:, None]
        budget = link_budget(profile, Channel(of_passes, of_passes), run.SHAPE)
        even, best = (
            allocate(method, "layer", budget, repeated, profile.total_bandwidth_hz).waiting_latency_s.reshape(shape[:2])
            @ weights
            for method in ("uniform", "optimal")
        )
        latency_ms.append(1e3 * even / weights.sum())
        saving.append(1 - best / even)
    return np.array(latency_ms).T, np.array(saving).T


def fit_distances(all_loads, fading):
    """-> nearest and farthest distance in m."""

    def differences(log_distances):
        latency_ms, saving = over_draws(profile_with(*np.exp(log_distances)), all_loads, fading)
        log_ratio = np.log(np.median(latency_ms, axis=0) / PAPER["vanilla_even"])
        points = np.median(saving, axis=0) - PAPER_SAVING["allocation_only"]
        return points.mean(), log_ratio.mean()

    return np.exp(root(differences, np.log([10, 1000]), options=dict(eps=0.05, xtol=0.01)).x)


def fit_tail(profile):
    """-> the generator's `tail` at which selection alone saves as much as in the paper; the mean over benchmarks."""

    def difference(tail):
        saved = []
        for name in SELECTION_BENCHMARKS:
            benchmark = replace(BENCHMARKS[name], batches=2)
            router = SyntheticRouter(SEED, replace(RouterStatistics(), tail=tail))
            even_s, kept_s = selection_latency_s(profile, router_passes(benchmark, router, BATCH_SIZE, SEED))
            saved.append(1 - kept_s / even_s)
        return np.mean(saved) - PAPER_SAVING["selection_only"].mean()

    return brentq(difference, 0.1, 1.0, xtol=0.01)


def selection_latency_s(profile, passes):
    """-> latency under an even split, summed over the passes, of the router's choice and of Algorithm 1's."""
    policy, states = build_policy("wlr"), ChannelStates(profile, run.SHAPE, 8)
    totals = np.zeros(2)
    for router_pass in passes:
        for layer in range(router_pass.expert_index.shape[1]):
            arrays = (
                router_pass.probabilities[:, layer],
                router_pass.expert_index[:, layer],
                router_pass.weights[:, layer],
            )
            probabilities, index, weights = (torch.tensor(array) for array in arrays)
            routing = Routing(
                probabilities, index, weights, torch.ones(len(index), dtype=torch.bool), layer, router_pass.phase
            )
            state = states(0, layer, CPU)
            kept = policy.select(routing, state).keep
            seconds = state.expert_latency_s.double()
            for n, chosen in enumerate((torch.ones_like(kept), kept)):
                loads = torch.bincount(index[chosen], minlength=len(seconds))
                totals[n] += float((loads * seconds).max())
    return totals


def main():
    """Print what is fitted, and how well."""
    all_loads = [benchmark_loads(benchmark) for benchmark in BENCHMARKS.values()]
    fading = np.random.default_rng(1).standard_exponential((DRAWS, 8))
    nearest_m, farthest_m = fit_distances(all_loads, fading)
    print(f"fitted: nearest {nearest_m:.3g} m, farthest {farthest_m:.3g} m")
    shipped = load_profile("paper_8_devices")
    distances = [device.distance_m for device in shipped.devices]
    for name, near, far in (("fitted", nearest_m, farthest_m), ("shipped, rounded", distances[0], distances[-1])):
        latency_ms, saving = over_draws(profile_with(near, far), all_loads, fading)
        print(f"{name}: row one, ours / paper: {np.round(np.median(latency_ms, 0) / PAPER['vanilla_even'], 2)}")
        print(f"  allocation alone saves (%): {np.round(100 * np.median(saving, 0), 1)}")
        print(f"  the paper's:                {np.round(100 * PAPER_SAVING['allocation_only'], 1)}")
        quantiles = np.quantile(saving.mean(axis=1), QUANTILES)
        print(f"  mean saving at {QUANTILES} of the draws: {np.round(100 * quantiles, 1)}")
    _, own_saving = over_draws(shipped, all_loads, draw_of(shipped)[None])
    below = (saving.mean(axis=1) < own_saving.mean()).mean()
    print(f"the shipped profile's own draw saves {100 * own_saving.mean():.1f} %: more than {below:.0%} of the draws")
    print(f"tail: {fit_tail(shipped):.3f}")


def draw_of(profile):
    """-> [devices] the profile's own draw: power gains over their means."""
    return draw_channel(profile).downlink_gain / (4 / np.pi * mean_amplitude(profile) ** 2)


if __name__ == "__main__":
    main()
