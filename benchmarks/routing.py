"""What routing through a policy costs and what dropping experts saves, as ratios to the unpatched model.

    python benchmarks/routing.py                                          320M parameters, CPU, float32
    python benchmarks/routing.py --sizes mixtral-8x7b --device cuda       47G random parameters, bfloat16

Variants are interleaved in one process; every ratio is of medians. The last line is JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from wdmoe_opencompass import ExpertShape, load_profile
from wdmoe_opencompass.routing.attachment import Attachment
from wdmoe_opencompass.routing.channel_state import ChannelStates
from wdmoe_opencompass.selection import build_policy

SIZES = {
    "320m": dict(hidden_size=768, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=12),
    "mixtral-8x7b": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32),
}
PREFILLS = ((1, 128), (1, 1024), (4, 256), (16, 128))  # batch x tokens
DECODES = ((1, 16), (4, 16), (16, 16))
NEW_TOKENS = 32
LOGIT_SPREAD = 2.5  # standard deviation of the random router's logits: Algorithm 1 then keeps about 65 %
VARIANTS = ("vanilla", "top_k", "wlr")


def build(sizes, device):
    torch.manual_seed(0)
    config = MixtralConfig(
        **SIZES[sizes],
        vocab_size=32000,
        num_key_value_heads=SIZES[sizes]["num_attention_heads"] // 4 or 1,
        num_local_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=4096,
        eos_token_id=None,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if device == "cpu" else torch.bfloat16)
    try:
        with torch.device(device):
            model = MixtralForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
    for layer in model.model.layers:  # the block's norm gives inputs of unit size
        layer.mlp.gate.weight.data.normal_(0, LOGIT_SPREAD * config.hidden_size**-0.5)
    return model


class Variant:
    """The model as one of VARIANTS; counts what a dropping one kept."""

    def __init__(self, model, name):
        shape = ExpertShape(model.config.hidden_size, model.config.intermediate_size)
        self.attached = None
        if name != "vanilla":
            states = ChannelStates(load_profile("paper_8_devices"), shape, model.config.num_local_experts)
            self.attached = Attachment(model, build_policy(name), states)
            self.attached.recorder.reset()

    def finish(self):
        """-> the batch's block, as a benchmark run would write it; what a user pays for is inside the timing."""
        return self.attached.recorder.finish_batch(0, 1) if self.attached else None

    def close(self):
        if self.attached:
            self.attached.detach()


def synchronise(model):
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def prefill(model, ids):
    model(ids, use_cache=False, logits_to_keep=1)


def decode(model, ids):
    model.generate(ids, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)


def measured(model, work, shapes, rounds):
    """-> {variant: seconds [shapes]} medians of interleaved rounds, and the blocks of the last round."""
    blocks, medians = {}, {name: [] for name in VARIANTS}
    for batch, tokens in shapes:
        ids = torch.randint(3, 32000, (batch, tokens), device=model.device)
        taken = {name: [] for name in VARIANTS}
        for number in range(rounds + 1):
            for name in VARIANTS:
                variant = Variant(model, name)
                synchronise(model)
                started = time.perf_counter()
                work(model, ids)
                block = variant.finish()
                synchronise(model)
                if number:  # the first round warms up
                    taken[name].append(time.perf_counter() - started)
                variant.close()
                blocks.setdefault(name, []).append(block)
        for name in VARIANTS:
            medians[name].append(statistics.median(taken[name]))
        ratios = {n: medians["vanilla"][-1] / medians[n][-1] for n in VARIANTS[1:]}
        print(
            f"{work.__name__} {batch} x {tokens}: vanilla {1e3 * medians['vanilla'][-1]:.1f} ms, "
            + ", ".join(f"{name} {ratio:.3f}x" for name, ratio in ratios.items()),
            flush=True,
        )
    return medians, blocks


def ratio(medians, name):
    """Throughput relative to vanilla, geometric mean over the shapes."""
    pairs = zip(medians["vanilla"], medians[name])
    return statistics.geometric_mean(vanilla / own for vanilla, own in pairs)


def selection_share(model, ids, rounds):
    """Share of a WDMoE prefill spent in selecting and recording; the device is waited for on both sides of each."""
    shares = []
    for _ in range(rounds):
        variant, spent = Variant(model, "wlr"), [0.0]
        select = variant.attached._select

        def timed(*arguments, select=select, spent=spent):
            synchronise(model)
            started = time.perf_counter()
            answer = select(*arguments)
            synchronise(model)
            spent[0] += time.perf_counter() - started
            return answer

        variant.attached._select = timed
        synchronise(model)
        started = time.perf_counter()
        prefill(model, ids)
        synchronise(model)
        routed = time.perf_counter()
        variant.finish()
        ended = time.perf_counter()
        shares.append((spent[0] + ended - routed) / (ended - started))
        variant.close()
    return statistics.median(shares)


