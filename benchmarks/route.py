"""How long a policy takes on router outputs of Mixtral's true sizes, without the model: time per layer and pass.

    python benchmarks/route.py            seven policies, two minutes on one core

Random router outputs, 32 layers, 8 experts, top-2: PASSES forward passes that decode 64 sequences, and one prefill of
38,400 tokens (64 prompts of MMLU). Time is the processor's, of one thread, counting included; the last line is JSON.
"""

import json
import sys
import time

import numpy as np
import torch

from wdmoe_opencompass import ExpertShape, load_profile
from wdmoe_opencompass.routing.channel_state import ChannelStates
from wdmoe_opencompass.routing.route import route_passes
from wdmoe_opencompass.selection import build_policy
from wdmoe_opencompass.trace.format import FORMAT_VERSION, TraceMetadata
from wdmoe_opencompass.trace.recording import RouterPass

LAYERS, EXPERTS, TOP_K = 32, 8, 2
SEQUENCES, PREFILL_TOKENS, PASSES = 64, 38_400, 32
POLICIES = ("top_k", "wlr", "bottleneck", "capacity", "caee", "dual_price", "jesa")


def router_pass(rng, phase, tokens):
    probabilities = rng.dirichlet(np.full(EXPERTS, 0.5), size=(tokens, LAYERS)).astype(np.float32)
    index = np.argsort(-probabilities, axis=2)[..., :TOP_K]
    weights = np.take_along_axis(probabilities, index, axis=2)
    weights /= weights.sum(axis=2, keepdims=True)
    return RouterPass(0, 0, SEQUENCES, phase, index.astype(np.int16), weights, probabilities)


def metadata(policy, profile):
    shape = ExpertShape()
    return TraceMetadata(
        format_version=FORMAT_VERSION,
        model="random",
        weights="random",
        dataset="random",
        policy=policy,
        policy_parameters={},
        renormalise="model",
        profile=profile,
        profile_hash=profile.content_hash,
        seed=profile.fading.seed,
        layers=LAYERS,
        experts=EXPERTS,
        top_k=TOP_K,
        hidden_size=shape.hidden_size,
        ffn_size=shape.ffn_size,
        dtype="none",
        versions={},
        routed_from="generator",
    )


def us_per_layer(passes, policy, profile):
    """-> microseconds of processor time per layer and pass."""
    channel = ChannelStates(profile, ExpertShape(), EXPERTS)
    start = time.process_time()
    route_passes(passes, build_policy(policy), channel, metadata(policy, profile))
    return 1e6 * (time.process_time() - start) / len(passes) / LAYERS


def main():
    torch.set_num_threads(1)
    rng, profile = np.random.default_rng(0), load_profile("paper_8_devices")
    decode, prefill = [router_pass(rng, "decode", SEQUENCES)] * PASSES, [router_pass(rng, "prefill", PREFILL_TOKENS)]
    us_per_layer(decode, "wlr", profile)  # whatever is loaded once
    found = {}
    for policy in POLICIES:
        times = [min(us_per_layer(passes, policy, profile) for _ in range(2)) for passes in (decode, prefill)]
        found |= {f"{policy}_decode_us": round(times[0], 1), f"{policy}_prefill_us": round(times[1], 1)}
        print(f"{policy}: {times[0]:.0f} us per layer of a decoding pass, {times[1] / 1e3:.1f} ms of the prefill")
    print(json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())
