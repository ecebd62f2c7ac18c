"""What the line of progress costs: time of its looks over the time of the run that it looks at, in one process.

A random Mixtral of 4 layers, hidden size 512, generates on the CPU; after each batch, which is appended to a
journal, the batch is looked at as a task does (even split) and as `wdmoe watch` does (even and optimal split). Ends
with one line of JSON: task_share and watch_share of the run's time (of one core; medians over the rounds), and
idle_ms, a look at a journal that did not grow.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from tests.builders.trace_blocks import metadata
from wdmoe_opencompass import load_profile
from wdmoe_opencompass.harness.progress_line import METHODS
from wdmoe_opencompass.routing.attachment import Attachment, find_moe_layers
from wdmoe_opencompass.routing.channel_state import ChannelStates
from wdmoe_opencompass.run.dataset_progress import RUNNING, DatasetWatch, StartNote
from wdmoe_opencompass.selection import build_policy
from wdmoe_opencompass.trace.format import Journal

ROUNDS, ROWS, NEW_TOKENS = 12, 4, 64


def seconds(call):
    started = time.perf_counter()
    call()
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
    ids = torch.randint(0, 1000, (ROWS, 64))
    sizes = dict(layers=4, hidden_size=512, ffn_size=1792)
    states = ChannelStates(load_profile("paper_8_devices"), layer.shape, layer.num_experts)
    shares, idle = {"task": [], "watch": []}, []
    with tempfile.TemporaryDirectory() as folder, Attachment(model, build_policy("wlr"), states) as attachment:
        journal = Journal(Path(folder) / "predictions" / "m" / "d.trace.part", metadata(**sizes))
        journal.path.parent.mkdir(parents=True)
        journal.resume(0)
        watches = {
            "task": DatasetWatch(Path(folder), "m", "d", methods=METHODS),
            "watch": DatasetWatch(Path(folder), "m", "d"),
        }
        prompts = ROWS * (ROUNDS + 1)
        begun = StartNote(items=prompts, prompts=prompts, first_prompt=0, started_s=time.time())
        begun.write(watches["task"].begun)

        def batch(number):
            model.generate(ids, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
            journal.append(attachment.recorder.finish_batch(ROWS * number, ROWS))

        for number in range(ROUNDS + 1):
            run_s = seconds(lambda number=number: batch(number))
            for name, watch in watches.items():
                shares[name].append(
                    seconds(lambda watch=watch: watch.look_without_accuracy(RUNNING, time.time())) / run_s
                )
            idle.append(seconds(lambda: watches["task"].look_without_accuracy(RUNNING, time.time())))
    answer = {f"{name}_share": round(statistics.median(values[1:]), 5) for name, values in shares.items()}
    print(f"looks over the run's own time, {NEW_TOKENS} passes of {ROWS} rows per look, {ROUNDS} rounds, median")
    print(json.dumps(answer | {"idle_ms": round(1000 * statistics.median(idle), 3)}))


if __name__ == "__main__":
    main()
