"""Whether a run's tables follow from its predictions and traces: all are computed again elsewhere and compared."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mmengine.config import Config
from opencompass.utils import dataset_abbr_from_cfg, model_abbr_from_cfg

from ..._util.file_names import dataset_file, files_below
from ...errors import TraceError, WdmoeError
from ...report.publication import manifest
from ...report.summary_files import MANIFEST_FILE
from ...run.failures import noted_failure
from ...run.recovery import FAILURE_SUFFIX, read_whole, why_not_of
from ...trace.format import JOURNAL_SUFFIX, SEALED_SUFFIX, RoutingTrace
from ...trace.recording import RECORDING_JOURNAL_SUFFIX, RECORDING_SUFFIX, read_recording, why_not_of_trace
from ...trace.times import TIMES_JOURNAL_SUFFIX, TIMES_SUFFIX, check_belongs, read_times
from ..config_errors import read_config
from ..trace_checks import Expected, ModelFiles, Place, why_refused

JOURNALS = (JOURNAL_SUFFIX, TIMES_JOURNAL_SUFFIX, RECORDING_JOURNAL_SUFFIX)
NOTHING = "no such file"
RECOMPUTED = "recomputed"  # how the run is called in the folder where it is computed again
STAMPED = re.compile(r"summary_(\d{8}_\d{6})\.(txt|csv|md)$")  # OpenCompass's own tables, by the time of writing
CONFIG_NAME = re.compile(r"configs/\d{8}_\d{6}_\d+\.py")
STARTED_IN = re.compile(r"printenv DATA \|\| printf %s .*\)\" && ")  # in the commands to reproduce a run
PICTURES = (".png", ".pdf")
WHERE_WRITTEN = ("versions.json", "requirements.txt")  # tell of the machine too; compared in what the traces recorded
ROUNDING = 1e-7  # relative; what an optimal split of a pass is proven to
NUMBER = re.compile(r"-?\d+\.\d+(?:[eE][-+]?\d+)?|-?\d+[eE][-+]?\d+")
MAX_TEXT_LENGTH = 80
MISSING = "nothing"  # in words, where only one of two files has a line or a value
NOT_RECOMPUTED = "nothing was recomputed: what the tables would be made from does not belong together"


@dataclass(frozen=True)
class Mismatch:
    """One file that is not what it should be.

    found: what is there; expected: what was recomputed, or what the rest of the run asks for
    """

    file: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.file}: there: {self.found}; recomputed or needed: {self.expected}"


@dataclass
class Verdict:
    """The answer: how many files were compared, what does not match, and what else is to be known."""

    compared: int = 0
    mismatches: list[Mismatch] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Run:
    """A finished run's folder, its newest config, and its traces by model and name."""

    folder: Path
    config_file: Path
    config: Any
    traces: dict[Place, RoutingTrace] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """WdmoeError where this is not the folder of a finished run with our summarizer."""
        for part in ("predictions", "results", "summary/latency.json"):
            if not (folder / part).exists():
                raise WdmoeError(f"{folder}: no {part} in it; give the time-stamped folder of a finished run")
        configs = sorted((folder / "configs").glob("*.py"))
        if not configs:
            raise WdmoeError(f"{folder}: no configs/*.py in it; OpenCompass writes the config of every run there")
        config = read_config(configs[-1], lambda: Config.fromfile(configs[-1], format_python_code=False))
        for key in ("models", "datasets"):
            if not config.get(key):
                raise WdmoeError(f"{configs[-1]}: not a config of a run: it has no `{key}`")
        return cls(folder, configs[-1], config)

    def files_of(self, model_cfg: Any) -> ModelFiles:
        """The files of one of its models."""
        datasets = [dataset_abbr_from_cfg(cfg) for cfg in self.config["datasets"]]
        return ModelFiles(self.folder / "predictions", model_abbr_from_cfg(model_cfg), datasets)

    @property
    def folder_names(self) -> list[str]:
        """How the run's folder may be written in its tables."""
        written = str(self.config.get("work_dir") or "")
        names = {written, os.path.abspath(written), str(self.folder), str(self.folder.resolve())}
        return [name for name in names if len(name) > 1]


