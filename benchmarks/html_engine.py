"""The latency engine of the HTML report in JavaScript: milliseconds after a changed setting, against a Python replay.

Two models, each with as many passes as asked for (default 2000) of 4 layers and 8 devices, no two layers alike: what
the engine solves only once does not help it here. Every measured call has another total bandwidth. Ends with one line
of JSON.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' JavaScript

from tests.report.html.javascript import NOTHING, available, javascript
from wdmoe_opencompass import load_profile
from wdmoe_opencompass.channel.profile import ChannelProfile
from wdmoe_opencompass.replay import replay
from wdmoe_opencompass.report.html.counts import counts
from wdmoe_opencompass.report.html.page import script
from wdmoe_opencompass.report.runs import ModelRun
from wdmoe_opencompass.trace.format import FORMAT_VERSION, RoutingTrace, TraceMetadata, empty_arrays

LAYERS, CALLS, PASSES_PER_BATCH = 4, 15, 4
PASSES = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
SETTINGS = (("uniform", "layer"), ("optimal", "layer"), ("optimal", "pass"))
CHANNELS = {  # changes of paper_8_devices
    "one draw": {},
    "a draw per pass": dict(coherence="pass"),
    "a draw per layer": dict(coherence="layer"),
    "one draw, frequency division": dict(duplex="frequency_division"),
}
MEASURED = """([counts, calls, allocation, scope]) => {
  const run = WdmoeEngine.load(counts);
  return Array.from({ length: calls + 1 }, (_, call) => {
    const settings = { ...WdmoeEngine.defaults(run), allocation, scope, total_bandwidth_hz: 1e8 + 5e6 * call };
    const start = performance.now();
    for (const model of WdmoeEngine.compute(run, settings).models) model.mean_s("d", "batch");
    return performance.now() - start;
  });
}"""


def profile_of(coherence: str = "run", duplex: str = "shared") -> ChannelProfile:
    """The paper's profile with another coherence or duplex mode."""
    paper = load_profile("paper_8_devices")
    fading = paper.fading.model_copy(update=dict(coherence=coherence))
    return paper.model_copy(update=dict(duplex=duplex, fading=fading))


def run_of(abbr: str, profile: ChannelProfile, seed: int) -> ModelRun:
    """Random loads of 200 to 2000 tokens per pass, two experts each, some experts more popular than others."""
    rng = np.random.default_rng(seed)
    batches = PASSES // PASSES_PER_BATCH
    metadata = TraceMetadata(
        format_version=FORMAT_VERSION,
        model=abbr,
        weights="w",
        dataset="d",
        policy="top_k",
        policy_parameters={},
        renormalise="model",
        profile=profile,
        profile_hash=profile.content_hash,
        seed=profile.fading.seed,
        layers=LAYERS,
        experts=8,
        top_k=2,
        hidden_size=4096,
        ffn_size=14336,
        dtype="bfloat16",
        versions={},
    )
    tokens = rng.integers(200, 2001, batches * PASSES_PER_BATCH).astype(np.int32)
    load = np.array([rng.multinomial(2 * n, rng.dirichlet(np.full(8, 8.0)), LAYERS) for n in tokens]).astype(np.int32)
    pass_index = np.tile(np.arange(PASSES_PER_BATCH, dtype=np.int32), batches)
    arrays = empty_arrays(metadata) | dict(
        batch=np.repeat(np.arange(batches, dtype=np.int32), PASSES_PER_BATCH),
        pass_index=pass_index,
        phase=(pass_index > 0).astype(np.uint8),
        tokens=tokens,
        device_load=load,
        expert_evaluations=load,
        first_item=8 * np.arange(batches, dtype=np.int32),
        items=np.full(batches, 8, dtype=np.int32),
    )
    return ModelRun(abbr, "top_k", ("w", profile.content_hash), traces={"d": [RoutingTrace(metadata, arrays)]})


def main() -> None:
    """Print a line per channel, allocation and scope."""
    if not available():
        sys.exit(NOTHING)
    kind, result = available()[0], {}
    engine = script("engine")
    print(f"2 models x {PASSES} passes x {LAYERS} layers x 8 devices, {kind}; ms: first call, median, Python's replay")
    with javascript(kind) as evaluate:
        for name, changes in CHANNELS.items():
            profile = profile_of(**changes)
            runs = [run_of(f"m{seed}", profile, seed) for seed in range(2)]
            packed = counts(runs, 10**9)
            print(f"{name}: {len(json.dumps(packed)) / 1e6:.2f} MB of counts")
            for allocation, scope in SETTINGS:
                first, *later = evaluate(engine, MEASURED, [packed, CALLS, allocation, scope])
                start = time.perf_counter()
                for run in runs:
                    replay(run.traces["d"][0], profile, allocation, scope)
                python = 1e3 * (time.perf_counter() - start)
                median = statistics.median(later)
                print(f"  {allocation}, {scope}: {first:.0f}, {median:.1f} (least {min(later):.1f}), {python:.0f}")
                result[f"{name}, {allocation}, {scope}"] = dict(median_ms=round(median, 1), ratio=python / median)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
