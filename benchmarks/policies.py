"""The accuracy-latency frontier of every selection policy on the quickstart's model, through the opencompass command.

    python benchmarks/policies.py                      every policy: `eval_configs/eval_policies.py`
    python benchmarks/policies.py --run FOLDER         reads a finished run

All items of all five tasks, in two processes: some twenty minutes on two cores. The last line is JSON: per policy what
`wdmoe frontier` shows.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
KEYS = ("kept_share", "accuracy", "accuracy_low", "accuracy_high", "waiting_latency_s", "on_front")


def run(config, work_dir):
    """-> the run's time-stamped folder."""
    environment = {k: v for k, v in os.environ.items() if k != "COMPASS_DATA_CACHE"}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [str(Path(sys.executable).with_name("opencompass")), config, "-w", str(work_dir)]
    with (ROOT / work_dir).with_suffix(".log").open("w") as log:
        subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, check=True)
    return max(path for path in (ROOT / work_dir).iterdir() if path.is_dir())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="eval_configs/eval_policies.py")
    parser.add_argument("--work-dir", type=Path, default=Path("outputs/policies"))
    parser.add_argument("--run", type=Path)
    arguments = parser.parse_args()
    started = time.perf_counter()
    (ROOT / arguments.work_dir).parent.mkdir(parents=True, exist_ok=True)
    folder = arguments.run or run(arguments.config, arguments.work_dir)
    records = json.loads((folder / "summary" / "frontier_records.json").read_text())
    print((folder / "summary" / "frontier.md").read_text())
    print(f"figure: {folder / 'summary' / 'frontier.png'}; {time.perf_counter() - started:.0f} s")
    report_dominance(records)
    print(json.dumps({short(one["model"]): {key: rounded(one[key]) for key in KEYS} for one in records}))


def report_dominance(records):
    """Which rivals that keep as much (within a point, measured) wait less than each of ours, at what accuracy."""
    full = [one for one in records if one["payload_bits"] == 16]
    for ours in (one for one in full if one["policy"] == "dual_price"):
        alike = [one for one in full if abs(one["kept_share"] - ours["kept_share"]) < 0.01]
        quicker = [one for one in alike if one["latency_ratio"] < ours["latency_ratio"]]
        print(f"{described(ours)}; of {len(alike) - 1} that keep as much, waiting less: ", end="")
        print("; ".join(described(one) for one in quicker) or "none")


def described(one):
    return (
        f"{short(one['model'])} waits {one['latency_ratio']:.3f} of vanilla's, keeps {100 * one['kept_share']:.1f} %, "
        f"accuracy {one['accuracy']:.1f}" + (" (significantly below vanilla)" if one["significant"] else "")
    )


def short(model):
    return model.removeprefix("quickstart-").removesuffix("-hf")


def rounded(value):
    return value if value is None or isinstance(value, bool) else float(f"{value:.5g}")


if __name__ == "__main__":
    main()
