"""Runs that are killed, and files that are broken: nothing lost, nothing counted twice, nothing wrong accepted.

    python benchmarks/faults.py                 50 kills, 2,000 profiles and 2,000 traces; half an hour on two cores

40 kills are of the inference task as its runner starts it, 10 of the `opencompass` command (its runner, a task, or all
of it), each at a random moment, and each started again. The last line is JSON.
"""

import argparse
import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.fuzz import fuzz_profiles, fuzz_traces  # noqa: E402
from tests.harness.kills import (  # noqa: E402
    chances,
    dumped_task,
    killed_command,
    killed_task,
    undisturbed_command,
    undisturbed_task,
)

AT_ONCE = 2  # cores


def kills(tasks, commands, folder):
    """-> an Outcome per kill."""
    reference, active_s = undisturbed_task(folder / "task")
    print(f"a task works {active_s:.1f} s after its first batch", flush=True)

    dumped = [dumped_task(folder / f"task_{number}") for number in range(tasks)]

    def kill_task(number, chance):
        return shown(number, killed_task(dumped[number], reference, active_s, chance))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = list(pool.map(kill_task, range(tasks), chances(tasks, "task")))
    whole, took_s = undisturbed_command(folder / "command" / "outputs")
    print(f"a run of the command takes {took_s:.0f} s", flush=True)
    for number, chance in enumerate(chances(commands, "command")):
        work_dir = folder / f"command_{number}" / "outputs"
        outcomes.append(shown(tasks + number, killed_command(work_dir, whole, took_s, chance)))
    return outcomes


def shown(number, outcome):
    """Print an outcome, and give it back."""
    print(f"{number}: {outcome}", flush=True)
    return outcome


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--commands", type=int, default=10)
    parser.add_argument("--files", type=int, default=2000, help="profiles, and as many traces")
    arguments = parser.parse_args()
    began = time.monotonic()
    fuzzed = [fuzz(arguments.files, 0) for fuzz in (fuzz_profiles, fuzz_traces)]
    for counts in fuzzed:
        print(counts, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        outcomes = kills(arguments.tasks, arguments.commands, Path(folder))
    print(
        f"{time.monotonic() - began:.0f} s; tables or traces that differ: {sum(not one.is_equal for one in outcomes)}"
    )
    figures = dict(
        kills=len(outcomes),
        completed=sum(one.is_complete and one.is_equal for one in outcomes),
        items_lost=sum(one.items_lost for one in outcomes),
        items_twice=sum(one.items_twice for one in outcomes),
    )
    names = ("files_fuzzed", "tracebacks", "wrongly_accepted")
    print(json.dumps(figures | {name: sum(one[name] for one in fuzzed) for name in names}))


if __name__ == "__main__":
    main()
