"""A live testbed on this machine: prediction error, overhead, what Algorithm 2 saves, and faults survived.

    python benchmarks/testbed.py                 four device processes behind links of three rates; some ten minutes

Each lab is probed by `wdmoe testbed measure`, then `eval_configs/eval_testbed.py` runs through the opencompass command.
As root on Linux the links are network namespaces with `tc tbf`. The last line is JSON.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.testbed.faults import FAULT_KINDS, run_with_fault  # noqa: E402
from tests.testbed.labs import device_processes  # noqa: E402
from wdmoe_opencompass.report.batches import grouped_sums  # noqa: E402
from wdmoe_opencompass.report.records import latency_ratio  # noqa: E402
from wdmoe_opencompass.routing.discovery import find_moe_layers  # noqa: E402
from wdmoe_opencompass.testbed.experts import layers_without_weights  # noqa: E402
from wdmoe_opencompass.testbed.local_lab import local_lab, namespaces_problem, spread  # noqa: E402
from wdmoe_opencompass.testbed.probe import probe  # noqa: E402
from wdmoe_opencompass.trace.times import read_times  # noqa: E402

MODEL = ROOT / "quickstart" / "model"
RATES = ("200,200,100,20", "100", "20")  # Mbit/s of the devices; Algorithm 2 is judged at the first
MAX_BYTES = 64 << 10
GROUPS = ((0,), (1,), (2,), (3,))
FAULTS = 20
NICENESS = -10  # as root: boards do not share their processors with what else the machine does


def environment():
    kept = {k: v for k, v in os.environ.items() if k != "COMPASS_DATA_CACHE"}
    return kept | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def overhead_s(work_dir):
    """-> by tokens per device: median seconds that a layer with all four waited beyond their queueing and computing."""
    sizes = [1, 8, 32, MAX_BYTES // (4 * 128)]
    layers = layers_without_weights(MODEL, "float32")
    lab_file = work_dir / "overhead_lab.yaml"
    lab_file.unlink(missing_ok=True)
    with local_lab(str(MODEL), spread(4, []), lab_file, namespaces_problem() is None, "float32", say=quiet) as lab:
        times, _ = probe(lab, layers, sizes, 20, lambda layer, hidden: None)
    exchanges = {}
    for one in times:
        exchanges.setdefault(one.pass_index, []).append(one)
    together = [
        exchange
        for exchange in exchanges.values()
        if len(exchange) == len(lab.devices) and len({message.tokens for message in exchange}) == 1
    ]
    medians = {n: statistics.median(beyond_s(one) for one in together if one[0].tokens == n) for n in sizes}
    for size, seconds in medians.items():
        print(f"overhead of a layer with 4 devices, {size} tokens each: median {1e3 * seconds:.2f} ms")
    return medians


def beyond_s(exchange):
    return exchange[0].waiting_s - max(one.queue_s + one.compute_s for one in exchange)


def quiet(text):
    pass


def run_at(rates, work_dir):
    """-> folder of the run, every layer pass as a row with what was predicted and measured."""
    profile = work_dir / "measured.yaml"
    work_dir.mkdir(parents=True, exist_ok=True)
    wdmoe, opencompass = (Path(sys.executable).with_name(name) for name in ("wdmoe", "opencompass"))
    inside = f"""set -e
        {wdmoe} testbed measure lab.yaml --model {MODEL} --dtype float32 --out {profile}
        {opencompass} eval_configs/eval_testbed.py -w {work_dir}/run"""
    up = [wdmoe, "testbed", "up", "--model", MODEL, "--dtype", "float32", "--devices", "4", "--rate", rates]
    with (work_dir / "log").open("w") as log:
        subprocess.run(
            [*map(str, up), "--", "sh", "-c", inside], cwd=ROOT, env=environment(), stdout=log, stderr=log, check=True
        )
    folder = max(path for path in (work_dir / "run").iterdir() if path.is_dir())
    predict = [str(wdmoe), "predict", str(folder), "--profile", str(profile)]
    print(f"\n{rates} Mbit/s\n{subprocess.run(predict, capture_output=True, text=True, check=True).stdout}")
    rows = subprocess.run([*predict, "--layers"], capture_output=True, text=True, check=True).stdout
    return folder, rows.splitlines()


def relative_errors(rows):
    place = rows[0].split(",").index("relative_error")
    return [float(row.split(",")[place]) for row in rows[1:]]


def bottleneck_saving(folder):
    """-> 1 - Algorithm 2's measured waiting latency / vanilla's over all batches, and its 95 % interval."""
    sums = {}
    for name in ("vanilla", "wdmoe"):
        paths = sorted((folder / "predictions" / f"quickstart-{name}-testbed-hf").glob("*.times.safetensors"))
        every = [read_times(path) for path in paths]
        sums[name] = grouped_sums((one, one.batch, one.waiting_s.astype(np.float64).mean(axis=1)) for one in every)
    ratio, why = latency_ratio(sums["vanilla"], sums["wdmoe"], "batch")
    assert ratio is not None, why
    saving = 1 - sums["wdmoe"].latency_s.sum() / sums["vanilla"].latency_s.sum()
    return saving, 1 - ratio.high, 1 - ratio.low


def faults():
    """-> how many runs with a random fault gave the answers of a run without."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    lines = (ROOT / "quickstart/data/choice.jsonl").read_text().splitlines()[:8]
    prompts = [f"Question: {json.loads(line)['question']['stem']}\nAnswer:" for line in lines]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)

    def answer():
        return model.generate(**inputs, max_new_tokens=4, do_sample=False).tolist()

    expected, survived = answer(), 0
    chance = random.Random(0)
    with device_processes(MODEL, GROUPS) as devices, torch.no_grad():
        for trial in range(FAULTS):
            fault = FAULT_KINDS[trial % len(FAULT_KINDS)]
            found, events = run_with_fault((model, find_moe_layers(model)), devices, fault, chance, answer, GROUPS)
            same = all(one == expected for one in found)
            survived += same and bool(events)
            print(f"fault {trial}: {fault}, then {events}: {len(found)} answers {'all the same' if same else 'DIFFER'}")
    return survived


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work-dir", type=Path, default=ROOT / "outputs" / "testbed")
    work_dir = parser.parse_args().work_dir.absolute()
    work_dir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # as the devices: five processes share the cores
    if os.geteuid() == 0:
        os.nice(NICENESS)
    overhead = overhead_s(work_dir)
    runs = [run_at(rates, work_dir / rates.replace(",", "_")) for rates in RATES]
    errors = [error for _, rows in runs for error in relative_errors(rows)]
    saving, low, high = bottleneck_saving(runs[0][0])
    survived = faults()
    medians = {rates: statistics.median(relative_errors(rows)) for rates, (_, rows) in zip(RATES, runs)}
    figures = dict(
        prediction_error_median=statistics.median(errors),
        prediction_error_worst_rate=max(medians.values()),
        **{f"prediction_error_median at {rates} Mbit/s": median for rates, median in medians.items()},
        layer_passes=len(errors),
        overhead_ms_median=1e3 * max(overhead.values()),
        bottleneck_saving=saving,
        bottleneck_saving_low=low,
        bottleneck_saving_high=high,
    )
    print(
        json.dumps({k: round(v, 4) for k, v in figures.items()} | dict(faults_tried=FAULTS, faults_survived=survived))
    )


if __name__ == "__main__":
    main()
