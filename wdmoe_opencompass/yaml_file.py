"""One YAML mapping from a file that anybody may have written.

A profile or a lab file needs plain values, lists and mappings. Whatever else YAML can say (anchors, tags, several
documents, directives) is refused, and values are built straight from the parser's events: no recursion, and time and
memory in proportion to the file.
"""

from pathlib import Path
from typing import Any, NoReturn

import yaml

from .errors import WdmoeError, shown
from .regular_file import read_regular

MOST_BYTES = 4 << 20
MOST_VALUES = 400_000  # keys and values; a device of a profile has some twenty
MOST_CHARACTERS = 4096  # of one key or value
MOST_DEPTH = 20
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast


def read_mapping(path: Path | str, error: type[WdmoeError]) -> dict[Any, Any]:
    """Read a YAML file that holds one mapping; `error`, in one sentence naming file and line, where it does not."""
    return parsed_mapping(str(path), read_regular(path, MOST_BYTES, error), error)


def parsed_mapping(source: str, content: bytes, error: type[WdmoeError]) -> dict[Any, Any]:
    """As `read_mapping`, of a file's content; source: what the sentence calls it."""
    try:
        data = _value(_text(content))
    except _Refused as reason:
        raise error(f"{source}: {reason}") from None
    except yaml.YAMLError as reason:
        raise error(f"{source}: not a readable YAML file: {_described(reason)}") from None
    except (ValueError, OverflowError, RecursionError, MemoryError) as reason:
        raise error(f"{source}: not a readable YAML file: {shown(str(reason))}") from None
    if not isinstance(data, dict):
        found = "nothing" if data is None else type(data).__name__
        raise error(f"{source}: must be a mapping of keys to values, got {found}")
    return data


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
            _refuse(line, f"the key {shown(value)} stands twice")
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
    loader = LOADER(text)
    root: list[Any] = []
    parts = [_Part(root)]
    values = 0
    try:
        while loader.check_event():
            event = loader.get_event()
            line = event.start_mark.line + 1
            if isinstance(event, yaml.DocumentStartEvent) and root:
                _refuse(line, "a second document begins; only one is read")
            if isinstance(event, yaml.CollectionEndEvent):
                parts.pop()
            if not isinstance(event, yaml.NodeEvent):
                continue
            values += 1
            if values > MOST_VALUES:
                _refuse(line, f"must hold at most {MOST_VALUES} keys and values")
            value = _of_event(loader, event, line)
            parts[-1].add(value, line)
            if isinstance(value, list | dict):
                parts.append(_Part(value))
                if len(parts) > MOST_DEPTH + 1:
                    _refuse(line, f"must be nested at most {MOST_DEPTH} deep")
    finally:
        loader.dispose()
    return root[0] if root else None


def _of_event(loader: Any, event: Any, line: int) -> Any:
    if event.anchor is not None:
        _refuse(line, f"anchors and aliases (& and *) are not read, got {shown(event.anchor)}; write the value again")
    if event.tag is not None:
        _refuse(line, f"tags (!) are not read, got {shown(event.tag)}")
    if isinstance(event, yaml.MappingStartEvent):
        return {}
    if isinstance(event, yaml.SequenceStartEvent):
        return []
    if len(event.value) > MOST_CHARACTERS:
        _refuse(line, f"a value must have at most {MOST_CHARACTERS} characters, got {len(event.value)}")
    tag = loader.resolve(yaml.ScalarNode, event.value, event.implicit)
    construct = loader.yaml_constructors.get(tag)
    if construct is None:
        _refuse(line, f"{shown(event.value)} is a sign of YAML, not a value; put it in quotes if it is meant")
    try:
        return construct(loader, yaml.ScalarNode(tag, event.value))
    except (ValueError, OverflowError, IndexError) as reason:  # a thirteenth month, `0b_`
        _refuse(line, f"not a value: {shown(event.value)} ({str(reason)[:100]})")


def _refuse(line: int, reason: str) -> NoReturn:
    raise _Refused(f"line {line}: {reason}")


def _described(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
