"""An inference task that dies before each of the things it does to a file, one after the other, and is started again.

    python -m tests.harness.every_write FOLDER [EVERY]

prints one JSON object per line: a death each (before every EVERY-th operation alone), at last two tasks at once. One
process imports everything; the tasks are its children.
"""

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import torch  # noqa: F401  before the children

from tests.harness.kills import dumped_task, outcome
from wdmoe_opencompass.harness.infer_task import WdmoeInferTask

WRITING = os.O_WRONLY | os.O_RDWR
ON_FILES = {"os.rename": 2, "os.remove": 1, "os.truncate": 1}  # audit event: how many of its arguments are paths


def operation(event, arguments, folder):
    """-> what is about to be done to a file below `folder`, in words; None for anything else."""
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
        paths = arguments[:1]
    else:
        paths = arguments[: ON_FILES.get(event, 0)]
    names = [os.fsdecode(path) for path in paths if isinstance(path, str | bytes | os.PathLike)]
    if not names or not names[0].startswith(folder):
        return None
    return " ".join([event, *(name.removeprefix(folder).lstrip("/") for name in names)])


def watch_files(folder, log, die_before):
    """Write every operation of this process into `log`; kill it before the one of that number."""
    count = 0

    def audit(event, arguments):
        nonlocal count
        if event not in ("open", *ON_FILES):
            return
        what = operation(event, arguments, folder)
        if what is not None:
            if count == die_before:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            os.write(log, f"{what}\n".encode())

    sys.addaudithook(audit)


def start(config, predictions, log_path, die_before=-1):
    """-> the process number of a child that runs the task."""
    child = os.fork()
    if child:
        return child
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        watch_files(str(predictions.parent), log, die_before)
        WdmoeInferTask(config).run_or_raise()
    except BaseException:
        os._exit(1)
    os._exit(0)


def ended_well(child):
    return os.waitpid(child, 0)[1] == 0


def was_killed(child):
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def one_at_a_time(folder, every):
    """-> an Outcome per operation before which the task died."""
    config, reference = task(folder / "reference")
    log = folder / "operations"
    assert ended_well(start(config, reference, log))
    count = len(log.read_text().splitlines())
    for number in range(0, count, every):
        config, predictions = task(folder / str(number))
        died = was_killed(start(config, predictions, log, number))
        before = log.read_text().splitlines()
        assert died, f"the task ended before its operation {number}"
        complete = ended_well(start(config, predictions, log))
        last = before[-1] if before else "nothing"
        yield outcome(f"killed before operation {number} of {count}, after: {last}", complete, predictions, reference)


def at_once(folder):
    """-> the Outcome of two processes that run one task at the same time."""
    config, predictions = task(folder / "at_once")
    children = [start(config, predictions, folder / f"operations_{number}") for number in range(2)]
    ended = [ended_well(child) for child in children]
    reference = folder / "reference" / "run" / "predictions" / predictions.name
    return outcome("two at once", all(ended), predictions, reference)


def task(folder):
    from mmengine.config import Config

    path, predictions = dumped_task(folder, ("qs_yesno_small", "qs_arith_small"))
    return Config.fromfile(str(path)), predictions


def main():
    """Every operation, then two at once."""
    folder, every = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    os.chdir(Path(__file__).parent.parent.parent)
    for found in one_at_a_time(folder, every):
        print(json.dumps(asdict(found)), flush=True)
    print(json.dumps(asdict(at_once(folder))), flush=True)


if __name__ == "__main__":
    main()