def verify(folder: Path) -> Verdict:
    """Check that a run's files belong together, then compute its results and tables again and compare.

    Runs the run's own config and OpenCompass's evaluators on its predictions in a fresh process, in this folder, where
    relative data paths must hold as they did for the run; the run itself is only read. WdmoeError for a folder that is
    no finished run, or that cannot be evaluated here.
    """
    run = Run.open(folder)
    unfit = [*unfinished_files(run), *unfit_inputs(run)]
    verdict = Verdict(mismatches=[*unfit, *changed_files(run)], notes=_other_versions(run))
    if unfit:
        verdict.notes.append(NOT_RECOMPUTED)
        return verdict
    with tempfile.TemporaryDirectory(prefix="wdmoe_verify_") as work:
        again = recompute(run, Path(work))
        verdict.compared, mismatches = compare(run, again)
    verdict.mismatches += mismatches
    return verdict


# -- do predictions and traces belong together -----------------------------------------------------------------------
def unfinished_files(run: Run) -> Iterator[Mismatch]:
    """Journals that were never sealed, of what the tables are of, and JSON that is torn.

    What failed has a journal too; its cells are empty with the reason, and that is compared.
    """
    for files in map(run.files_of, run.config["models"]):
        names = [
            name
            for dataset in files.datasets
            for name in _names_of(files, dataset)
            if noted_failure(files.path(name, ".json")) is None
        ]
        for path in (files.path(name, suffix) for name in names for suffix in JOURNALS):
            if path.exists():
                yield Mismatch(_name(run, path), "a journal that was never sealed", "none: continue the run with -r")
    for part in ("predictions", "results", "summary"):
        for path in files_below(run.folder / part, ".json"):
            try:
                json.loads(path.read_bytes())
            except (ValueError, RecursionError) as error:
                yield Mismatch(_name(run, path), f"torn: {error}", "JSON")


def unfit_inputs(run: Run) -> Iterator[Mismatch]:
    """Predictions and traces that lack, do not fit each other, or are not of the run's config; reads the traces."""
    expected: dict[str, Expected] = {}
    for model_cfg in run.config["models"]:
        abbr = model_abbr_from_cfg(model_cfg)
        files = run.files_of(model_cfg)
        sealed, unreadable = files.read_traces()
        if "wdmoe" in model_cfg:
            try:
                recorded = [trace.metadata for trace in sealed.values()]
                expected[abbr] = Expected.of(model_cfg, recorded, run.config["datasets"])
            except WdmoeError as error:
                yield Mismatch(_name(run, run.config_file), f"{abbr}: {error}", "a config that can be run here")
        for dataset_cfg in run.config["datasets"]:
            for name in _names_of(files, dataset_abbr_from_cfg(dataset_cfg)):
                trace = sealed.get(name)
                if "wdmoe" not in model_cfg:
                    yield from _predictions_alone(run, files, name)
                    continue
                yield from _pair(run, files, name, trace, unreadable.get(name, NOTHING), dataset_cfg)
                if trace is not None and abbr in expected:
                    run.traces[abbr, name] = trace
    for (abbr, name), why in why_refused(run.traces, expected).items():
        path = dataset_file(run.folder / "predictions", abbr, name, SEALED_SUFFIX)
        yield Mismatch(_name(run, path), why, "a trace of this run")


def _names_of(files: ModelFiles, dataset: str) -> Sequence[str]:
    """A dataset, or the parts that a partitioner made of it."""
    suffixes = (".json", SEALED_SUFFIX)
    if any(files.path(dataset, suffix).exists() for suffix in suffixes):
        return [dataset]
    return files.parts_of(dataset, *suffixes) or [dataset]


def _predictions_alone(run: Run, files: ModelFiles, name: str) -> Iterator[Mismatch]:
    path = files.path(name, ".json")
    if not path.exists() and not files.path(name, FAILURE_SUFFIX).exists():
        yield Mismatch(_name(run, path), NOTHING, "predictions, or the reason why its task failed")


