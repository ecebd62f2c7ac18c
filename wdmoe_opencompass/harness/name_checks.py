"""Whether OpenCompass can write the files of these models and datasets, each under a name of its own."""

import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from .._util.file_names import MAX_NAME_BYTES, dataset_file, partial_file, sibling
from ..errors import WdmoeError, show
from ..run.lock import lock_file
from ..run.recovery import UNFINISHED_SUFFIX, WRITTEN_WHOLE

MAX_PATH_BYTES = 4095
MAX_DATASET_BYTES = MAX_NAME_BYTES - len("tmp_.jsonl")  # the longest name that OpenCompass makes of a dataset's
RENAME = "give one of them another abbr"
Pair = tuple[str, str]  # model, dataset


def name_problems(pairs: Iterable[Pair], run_folder: Path) -> list[str]:
    """-> one sentence for every abbreviation that gives no valid file name, or the same as another's.

    Two names are one where they differ only in case, or in how Unicode composes their letters: disks of macOS and
    Windows keep one file for both (our choice: refused on every disk, so that a run can be copied to any).
    """
    pairs = list(dict.fromkeys(pairs))
    problems = [f"models: {why}" for name in _distinct(pairs, 0) if (why := _why_no_path(name, MAX_NAME_BYTES))]
    problems += [f"datasets: {why}" for name in _distinct(pairs, 1) if (why := why_no_file(name))]
    return problems or _path_problems(pairs, run_folder)


def _distinct(pairs: Sequence[Pair], position: int) -> list[str]:
    return list(dict.fromkeys(pair[position] for pair in pairs))


def why_no_file(dataset: str) -> str | None:
    """Why OpenCompass can make no file name of a dataset's abbr; None where it can."""
    return _why_no_path(dataset, MAX_DATASET_BYTES)


def _why_no_path(abbr: object, max_bytes: int) -> str | None:
    if not isinstance(abbr, str):
        return f"an abbr must be a text, got {show(abbr)}"
    if "\0" in abbr:
        return f"the abbr {show(abbr)} holds a NUL character, which no file name can"
    try:
        *folders, name = abbr.encode().split(b"/")
    except UnicodeEncodeError:
        return f"the abbr {show(abbr)} holds a lone surrogate, which UTF-8 cannot encode"
    if abbr.startswith("/"):
        return f"the abbr {show(abbr)} begins with a slash, so its files would be outside the run's folder"
    for part, most in (*((folder, MAX_NAME_BYTES) for folder in folders), (name, max_bytes)):
        if len(part) > most:
            what = f"the abbr {show(abbr)}" if not folders else f"{show(part.decode())} of the abbr {show(abbr)}"
            return f"{what} has {len(part)} bytes in UTF-8; a file name takes at most {most} of it: shorten it"
    return None


def _path_problems(pairs: Sequence[Pair], run_folder: Path) -> list[str]:
    problems: dict[str, str] = {}  # of whom -> the first sentence about them
    root = run_folder.absolute() / "predictions"
    owners: dict[tuple[str, ...], Pair] = {}  # of a file
    users: dict[tuple[str, ...], Pair] = {}  # of a folder, the first
    for pair in pairs:
        try:
            predictions = dataset_file(root, *pair, ".json")
        except WdmoeError as error:
            problems[_pair_name(pair)] = str(error)
            continue
        length = len(os.fsencode(predictions))
        if length > MAX_PATH_BYTES:
            who = _pair_name(pair)
            problems[who] = f"{who}: the path of its file has {length} bytes, at most {MAX_PATH_BYTES} work"
        for path in _files(predictions):
            inside = path.relative_to(root)
            other = owners.setdefault(_path_key(inside), pair)
            if other != pair:
                both = _both(other, pair)
                problems.setdefault(both, f"{both} would write the same file, {show(str(inside))}: {RENAME}")
        for folder in predictions.relative_to(root).parents:
            users.setdefault(_path_key(folder), pair)
    for key, pair in owners.items():
        if key in users:
            both, name = _both(pair, users[key]), show("/".join(key))
            problems.setdefault(both, f"{both} would write a file and a folder of the same name, {name}: {RENAME}")
    return list(problems.values())


def _files(predictions: Path) -> list[Path]:
    """The files that OpenCompass and we write for a dataset."""
    own = [sibling(predictions, suffix) for suffix in (*WRITTEN_WHOLE, UNFINISHED_SUFFIX)]
    return [predictions, partial_file(predictions, ".json"), partial_file(predictions), lock_file(predictions), *own]


def _path_key(path: Path) -> tuple[str, ...]:
    return tuple(
        unicodedata.normalize("NFC", unicodedata.normalize("NFD", part).casefold()) for part in path.parts if part
    )


def _both(first: Pair, second: Pair) -> str:
    if first[0] == second[0]:
        return f"datasets {show(first[1])} and {show(second[1])}"
    if first[1] == second[1]:
        return f"models {show(first[0])} and {show(second[0])}"
    return f"{_pair_name(first)} and {_pair_name(second)}"


def _pair_name(pair: Pair) -> str:
    return f"model {show(pair[0])}, dataset {show(pair[1])}"
