"""Run a selection policy on recorded or generated router outputs, without the model; the result is a routing trace.

Open loop: unlike in the model, a drop does not change the input of later layers.
"""

from collections.abc import Iterable
from importlib.metadata import version
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..channel.profile import ChannelProfile
from ..errors import PolicyError, TraceError
from ..latency import ExpertShape
from ..selection import build_policy, policy_parameters
from ..selection.base import Routing, SelectionPolicy
from ..trace.format import FORMAT_VERSION, RoutingTrace, TraceMetadata, empty_arrays, join
from ..trace.recording import DEFAULT_BATCH_SIZE, Recording, RouterPass
from .channel_state import ChannelStates
from .recorder import Recorder

CPU = torch.device("cpu")
UNCHANGED = "top_k"
ROUTED_PACKAGES = ("wdmoe_opencompass", "torch", "numpy")
WEIGHT_COUNTS = ("weight_sum", "weight_sum_before", "ratio_counts")


def route_recording(
    recording: Recording,
    policy: str,
    parameters: dict[str, Any],
    profile: ChannelProfile,
    batch_size: int | None = None,
    top_k_mass: float | None = None,
    sha256: str = "",
) -> RoutingTrace:
    """Run a policy on a recording, with the fading draws that a run of the same batches meets; -> the routing trace.

    batch_size: see `Recording.router_passes`. top_k_mass: see `full_probabilities`. sha256: of the recording's file.

    Raises PolicyError if the policy or a parameter is unknown, or the policy reads values that were not recorded.
    """
    recorded = recording.metadata
    if batch_size is None and not recording.has_batches:
        batch_size = DEFAULT_BATCH_SIZE
    built = build_policy(policy, parameters)
    _check_top_k_mass(recording, top_k_mass)
    metadata = TraceMetadata(
        format_version=FORMAT_VERSION,
        model=f"{recorded.model}-{policy}",
        weights=recorded.weights or recorded.model,
        dataset=recorded.dataset,
        test_range=recorded.test_range,
        policy=policy,
        policy_parameters=policy_parameters(built),
        renormalise=built.renormalise,
        profile=profile,
        profile_hash=profile.content_hash,
        seed=profile.fading.seed,
        layers=recorded.layers,
        experts=recorded.num_experts,
        top_k=recorded.top_k,
        hidden_size=recorded.hidden_size,
        ffn_size=recorded.ffn_size,
        dtype=recorded.dtype or "precision not recorded",
        versions={package: version(package) for package in ROUTED_PACKAGES},
        routed_from="recording",
        recording_sha256=sha256,
        recorded_routing=recorded.routing,
        softmax_recorded=recorded.has_probabilities,
        top_k_mass=top_k_mass,
        batch_size=batch_size,
    )
    channel = ChannelStates(profile, ExpertShape(recorded.hidden_size, recorded.ffn_size), recorded.num_experts)
    return route_passes(recording.router_passes(batch_size), built, channel, metadata, top_k_mass)


def _check_top_k_mass(recording: Recording, top_k_mass: float | None) -> None:
    recorded = recording.metadata
    if top_k_mass is None:
        return
    if not 0 < top_k_mass <= 1:
        raise PolicyError(f"--top-k-mass must be > 0 and <= 1, got {top_k_mass}")
    if recorded.has_probabilities:
        raise PolicyError(
            "--top-k-mass is for a softmax that was not recorded, and this recording has it; leave it out"
        )
    if not recorded.has_weights:
        raise PolicyError("--top-k-mass needs the weights of the top-k, and the recording has expert ids only")
    if recorded.router_is_softmax is False:
        raise PolicyError("--top-k-mass is of a softmax over all experts, and the recorded router is none")


def route_passes(
    passes: Iterable[RouterPass],
    policy: SelectionPolicy,
    channel: ChannelStates,
    metadata: TraceMetadata,
    top_k_mass: float | None = None,
) -> RoutingTrace:
    """Run the policy on every MoE layer of every pass; -> the trace that a run with these router outputs leaves.

    passes: read one at a time, in the order of their batches. channel: of metadata's profile, expert sizes and
    experts. top_k_mass: see `full_probabilities`. Counts of weights are 0 in batches without weights.

    Raises PolicyError if the policy needs weights, or a full softmax, that a pass does not have.
    """
    recorder = Recorder(metadata.layers, metadata.experts)
    channel.dataset = metadata.dataset
    channel.items_before = 0
    blocks = []
    for (_, first_item, items), batch in groupby(passes, key=lambda router_pass: router_pass[:3]):
        is_weighted = True
        for router_pass in batch:
            check_policy_can_run(policy, metadata.policy, router_pass, top_k_mass)
            is_weighted &= router_pass.weights is not None
            _route_pass(router_pass, policy, channel, recorder, top_k_mass)
        block = recorder.finish_batch(first_item, items)
        if not is_weighted:
            for name in WEIGHT_COUNTS:
                block[name] = np.zeros_like(block[name])
        blocks.append(block)
        channel.items_before += items
    return join(metadata, blocks) if blocks else RoutingTrace(metadata, empty_arrays(metadata))