def peak_bytes(model, name, ids):
    torch.cuda.reset_peak_memory_stats()
    variant = Variant(model, name)
    prefill(model, ids)
    variant.finish()
    variant.close()
    return torch.cuda.max_memory_allocated()


def peak_resident_bytes(work):
    """Of this process while `work` runs (Linux): the high-water mark is set back first, past what building took."""
    Path("/proc/self/clear_refs").write_text("5")
    work()
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def peak_memory_ratio(arguments, model, ids):
    if arguments.device != "cpu":
        return peak_bytes(model, "wlr", ids) / peak_bytes(model, "vanilla", ids)
    peaks = {}
    for name in ("vanilla", "wlr"):
        done = subprocess.run(
            [sys.executable, __file__, "--sizes", arguments.sizes, "--peak-of", name], capture_output=True, text=True
        )
        peaks[name] = int(done.stdout.split()[-1])
    return peaks["wlr"] / peaks["vanilla"]


def growth(device):
    """Selection time against tokens and against experts; prints a row each, -> exponents over the large sizes."""
    from wdmoe_opencompass.selection import Routing

    profile = load_profile("paper_8_devices")

    def seconds(tokens, experts):
        states = ChannelStates(profile, ExpertShape(768, 2048), experts)
        probabilities = torch.softmax(torch.randn(tokens, experts, device=device), dim=1)
        weights, index = probabilities.topk(2, dim=1)
        loads = torch.ones(tokens, dtype=torch.bool, device=device)
        routing = Routing(probabilities, index, weights, loads, 0, "prefill")
        state, policy = states(0, 0, torch.device(device)), build_policy("wlr")
        taken = []
        for _ in range(7):
            started = time.perf_counter()
            policy.select(routing, state)
            if device != "cpu":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - started)
        return statistics.median(taken[2:])

    by_tokens = {n: seconds(n, 8) for n in (1, 16, 256, 4096, 16384, 65536)}
    by_experts = {n: seconds(4096, n) for n in (8, 32, 128, 256)}
    for title, times in (("tokens (8 experts)", by_tokens), ("experts (4096 tokens)", by_experts)):
        longest = max(times.values())
        for size, taken in times.items():
            print(f"selection, {size:>6} {title}: {1e3 * taken:8.3f} ms {'#' * max(1, round(40 * taken / longest))}")
    logarithm = torch.tensor([by_tokens[65536] / by_tokens[4096], by_experts[256] / by_experts[32]]).log()
    return (logarithm / torch.tensor([16.0, 8.0]).log()).tolist()


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", choices=SIZES, default="320m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak-of", choices=VARIANTS)
    arguments = parser.parse_args()
    model = build(arguments.sizes, arguments.device)
    ids = torch.randint(3, 32000, (4, 256), device=model.device)
    if arguments.peak_of:
        variant = Variant(model, arguments.peak_of)
        print(peak_resident_bytes(lambda: (prefill(model, ids), variant.finish())))
        return
    millions = model.num_parameters() / 1e6
    print(f"{arguments.sizes}: {millions:.0f}M random parameters, {model.dtype}, {model.device}", flush=True)
    prefills, blocks = measured(model, prefill, PREFILLS, arguments.rounds)
    decodes, decode_blocks = measured(model, decode, DECODES, arguments.rounds)
    kept = sum(int(b["assignments"].sum()) for b in blocks["wlr"])
    before = sum(int(b["assignments_before"].sum()) for b in blocks["wlr"])
    written = [*blocks["wlr"], *decode_blocks["wlr"]]
    layer_passes = sum(b["assignments"].size for b in written)
    by_tokens, by_experts = growth(arguments.device)
    answer = dict(
        top_k_prefill=ratio(prefills, "top_k"),
        top_k_decode=ratio(decodes, "top_k"),
        wlr_prefill=ratio(prefills, "wlr"),
        wlr_decode=ratio(decodes, "wlr"),
        kept_share=kept / before,
        selection_share_prefill=selection_share(model, ids, arguments.rounds),
        peak_memory_ratio=peak_memory_ratio(arguments, model, ids),
        trace_bytes_per_layer_pass=sum(array.nbytes for b in written for array in b.values()) / layer_passes,
        prefill_tokens_per_s={f"{b}x{t}": b * t / s for (b, t), s in zip(PREFILLS, prefills["vanilla"])},
        decode_tokens_per_s={f"{b}": b * NEW_TOKENS / s for (b, _), s in zip(DECODES, decodes["vanilla"])},
        growth_exponent_tokens=by_tokens,
        growth_exponent_experts=by_experts,
    )
    print(json.dumps({key: rounded(value) for key, value in answer.items()}))


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return float(f"{value:.4g}")


if __name__ == "__main__":
    main()
