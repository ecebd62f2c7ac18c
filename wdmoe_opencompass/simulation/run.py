"""The paper's simulation on synthetic routing: routing traces of the eight benchmarks, without a model."""

from importlib.metadata import version
from typing import Any, NamedTuple

from ..channel.profile import ChannelProfile
from ..latency import ExpertShape
from ..routing.channel_state import ChannelStates
from ..routing.route import ROUTED_PACKAGES, UNCHANGED, route_passes, vanilla_trace
from ..routing.trace import FORMAT_VERSION, RoutingTrace, TraceMetadata
from ..selection import build_policy, policy_parameters
from .benchmarks import BENCHMARKS, router_passes
from .router import EXPERTS, LAYERS, TOP_K, SyntheticRouter

MODEL = "synthetic-mixtral-8x7b"
SHAPE = ExpertShape()


class SimulatedBenchmark(NamedTuple):
    """Traces of the same router outputs, as the router chose and under a policy."""

    name: str
    vanilla: RoutingTrace
    selected: RoutingTrace


def simulate(
    name: str, profile: ChannelProfile, policy: str, parameters: dict[str, Any], batch_size: int, seed: int
) -> SimulatedBenchmark:
    """Simulate one benchmark, by its name in the paper.

    seed: of the routing; the profile has that of its fading. Raises PolicyError where the policy is unknown or does
    not take the parameters.
    """
    benchmark = BENCHMARKS[name]
    built = build_policy(policy, parameters)
    metadata = TraceMetadata(
        format_version=FORMAT_VERSION,
        model=f"{MODEL}-{policy}",
        weights=MODEL,
        dataset=benchmark.dataset,
        policy=policy,
        policy_parameters=policy_parameters(built),
        renormalise=built.renormalise,
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
    )
    passes = router_passes(benchmark, SyntheticRouter(seed), batch_size, seed)
    routed = route_passes(passes, built, ChannelStates(profile, SHAPE, EXPERTS), metadata)
    return SimulatedBenchmark(name, vanilla_trace(routed, f"{MODEL}-{UNCHANGED}"), routed)
