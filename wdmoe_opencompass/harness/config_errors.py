"""What an exception in a config means: the file, the line and the cause, in one sentence.

A config is a Python program that mmengine runs piece by piece: with `read_base` its imports are names that are built
later, and other files are read as programs too. The traceback knows where it went wrong; what mmengine says does not.
"""

import ast
import linecache
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import mmengine.config.config
import mmengine.config.lazy
from mmengine.config import Config
from mmengine.config.lazy import LazyAttr, LazyObject

from ..errors import WdmoeError

MAX_CAUSE = 300
MAX_SOURCE = 80
READERS = ("fromfile", "_is_lazy_import", "_file2dict", "_parse_lazy_import")  # of mmengine: each reads `filename`
LAZY = (
    "with read_base an import is a name, built only when the run needs it: a config may pass it on, not call or "
    "compute with it"
)
Location = tuple[str, int | None]


def read_config(path: Path, read: Callable[[], Config]) -> Config:
    """-> the config that `read` reads of this path; WdmoeError with file, line and cause of whatever it raises."""
    try:
        return read()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a config is a Python program: it may raise anything, SystemExit too
        where = config_sentence(error).replace(str(path.absolute()), str(path))
        where = where if where.startswith(str(path)) else f"{path}: {where.removeprefix(': ')}"
        raise WdmoeError(f"{where} (cannot be read as an OpenCompass config)") from None


def read_dumped(path: Path, cfg: Config, folder: str) -> Config:
    """-> a config as the tasks of a run will read it: from what OpenCompass writes for them; WdmoeError where not."""
    dumped = Path(folder) / "config.py"
    try:
        cfg.dump(dumped)
        return Config.fromfile(dumped, format_python_code=False)
    except Exception as error:
        text = cause(error).replace(f"{folder}{os.sep}", "")
        syntax = _syntax_error(error)
        line = (
            dumped.read_text().splitlines()[syntax.lineno - 1].strip()[:MAX_SOURCE] if syntax and syntax.lineno else ""
        )
        where = f", in: {line}" if line.isprintable() and line else ""
        raise WdmoeError(
            f"{path}: what OpenCompass writes of it for its tasks cannot be read again: {text}{where}; a config may "
            "hold plain values and names of classes alone"
        ) from None


@contextmanager
def temporary_folder() -> Iterator[str]:
    """A folder that is removed at the end; WdmoeError where this machine has no room for one."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="wdmoe_plan_")
    except OSError as error:
        raise WdmoeError(
            f"no folder for temporary files can be written: {error.strerror}; set TMPDIR to one that can"
        ) from None
    with folder as name:
        yield name


def check_encodable(path: Path, cfg: Config) -> None:
    """WdmoeError where a text of a config is none that UTF-8 can hold: OpenCompass could not write it down."""
    for where, text in _texts(cfg.to_dict()):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            lone = ascii(text[error.start : error.end])
            raise WdmoeError(f"{path}: {where} holds {lone}, a lone surrogate, which no file can hold") from None


def _texts(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a config, its keys too, and where it is."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _texts(key, f"a key of {where or 'it'}")
            yield from _texts(part, f"{where}.{ascii(key)[1:-1] if isinstance(key, str) else key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _texts(part, f"{where}[{number}]")


def config_sentence(error: BaseException) -> str:
    """-> `FILE, line N: CAUSE` of an exception that reading a config with mmengine raised.

    The file is the one at fault, which may be imported by the config that was given.
    """
    frames = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    file, line = _locate(error, frames)
    return f"{file}{'' if line is None else f', line {line}'}: {_cause(error, frames, file, line)}"


def cause(error: BaseException) -> str:
    """An exception as one line: its type and what it says."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # an exception's own __str__ is a program too
        text = ""
    text = text.encode(errors="backslashreplace").decode()
    if len(text) > MAX_CAUSE:
        text = f"{text[:MAX_CAUSE]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _locate(error: BaseException, frames: list[tuple[FrameType, int]]) -> Location:
    read = list(_files_read(frames))
    file = read[-1] if read else ""
    syntax = _syntax_error(error)
    if syntax is not None and _not_executed(syntax, read):
        return file, syntax.lineno or _line_of(file, b"\0")
    if isinstance(error, UnicodeDecodeError) and (line := _line_not_utf8(file)) is not None:
        return file, line
    executed = [(frame.f_code.co_filename, line) for frame, line in frames if frame.f_code.co_filename in read]
    if executed and executed[-1][0] == file:
        return executed[-1]
    return file, _line_of_node(frames, file)


