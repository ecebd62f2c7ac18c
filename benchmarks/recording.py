"""What recording and Algorithm 1 cost: time of a prefill against the unpatched model, in one process, interleaved.

A random Mixtral of 4 layers, hidden size 512, on the CPU; ratios are medians over the rounds. Ends with one
line of JSON: top_k_prefill and wlr_prefill, throughput relative to the unpatched model, and kept_share.
"""

import json
import statistics
import time

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from wdmoe_opencompass import load_profile
from wdmoe_opencompass.routing.attachment import Attachment, find_moe_layers
from wdmoe_opencompass.routing.channel_state import ChannelStates
from wdmoe_opencompass.selection import build_policy

ROUNDS = 15


def seconds(model, ids):
    started = time.perf_counter()
    with torch.no_grad():
        model(input_ids=ids)
    return time.perf_counter() - started


def main():
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=1000,
        hidden_size=512,
        intermediate_size=1792,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    model = MixtralForCausalLM(config).eval()
    layer = find_moe_layers(model)[0]
    ids = torch.randint(0, 1000, (4, 256))
    ratios = {"top_k": [], "wlr": []}
    kept = before = 0
    for _ in range(ROUNDS + 1):
        plain = seconds(model, ids)
        for name, collected in ratios.items():
            states = ChannelStates(load_profile("paper_8_devices"), layer.shape, layer.num_experts)
            with Attachment(model, build_policy(name), states) as attachment:
                collected.append(plain / seconds(model, ids))
                block = attachment.recorder.finish_batch(0, 4)
            if name == "wlr":
                kept, before = kept + block["assignments"].sum(), before + block["assignments_before"].sum()
    answer = {f"{name}_prefill": round(statistics.median(values[1:]), 3) for name, values in ratios.items()}
    print(f"throughput relative to the unpatched model, {ids.numel()} tokens, {ROUNDS} rounds, median")
    print(json.dumps(answer | {"kept_share": round(float(kept / before), 3)}))


if __name__ == "__main__":
    main()
