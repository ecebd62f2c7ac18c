"""The exceptions a user can meet.

WdmoeError
 +-- ProfileError     a channel profile or placement that breaks a rule
 +-- PolicyError      an unknown selection policy, or a parameter it does not take
 +-- AllocationError  loads or bandwidth that no allocation can serve, or a solver that did not converge
 +-- TraceError       a routing trace that is torn, of another version, or does not belong here
 +-- ModelError       a model or model argument that the plugin cannot work with
 +-- TestbedError     a lab file, key or device of the testbed that breaks a rule
"""

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice

MAX_SHOWN_LENGTH = 80
MAX_NAMED = 20
MAX_BRIEF = 300
MAX_COMPARED = 1000  # near names among more would take seconds


class WdmoeError(Exception):
    """Something the user can mend; its text is one sentence that says how."""


class ProfileError(WdmoeError):
    """A channel profile or placement breaks a rule."""


class PolicyError(WdmoeError):
    """A selection policy is unknown or does not take a parameter."""


class AllocationError(WdmoeError):
    """Loads or bandwidth cannot be served, or a solver did not converge."""


class TraceError(WdmoeError):
    """A routing trace is torn, of another version, or does not belong here."""


class OtherVersionError(TraceError):
    """A file is whole, but of another format version than this package writes."""


class NotReadableNowError(TraceError):
    """A file may be sound, but this reading of it failed: memory, permissions, a disk or network."""


class ModelError(WdmoeError):
    """A model, or an argument of it, does not work with the plugin."""


class TestbedError(WdmoeError):
    """A lab file, key or device of the testbed breaks a rule."""


def pip_install(extra: str) -> str:
    """The command that installs what an extra of setup.cfg adds to the package."""
    return f"pip install 'wdmoe_opencompass[{extra}]'"


def show(value: object) -> str:
    """A value as a sentence shows it: as Python writes it, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= MAX_SHOWN_LENGTH else f"{text[: MAX_SHOWN_LENGTH - 20]}... ({len(text)} characters)"


def first_line(error: BaseException) -> str:
    """What an exception says, its first line; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def brief(error: BaseException) -> str:
    """An exception's type and the beginning of what it says, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:MAX_BRIEF]}" if text else type(error).__name__


def visible(text: str) -> str:
    """A text on one line: control characters, line ends and others without a shape as Python writes them."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """One sentence about an unknown name: the nearest known one and the list."""
    known = sorted(known)
    near = get_close_matches(name[:MAX_SHOWN_LENGTH], islice(known, MAX_COMPARED), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    more = f" and {len(known) - MAX_NAMED} more" if len(known) > MAX_NAMED + 10 else ""
    listed = known[:MAX_NAMED] if more else known
    return f"{kind} {show(name)} is unknown{hint} known: {', '.join(listed)}{more}"
