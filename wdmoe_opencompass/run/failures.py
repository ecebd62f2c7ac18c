"""Why a dataset failed, left next to its predictions or results in one line: `DATASET.failed.txt`."""

import errno
from pathlib import Path

from .._util.atomic_write import write_whole
from .._util.file_names import beside
from .._util.utf8_text import replaced
from ..errors import WdmoeError
from .files import FAILURE_SUFFIX

MAX_REASON = 1000  # characters: an exception may hold all of a model's answers


def sentence(error: BaseException) -> str:
    """An exception of a run in one line, with what to do where a disk or a file is the cause."""
    if isinstance(error, OSError) and error.strerror:
        reason = f"{error.filename + ': ' if isinstance(error.filename, str) else ''}{error.strerror}"
        if error.errno == errno.ENAMETOOLONG:
            return one_line(f"{reason}: this file system takes shorter names than most: shorten the abbr")
        return one_line(f"{reason}; what was finished is kept: mend that, then start again with -r")
    return own_words(error)


def own_words(error: BaseException) -> str:
    """An exception in one line: its type and text, of a WdmoeError the text alone."""
    try:
        text = str(error)
    except Exception:  # a class of others, whose own text fails
        text = "it has no text"
    if isinstance(error, WdmoeError):
        return one_line(text)
    return one_line(f"{type(error).__name__}: {text}" if text.strip() else type(error).__name__)


def one_line(text: str) -> str:
    """A text in one line that any file can hold, cut where it is long."""
    line = " ".join(replaced(text).split())
    return line if len(line) <= MAX_REASON else f"{line[:MAX_REASON]}... ({len(line)} characters)"


def note_failure(output: Path, reason: str) -> None:
    """Leave the reason why there is no such predictions or results file; OSError where it cannot be written."""
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(beside(output, FAILURE_SUFFIX), one_line(reason) + "\n")


def noted_failure(output: Path) -> str | None:
    """-> the reason that was left; None where there is none."""
    try:
        return one_line(beside(output, FAILURE_SUFFIX).read_text(errors="replace")) or None
    except OSError:
        return None
