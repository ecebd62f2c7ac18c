import json
import os

import pytest

from tests.conftest import ROOT, command, environment
from wdmoe_opencompass.routing.trace import read_trace

DATA = ROOT.parent / "shared" / "benchmarks"


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the slices of the real benchmarks are not on this machine")
def test_stock_configs_of_real_benchmarks_run_through_both_models(tmp_path):
    import subprocess

    done = subprocess.run(
        command("tests/harness/eval_real_slice.py", tmp_path / "outputs"),
        cwd=ROOT,
        env=environment(tmp_path / "hf") | {"COMPASS_DATA_CACHE": os.path.relpath(DATA, ROOT)},
        capture_output=True,
        text=True,
    )
    (folder,) = (tmp_path / "outputs").iterdir()
    assert json.loads((folder / "summary" / "missing.json").read_text()) == [], done.stdout[-3000:]
    latency = json.loads((folder / "summary" / "latency.json").read_text())
    assert {r["dataset"] for r in latency} == {"ARC-c_slice", "gsm8k_slice"}
    assert {r["row"] for r in latency} == {"vanilla_even", "selection_only", "allocation_only", "both"}
    vanilla = read_trace(folder / "predictions" / "quickstart-vanilla-hf" / "gsm8k_slice.trace.safetensors")
    assert vanilla.items.sum() == 40
