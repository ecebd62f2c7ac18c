"""The cache folders that Hugging Face's libraries write to while OpenCompass reads datasets and scores answers.

By default all of them are below `~/.cache/huggingface`. Where a home cannot be written (a container's user without one,
a compute node), a metric cannot even be loaded, so all answers would be there and no score. `use_writable` gives such a
cache a folder of the run instead. The cache of weights (HF_HUB_CACHE) is not among them: it may be
read-only.
"""

import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import WdmoeError
from .given_paths import check_out_folder

CACHES_FOLDER = "caches"  # in a run's folder
MAX_SUBFOLDERS = 200


@dataclass(frozen=True)
class Cache:
    """One folder.

    variable: of the environment, names it; below: its name in HF_HOME by default; holds: in words. attributes: module,
    name and subfolder of the constants that the libraries made of it when they were imported.
    """

    variable: str
    below: str
    holds: str
    attributes: tuple[tuple[str, str, str], ...]

    @property
    def folder(self) -> Path:
        """Where it is now."""
        return Path(os.path.expanduser(os.environ.get(self.variable, os.path.join(_home(), self.below))))

    def why_not(self) -> str | None:
        """Why it cannot be written; None where it can."""
        folder = self.folder
        try:
            check_out_folder(folder)
        except WdmoeError as error:
            return str(error)
        others = next((path for path in _subfolders(folder) if not os.access(path, os.W_OK | os.X_OK)), None)
        return None if others is None else f"{others}: cannot be written"


CACHES = (
    Cache(
        "HF_MODULES_CACHE",
        "modules",
        "code of metrics",
        (
            ("evaluate.config", "HF_MODULES_CACHE", ""),
            ("datasets.config", "HF_MODULES_CACHE", ""),
            ("transformers.utils.hub", "HF_MODULES_CACHE", ""),
            ("transformers.dynamic_module_utils", "HF_MODULES_CACHE", ""),
        ),
    ),
    Cache("HF_METRICS_CACHE", "metrics", "answers being scored", (("evaluate.config", "HF_METRICS_CACHE", ""),)),
    Cache(
        "HF_EVALUATE_CACHE",
        "evaluate",
        "downloaded metrics",
        (
            ("evaluate.config", "HF_EVALUATE_CACHE", ""),
            ("evaluate.config", "DOWNLOADED_EVALUATE_PATH", "downloads"),
            ("evaluate.config", "EXTRACTED_EVALUATE_PATH", "downloads/extracted"),
        ),
    ),
    Cache(
        "HF_DATASETS_CACHE",
        "datasets",
        "datasets",
        (
            ("datasets.config", "HF_DATASETS_CACHE", ""),
            ("datasets.config", "DOWNLOADED_DATASETS_PATH", "downloads"),
            ("datasets.config", "EXTRACTED_DATASETS_PATH", "downloads/extracted"),
        ),
    ),
)


def unwritable() -> dict[Cache, str]:
    """-> the caches that cannot be written, and why."""
    return {cache: why for cache in CACHES if (why := cache.why_not()) is not None}


def use_writable(run_folder: Path) -> list[str]:
    """Give every cache that cannot be written a folder in the run's own; -> one sentence for each, for the log.

    For this process, whatever it has imported already, and for those that it starts. WdmoeError where the run's folder
    cannot be written either.
    """
    said = []
    for cache, why in unwritable().items():
        folder = run_folder.absolute() / CACHES_FOLDER / cache.below
        try:
            if cache.below == "modules":  # metrics that were prepared for a machine without a network
                _copy(cache.folder, folder)
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WdmoeError(
                f"{why}; nor could {folder} be made: {error.strerror}; set HF_HOME to a folder that can be written"
            ) from None
        _move(cache, folder)
        said.append(f"{cache.variable} ({cache.holds}): {why}; {folder} is used instead")
    return said


@contextmanager
def writable_for_now(folder: Path) -> Iterator[None]:
    """`use_writable` with another folder than a run's, taken back at the end."""
    attributes = [attribute for cache in CACHES for attribute in cache.attributes]
    variables = {cache.variable: os.environ.get(cache.variable) for cache in CACHES}
    constants = {(module, name): getattr(sys.modules.get(module), name, None) for module, name, _ in attributes}
    try:
        use_writable(folder)
        yield
    finally:
        for variable, value in variables.items():
            os.environ.pop(variable, None)
            os.environ |= {} if value is None else {variable: value}
        for (module, name), value in constants.items():
            if value is not None:
                setattr(sys.modules[module], name, value)


def way_out(caches: Iterable[Cache]) -> str:
    """What a user can do: the one variable that moves all of them, or those that were set by themselves."""
    own = [cache.variable for cache in caches if cache.variable in os.environ]
    return f"set {', '.join(own) or 'HF_HOME'} to a folder that can be written"


def sentence(caches: dict[Cache, str]) -> str:
    """Which caches cannot be written and why, in words."""
    named = ", ".join(f"{cache.variable} ({cache.folder}, {cache.holds})" for cache in caches)
    return f"{named} cannot be written: {next(iter(caches.values()))}"


def _move(cache: Cache, folder: Path) -> None:
    os.environ[cache.variable] = str(folder)
    for module, name, below in cache.attributes:
        loaded: Any = sys.modules.get(module)
        if loaded is not None and hasattr(loaded, name):
            setattr(loaded, name, type(getattr(loaded, name))(folder / below))  # a Path, or its text


def _copy(there: Path, folder: Path) -> None:
    try:
        is_filled = any(there.iterdir())
    except OSError:
        return
    if is_filled and not folder.exists():
        shutil.copytree(there, folder, dirs_exist_ok=True)


def _home() -> str:
    caches = os.environ.get("XDG_CACHE_HOME", os.path.join("~", ".cache"))
    return os.environ.get("HF_HOME", os.path.join(caches, "huggingface"))


def _subfolders(folder: Path) -> list[Path]:
    """The folders one and two levels below, where they can be looked at."""
    found: list[Path] = []
    for paths in (folder.glob("*"), folder.glob("*/*")):
        with suppress(OSError):
            found += [path for path in paths if path.is_dir()][:MAX_SUBFOLDERS]
    return found