def vanilla_trace(trace: RoutingTrace, model: str | None = None) -> RoutingTrace:
    """-> the trace of `top_k` on the same router outputs: the counts of `trace` before selection.

    model: its name in the new trace, by default the trace's. Raises TraceError unless `route_passes` made the trace:
    in a model a drop changes the input of later layers.
    """
    metadata = trace.metadata
    if metadata.routed_from == "model":
        raise TraceError(
            f"the trace of {metadata.dataset} comes from a model's run: its router outputs depend on drops"
        )
    after = {name.removesuffix("_before"): array for name, array in trace.arrays.items() if name.endswith("_before")}
    changes = dict(model=model or metadata.model, policy=UNCHANGED, policy_parameters={}, renormalise="model")
    return RoutingTrace(metadata.model_copy(update=changes), trace.arrays | after)


def check_policy_can_run(
    policy: SelectionPolicy, name: str, router_pass: RouterPass, top_k_mass: float | None = None
) -> None:
    """Raise PolicyError if the policy needs weights, or a full softmax, that the pass does not have."""
    if router_pass.weights is None and policy.needs_weights:
        raise PolicyError(
            f"selection policy {name!r} needs router weights, and the recording has expert ids only; record weights "
            f"too, or use {UNCHANGED!r}"
        )
    if policy.may_add and router_pass.probabilities is None and top_k_mass is None:
        raise PolicyError(
            f"selection policy {name!r} may give a token an expert outside its top-k, and the recording has no weight "
            "there; record the full softmax (probabilities), or say with --top-k-mass what the top-k weigh together"
        )


def full_probabilities(weights: Tensor, expert_index: Tensor, experts: int, top_k_mass: float | None = None) -> Tensor:
    """What a policy reads as probabilities if no full softmax was recorded.

    weights: [tokens, layers, k] as the model uses them. expert_index: [tokens, layers, k]. experts: how many.
    top_k_mass: sum of the top-k; the rest is spread evenly over the other experts. None: weights, and 0 elsewhere.
    Returns: [tokens, layers, experts] float32. Source: our choice.
    """
    k = expert_index.shape[-1]
    rest = 0.0
    if top_k_mass is not None and experts > k:
        weights = weights * (top_k_mass / weights.sum(-1, keepdim=True).clamp(min=1e-30))
        rest = (1 - top_k_mass) / (experts - k)
    return torch.full((*expert_index.shape[:-1], experts), rest).scatter(-1, expert_index, weights)


def _route_pass(
    router_pass: RouterPass,
    policy: SelectionPolicy,
    channel: ChannelStates,
    recorder: Recorder,
    top_k_mass: float | None,
) -> None:
    finished = None if router_pass.finished is None else torch.from_numpy(router_pass.finished)
    pass_index = recorder.begin_pass(router_pass.phase, finished)
    expert_index = _layer_major(router_pass.expert_index, np.int64)
    if router_pass.weights is None:
        weights = torch.zeros(expert_index.shape)
    else:
        weights = _layer_major(router_pass.weights, np.float32)
    if router_pass.probabilities is None:
        probabilities = full_probabilities(weights, expert_index, recorder.experts, top_k_mass)
    else:
        probabilities = _layer_major(router_pass.probabilities, np.float32)
    is_real_token = torch.ones(expert_index.shape[1], dtype=torch.bool)
    for layer in range(recorder.layers):
        routing = Routing(
            probabilities[layer], expert_index[layer], weights[layer], is_real_token, layer, router_pass.phase
        )
        state = channel(pass_index, layer, CPU)
        selection = policy.select(routing, state)
        recorder.record(routing, state, selection.expert_index, selection.keep)
    recorder.end_pass(failed=False)


def _layer_major(array: NDArray, dtype: Any) -> Tensor:
    """[tokens, layers, n] -> tensor [layers, tokens, n]; not copied if it has this order and type already."""
    swapped = np.ascontiguousarray(array.swapaxes(0, 1), dtype=dtype)
    return torch.from_numpy(swapped if swapped.flags.writeable else swapped.copy())
