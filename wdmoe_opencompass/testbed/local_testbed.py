"""A testbed on one Linux machine: devices as processes, in rate-limited network namespaces where root allows."""

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import TestbedError
from .keys import make_keys
from .lab_file import Testbed, TestbedDevice, write_testbed
from .link import CallError, Link

PREFIX = "wdmoe"
PORT = 50051
START_S = 180.0  # importing torch on several cold devices at once, on few cores
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
QUEUE_BYTES = 64 << 20  # so large that no packet is dropped: only the rate limits
BURST_S = 0.0001


@dataclass(frozen=True)
class LocalDevice:
    """One device of a local testbed; rate in Mbit/s of each direction, None for no limit."""

    name: str
    experts: tuple[int, ...]
    rate: float | None = None


@dataclass
class _Network:
    """The namespaces of one testbed."""

    names: list[str] = field(default_factory=list)
    net: str = ""

    def add(self, device: LocalDevice) -> None:
        """Add a namespace with a cable to this one, both ends limited to the device's rate."""
        number = len(self.names)
        name = f"{PREFIX}-{os.getpid()}-{number}"
        here, there = f"{PREFIX}{os.getpid()}h{number}"[-15:], f"{PREFIX}{os.getpid()}d{number}"[-15:]
        _ip("netns", "add", name)
        self.names.append(name)
        _ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
        _ip("addr", "add", f"{self.net}.{number}.1/30", "dev", here)
        _ip("link", "set", here, "up")
        _ip("-n", name, "addr", "add", f"{self.net}.{number}.2/30", "dev", there)
        _ip("-n", name, "link", "set", there, "up")
        _ip("-n", name, "link", "set", "lo", "up")
        if device.rate is not None:
            burst = max(1600, int(device.rate * 1e6 / 8 * BURST_S))
            limit = ("root", "tbf", "rate", f"{round(device.rate * 1e6)}bit", "burst", str(burst), "limit")
            _run("tc", "qdisc", "add", "dev", here, *limit, str(QUEUE_BYTES))
            _run("tc", "-n", name, "qdisc", "add", "dev", there, *limit, str(QUEUE_BYTES))

    def remove(self) -> None:
        """Remove the namespaces, and with them their cables."""
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def namespaces_problem() -> str | None:
    """Why network namespaces cannot be used here; None if they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"network namespaces need the command {tool} (package iproute2)"
    name = f"{PREFIX}-{os.getpid()}-try"
    try:
        _ip("netns", "add", name)
        try:
            _ip("-n", name, "link", "set", "lo", "up")
            _run(*f"tc -n {name} qdisc add dev lo root tbf rate 1mbit burst 4096 limit 9999".split())
        finally:
            _ip("netns", "del", name)
    except TestbedError as error:
        return str(error)
    return None


def spread(devices: int, rates: list[float | None], experts: str | None = None) -> list[LocalDevice]:
    """-> devices `device_0`, ...; each holds the expert with its number, or those that `experts` lists (`0,1;2;3`).

    rates: one for all, one each, or none.
    """
    held = [str(number) for number in range(devices)] if experts is None else experts.split(";")
    if len(held) != devices:
        raise TestbedError(f"--experts names {len(held)} devices, --devices says {devices}")
    if len(rates) not in (0, 1, devices):
        raise TestbedError(f"--rate must give one number for all devices, or {devices}; got {len(rates)}")
    every_rate = rates * devices if len(rates) == 1 else rates or [None] * devices
    try:
        numbers = [tuple(int(number) for number in part.split(",")) for part in held]
    except ValueError:
        raise TestbedError(f"--experts must be like 0,1;2;3, got {experts!r}") from None
    return [
        LocalDevice(f"device_{number}", its, rate)
        for number, (its, rate) in enumerate(zip(numbers, every_rate, strict=True))
    ]


@contextmanager
def local_testbed(
    model: str,
    devices: list[LocalDevice],
    lab_file: Path,
    namespaces: bool,
    dtype: str = "auto",
    threads: int = 1,
    say: Callable[[str], None] = print,
    **settings: Any,
) -> Iterator[Testbed]:
    """Start the devices, write the lab file, and wait until all answer; everything ends with the block.

    namespaces: a network namespace per device, its rate limited by `tc tbf`; otherwise loopback, and the devices limit
    their rates. settings: of the lab file.
    """
    if lab_file.exists():
        raise TestbedError(f"{lab_file}: exists already; remove it, or name another file with --lab")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{PREFIX}-keys-")))
        keys = folder / "keys"
        make_keys(keys, [device.name for device in devices], days=30.0)
        network = _Network()
        stack.callback(network.remove)
        if namespaces:
            _remove_leftovers()
            network.net = _free_net()
            for device in devices:
                network.add(device)
        processes: list[_Process] = []
        stack.callback(lambda: _end(processes))
        for number, device in enumerate(devices):
            words = [sys.executable, "-m", "wdmoe_opencompass.cli.testbed", "device", "--model", model]
            words += ["--experts", ",".join(map(str, device.experts)), "--dtype", dtype, "--threads", str(threads)]
            words += ["--keys", str(keys), "--name", device.name]
            if "message_bytes" in settings:
                words += ["--message-bytes", str(settings["message_bytes"])]
            if namespaces:
                words = ["ip", "netns", "exec", network.names[number], *words]
                words += ["--listen", f"{network.net}.{number}.2:{PORT}"]
            else:
                words += ["--listen", "127.0.0.1:0"]
                words += [] if device.rate is None else ["--rate", str(device.rate)]
            processes.append(_Process(device.name, words, say))
        hosts = [f"{network.net}.{number}.2" if namespaces else "127.0.0.1" for number in range(len(devices))]
        testbed = Testbed(
            devices=tuple(
                TestbedDevice(name=device.name, address=f"{host}:{process.port(START_S)}", experts=device.experts)
                for device, host, process in zip(devices, hosts, processes, strict=True)
            ),
            keys=str(keys),
            **settings,
        )
        _wait_until_healthy(testbed)
        write_testbed(lab_file, testbed)
        stack.callback(lambda: lab_file.unlink(missing_ok=True))
        how = "in network namespaces, rates by tc tbf" if namespaces else "on loopback, rates limited in the devices"
        say(f"{len(devices)} devices {how}; lab file: {lab_file}")
        yield testbed


class _Process:
    """A device process; its output goes to `say` under its name."""

    def __init__(self, name: str, words: list[str], say: Callable[[str], None]):
        self.name = name
        self._port: int | None = None
        self._ready = threading.Event()
        self._said: list[str] = []
        self.process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=_die_with_parent
        )
        threading.Thread(target=self._read, args=(say,), daemon=True).start()

    def _read(self, say: Callable[[str], None]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._said = [*self._said[-20:], line]
            if found := re.match(r"listening on .*:(\d+)", line):
                self._port = int(found[1])
                self._ready.set()
            if line.startswith(("listening", "experts", "error")) or " WARNING " in line:
                say(f"{self.name}: {line.rstrip()}")
        self._ready.set()

    def port(self, timeout_s: float) -> int:
        """Wait until the device listens."""
        self._ready.wait(timeout_s)
        if self._port is None:
            raise TestbedError(f"{self.name} did not start: {' '.join(''.join(self._said).split())[-500:]}")
        return self._port


def _end(processes: list[_Process]) -> None:
    for device in processes:
        device.process.send_signal(signal.SIGCONT)
        device.process.terminate()
    end = time.monotonic() + 5
    for device in processes:
        try:
            device.process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            device.process.kill()
            device.process.wait()


def _wait_until_healthy(testbed: Testbed) -> None:
    for number, device in enumerate(testbed.devices):
        link = Link(number, device, testbed, lambda link, holding: None, lambda link, kind, reason: None)
        try:
            link.connect(testbed.connect_s)
        except CallError as failed:
            raise TestbedError(f"{device.name} does not answer at {device.address}: {failed}") from None
        finally:
            link.close()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)


def _free_net() -> str:
    """-> the first two numbers of a private network that this machine does not use."""
    used = {ip["local"].rsplit(".", 2)[0] for link in _addresses() for ip in link["addr_info"] if "." in ip["local"]}
    for second in range(200, 250):
        if f"10.{second}" not in used:
            return f"10.{second}"
    raise TestbedError("no free network 10.200 to 10.249 is left for the namespaces")


def _addresses() -> list[dict[str, Any]]:
    return json.loads(_ip("-j", "addr"))


def _remove_leftovers() -> None:
    """Remove namespaces left by a testbed that was killed."""
    for line in _ip("netns", "list").splitlines():
        found = re.match(rf"({PREFIX}-(\d+)-\d+)\b", line)
        if found and not Path(f"/proc/{found[2]}").exists():
            _ip("netns", "del", found[1])


def _ip(*words: str) -> str:
    return _run("ip", *words)


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise TestbedError(f"`{' '.join(words)}` failed: {' '.join(done.stderr.split()) or done.returncode}")
    return done.stdout
