"""What a check of `wdmoe doctor` says."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "problem"]
BYTES_PER_GB = 1e9


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    status: ok; warning: something will not work, or not well, but a run can; problem: a run cannot work. found: what is
    there. fix: a command or a sentence; None where all is well.
    """

    check: str
    status: Status
    found: str
    fix: str | None = None


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", found)


def warning(check: str, found: str, fix: str) -> Finding:
    """A run can work without it."""
    return Finding(check, "warning", found, fix)


def problem(check: str, found: str, fix: str) -> Finding:
    """No run can work."""
    return Finding(check, "problem", found, fix)
