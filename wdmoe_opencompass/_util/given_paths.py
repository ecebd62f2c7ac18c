"""Checks of the folders and files that a command is given, before anything is read; each error is one sentence."""

import errno
import os
import tempfile
from pathlib import Path

from ..errors import WdmoeError

RUN_PARTS = ("predictions", "summary", "configs", "progress")  # a run's folder has at least one of them
MAX_ENTRIES = 1000  # of a folder, that are looked at for runs: enough for any work folder
MAX_SHOWN_PATH = 200
GIVE_A_RUN = "give a run's time-stamped folder, as outputs/quickstart/20260131_120000"


def check_run_folder(folder: Path) -> None:
    """Raise WdmoeError unless this is the folder of a run, finished or not, or of a simulation."""
    why = _why_no_folder(folder)
    if why is not None:
        raise WdmoeError(f"{_show(folder)}: {why}; {_run_around(folder) or GIVE_A_RUN}")
    names = _entries(folder)
    if any(part in names and (folder / part).is_dir() for part in RUN_PARTS):
        return
    if not names:
        raise WdmoeError(f"{_show(folder)}: an empty folder, not a run's; {GIVE_A_RUN}")
    runs = [name for name in sorted(names)[:MAX_ENTRIES] if _is_run(folder / name)]
    if runs:
        more = f" ({len(runs)} runs in it)" if len(runs) > 1 else ""
        raise WdmoeError(f"{_show(folder)}: not a run's folder but the one above it{more}; give {folder / runs[-1]}")
    listed = ", ".join(f"{part}/" for part in RUN_PARTS)
    raise WdmoeError(
        f"{_show(folder)}: not a run's folder, it has none of {listed}; {_run_around(folder) or GIVE_A_RUN}"
    )


def check_folder(folder: Path, kind: type[WdmoeError] = WdmoeError) -> None:
    """Raise an error unless this is a folder that can be read."""
    why = _why_no_folder(folder)
    if why is not None:
        raise kind(f"{_show(folder)}: {why}")


def check_file(path: Path, what: str, kind: type[WdmoeError] = WdmoeError) -> None:
    """Raise an error unless this is a file that can be read; what: is expected, as 'config file'."""
    why = _why_missing(path)
    if why is None and path.is_dir():
        why = f"a folder; give a {what}"
    elif why is None and not path.is_file():
        why = f"not a regular file; give a {what}"
    elif why is None and not os.access(path, os.R_OK):
        why = "cannot be read: Permission denied"
    elif why == _MISSING:
        why = f"no such {what}"
    if why is not None:
        raise kind(f"{_show(path)}: {why}")


def check_out_file(path: Path, kind: type[WdmoeError] = WdmoeError) -> None:
    """Raise an error unless a file of this name can be written, in a folder that exists."""
    why = _why_no_path(path)
    if why is None and path.is_dir():
        why = "a folder; give the name of a file"
    elif why is None:
        folder = path.absolute().parent
        why = _why_no_folder(folder) if not folder.is_dir() else why_not_writable(folder)
        why = why and f"{_show(folder)}: {why}"
    if why is not None:
        raise kind(f"{_show(path)}: cannot be written: {why}")


def check_out_folder(folder: Path, kind: type[WdmoeError] = WdmoeError) -> None:
    """Raise an error unless files can be written into this folder, or it can be made."""
    why = _why_no_path(folder)
    if why is None:
        nearest = folder.absolute()
        while not os.path.lexists(nearest):
            nearest = nearest.parent
        why = _why_no_folder(nearest) or why_not_writable(nearest)
        why = why and (why if nearest == folder.absolute() else f"{_show(nearest)}: {why}")
    if why is not None:
        raise kind(f"{_show(folder)}: cannot be written: {why}")


_MISSING = "does not exist"


def _why_no_path(path: Path) -> str | None:
    """Why this cannot be a path at all."""
    if "\0" in str(path):
        return "no path: it holds a zero byte"
    try:
        os.lstat(path)
    except OSError as error:
        return error.strerror if error.errno in (errno.ENAMETOOLONG, errno.ELOOP) else None
    return None


def _why_missing(path: Path) -> str | None:
    why = _why_no_path(path)
    if why is not None:
        return why
    try:
        os.stat(path)
    except FileNotFoundError:
        return f"a link to {os.readlink(path)}, which does not exist" if path.is_symlink() else _MISSING
    except NotADirectoryError:
        return f"does not exist: {_show(_nearest(path))} is a file"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None


def _why_no_folder(folder: Path) -> str | None:
    why = _why_missing(folder)
    if why is None and not folder.is_dir():
        return "a file, not a folder"
    if why is None and not os.access(folder, os.R_OK | os.X_OK):
        return "cannot be read: Permission denied"
    return why


def why_not_writable(folder: Path) -> str | None:
    """Why no file can be made in a folder that exists: tried, as permissions do not tell all (root, /proc)."""
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".wdmoe-"):
            return None
    except OSError as error:
        return error.strerror or str(error)


def _nearest(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if os.path.lexists(parent))


def _entries(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        raise WdmoeError(f"{_show(folder)}: cannot be read: {error.strerror}") from None


def _is_run(folder: Path) -> bool:
    try:
        return any((folder / part).is_dir() for part in RUN_PARTS)
    except OSError:
        return False


def _run_around(path: Path) -> str | None:
    """The hint where a part of a run was given: its summary folder, say, or its page."""
    above = [] if _why_no_path(path) else list(path.absolute().parents)[:3]
    run = next((folder for folder in above if _is_run(folder)), None)
    return None if run is None else f"give the run's folder, {run}"


def _show(path: Path) -> str:
    """A path as a sentence shows it, cut where it is long; as Python writes it where it cannot be shown as it is."""
    text = str(path)
    text = text if len(text) <= MAX_SHOWN_PATH else f"{text[:MAX_SHOWN_PATH]}... ({len(text)} characters)"
    return text if text.isprintable() else repr(text)
