"""`wdmoe doctor`: is this machine, this environment and this config fit for a run, and if not, what to do.

One file per kind of thing that is looked at; each check is a function that answers with findings. OpenCompass is
imported in fresh processes only (and for a config by `harness.plan`): where it is broken, the doctor still answers.
"""

from collections.abc import Callable
from pathlib import Path

from ..errors import WdmoeError
from . import config as its_config
from . import host, machine, packages, places
from .finding import Finding, problem

__all__ = ["Finding", "examine"]

Advance = Callable[[float], None]


def examine(config: Path | None, work_dir: Path, advance: Advance = lambda share: None) -> list[Finding]:
    """Look at everything, or with a config also at what it needs; -> findings in the order of what depends on what.

    work_dir: where the run will write. advance: told each check's share of the work. WdmoeError where the config
    cannot be read.
    """
    findings = [*packages.check_python(), *packages.check_requirements(), *packages.check_optional()]
    torch = machine.torch_facts()
    advance(0.1)
    findings += machine.check_torch(torch, machine.nvidia_gpu_is_here())
    findings += machine.check_gpus(torch)
    findings += machine.check_memory(machine.available_memory_bytes())
    findings += [*host.check_command(), *host.check_import()]
    advance(0.5)
    findings += [*places.check_work_dir(work_dir), *places.check_current_folder(), *places.check_temporary()]
    findings += places.check_caches()
    settings = places.huggingface_settings()
    findings += [] if settings is None else places.check_huggingface(*settings)
    findings += places.check_data() if config is None else _look_at_config(config)
    advance(0.4)
    return findings


def _look_at_config(config: Path) -> list[Finding]:
    if not config.is_file():
        raise WdmoeError(f"{config}: no such config file")
    try:
        return its_config.check_config(config)
    except ImportError as error:  # then the checks above have said why
        found = f"{config}: cannot be looked at while OpenCompass cannot be imported: {error}"
        return [problem("config", found, "mend the import first, then ask again")]
