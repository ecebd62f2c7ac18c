"""Runs that are killed, and files that are broken: nothing lost, nothing counted twice, nothing wrong accepted.

    python benchmarks/faults.py                 50 kills, 2,000 files of each kind; half an hour on two cores

40 kills are of the inference task as its runner starts it, 10 of the `opencompass` command (its runner, a task, or all
of it), each at a random moment, and each started again. Next to them a task dies before each of the things it does to a
file. The last line is JSON; exit code 1 if anything was lost, counted twice, wrongly accepted or beyond the limits.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests import fuzz, fuzz_runs  # noqa: E402
from tests.conftest import environment  # noqa: E402
from tests.harness.kills import (  # noqa: E402
    KILLED,
    Outcome,
    chances,
    dumped_task,
    killed_command,
    killed_task,
    undisturbed_command,
    undisturbed_task,
)

AT_ONCE = 2  # cores
MAX_S, MAX_GROWN_MIB = 1.0, 100.0  # of reading one mutated file, and of memory over all of them


def kills(tasks, commands, folder):
    """-> an Outcome per kill."""
    reference, active_s = undisturbed_task(folder / "task")
    print(f"a task works {active_s:.1f} s after its first batch", flush=True)

    dumped = [dumped_task(folder / f"task_{number}") for number in range(tasks)]

    def kill_task(number, chance):
        return report(number, killed_task(dumped[number], reference, active_s, chance))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = list(pool.map(kill_task, range(tasks), chances(tasks, "task")))
    if commands == 0:
        return outcomes
    whole, took_s = undisturbed_command(folder / "command" / "outputs")
    print(f"a run of the command takes {took_s:.0f} s", flush=True)
    for number, chance in enumerate(chances(commands, "command")):
        work_dir = folder / f"command_{number}" / "outputs"
        how = KILLED[number % len(KILLED)]
        outcomes.append(report(tasks + number, killed_command(work_dir, whole, took_s, how, chance)))
    return outcomes


def deaths(folder):
    """-> an Outcome per operation of a task on a file, before which it died."""
    process = [sys.executable, "-m", "tests.harness.every_write", str(folder)]
    done = subprocess.run(process, cwd=ROOT, env=environment(folder / "hf"), stdout=subprocess.PIPE, text=True)
    outcomes = [Outcome(**json.loads(line)) for line in done.stdout.splitlines()]
    for number, outcome in enumerate(outcomes):
        report(f"file operation {number}", outcome)
    if done.returncode:
        raise SystemExit("error: a task could not be watched to its end")
    return outcomes


def report(number, outcome):
    """Print an outcome, and give it back."""
    print(f"{number}: {outcome}", flush=True)
    return outcome


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--commands", type=int, default=10)
    parser.add_argument("--files", type=int, default=2000, help="of each kind")
    arguments = parser.parse_args()
    began = time.monotonic()
    fuzzed = []
    for fuzz_files in (*fuzz.ALL, *fuzz_runs.ALL):
        fuzzed.append(fuzz_files(arguments.files, 0))
        print(fuzz_files.__name__, fuzzed[-1], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        outcomes = kills(arguments.tasks, arguments.commands, Path(folder))
        died = deaths(Path(folder) / "deaths")
    every = [*outcomes, *died]
    differing = sum(not outcome.is_equal for outcome in every)
    print(f"{time.monotonic() - began:.0f} s; tables or traces that differ: {differing}")
    figures = dict(
        kills=len(outcomes),
        completed=sum(outcome.is_complete and outcome.is_equal for outcome in outcomes),
        items_lost=sum(outcome.items_lost for outcome in outcomes),
        items_twice=sum(outcome.items_twice for outcome in outcomes),
    )
    figures |= {name: sum(kind[name] for kind in fuzzed) for name in ("files_fuzzed", "tracebacks", "wrongly_accepted")}
    figures |= dict(
        file_operations=len(died),
        file_operations_survived=sum(outcome.is_complete and outcome.is_equal for outcome in died),
        slowest_s=max(kind["slowest_s"] for kind in fuzzed[: len(fuzz.ALL)]),  # not of a checkpoint: it builds a model
        grown_mib=max(kind["grown_mib"] for kind in fuzzed),
    )
    print(json.dumps(figures))
    is_well = all(
        outcome.is_complete and outcome.is_equal and not outcome.items_lost + outcome.items_twice for outcome in every
    )
    is_safe = not figures["tracebacks"] + figures["wrongly_accepted"]
    is_within = figures["slowest_s"] <= MAX_S and figures["grown_mib"] <= MAX_GROWN_MIB
    raise SystemExit(0 if is_well and is_safe and is_within else 1)


if __name__ == "__main__":
    main()
