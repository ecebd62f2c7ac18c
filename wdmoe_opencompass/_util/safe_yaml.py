"""Reader of one YAML mapping from an untrusted file.

A profile or a lab file needs plain values, lists and mappings. Whatever else YAML can say (anchors, tags, several
documents, directives) is refused, and values are built straight from the parser's events: no recursion, and time and
memory in proportion to the file.

A value without quotes is a decimal number (`number_text`), true or false, null or a text. What one reader of YAML takes
for another number than the next, or for a date, is refused: its meaning is ambiguous.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml

from ..errors import WdmoeError, show
from .bounded_read import read_regular
from .number_text import number_of, other_notation

MAX_BYTES = 4 << 20
MAX_VALUES = 400_000  # keys and values; a device of a profile has some twenty
MAX_CHARACTERS = 4096  # of one key or value
MAX_DEPTH = 20
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast
TRUE, FALSE = ("true", "True", "TRUE"), ("false", "False", "FALSE")
YES, NO = ("yes", "Yes", "YES", "on", "On", "ON"), ("no", "No", "NO", "off", "Off", "OFF")  # of YAML 1.1 alone
NULL = ("", "~", "null", "Null", "NULL")
SIGNS = ("=", "<<")


class Position(NamedTuple):
    """Where a value is in a file: its line, and how it is written there; None for a list or mapping."""

    line: int
    written: str | None


class ReadMapping(dict[Any, Any]):
    """A mapping that remembers the text it was read from."""

    text = ""

    def position_of(self, path: Sequence[Any]) -> Position | None:
        """-> where a value is, or the innermost list or mapping that would hold it; path: keys and list indices."""
        wanted, found = [str(step) for step in path], None
        for steps, position in _positions(self.text):
            if len(steps) <= len(wanted) and steps == wanted[: len(steps)]:
                found = position
        return found


def read_mapping(path: Path | str, error: type[WdmoeError]) -> ReadMapping:
    """Read a YAML file that holds one mapping; `error`, in one sentence naming file and line, where it does not."""
    return parse_mapping(str(path), read_regular(path, MAX_BYTES, error), error)


def parse_mapping(source: str, content: bytes, error: type[WdmoeError]) -> ReadMapping:
    """As `read_mapping`, of a file's content; source: what the sentence calls it."""
    try:
        text = _text(content)
        data = _value(text)
    except _Refused as reason:
        raise error(f"{source}: {reason}") from None
    except yaml.YAMLError as reason:
        raise error(f"{source}: not a readable YAML file: {_describe(reason)}") from None
    except (ValueError, OverflowError, RecursionError, MemoryError) as reason:
        raise error(f"{source}: not a readable YAML file: {show(str(reason))}") from None
    if not isinstance(data, dict):
        found = "nothing" if data is None else type(data).__name__
        raise error(f"{source}: must be a mapping of keys to values, got {found}")
    mapping = ReadMapping(data)
    mapping.text = text
    return mapping


