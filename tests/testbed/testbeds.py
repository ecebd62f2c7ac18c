"""Device processes on loopback and a lab file for them."""

import re
import subprocess
import sys
import threading
from contextlib import contextmanager

from tests.waiting import PATIENCE_S
from wdmoe_opencompass.testbed.device import DeviceServer
from wdmoe_opencompass.testbed.experts import load_experts
from wdmoe_opencompass.testbed.lab_file import Testbed

GROUPS = ((0, 1), (2,), (3, 4), (5, 1))  # the base station keeps 6 and 7; two devices hold expert 1
NAMES = ("a", "b", "c", "d")


class DeviceProcess:
    """`wdmoe testbed device` in a process of its own; `start` again after a kill listens at the same port."""

    def __init__(self, model, experts, *options, port=0, dtype="float32"):
        self.arguments = ["--model", str(model), "--experts", ",".join(map(str, experts)), "--dtype", dtype]
        self.arguments += ["--threads", "1", *options]
        self.port, self.lines = port, []
        self.start()

    def start(self):
        command = [sys.executable, "-m", "wdmoe_opencompass.cli.testbed", "device", *self.arguments]
        command += ["--listen", f"127.0.0.1:{self.port}"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self._reader.start()

    def _read(self, process):
        for line in process.stdout:
            self.lines.append(line)
            if found := re.match(r"listening on .*:(\d+)", line):
                self.port = int(found[1])
                self._listening.set()

    def ready(self):
        assert self._listening.wait(PATIENCE_S), "".join(self.lines)
        return self

    @property
    def text(self):
        return "".join(self.lines)

    def stop(self):
        self.process.kill()
        self.process.wait()
        self._reader.join(5)
        self.process.stdout.close()


@contextmanager
def servers(model, groups=GROUPS, dtype="float32", **settings):
    """The same devices in this process: quick to start, they cannot be killed."""
    running = [DeviceServer(load_experts(model, experts, dtype), "127.0.0.1:0", **settings) for experts in groups]
    for server in running:
        server.start()
    try:
        yield running
    finally:
        for server in running:
            server.stop(0)


@contextmanager
def device_processes(model, groups=GROUPS, *options, dtype="float32"):
    devices = [DeviceProcess(model, experts, *options, dtype=dtype) for experts in groups]
    try:
        yield [device.ready() for device in devices]
    finally:
        for device in devices:
            device.stop()


def make_testbed(devices, groups=GROUPS, **settings):
    entries = [
        dict(name=name, address=f"127.0.0.1:{device.port}", experts=list(experts))
        for name, device, experts in zip(NAMES, devices, groups)
    ]
    return Testbed(devices=entries, **(dict(connect_s=20.0) | settings))
