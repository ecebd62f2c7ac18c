"""The paper's simulation on synthetic routing: routing traces of its eight benchmarks, without a model."""

import multiprocessing
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import torch

from ..channel.profile import ChannelProfile
from ..latency import ExpertShape
from ..replay import Advance, ignore
from ..routing.channel_state import ChannelStates
from ..routing.route import ROUTED_PACKAGES, UNCHANGED, route_passes, vanilla_trace
from ..selection import build_policy, policy_parameters
from ..trace.format import FORMAT_VERSION, RoutingTrace, TraceMetadata
from .benchmarks import BENCHMARKS, router_passes
from .router import EXPERTS, LAYERS, TOP_K, SyntheticRouter

MODEL = "synthetic-mixtral-8x7b"
SHAPE = ExpertShape()  # Mixtral's


@dataclass(frozen=True)
class Simulation:
    """What is simulated of every benchmark; seed: of the routing, the profile has that of its fading."""

    profile: ChannelProfile
    policy: str
    parameters: dict[str, Any]
    batch_size: int
    seed: int


class SimulatedBenchmark(NamedTuple):
    """Traces of the same router outputs: as the router chose, and under a policy."""

    name: str
    vanilla: RoutingTrace
    selected: RoutingTrace


def simulate(
    simulation: Simulation, names: Sequence[str], workers: int, advance: Advance = ignore
) -> list[SimulatedBenchmark]:
    """Simulate benchmarks, by their names in the paper, one after the other in each of some processes.

    Raises PolicyError where the policy is unknown or does not take the parameters.
    """
    build_policy(simulation.policy, simulation.parameters)
    longest_first = sorted(names, key=lambda name: -BENCHMARKS[name].work)
    found = {}
    if workers == 1 or len(names) == 1:
        for name in longest_first:
            found[name] = simulate_benchmark(simulation, name)
            advance(1)
    else:
        context = multiprocessing.get_context("spawn")
        with context.Pool(min(workers, len(names)), initializer=_begin_worker) as pool:
            for benchmark in pool.imap_unordered(partial(simulate_benchmark, simulation), longest_first):
                found[benchmark.name] = benchmark
                advance(1)
    return [found[name] for name in names]


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted parent ends its workers
    torch.set_num_threads(1)


def simulate_benchmark(simulation: Simulation, name: str) -> SimulatedBenchmark:
    """Simulate one benchmark; see `simulate`."""
    benchmark, profile = BENCHMARKS[name], simulation.profile
    policy = build_policy(simulation.policy, simulation.parameters)
    metadata = TraceMetadata(
        format_version=FORMAT_VERSION,
        model=f"{MODEL}-{simulation.policy}",
        weights=MODEL,
        dataset=benchmark.dataset,
        policy=simulation.policy,
        policy_parameters=policy_parameters(policy),
        renormalise=policy.renormalise,
        profile=profile,
        profile_hash=profile.content_hash,
        seed=profile.fading.seed,
        layers=LAYERS,
        experts=EXPERTS,
        top_k=TOP_K,
        hidden_size=SHAPE.hidden_size,
        ffn_size=SHAPE.ffn_size,
        dtype="float32",
        versions={package: version(package) for package in ROUTED_PACKAGES},
        routed_from="generator",
        softmax_recorded=True,
        batch_size=simulation.batch_size,
        routing_seed=simulation.seed,
    )
    passes = router_passes(benchmark, SyntheticRouter(simulation.seed), simulation.batch_size, simulation.seed)
    selected = route_passes(passes, policy, ChannelStates(profile, SHAPE, EXPERTS), metadata)
    return SimulatedBenchmark(name, vanilla_trace(selected, f"{MODEL}-{UNCHANGED}"), selected)
