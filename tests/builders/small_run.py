"""What the shared small run holds: its models, its datasets and their traces."""

import subprocess

from tests.conftest import ROOT, SMALL, command, environment
from wdmoe_opencompass.trace.format import read_trace

TASKS = ["qs_choice", "qs_twoway", "qs_yesno", "qs_arith", "qs_program"]


MODELS = ["quickstart-vanilla-hf", "quickstart-wdmoe-hf"]


def trace_of(folder, model, task):
    return read_trace(folder / "predictions" / model / f"{task}_small.trace.safetensors")


def opencompass_viz(folder):
    done = subprocess.run(
        command(SMALL, folder.parent, "-r", folder.name, "--mode", "viz"),
        cwd=ROOT,
        env=environment(folder.parent.parent / "hf"),
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr
