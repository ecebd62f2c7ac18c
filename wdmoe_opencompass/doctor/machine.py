"""torch, GPUs and memory: what a model could be loaded on."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from .finding import BYTES_PER_GB, Finding, ok, problem, warning

TORCH_PROBE = """
import json, torch
works = torch.cuda.is_available()
gpus = []
for index in range(torch.cuda.device_count() if works else 0):
    free, total = torch.cuda.mem_get_info(index)
    gpus.append(dict(name=torch.cuda.get_device_name(index), free_bytes=free, total_bytes=total))
print(json.dumps(dict(
    version=torch.__version__, cuda=torch.version.cuda or torch.version.hip, cuda_works=works, gpus=gpus,
    grouped_mm=hasattr(torch.nn.functional, "grouped_mm") or hasattr(torch, "_grouped_mm"))))
"""
PROBE_S = 120.0
MIXTRAL_PARAMETERS = 46_702_792_704  # Mixtral-8x7B's; bytes of its weights alone follow
MIXTRAL_BYTES = {"bfloat16": 2 * MIXTRAL_PARAMETERS, "int8": MIXTRAL_PARAMETERS}
LITTLE_MEMORY_BYTES = 2 * BYTES_PER_GB  # our choice: a task takes 0.6 GB before it loads any weights, two run at once


@dataclass(frozen=True)
class Gpu:
    """A GPU as torch sees it; free_bytes: not taken by anybody."""

    name: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class TorchFacts:
    """What a fresh process finds. cuda: the version torch was built for (or ROCm's), None for a CPU build."""

    version: str
    cuda: str | None
    cuda_works: bool
    grouped_mm: bool
    gpus: tuple[Gpu, ...]


def torch_facts() -> TorchFacts | str:
    """Ask torch in a fresh process, which a broken build may crash; -> the reason as a string where it cannot tell."""
    command = [sys.executable, "-P", "-c", TORCH_PROBE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_S)
        facts = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return f"it did not import within {PROBE_S:.0f} s"
    except (IndexError, ValueError):
        return (done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"])[-1]
    return TorchFacts(**facts | dict(gpus=tuple(Gpu(**gpu) for gpu in facts["gpus"])))


def nvidia_gpu_is_here() -> bool:
    """Whether the machine has an NVIDIA GPU with a driver, whatever torch thinks."""
    return Path("/proc/driver/nvidia/version").exists() or any(Path("/dev").glob("nvidia[0-9]*"))


def check_torch(facts: TorchFacts | str, nvidia_gpu: bool) -> list[Finding]:
    """The build of torch against the machine, and the grouped products that experts are computed by."""
    if isinstance(facts, str):
        fix = "install it again: pip install --force-reinstall 'torch>=2.10' (pytorch.org lists the builds per CUDA)"
        return [problem("torch", f"torch cannot be imported: {facts}", fix)]
    findings = [_build(facts, nvidia_gpu)]
    if not facts.grouped_mm:
        found = f"torch {facts.version} has no grouped products (grouped_mm): experts would be computed by a slow loop"
        findings.append(warning("grouped_mm", found, "pip install 'torch>=2.10'"))
    return findings


def _build(facts: TorchFacts, nvidia_gpu: bool) -> Finding:
    if nvidia_gpu and facts.cuda is None:
        found = f"torch {facts.version} is a CPU build, and this machine has an NVIDIA GPU"
        return problem("torch", found, "install a CUDA build: pip install torch --index-url (see pytorch.org)")
    if nvidia_gpu and not facts.cuda_works:
        found = f"torch {facts.version} is built for CUDA {facts.cuda}, but cannot use this machine's GPU"
        return problem("torch", found, "take a torch build not newer than the CUDA version that nvidia-smi shows")
    build = "CPU build" if facts.cuda is None else f"built for CUDA {facts.cuda}"
    return ok("torch", f"torch {facts.version}, {build}")


def check_gpus(facts: TorchFacts | str) -> list[Finding]:
    """The GPUs and whether Mixtral-8x7B's weights fit on all of them together, in bfloat16 and in int8."""
    gpus = () if isinstance(facts, str) else facts.gpus
    if not gpus:
        fix = "the quickstart runs on a CPU; docs/running.md says which GPUs the large models need"
        return [warning("gpus", "no GPU that torch can use", fix)]
    free = sum(gpu.free_bytes for gpu in gpus)
    named = ", ".join(f"{gpu.name} ({_gb(gpu.free_bytes)} of {_gb(gpu.total_bytes)} free)" for gpu in gpus)
    fits = [
        f"{dtype} ({_gb(size)}) {'fits' if size < free else 'does not fit'}" for dtype, size in MIXTRAL_BYTES.items()
    ]
    found = f"{named}; Mixtral-8x7B's weights alone: {', '.join(fits)}"
    if free > MIXTRAL_BYTES["int8"]:
        return [ok("gpus", found)]
    fix = "free the GPUs (nvidia-smi shows what holds them), or take a smaller model: eval_wdmoe_olmoe_1b_7b.py"
    return [warning("gpus", found, fix)]


def available_memory_bytes() -> int:
    """Bytes of memory that can be taken: what the kernel calls available, or less where a container limits it."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return available
    return available if limit == "max" else min(available, int(limit) - used)


def check_memory(available: int) -> list[Finding]:
    """Host memory: a task needs some before its model has any."""
    if available < LITTLE_MEMORY_BYTES:
        fix = "end other programs, or give the container more memory; two tasks run at once"
        return [warning("memory", f"{_gb(available)} of memory available", fix)]
    return [ok("memory", f"{_gb(available)} of memory available")]


def _gb(size: float) -> str:
    return f"{size / BYTES_PER_GB:.3g} GB"
