"""The `opencompass` command with four device processes behind it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.conftest import ROOT, command, environment
from wdmoe_opencompass.trace.format import read_trace

LAB = ROOT / "tmp" / "test_testbed" / "lab.yaml"  # as the config says


def run_on_a_testbed(work_dir, meanwhile):
    """Run the config with devices of 200, 200, 100 and 20 Mbit/s; -> its folder, output of everything."""
    LAB.parent.mkdir(parents=True, exist_ok=True)
    up = [sys.executable, "-m", "wdmoe_opencompass.cli.testbed", "up", "--model", "quickstart/model"]
    up += ["--devices", "4", "--rate", "200,200,100,20", "--dtype", "float32", "--lab", str(LAB), "--send-padding"]
    up += ["--deadline-s", "3", "--", *command("tests/harness/eval_testbed.py", work_dir)]
    process = subprocess.Popen(
        up,
        cwd=ROOT,
        env=environment(work_dir.parent / "hf"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    thread = threading.Thread(target=meanwhile, args=(process.pid, work_dir), daemon=True)
    thread.start()
    output = process.communicate(timeout=900)[0]
    folders = sorted(path for path in work_dir.iterdir() if path.is_dir())
    assert folders, output
    return folders[-1], output


def stop_a_device_for_a_while(pid, work_dir):
    """When the live model has its first predictions: SIGSTOP, some seconds, SIGCONT."""
    while not list(work_dir.glob("*/predictions/quickstart-live-hf/*.json")):
        time.sleep(0.05)
    for process in os.scandir("/proc"):
        if process.name.isdigit():
            words = (ROOT / "/proc" / process.name / "cmdline").read_bytes().split(b"\0")
            if b"device_2" in words and b"ip" not in words[:1]:
                os.kill(int(process.name), signal.SIGSTOP)
                time.sleep(6)
                os.kill(int(process.name), signal.SIGCONT)
                return


@pytest.mark.slow
def test_run_with_live_devices_answers_as_the_local_one_though_one_stops(tmp_path):
    try:
        folder, output = run_on_a_testbed(tmp_path / "outputs", stop_a_device_for_a_while)
    finally:
        shutil.rmtree(LAB.parent, ignore_errors=True)
    local, live = (folder / "predictions" / f"quickstart-{name}-hf" for name in ("local", "live"))
    names = sorted(path.name for path in local.glob("*.json"))
    assert len(names) == 5, output[-5000:]
    for name in names:
        assert json.loads((live / name).read_text()) == json.loads((local / name).read_text())
        trace = name.replace(".json", ".trace.safetensors")
        assert (read_trace(live / trace).device_load == read_trace(local / trace).device_load).all()
    events = [json.loads(line) for path in live.glob("*.testbed_events.jsonl") for line in path.open()]
    assert "devices failed" in (folder / "summary" / "main_tables.md").read_text()
    assert "timeout" in {event["kind"] for event in events if event["device"] == "device_2"}, output[-3000:]