def _not_executed(syntax: SyntaxError, read: list[str]) -> bool:
    """Whether it is of a config's own text: a config may import, or evaluate, text that has errors as well."""
    return syntax.filename in (None, "<unknown>", "", *read)


def _files_read(frames: list[tuple[FrameType, int]], readers: tuple[str, ...] = READERS) -> Iterator[str]:
    """The configs that mmengine was reading, each imported by the one before it."""
    for frame in dict.fromkeys(frame for frame, _ in frames):  # one that raised again is there twice
        if frame.f_code.co_filename == mmengine.config.config.__file__ and frame.f_code.co_name in readers:
            yield str(frame.f_locals.get("filename"))


def _syntax_error(error: BaseException) -> SyntaxError | None:
    """The error with its line: mmengine raises another one without a line instead."""
    if isinstance(error, SyntaxError) and error.lineno is None and isinstance(error.__context__, SyntaxError):
        return error.__context__
    return error if isinstance(error, SyntaxError) else None


def _line_of_node(frames: list[tuple[FrameType, int]], file: str) -> int | None:
    """The line that mmengine was looking at: that of a syntax node, or the import of a base config."""
    for frame, _ in reversed(frames):
        node, base = frame.f_locals.get("node"), frame.f_locals.get("base_module")
        if isinstance(node, ast.AST) and hasattr(node, "lineno"):
            return int(node.lineno)
        if isinstance(base, str) and frame.f_locals.get("filename") == file:
            return _line_of_import(file, base)
        if frame.f_code.co_name in READERS:
            return None
    return None


def _line_of_import(file: str, module: str) -> int | None:
    for node in ast.walk(ast.parse(Path(file).read_bytes())):
        if isinstance(node, ast.ImportFrom) and "." * node.level + (node.module or "") == module:
            return node.lineno
    return None


def _line_of(file: str, part: bytes) -> int | None:
    try:
        before, found, _ = Path(file).read_bytes().partition(part)
    except OSError:
        return None
    return before.count(b"\n") + 1 if found else None


def _line_not_utf8(file: str) -> int | None:
    try:
        content = Path(file).read_bytes()
        content.decode()
    except UnicodeDecodeError as error:
        return content[: error.start].count(b"\n") + 1
    except OSError:
        pass
    return None


def _cause(error: BaseException, frames: list[tuple[FrameType, int]], file: str, line: int | None) -> str:
    last = frames[-1][0] if frames else None
    if last is not None and last.f_code.co_filename == mmengine.config.lazy.__file__:
        called = last.f_locals.get("self")
        if last.f_code.co_name == "__call__" and isinstance(called, LazyObject | LazyAttr):
            return f"{_name_of(called)} is called, but {LAZY}"
    syntax = _syntax_error(error)
    if syntax is not None:
        return f"{type(syntax).__name__}: {syntax.msg}{_source(file, line)}"
    if isinstance(error, UnicodeDecodeError) and _line_not_utf8(file) == line is not None:
        return "not UTF-8 text; save it as UTF-8"
    if isinstance(error, SystemExit):
        return f"it ends the program ({cause(error)}){_source(file, line)}"
    if isinstance(error, RecursionError) and (circle := _circle(list(_files_read(frames, READERS[2:])))):
        return f"configs import each other in a circle: {' -> '.join(circle)}"
    text = cause(error)
    hint = f"; {LAZY}" if "LazyObject" in text or "LazyAttr" in text else ""
    return text + hint + ("" if ":" in text else _source(file, line))


def _circle(files: list[str]) -> list[str]:
    """The configs of an import cycle, in order; none if there is no cycle."""
    resolved = [Path(file).resolve() for file in files]
    if not resolved or resolved.count(resolved[-1]) < 2:
        return []
    earlier = max(k for k, file in enumerate(resolved[:-1]) if file == resolved[-1])
    return [Path(file).name for file in files[earlier:]]


def _name_of(lazy: Any) -> str:
    if isinstance(lazy, LazyAttr):
        return f"{lazy.module}.{lazy.name}"
    return lazy.module if lazy._imported is None else f"{lazy.module}.{lazy._imported}"


def _source(file: str, line: int | None) -> str:
    """The line of code, where an exception says nothing itself."""
    text = "" if line is None else linecache.getline(file, line).strip()
    return f", in: {text[:MAX_SOURCE]}" if text and text.isprintable() else ""
