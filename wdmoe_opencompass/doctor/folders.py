"""Folders that a run reads and writes: its work folder, the benchmarks' data, the Hugging Face cache."""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from .._util.caches import CACHES, CACHES_FOLDER, sentence, unwritable, way_out
from .._util.given_paths import check_out_folder
from ..errors import WdmoeError
from .finding import BYTES_PER_GB, Finding, ok, problem, warning

NO_ROOM_BYTES = 0.1 * BYTES_PER_GB  # our choices: a run of the eight benchmarks leaves predictions and traces of some
LITTLE_ROOM_BYTES = 2 * BYTES_PER_GB  # hundred MB
# Where OpenCompass 0.5.4 looks for the paper's benchmarks below the folder that holds data/ (its DATASETS_MAPPING).
BENCHMARKS = {
    "MMLU": "data/mmlu",
    "PIQA": "data/piqa",
    "ARC-E": "data/ARC/ARC-e/ARC-Easy-Dev.jsonl",
    "ARC-C": "data/ARC/ARC-c/ARC-Challenge-Dev.jsonl",
    "HumanEval": "data/humaneval/human-eval-v2-20210705.jsonl",
    "GSM8K": "data/gsm8k",
    "BoolQ": "data/SuperGLUE/BoolQ/val.jsonl",
    "MBPP": "data/mbpp/mbpp.jsonl",
}


def check_work_dir(work_dir: Path) -> list[Finding]:
    """Whether a run may write there, how much room there is, and whether locks hold."""
    fix = "give another folder: opencompass CONFIG -w FOLDER"
    try:
        check_out_folder(work_dir)
    except WdmoeError as error:
        return [problem("work folder", str(error), fix)]
    folder = nearest_folder(work_dir)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".wdmoe-doctor-") as file:
            locks = lock_failure(Path(file.name))
    except OSError as error:
        return [problem("work folder", f"{folder}: cannot be written: {error.strerror}", fix)]
    findings = [ok("work folder", f"{folder}: can be written"), *check_room(folder, shutil.disk_usage(folder).free)]
    if locks is None:
        return [*findings, ok("locks", f"{folder}: locks hold")]
    fix = "write to a local folder (opencompass CONFIG -w FOLDER), or never start a run twice at once"
    return [*findings, warning("locks", f"{folder}: {locks}", fix)]


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def lock_failure(file: Path) -> str | None:
    """Why flock does not keep a second process off a file; None where it does. A run's datasets are locked so."""
    with file.open("ab") as first, file.open("ab") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return f"this file system knows no locks: {error.strerror}"
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return None
        return "two can hold the same lock on this file system"


def check_room(folder: Path, free: int) -> list[Finding]:
    """Free space of the work folder's disk."""
    found = f"{free / BYTES_PER_GB:.3g} GB free on the disk of {folder}"
    fix = "free some space, or give another folder: opencompass CONFIG -w FOLDER"
    if free < NO_ROOM_BYTES:
        return [problem("disk", found, fix)]
    return [warning("disk", found, fix)] if free < LITTLE_ROOM_BYTES else [ok("disk", found)]


def check_data() -> list[Finding]:
    """Which of the paper's benchmarks are there, where OpenCompass looks for them: COMPASS_DATA_CACHE, or ./data."""
    source = os.environ.get("DATASET_SOURCE")
    if source in ("ModelScope", "HF"):
        return [ok("data", f"DATASET_SOURCE={source}: read from there, not from a data folder")]
    cache = os.environ.get("COMPASS_DATA_CACHE", "")
    folders = [Path(cache).absolute(), Path(os.path.expanduser("~/.cache/opencompass"))]
    missing = [name for name, path in BENCHMARKS.items() if not any((folder / path).exists() for folder in folders)]
    if not missing:
        return [ok("data", f"all {len(BENCHMARKS)} benchmarks of the paper, in {folders[0] / 'data'} or {folders[1]}")]
    if cache and not Path(cache).is_dir():
        fix = "set it to the folder that holds data/, or unset it; OpenCompass would make it and download into it"
        return [warning("data", f"COMPASS_DATA_CACHE={cache}: no such folder", fix)]
    listed = ", ".join(f"{name} ({BENCHMARKS[name]})" for name in missing)
    fix = (
        f"OpenCompass downloads each at its first use; without a connection put its data package into {folders[0]}, "
        "or set COMPASS_DATA_CACHE to the folder that holds data/"
    )
    return [warning("data", f"not in {folders[0]}: {listed}", fix)]


def check_caches() -> list[Finding]:
    """The folders that evaluation writes to; where they cannot be written, our runs use their own folder."""
    found = unwritable()
    if not found:
        return [ok("caches", f"what scoring keeps can be written ({CACHES[0].folder})")]
    instead = (
        f"a run with our partitioners or tasks in its config keeps it in its own folder, in {CACHES_FOLDER}/; with "
        "OpenCompass's own every cell would stay empty"
    )
    return [warning("caches", f"{sentence(found)}; {instead}", way_out(found))]


def check_temporary() -> list[Finding]:
    """The folder for temporary files: OpenCompass reads its configs through one."""
    try:
        return [ok("temporary files", tempfile.gettempdir())]
    except OSError as error:
        return [problem("temporary files", f"none can be written: {error.strerror}", "set TMPDIR to a folder that can")]


def check_current_folder() -> list[Finding]:
    """OpenCompass writes what its tasks are to do into `tmp/` of the folder where it is started."""
    try:
        check_out_folder(Path("tmp"))
    except WdmoeError as error:
        fix = "start opencompass in a folder that can be written"
        return [problem("current folder", f"OpenCompass writes its tasks into tmp/: {error}", fix)]
    return [ok("current folder", f"{Path.cwd()}: OpenCompass can write its tasks into tmp/")]


def check_huggingface(cache: Path, offline: bool) -> list[Finding]:
    """The Hugging Face cache, where weights given by name are looked for.

    offline: HF_HUB_OFFLINE is set, so nothing is downloaded.
    """
    if offline:
        if cache.is_dir():
            return [ok("hugging face", f"offline (HF_HUB_OFFLINE); weights given by name are looked for in {cache}")]
        fix = "give models as folders, set HF_HOME to where the cache is, or: unset HF_HUB_OFFLINE"
        return [warning("hugging face", f"offline (HF_HUB_OFFLINE), and there is no cache at {cache}", fix)]
    folder = nearest_folder(cache)
    if os.access(folder, os.W_OK):
        return [ok("hugging face", f"weights given by name are kept in {cache}")]
    fix = "export HF_HOME=FOLDER, one that you may write to"
    return [problem("hugging face", f"{folder}: cannot be written, so no weights can be downloaded", fix)]


def huggingface_settings() -> tuple[Path, bool] | None:
    """-> the cache's folder and whether downloads are off, as huggingface_hub reads them; None where it is missing."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return None
    return Path(constants.HF_HUB_CACHE), bool(constants.HF_HUB_OFFLINE)