def yaml_text(data: dict[str, Any]) -> str:
    """A mapping of plain values as YAML that `read_mapping` reads back unchanged, every float to its last bit."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Puts in quotes what this reader would not read as the text that it is."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    try:
        is_text = _plain_value(text) == text and text not in SIGNS
    except ValueError:
        is_text = False
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_text else "'")


_Dumper.add_representer(str, _represent_text)


class _Refused(Exception):
    """YAML that we do not take."""


class _Part:
    """A list or mapping that is being filled."""

    def __init__(self, filled: list | dict):
        self.filled = filled
        self.key: Any = None
        self.wants_key = isinstance(filled, dict)

    def add(self, value: Any, line: int) -> None:
        if isinstance(self.filled, list):
            self.filled.append(value)
            return
        if not self.wants_key:
            self.filled[self.key] = value
        elif isinstance(value, list | dict):
            _refuse(line, f"a key must be one value, got a {'list' if isinstance(value, list) else 'mapping'}")
        elif value in self.filled:
            _refuse(line, f"duplicate key {show(value)}")
        else:
            self.key = value
        self.wants_key = not self.wants_key


def _text(content: bytes) -> str:
    if b"\0" in content:
        raise _Refused("not a readable YAML file: it holds a zero byte")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _Refused(f"not a readable YAML file: not UTF-8 at byte {error.start}") from None
    if text.startswith("%") or "\n%" in text or "\r%" in text:  # libyaml compares every %TAG with every other
        raise _Refused("directives (lines that begin with %) are not read")
    return text


def _value(text: str) -> Any:
    """-> what the only document of a text holds, None for none."""
    root: list[Any] = []
    parts = [_Part(root)]
    values = 0
    for event in _events(text):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.DocumentStartEvent) and root:
            _refuse(line, "a second document begins; only one is read")
        if isinstance(event, yaml.CollectionEndEvent):
            parts.pop()
        if not isinstance(event, yaml.NodeEvent):
            continue
        values += 1
        if values > MAX_VALUES:
            _refuse(line, f"must hold at most {MAX_VALUES} keys and values")
        value = _of_event(event, line, parts)
        parts[-1].add(value, line)
        if isinstance(value, list | dict):
            parts.append(_Part(value))
            if len(parts) > MAX_DEPTH + 1:
                _refuse(line, f"must be nested at most {MAX_DEPTH} deep")
    return root[0] if root else None


def _events(text: str) -> Iterator[Any]:
    loader = LOADER(text)
    try:
        while loader.check_event():
            yield loader.get_event()
    finally:
        loader.dispose()


def _positions(text: str) -> Iterator[tuple[list[str], Position]]:
    """-> path and position of every value of a text that `_value` has read."""
    path: list[str] = []
    keys: list[int | None] = [0]  # of each open part: the index of its next entry, or None before a key of a mapping
    for event in _events(text):
        if isinstance(event, yaml.CollectionEndEvent):
            keys.pop()
            _end_entry(path, keys)
        if not isinstance(event, yaml.NodeEvent):
            continue
        if keys[-1] is None:
            path.append(str(_plain_or_quoted(event)))
            keys[-1] = -1
            continue
        if keys[-1] >= 0 and len(keys) > 1:
            path.append(str(keys[-1]))
        line = event.start_mark.line + 1  # type: ignore[union-attr]
        yield list(path), Position(line, getattr(event, "value", None))
        if isinstance(event, yaml.CollectionStartEvent):
            keys.append(None if isinstance(event, yaml.MappingStartEvent) else 0)
        else:
            _end_entry(path, keys)


def _end_entry(path: list[str], keys: list[int | None]) -> None:
    if len(keys) > 1:
        path.pop()
        last = keys[-1]
        keys[-1] = None if last is None or last < 0 else last + 1


def _of_event(event: Any, line: int, parts: Sequence[_Part]) -> Any:
    if event.anchor is not None:
        _refuse(line, f"anchors and aliases (& and *) are not read, got {show(event.anchor)}; write the value again")
    if event.tag is not None:
        _refuse(line, f"tags (!) are not read, got {show(event.tag)}")
    if isinstance(event, yaml.MappingStartEvent):
        return {}
    if isinstance(event, yaml.SequenceStartEvent):
        return []
    if len(event.value) > MAX_CHARACTERS:
        _refuse(line, f"a value must have at most {MAX_CHARACTERS} characters, got {len(event.value)}")
    if event.implicit[0] and event.value in SIGNS:
        _refuse(line, f"{show(event.value)} is a sign of YAML, not a value; put it in quotes if it is meant")
    try:
        return _plain_or_quoted(event)
    except ValueError as reason:
        _refuse(line, f"{_key_of(parts)} {reason}")


def _plain_or_quoted(event: Any) -> Any:
    return _plain_value(event.value) if event.implicit[0] else event.value


def _plain_value(text: str) -> Any:
    """-> what a value without quotes is; ValueError, as the end of a sentence, where readers of YAML differ."""
    if text in NULL:
        return None
    if text in TRUE or text in YES:
        return True
    if text in FALSE or text in NO:
        return False
    number = number_of(text)
    if number is not None:
        return number
    known = other_notation(text)
    if known is not None and not text[:1].isalpha():  # nan and inf without a point are texts
        raise ValueError(f"must be in decimal notation, or in quotes, got {show(text)}, which {known}")
    return text


def _key_of(parts: Sequence[_Part]) -> str:
    """-> the key of the next value, such as `devices[2].distance_m`."""
    key = ""
    for part in parts[1:]:
        if isinstance(part.filled, list):
            key += f"[{len(part.filled) - (part is not parts[-1])}]"
        elif part.wants_key and part is parts[-1]:
            return f"a key of {key.lstrip('.')}" if key else "a key"
        else:
            name = str(part.key)
            key += f".{name}" if name.isprintable() and len(name) <= 200 else f".{show(name)}"
    return key.lstrip(".")


def _refuse(line: int, reason: str) -> NoReturn:
    raise _Refused(f"line {line}: {reason}")


def _describe(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
