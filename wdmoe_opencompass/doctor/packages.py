"""Python and the installed packages against the ranges that this package asks for, without importing any of them."""

import importlib.metadata
import platform

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from ..errors import pip_install
from .finding import Finding, ok, problem, warning

PACKAGE = "wdmoe_opencompass"
OPTIONAL = {"quantised": "quantised weights", "adapters": "adapters (peft_path)"}  # extra -> what alone needs it
WHY = {
    "numpy": "OpenCompass 0.5.4 itself needs NumPy below 2",
    "pyarrow": "pyarrow 22 and later need NumPy 2, which OpenCompass 0.5.4 forbids: it could not even print its help",
    "transformers": "routers and experts are patched as transformers 5 has them",
    "torch": "experts are computed by grouped products, which torch has since 2.10",
}


def check_python(version: str | None = None) -> list[Finding]:
    """Python's version against the package's `Requires-Python`; nothing where the package is not installed."""
    version = version or platform.python_version()
    try:
        allowed = importlib.metadata.metadata(PACKAGE)["Requires-Python"]
    except importlib.metadata.PackageNotFoundError:
        return []
    if SpecifierSet(allowed).contains(version, prereleases=True):
        return [ok("python", f"Python {version}")]
    fix = "make a virtual environment with Python 3.11 or 3.12 and install there: make demo PYTHON=python3.11"
    return [problem("python", f"Python {version} is outside {allowed}", fix)]


def check_requirements() -> list[Finding]:
    """Every package that an evaluation needs: there, and of a version within its range."""
    required = _requirements(extra="")
    if required is None:
        fix = "install it where OpenCompass is: pip install -c constraints.txt -e '.[opencompass]'"
        return [problem("packages", f"{PACKAGE} is not installed here: OpenCompass's tasks could not import it", fix)]
    if installed_version("opencompass") is None:
        return [problem("packages", "OpenCompass is not installed here", pip_install("opencompass"))]
    required += _requirements(extra="opencompass") or []
    unfit = [finding for requirement in required if (finding := _unfit(requirement)) is not None]
    return unfit or [ok("packages", f"all {len(required)} required packages are within their ranges")]


def check_optional() -> list[Finding]:
    """The packages of the extras in OPTIONAL: a warning for each that is missing or of another version."""
    findings = []
    for requirement, what in [
        (requirement, what) for extra, what in OPTIONAL.items() for requirement in _requirements(extra=extra) or []
    ]:
        installed = installed_version(requirement.name)
        if installed is None:
            found = f"{requirement.name} is not installed; only configs with {what} need it"
        elif not _fits(requirement, installed):
            found = (
                f"{requirement.name} {installed} is outside {requirement.specifier}; only configs with {what} need it"
            )
        else:
            findings.append(ok(requirement.name, f"{requirement.name} {installed}"))
            continue
        findings.append(warning(requirement.name, found, _install(requirement)))
    return findings


def installed_version(name: str) -> str | None:
    """Version of an installed distribution; None where there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _requirements(extra: str) -> list[Requirement] | None:
    """The package's own requirements for this Python: those of one extra alone, or with "" those always needed."""
    try:
        everything = [Requirement(line) for line in importlib.metadata.requires(PACKAGE) or []]
    except importlib.metadata.PackageNotFoundError:
        return None
    always = [requirement for requirement in everything if _applies(requirement, "")]
    if not extra:
        return always
    return [requirement for requirement in everything if requirement not in always and _applies(requirement, extra)]


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(dict(extra=extra))


def _unfit(required: Requirement) -> Finding | None:
    installed = installed_version(required.name)
    why = f": {WHY[required.name]}" if required.name in WHY else ""
    if installed is None:
        return problem("packages", f"{required.name} is not installed", _install(required))
    if not _fits(required, installed):
        found = f"{required.name} {installed} is outside {required.specifier}{why}"
        return problem("packages", found, _install(required))
    return None


def _fits(required: Requirement, installed: str) -> bool:
    try:
        return required.specifier.contains(Version(installed), prereleases=True)
    except InvalidVersion:
        return False


def _install(required: Requirement) -> str:
    return f"pip install '{required.name}{required.specifier}'"
