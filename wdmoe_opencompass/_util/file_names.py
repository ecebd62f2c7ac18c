"""File names made from abbreviations, and files found again by them: only this module does either.

OpenCompass writes `predictions/MODEL/DATASET.json` with both abbreviations as they are: a slash in one makes a folder.
Our files are in the same folder under the same name with other endings.
"""

import os
import re
from collections.abc import Collection, Iterable
from hashlib import sha256
from pathlib import Path

from ..errors import WdmoeError, show

MAX_NAME_BYTES = 255  # of one name in a folder, on every file system in common use
OPENCOMPASS_SUFFIXES = (".json", ".jsonl")  # files that OpenCompass names: never shortened
PARTIAL_PREFIX = "tmp_"
DIGEST_LETTERS = 16
SHORTENED = re.compile(r"~[0-9a-f]{16}(_[0-9]{1,9})?", re.ASCII)
PART_NUMBER = re.compile(r"_(0|[1-9][0-9]{0,8})", re.ASCII)  # as OpenCompass's partitioners number parts


def file_name(stem: str, suffix: str, max_bytes: int = MAX_NAME_BYTES) -> str:
    """`<stem><suffix>`; where that has too many bytes, the end of the stem is replaced by a digest of all of it.

    Two stems never share a name: one that reads like a shortened one is shortened too. The number of a part stays at
    the end of the stem.
    """
    encoded, end = stem.encode(errors="surrogatepass"), suffix.encode()
    if suffix in OPENCOMPASS_SUFFIXES:
        return stem + suffix
    if len(encoded) + len(end) <= max_bytes and not SHORTENED.search(stem[-DIGEST_LETTERS - 11 :]):
        return stem + suffix
    number = _part_number(stem)
    mark = f"~{sha256(encoded).hexdigest()[:DIGEST_LETTERS]}{number[0] if number else ''}"
    room = max_bytes - len(end) - len(mark)
    return encoded[:room].decode(errors="ignore") + mark + suffix


def dataset_file(root: Path, model: str, dataset: str, suffix: str) -> Path:
    """-> the file of a dataset, or of a part of one, below a run's `predictions`, `results` or `progress` folder.

    Raises WdmoeError where the names lead out of that folder.
    """
    inside = os.path.normpath(os.path.join(model, dataset + ".json"))
    if os.path.isabs(inside) or inside.split(os.sep)[0] == os.pardir:
        raise WdmoeError(f"model {show(model)}, dataset {show(dataset)}: their file would be outside {root}")
    return sibling(root / inside, suffix)


def sibling(predictions: Path, suffix: str) -> Path:
    """`DATASET.json` -> `DATASET<suffix>` in the same folder."""
    return predictions.parent / file_name(_stem(predictions), suffix)


def hidden_sibling(predictions: Path, suffix: str) -> Path:
    """`DATASET.json` -> `.DATASET<suffix>` in the same folder."""
    return predictions.parent / file_name("." + _stem(predictions), suffix)


def partial_file(predictions: Path, suffix: str = ".jsonl") -> Path:
    """The file that OpenCompass collects a dataset's answers in; `.json` for a perplexity inferencer."""
    return predictions.parent / file_name(PARTIAL_PREFIX + _stem(predictions), suffix)


def _stem(predictions: Path) -> str:
    return predictions.name.removesuffix(".json")


def files_below(folder: Path, suffix: str) -> list[Path]:
    """All files with this ending in a folder and below it, in order."""
    found, walked = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        walked.add(os.path.realpath(parent))
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(parent, name)) not in walked]
        found += [Path(parent, name) for name in names if name.endswith(suffix)]
    return sorted(path for path in found if path.is_file())


def parts_of(
    root: Path, model: str, dataset: str, datasets: Collection[str], suffixes: Iterable[str] = (".json",)
) -> list[str]:
    """Names `<dataset>_0`, `<dataset>_1`, ... of which there is such a file: what a partitioner made of a dataset.

    root: see dataset_file. datasets: all of the run's: one called `<dataset>_0` is no part.
    """
    names = set()
    for suffix in suffixes:
        for number in _part_numbers(dataset_file(root, model, dataset, suffix).parent, suffix):
            name = f"{dataset}_{number}"
            if name not in datasets and dataset_file(root, model, name, suffix).exists():
                names.add(name)
    return parts_in_order(names)


def _part_numbers(folder: Path, suffix: str) -> set[int]:
    try:
        stems = [entry.removesuffix(suffix) for entry in os.listdir(folder) if entry.endswith(suffix)]
    except OSError:
        return set()
    return {int(found[1]) for stem in stems if (found := _part_number(stem))}


def parts_in_order(names: Iterable[str]) -> list[str]:
    """The parts of one dataset by their number."""
    return sorted(names, key=lambda name: (len(name), name))


def whole_of(name: str, datasets: Collection[str]) -> str:
    """The dataset that a name belongs to: that of which it is a part, else the name itself."""
    found = _part_number(name)
    whole = name[: found.start()] if found else name
    return whole if name not in datasets and whole in datasets else name


def _part_number(name: str) -> re.Match[str] | None:
    return PART_NUMBER.fullmatch(name, max(0, name.rfind("_")))
