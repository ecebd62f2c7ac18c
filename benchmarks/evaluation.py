"""One whole evaluation: the slices of the paper's eight benchmarks, both quickstart models, every evaluator.

COMPASS_DATA_CACHE=<folder that holds data/> python benchmarks/evaluation.py
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONFIG = "tests/harness/eval_whole_slices.py"


def main():
    if not os.environ.get("COMPASS_DATA_CACHE"):
        print("skipped: set COMPASS_DATA_CACHE to the folder that holds the slices' data/")
        return
    started = time.perf_counter()
    subprocess.run(
        [Path(sys.executable).with_name("opencompass"), CONFIG, "-w", "outputs/whole_slices"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    seconds = time.perf_counter() - started
    folder = max((ROOT / "outputs" / "whole_slices").iterdir())
    print((folder / "summary" / "main_tables.md").read_text())
    missing = json.loads((folder / "summary" / "missing.json").read_text())
    print(json.dumps(dict(evaluation_s=round(seconds, 1), empty_cells=len(missing))))


if __name__ == "__main__":
    main()