def _pair(
    run: Run, files: ModelFiles, name: str, trace: RoutingTrace | None, no_trace: str, dataset_cfg: Any
) -> Iterator[Mismatch]:
    """Predictions and trace of a dataset or a part of one."""
    path, sealed = files.path(name, ".json"), files.path(name, SEALED_SUFFIX)
    if trace is None and not path.exists():
        yield from _predictions_alone(run, files, name)
        return
    if trace is None:
        yield Mismatch(_name(run, sealed), no_trace, "a sealed trace beside the predictions")
        return
    if not path.exists():
        yield Mismatch(_name(run, path), NOTHING, f"predictions of the {int(trace.items.sum())} items of its trace")
        return
    answers = read_whole(path)
    is_part = name != dataset_abbr_from_cfg(dataset_cfg)
    test_range = trace.metadata.test_range if is_part else None
    why = None if answers is None else why_not_of(trace, answers, dataset_cfg, test_range)
    if why is not None:
        yield Mismatch(_name(run, sealed), why, "every item of its predictions, as often as it was run")
    yield from _times(run, files.path(name, TIMES_SUFFIX), trace)
    yield from _recording(run, files.path(name, RECORDING_SUFFIX), trace)


def _times(run: Run, path: Path, trace: RoutingTrace) -> Iterator[Mismatch]:
    if path.exists():
        try:
            check_belongs(read_times(path), trace)
        except TraceError as error:
            yield Mismatch(_name(run, path), str(error), "measured times of the passes of its trace")


def _recording(run: Run, path: Path, trace: RoutingTrace) -> Iterator[Mismatch]:
    if path.exists():
        try:
            why = why_not_of_trace(read_recording(path), trace)
        except TraceError as error:
            why = str(error)
        if why is not None:
            yield Mismatch(_name(run, path), why, "a recording of the passes of its trace")


def changed_files(run: Run) -> Iterator[Mismatch]:
    """Files that are not those whose SHA-256 the run's manifest lists."""
    path = run.folder / "summary" / MANIFEST_FILE
    listed = read_whole(path) if path.exists() else None
    if listed is None or not all(isinstance(digest, str) for digest in listed.values()):
        yield Mismatch(_name(run, path), "not there, or torn", "the SHA-256 of every file of the run")
        return
    there = manifest(run.folder)
    for name in sorted({*listed, *there}):
        if listed.get(name) != there.get(name):
            found, wanted = (
                f"SHA-256 {one[name][:12]}" if name in one else other
                for one, other in ((there, NOTHING), (listed, f"not listed in {MANIFEST_FILE}"))
            )
            yield Mismatch(name, found, f"{wanted} in {MANIFEST_FILE}" if name in listed else wanted)


def _name(run: Run, path: Path) -> str:
    return path.relative_to(run.folder).as_posix()


def _other_versions(run: Run) -> list[str]:
    recorded = {pair for trace in run.traces.values() for pair in trace.metadata.versions.items()}
    return [
        f"the run recorded {name} {number}, here is {here}: last digits may differ"
        for name, number in sorted(recorded)
        if (here := _installed(name)) != number
    ]


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


