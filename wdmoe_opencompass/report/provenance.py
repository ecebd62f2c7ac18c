"""Where a table's numbers come from: one block of facts, as an object in its JSON and as notes under the others.

No time stamps: the tables of two equal runs are equal byte for byte.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

from ..channel.origin import keys_by_origin
from ..routing.trace import RoutingTrace, TraceMetadata
from .tables import DENSE, ModelRun, datasets_of, missing_cells

PROVENANCE_FILE = "provenance.json"


def provenance(runs: Sequence[ModelRun], **where: str) -> dict[str, Any]:
    """The facts of a table of these runs, for its JSON.

    where: scope, per and phase, of a table that is of one of them
    """
    every = [trace.metadata for run in runs for trace in run.all_traces]
    return dict(
        packages=_packages(every),
        profiles=[_profile(one) for one in _by_profile(runs)],
        datasets=datasets_of(runs),
        **where,
        models=[_model(run) for run in runs],
        notes=_all_routed_notes(runs) + coupling_notes(runs),
    )


def footnote(runs: Sequence[ModelRun], text: str) -> list[str]:
    """Lines under a table: what it shows, then where its numbers come from."""
    return [text, *origin_notes(runs)]


def origin_notes(runs: Sequence[ModelRun]) -> list[str]:
    """Lines of the facts of `provenance`: profile, seed, policies, weights, versions; and what is empty and why."""
    lines = _all_routed_notes(runs)
    for one in _by_profile(runs):
        lines += [_described(one), f"profile {one.profile.name}: {one.profile.origin_sentence}"]
    lines += [line for run in runs for line in _model_notes(run)]
    for name, members in next((run.groups for run in runs), {}).items():
        whole = f" of its {runs[0].group_size[name]}" if name in runs[0].group_size else ""
        lines.append(
            f"{name}: plain mean of the accuracies of {len(members)}{whole} datasets; latency over all their batches "
            "or passes"
        )
    versions = _packages([trace.metadata for run in runs for trace in run.all_traces])
    if versions:
        lines.append("versions: " + ", ".join(f"{name} {' and '.join(them)}" for name, them in versions.items()))
    return lines + coupling_notes(runs) + [f"empty: {cell}" for cell in missing_cells(runs)]


def routed_notes(one: TraceMetadata) -> list[str]:
    """Lines on what a trace cannot know that was routed without its model; none of a model's run."""
    if one.routed_from == "model":
        return []
    source = "generated router outputs"
    if one.routed_from == "recording":
        source = f"a recording of the router (SHA-256 {one.recording_sha256[:12] or 'unknown'})"
    lines = [
        f"routed from {source}, without the model: a drop does not change what later layers see (open loop), and there "
        "are no answers, so no accuracy"
    ]
    if one.recorded_routing not in ("", "top_k"):
        lines.append(f"the recorded run routed by {one.recorded_routing}: later layers saw what it had dropped")
    if one.softmax_recorded is False and one.top_k_mass is None:
        lines.append(
            "the recording lacks the full softmax: similarities as in Eq. (18) know the top-k only, all other weights "
            "are taken as 0"
        )
    elif one.top_k_mass is not None:
        lines.append(
            f"the recording lacks the full softmax: the top-k are taken to weigh {one.top_k_mass:g} together, and the "
            "rest to be spread evenly over the other experts"
        )
    return lines


def _all_routed_notes(runs: Sequence[ModelRun]) -> list[str]:
    return list(
        dict.fromkeys(line for run in runs for trace in run.all_traces for line in routed_notes(trace.metadata))
    )


def coupling_notes(runs: Sequence[ModelRun]) -> list[str]:
    """Lines on what depends on how a dataset was cut: choices that couple tokens, and fading that changes."""
    lines = []
    for run in runs:
        sizes = {name: run.own_batch_sizes.get(name, run.batch_size) for name in run.traces}
        uneven = [name for name, traces in run.traces.items() if batches_are_uneven(traces, sizes[name])]
        if run.couples_tokens and uneven:
            lines.append(
                f"{run.abbr}: its policy weighs the tokens of a forward pass together, and {', '.join(uneven)} was "
                "split or resumed off multiples of the batch size: run in one piece, the numbers could differ"
            )
        split = [name for name, traces in run.traces.items() if _is_split(name, traces) and _fading_changes(traces[0])]
        if split:
            lines.append(
                f"{run.abbr}: its fading changes within a run, and {', '.join(split)} was split: each part met draws "
                "of its own, other ones than in one piece"
            )
    return lines


def _is_split(dataset: str, traces: Sequence[RoutingTrace]) -> bool:
    """Also into a single part, whose draws are named after the part."""
    return any(trace.metadata.dataset != dataset for trace in traces)


