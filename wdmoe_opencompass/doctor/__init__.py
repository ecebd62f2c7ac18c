"""`wdmoe doctor`: can this machine, environment and config run, and if not, what to do.

One file per kind of check; each check is a function that returns findings. OpenCompass is
imported in fresh processes only (and for a config by `harness.plan`): where it is broken, the doctor still answers.
"""

from collections.abc import Callable
from pathlib import Path

from ..errors import WdmoeError
from . import config as its_config
from . import folders, host, machine, packages
from .finding import Finding, problem

__all__ = ["Finding", "examine"]

Advance = Callable[[float], None]


def examine(config: Path | None, work_dir: Path, advance: Advance = lambda share: None) -> list[Finding]:
    """Check everything, with a config also what it needs; -> findings in order of dependence.

    work_dir: where the run will write. advance: called with each check's share of the work. Raises WdmoeError if
    the config cannot be read.
    """
    findings = [*packages.check_python(), *packages.check_requirements(), *packages.check_optional()]
    torch = machine.torch_facts()
    advance(0.1)
    findings += machine.check_torch(torch, machine.nvidia_gpu_is_here())
    findings += machine.check_gpus(torch)
    findings += machine.check_memory(machine.available_memory_bytes())
    findings += [*host.check_command(), *host.check_import()]
    advance(0.5)
    findings += [*folders.check_work_dir(work_dir), *folders.check_current_folder(), *folders.check_temporary()]
    findings += folders.check_caches()
    settings = folders.huggingface_settings()
    findings += [] if settings is None else folders.check_huggingface(*settings)
    findings += folders.check_data() if config is None else _check_config(config)
    advance(0.4)
    return findings


def _check_config(config: Path) -> list[Finding]:
    if not config.is_file():
        raise WdmoeError(f"{config}: no such config file")
    try:
        return its_config.check_config(config)
    except ImportError as error:  # then the checks above have said why
        found = f"{config}: cannot be checked while OpenCompass cannot be imported: {error}"
        return [problem("config", found, "fix the import first, then try again")]
