"""Wall-clock time of a batch's forward passes by phase. It waits for the accelerator twice a batch, never per pass."""

import platform
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import torch

from ..trace.format import PHASES

CPU_INFO = Path("/proc/cpuinfo")


class PhaseClock:
    """Measures how long prefill and decode of a batch take: `begin_pass` and `end_pass` per pass, then `stop`.

    Prefill is the forward pass over the prompts, until its result is ready. Decode lasts from the start of the first
    decode pass until `stop`, and includes the choice of tokens and the stopping criteria between the passes.
    Selection, recording and a testbed's network are included.

    seconds: by phase, since `reset`; devices: torch devices that route, which are waited for
    """

    def __init__(self) -> None:
        self.devices: set[torch.device] = set()
        self.reset()

    def reset(self) -> None:
        """Discard an unfinished batch."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._open: tuple[str, float] | None = None  # phase, when it began

    def begin_pass(self, phase: str) -> None:
        """Begin a forward pass; successive decode passes are measured together."""
        if self._open is None or self._open[0] != phase:
            self.stop()
            self._open = phase, time.perf_counter()

    def end_pass(self) -> None:
        """End a forward pass, which the accelerator may still be computing."""
        if self._open is not None and self._open[0] == "prefill":
            self.stop()

    def stop(self) -> None:
        """End the running phase, if there is one, and wait for all of its work."""
        if self._open is not None:
            phase, began = self._open
            for device in self.devices:
                if device.type != "cpu":
                    torch.accelerator.synchronize(device)
            self.seconds[phase] += time.perf_counter() - began
            self._open = None


def device_names(devices: Collection[torch.device]) -> str:
    """Name what a model runs on: `2 x NVIDIA H200`; for a processor with the number of torch's threads."""
    names = Counter(map(_device_name, devices))
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in sorted(names.items()))


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'s' if threads != 1 else ''}"


def _processor() -> str:
    try:
        lines = CPU_INFO.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine() or "CPU"
