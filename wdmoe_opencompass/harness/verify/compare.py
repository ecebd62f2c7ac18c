"""Where two folders of results and tables differ, apart from time, folder and rounding."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..._util.file_names import files_below
from ...report.summary_files import MANIFEST_FILE
from .verdict import NOTHING, Mismatch, Run

STAMPED = re.compile(r"summary_(\d{8}_\d{6})\.(txt|csv|md)$")  # OpenCompass's own tables, by the time of writing
CONFIG_NAME = re.compile(r"configs/\d{8}_\d{6}_\d+\.py")
STARTED_IN = re.compile(r"printenv DATA \|\| printf %s .*\)\" && ")  # in the commands to reproduce a run
PICTURES = (".png", ".pdf")
WHERE_WRITTEN = ("versions.json", "requirements.txt")  # tell of the machine too; compared in what the traces recorded
ROUNDING = 1e-7  # relative; what an optimal split of a pass is proven to
NUMBER = re.compile(r"-?\d+\.\d+(?:[eE][-+]?\d+)?|-?\d+[eE][-+]?\d+")
MAX_TEXT_LENGTH = 80
MISSING = "nothing"  # in words, where only one of two files has a line or a value


def compare(run: Run, folder: Path) -> tuple[int, list[Mismatch]]:
    """-> how many files of results and tables were compared, and those that differ from the ones in `folder`."""
    there, again = _files(run.folder), _files(folder)
    mismatches = []
    for name in sorted({*there, *again}):
        if name not in there or name not in again:
            found, expected = ("a file" if name in files else NOTHING for files in (there, again))
            mismatches.append(Mismatch(name, found, expected))
        elif not name.endswith(PICTURES):
            texts = _comparable(run, there[name], run.folder_names), _comparable(run, again[name], [str(folder)])
            mismatches += [Mismatch(name, *pair) for pair in first_difference(name, *texts)]
    return len({*there, *again}), mismatches


def _files(folder: Path) -> dict[str, Path]:
    """Files of results and tables by relative path; of OpenCompass's own tables, named by the time, the last."""
    paths = files_below(folder / "results", ".json") + sorted(
        path for path in (folder / "summary").rglob("*") if path.is_file() and path.name != MANIFEST_FILE
    )
    return {STAMPED.sub(r"summary_TIME.\2", path.relative_to(folder).as_posix()): path for path in paths}


def _comparable(run: Run, path: Path, folder_names: Sequence[str]) -> str:
    """A file's text without where and when it was written."""
    text = path.read_text(errors="replace")
    for name in sorted(folder_names, key=len, reverse=True):
        text = text.replace(name, "RUN")
    text = STARTED_IN.sub("DATA && ", CONFIG_NAME.sub("configs/CONFIG.py", text))
    stamp = STAMPED.search(path.name)
    if stamp:
        text = text.replace(stamp[1], "TIME")
    return _of_recorded_packages(run, text) if path.name in WHERE_WRITTEN else text


def _of_recorded_packages(run: Run, text: str) -> str:
    recorded = {name for trace in run.traces.values() for name in trace.metadata.versions}
    name_of = re.compile(r'[\s"]*([A-Za-z0-9_.-]+)[\s"]*(?:==|:)')
    lines = [line.rstrip(",") for line in text.splitlines()]
    return "\n".join(line for line in lines if (found := name_of.match(line)) and found[1] in recorded)


def first_difference(name: str, there: str, again: str) -> list[tuple[str, str]]:
    """-> no pair where two texts of a file are equal, else one: where they first differ, and how often, in words."""
    if there == again or _differ_by_rounding(there, again):
        return []
    if name.endswith(".json") and Path(name).name not in WHERE_WRITTEN:
        try:
            both = json.loads(there), json.loads(again)
            differences = list(_json_differences(*both))
            if not differences and both[0] != both[1]:
                return []  # but for rounding
        except ValueError:
            return [("not JSON", "JSON")]
    else:
        rows = enumerate(zip_longest(there.splitlines(), again.splitlines(), fillvalue=MISSING), 1)
        differences = [(f"line {number}", *pair) for number, pair in rows if pair[0] != pair[1]]
    if not differences:  # spaces, the order of keys, 1 for 1.0
        return [("the same values in another text", "the text as it is written")]
    where, *values = differences[0]
    more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
    found, expected = _shorten(*map(str, values))
    return [(f"{where}: {found}{more}", expected)]


def _differ_by_rounding(there: str, again: str) -> bool:
    """Whether two texts are equal but for the last digits of long numbers, which depend on a machine's threads."""
    same_words = NUMBER.split(there) == NUMBER.split(again)
    return same_words and all(
        pair[0] == pair[1] or _is_rounding(*map(float, pair))
        for pair in zip(NUMBER.findall(there), NUMBER.findall(again), strict=True)
    )


def _is_rounding(there: Any, again: Any) -> bool:
    """Sums in another order, or an optimum stopped elsewhere within its proven gap; no table shows that many digits."""
    return isinstance(there, float) and isinstance(again, float) and math.isclose(there, again, rel_tol=ROUNDING)


def _json_differences(there: Any, again: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(there, dict) and isinstance(again, dict):
        for key in dict.fromkeys((*there, *again)):
            yield from _json_differences(there.get(key, MISSING), again.get(key, MISSING), f"{where}.{key}".lstrip("."))
    elif isinstance(there, list) and isinstance(again, list):
        for number, pair in enumerate(zip_longest(there, again, fillvalue=MISSING)):
            yield from _json_differences(*pair, f"{where}[{number}]")
    elif there != again and not (there != there and again != again) and not _is_rounding(there, again):  # NaN is NaN
        yield where or "all of it", there, again


def _shorten(there: str, again: str) -> tuple[str, str]:
    """Both from a little before the first letter that differs."""
    if max(len(there), len(again)) <= MAX_TEXT_LENGTH:
        return there, again
    same = next((n for n, (a, b) in enumerate(zip(there, again)) if a != b), min(len(there), len(again)))
    start = max(0, same - MAX_TEXT_LENGTH // 4)
    cut = [("…" if start else "") + text[start : start + MAX_TEXT_LENGTH] for text in (there, again)]
    return cut[0], cut[1]