# -- compute again ---------------------------------------------------------------------------------------------------
def recompute(run: Run, work: Path) -> Path:
    """-> the folder below `work` where a fresh process evaluated the run's predictions and wrote its tables again.

    WdmoeError where it could not.
    """
    folder = work / RECOMPUTED
    shutil.copytree(run.folder / "predictions", folder / "predictions")
    options = ["--mode", "eval", "-r", RECOMPUTED, "-w", str(work)]
    if not _has_details(run):
        options += ["--dump-eval-details", "False"]
    # -P: as with the `opencompass` command, this folder's modules do not stand before the installed ones
    command = [sys.executable, "-P", "-m", "opencompass.cli.main", str(_config_for(run, work)), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if not (folder / "summary" / MANIFEST_FILE).exists():
        lines = done.stdout.strip().splitlines() or ["no output"]
        raise WdmoeError(f"{run.folder}: OpenCompass could not evaluate it again: {lines[-1][:300]}")
    return folder


def _has_details(run: Run) -> bool:
    """Whether the run was evaluated with details of every item, OpenCompass's default."""
    results = files_below(run.folder / "results", ".json")
    return not results or any("details" in (read_whole(path) or {}) for path in results)


def _config_for(run: Run, work: Path) -> Path:
    """The run's config, but evaluated on this machine and sent nowhere."""
    path = work / "config.py"
    runner = run.config.get("eval", {}).get("runner", {})
    is_local = str(runner.get("type", "LocalRunner")).rpartition(".")[2] == "LocalRunner"
    if is_local and "station_path" not in run.config:
        shutil.copy(run.config_file, path)
        return path
    changed = run.config.copy()
    changed.pop("station_path", None)
    if not is_local:
        changed["eval"]["runner"] = dict(
            type="opencompass.runners.LocalRunner", max_num_workers=2, task=runner.get("task")
        )
    changed.dump(path)
    return path


# -- compare ---------------------------------------------------------------------------------------------------------
def compare(run: Run, again: Path) -> tuple[int, list[Mismatch]]:
    """-> how many files of results and tables were compared, and those that differ from the recomputed ones."""
    there, anew = _files(run.folder), _files(again)
    mismatches = []
    for name in sorted({*there, *anew}):
        if name not in there or name not in anew:
            found, expected = ("a file" if name in files else NOTHING for files in (there, anew))
            mismatches.append(Mismatch(name, found, expected))
        elif not name.endswith(PICTURES):
            texts = _comparable(run, there[name], run.folder_names), _comparable(run, anew[name], [str(again)])
            mismatches += [Mismatch(name, *pair) for pair in first_difference(name, *texts)]
    return len({*there, *anew}), mismatches


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
    return _of_recorded_packages(run, path, text) if path.name in WHERE_WRITTEN else text


def _of_recorded_packages(run: Run, path: Path, text: str) -> str:
    recorded = {name for trace in run.traces.values() for name in trace.metadata.versions}
    name_of = re.compile(r'[\s"]*([A-Za-z0-9_.-]+)[\s"]*(?:==|:)')
    lines = [line.rstrip(",") for line in text.splitlines()]
    return "\n".join(line for line in lines if (found := name_of.match(line)) and found[1] in recorded)


def first_difference(name: str, there: str, anew: str) -> list[tuple[str, str]]:
    """-> no pair where two texts of a file are equal, else one: where they first differ, and how often, in words."""
    if there == anew or _differ_by_rounding(there, anew):
        return []
    if name.endswith(".json") and Path(name).name not in WHERE_WRITTEN:
        try:
            both = json.loads(there), json.loads(anew)
            places = list(_json_differences(*both))
            if not places and both[0] != both[1]:
                return []  # but for rounding
        except ValueError:
            return [("not JSON", "JSON")]
    else:
        rows = enumerate(zip_longest(there.splitlines(), anew.splitlines(), fillvalue=MISSING), 1)
        places = [(f"line {number}", *pair) for number, pair in rows if pair[0] != pair[1]]
    if not places:  # spaces, the order of keys, 1 for 1.0
        return [("the same values in another text", "the text as it is written")]
    where, *values = places[0]
    more = f" (and {len(places) - 1} more)" if len(places) > 1 else ""
    found, expected = _shortened(*map(str, values))
    return [(f"{where}: {found}{more}", expected)]


def _differ_by_rounding(there: str, anew: str) -> bool:
    """Whether two texts are equal but for the last digits of long numbers, which depend on a machine's threads."""
    same_words = NUMBER.split(there) == NUMBER.split(anew)
    return same_words and all(
        pair[0] == pair[1] or _is_rounding(*map(float, pair))
        for pair in zip(NUMBER.findall(there), NUMBER.findall(anew), strict=True)
    )


def _is_rounding(there: Any, anew: Any) -> bool:
    """Sums in another order, or an optimum stopped elsewhere within its proven gap; no table shows so many digits."""
    return isinstance(there, float) and isinstance(anew, float) and math.isclose(there, anew, rel_tol=ROUNDING)


def _json_differences(there: Any, anew: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(there, dict) and isinstance(anew, dict):
        for key in dict.fromkeys((*there, *anew)):
            yield from _json_differences(there.get(key, MISSING), anew.get(key, MISSING), f"{where}.{key}".lstrip("."))
    elif isinstance(there, list) and isinstance(anew, list):
        for number, pair in enumerate(zip_longest(there, anew, fillvalue=MISSING)):
            yield from _json_differences(*pair, f"{where}[{number}]")
    elif there != anew and not (there != there and anew != anew) and not _is_rounding(there, anew):  # NaN is NaN
        yield where or "all of it", there, anew


def _shortened(there: str, anew: str) -> tuple[str, str]:
    """Both from a little before the first letter that differs."""
    if max(len(there), len(anew)) <= MAX_TEXT_LENGTH:
        return there, anew
    same = next((n for n, (a, b) in enumerate(zip(there, anew)) if a != b), min(len(there), len(anew)))
    start = max(0, same - MAX_TEXT_LENGTH // 4)
    cut = [("…" if start else "") + text[start : start + MAX_TEXT_LENGTH] for text in (there, anew)]
    return cut[0], cut[1]