def _fading_changes(trace: RoutingTrace) -> bool:
    fading = trace.metadata.profile.fading
    return fading.model != "none" and fading.coherence != "run"


def batches_are_uneven(traces: Sequence[RoutingTrace], batch_size: int | None) -> bool:
    """Whether a batch of a dataset begins off the multiples of its batch size.

    traces: one, or those of the parts that the dataset was split into, in order; batch_size: as the config names it
    """
    size = max([batch_size or 1, *(int(trace.items.max(initial=0)) for trace in traces)])
    start = 0
    for trace in traces:
        if ((start + trace.first_item) % size).any():
            return True
        start += int((trace.first_item + trace.items).max(initial=0))
    return False


def files_digest(run: ModelRun) -> str:
    """One SHA-256 for all the files that a model's numbers were read from."""
    return hashlib.sha256(json.dumps(run.sources, sort_keys=True).encode()).hexdigest()


def origin_records(runs: Sequence[ModelRun]) -> list[dict[str, str]]:
    """The profiles that the runs' traces were recorded under: hash, and what a footnote says of it."""
    return [
        dict(profile_hash=one.profile_hash, text=f"{_described(one)}; {_versions(one)}") for one in _by_profile(runs)
    ]


def profile_line(runs: Sequence[ModelRun]) -> str:
    """Profiles and seeds of the runs' traces, in one line."""
    return "; ".join([*_all_routed_notes(runs), *(_described(one) for one in _by_profile(runs))])


def _by_profile(runs: Sequence[ModelRun]) -> list[TraceMetadata]:
    """-> metadata of one trace under each profile; equal values of different origins are two profiles."""
    every = [trace.metadata for run in runs for trace in run.all_traces]
    keys = [json.dumps([one.profile_hash, one.profile.name, one.profile.origin]) for one in every]
    return list(dict(zip(keys, every, strict=True)).values())


def _packages(every: Sequence[TraceMetadata]) -> dict[str, list[str]]:
    """Package -> its versions, of which there should be but one."""
    pairs = sorted({pair for one in every for pair in one.versions.items()})
    return {name: [number for other, number in pairs if other == name] for name, _ in pairs}


def _profile(one: TraceMetadata) -> dict[str, Any]:
    fading = one.profile.fading
    return dict(
        name=one.profile.name,
        profile_hash=one.profile_hash,
        seed=one.seed,
        fading=fading.model,
        coherence=fading.coherence,
        origin=keys_by_origin(one.profile.value_origins()),
    )


def _model(run: ModelRun) -> dict[str, Any]:
    facts: dict[str, Any] = dict(model=run.abbr, policy=run.policy, weights=run.base[0])
    first = next(iter(run.all_traces), None)
    if first is not None:
        one = first.metadata
        facts |= dict(
            parameters=_plain(one.policy_parameters),
            renormalise=one.renormalise,
            kept_share=one.kept_share,
            calibration_hash=one.calibration_hash,
            quantise_payload=one.quantise_payload,
            couples_tokens=run.couples_tokens,
            dtype=one.dtype,
            top_k=one.top_k,
            experts=one.experts,
            layers=one.layers,
            batch_size=run.batch_size,
            own_batch_sizes=run.own_batch_sizes,
            profile_hash=one.profile_hash,
            seed=one.seed,
            trace_format=one.format_version,
        )
        if one.routed_from != "model":
            names = ("routed_from", "recording_sha256", "recorded_routing", "softmax_recorded", "top_k_mass")
            facts |= {name: getattr(one, name) for name in names}
    return facts | dict(datasets=list(run.traces), files=run.sources, files_sha256=files_digest(run))


def _plain(value: Any) -> Any:
    """The same in JSON, which has no infinite numbers."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _model_notes(run: ModelRun) -> list[str]:
    traces = run.all_traces
    if run.policy == DENSE:
        return [f"{run.abbr}: no experts, weights {run.base[0]}"]
    if not traces:
        return []
    one = traces[0].metadata
    parameters = ", ".join(f"{k}={v}" for k, v in one.policy_parameters.items()) or "no parameters"
    digest = f", SHA-256 of all files {files_digest(run)[:12]} (of each: {PROVENANCE_FILE})" if run.sources else ""
    return [
        f"{run.abbr}: policy {one.policy} ({parameters}), renormalise {one.renormalise}, {one.dtype}; weights "
        f"{one.weights}, top-{one.top_k} of {one.experts} experts; {len(traces)} traces of format "
        f"{one.format_version}{digest}"
    ]


def _versions(one: TraceMetadata) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(one.versions.items()))


def _described(one: TraceMetadata) -> str:
    fading = one.profile.fading
    return (
        f"profile {one.profile.name} (hash {one.profile_hash[:12]}), "
        f"fading {fading.model} per {fading.coherence}, seed {one.seed}"
    )
