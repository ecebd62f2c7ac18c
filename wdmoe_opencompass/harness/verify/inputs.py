"""Whether predictions, traces and the other files of a run belong together."""

import json
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from opencompass.utils import dataset_abbr_from_cfg, model_abbr_from_cfg

from ..._util.file_names import dataset_file, files_below
from ...errors import TraceError, WdmoeError
from ...report.publication import manifest
from ...report.summary_files import MANIFEST_FILE
from ...run.failures import read_failure
from ...run.files import FAILURE_SUFFIX, read_whole
from ...run.recovery import JOURNAL_SUFFIXES, MEASURED, why_not_of
from ...trace.format import SEALED_SUFFIX, RoutingTrace
from ..trace_checks import Expected, ModelFiles, why_refused
from .verdict import NOTHING, Mismatch, Run


def unfinished_files(run: Run) -> Iterator[Mismatch]:
    """Journals that were never sealed, of what the tables are of, and JSON that is torn.

    What failed has a journal too; its cells are empty with the reason, and that is compared.
    """
    for files in map(run.files_of, run.config["models"]):
        names = [
            name
            for dataset in files.datasets
            for name in _names_of(files, dataset)
            if read_failure(files.path(name, ".json")) is None
        ]
        for path in (files.path(name, suffix) for name in names for suffix in JOURNAL_SUFFIXES):
            if path.exists():
                yield Mismatch(run.name(path), "a journal that was never sealed", "none: continue the run with -r")
    for part in ("predictions", "results", "summary"):
        for path in files_below(run.folder / part, ".json"):
            try:
                json.loads(path.read_bytes())
            except (ValueError, RecursionError) as error:
                yield Mismatch(run.name(path), f"torn: {error}", "JSON")


def unfit_inputs(run: Run) -> Iterator[Mismatch]:
    """Predictions and traces that are missing, do not fit each other, or are of another config; reads the traces."""
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
                yield Mismatch(run.name(run.config_file), f"{abbr}: {error}", "a config that can be run here")
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
        yield Mismatch(run.name(path), why, "a trace of this run")


def _names_of(files: ModelFiles, dataset: str) -> Sequence[str]:
    """A dataset, or the parts that a partitioner made of it."""
    suffixes = (".json", SEALED_SUFFIX)
    if any(files.path(dataset, suffix).exists() for suffix in suffixes):
        return [dataset]
    return files.parts_of(dataset, *suffixes) or [dataset]


def _predictions_alone(run: Run, files: ModelFiles, name: str) -> Iterator[Mismatch]:
    path = files.path(name, ".json")
    if not path.exists() and not files.path(name, FAILURE_SUFFIX).exists():
        yield Mismatch(run.name(path), NOTHING, "predictions, or the reason why its task failed")


def _pair(
    run: Run, files: ModelFiles, name: str, trace: RoutingTrace | None, no_trace: str, dataset_cfg: Any
) -> Iterator[Mismatch]:
    """Predictions and trace of a dataset or a part of one."""
    path, sealed = files.path(name, ".json"), files.path(name, SEALED_SUFFIX)
    if trace is None and not path.exists():
        yield from _predictions_alone(run, files, name)
        return
    if trace is None:
        yield Mismatch(run.name(sealed), no_trace, "a sealed trace next to the predictions")
        return
    if not path.exists():
        yield Mismatch(run.name(path), NOTHING, f"predictions of the {int(trace.items.sum())} items of its trace")
        return
    answers = read_whole(path)
    is_part = name != dataset_abbr_from_cfg(dataset_cfg)
    test_range = trace.metadata.test_range if is_part else None
    why = None if answers is None else why_not_of(trace, answers, dataset_cfg, test_range)
    if why is not None:
        yield Mismatch(run.name(sealed), why, "every item of its predictions, as often as it was run")
    for kind in MEASURED:
        path = files.path(name, kind.journal.sealed_suffix)
        try:
            if path.exists():
                kind.check(kind.read(path), trace)
        except TraceError as error:
            yield Mismatch(run.name(path), str(error), f"{kind.journal.contents}, of the passes of its trace")


def changed_files(run: Run) -> Iterator[Mismatch]:
    """Files that do not match their SHA-256 in the run's manifest."""
    path = run.folder / "summary" / MANIFEST_FILE
    listed = read_whole(path) if path.exists() else None
    if listed is None or not all(isinstance(digest, str) for digest in listed.values()):
        yield Mismatch(run.name(path), "not there, or torn", "the SHA-256 of every file of the run")
        return
    there = manifest(run.folder)
    for name in sorted({*listed, *there}):
        if listed.get(name) != there.get(name):
            found, wanted = (
                f"SHA-256 {digests[name][:12]}" if name in digests else other
                for digests, other in ((there, NOTHING), (listed, f"not listed in {MANIFEST_FILE}"))
            )
            yield Mismatch(name, found, f"{wanted} in {MANIFEST_FILE}" if name in listed else wanted)


def other_versions(run: Run) -> list[str]:
    """A note for each package that the run's traces recorded in another version than is installed here."""
    recorded = {pair for trace in run.traces.values() for pair in trace.metadata.versions.items()}
    return [
        f"the run recorded {name} {number}, here is {here}: last digits and the wording of notes may differ"
        for name, number in sorted(recorded)
        if (here := _installed(name)) != number
    ]


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
