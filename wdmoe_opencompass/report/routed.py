"""Results of a trace routed from a recording: the rows of Table II, and a folder in the layout of a run."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._util.file_names import dataset_file
from ..errors import TraceError
from ..replay import replay
from ..trace.format import SEALED_SUFFIX, RoutingTrace, write_trace
from .figures import write_figures
from .html.page import write_page
from .records import ROWS
from .runs import ModelRun, benchmarks_of, runs_from_traces
from .summary import write_report


def routed_rows(vanilla: RoutingTrace, routed: RoutingTrace, scope: str) -> list[dict[str, Any]]:
    """The four rows of Table II: row, scope, latency_s (mean per forward pass) and saving against the first.

    Raises TraceError where there is no forward pass.
    """
    if not len(routed.batch):
        raise TraceError(f"the recording of {routed.metadata.dataset} holds no tokens")
    rows: list[dict[str, Any]] = []
    for row, (is_vanilla, method) in ROWS.items():
        trace = vanilla if is_vanilla else routed
        latency_s = replay(trace, trace.metadata.profile, method, scope).mean_s("pass", "all")
        assert latency_s is not None
        first_s = rows[0]["latency_s"] if rows else latency_s
        rows.append(
            dict(row=row, scope=scope, latency_s=latency_s, saving=1 - latency_s / first_s if first_s else None)
        )
    return rows


def write_routed(folder: Path, *traces: RoutingTrace) -> list[Path]:
    """Write traces into a folder in the layout of a run, then its tables, figures and page; -> the traces' files.

    The folder may already hold traces of the same recording under the same profile; the tables then cover all of them.
    TraceError if it holds others.
    """
    paths = [_file(folder, trace.metadata.model, trace) for trace in traces]
    if (folder / "predictions").exists():
        for run in runs_from_traces(folder):
            for trace in run.all_traces:
                _check_alike(folder, trace, traces[0])
                _check_parameters(folder, trace, traces)
    for path, trace in zip(paths, traces, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_trace(path, trace)
    write_summary(folder)
    return paths


def _check_alike(folder: Path, found: RoutingTrace, new: RoutingTrace) -> None:
    for what, old, other in (
        ("routed from", found.metadata.routed_from, new.metadata.routed_from),
        ("of a recording with SHA-256", found.metadata.recording_sha256, new.metadata.recording_sha256),
        ("under a profile with hash", found.metadata.profile_hash, new.metadata.profile_hash),
        ("with a top-k mass of", found.metadata.top_k_mass, new.metadata.top_k_mass),
        ("with a batch size of", found.metadata.batch_size, new.metadata.batch_size),
    ):
        if old != other:
            raise TraceError(
                f"{folder}: holds the trace of {found.metadata.model}, {what} {old}, not {other}; give another folder"
            )
    if not np.array_equal(found.tokens, new.tokens):
        raise TraceError(f"{folder}: holds traces of other passes; give another folder")


def _check_parameters(folder: Path, found: RoutingTrace, new: Sequence[RoutingTrace]) -> None:
    """One folder holds a policy once: with other parameters it would overwrite the earlier trace."""
    own = found.metadata
    for trace in new:
        if trace.metadata.model == own.model and trace.metadata.policy_parameters != own.policy_parameters:
            raise TraceError(
                f"{folder}: holds the trace of {own.model} with policy parameters {own.policy_parameters}, not "
                f"{trace.metadata.policy_parameters}; give another folder"
            )


def write_summary(folder: Path) -> None:
    """Write tables, figures and page of a folder's traces into its `summary/`, without a config and accuracies."""
    from ..selection import build_policy

    runs = runs_from_traces(folder)
    for run in runs:
        run.sources = {dataset: _sources(run, traces, folder) for dataset, traces in run.traces.items()}
        run.couples_tokens = any(
            build_policy(trace.metadata.policy, trace.metadata.policy_parameters).couples_tokens
            for trace in run.all_traces
        )
    benchmarks = benchmarks_of([dataset for run in runs for dataset in run.traces], runs[0].groups)
    write_report(runs, benchmarks, folder / "summary")
    write_figures(runs, benchmarks, folder / "summary")
    write_page(folder)


def _sources(run: ModelRun, traces: Sequence[RoutingTrace], folder: Path) -> dict[str, str]:
    paths = [_file(folder, run.abbr, trace) for trace in traces]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _file(folder: Path, model: str, trace: RoutingTrace) -> Path:
    return dataset_file(folder / "predictions", model, trace.metadata.dataset, SEALED_SUFFIX)
