"""Where a table's numbers come from: one block of facts, as an object in its JSON and as notes under the others.

No time stamps: the tables of two equal runs are equal byte for byte.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

from ..channel.origin import keys_by_origin
from ..identity import DATASET_FACTS, Facts, describe, key_of
from ..identity.facts import plain
from ..trace.format import RoutingTrace, TraceMetadata
from .formats import by_reason
from .runs import DENSE, ModelRun, datasets_of, missing_cells
from .summary_files import PROVENANCE_FILE

FACTS_OF_ROUTED = (
    "routed_from",
    "recording_sha256",
    "recorded_routing",
    "softmax_recorded",
    "top_k_mass",
    "routing_seed",
)
PADDED = " (OpenCompass's own: a text's score depends on the padding of its batch)"


def provenance(runs: Sequence[ModelRun], **where: str) -> dict[str, Any]:
    """The facts of a table of these runs, for its JSON.

    where: scope, per and phase, of a table that is of one of them
    """
    every = [trace.metadata for run in runs for trace in run.all_traces]
    return dict(
        packages=_packages(every),
        profiles=[_profile(metadata) for metadata in _by_profile(runs)],
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
    for metadata in _by_profile(runs):
        profile = metadata.profile
        lines += [_describe(metadata), f"profile {profile.name}: {profile.origin_sentence}"]
        lines += [f"unusual in profile {profile.name}: {sentence}" for sentence in profile.unusual_values]
    lines += [line for run in runs for line in (*_model_notes(run), *answer_notes(run))]
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


def _all_routed_notes(runs: Sequence[ModelRun]) -> list[str]:
    return list(
        dict.fromkeys(line for run in runs for trace in run.all_traces for line in trace.metadata.routed_notes())
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
        if run.couples_tokens and run.perplexity == "exact":
            lines.append(
                f"{run.abbr}: its policy weighs the tokens of a forward pass together: perplexity exact does not undo "
                "that, and with another batch size the scores can differ"
            )
        split = [name for name, traces in run.traces.items() if _is_split(name, traces) and _fading_changes(traces[0])]
        if split:
            lines.append(
                f"{run.abbr}: its fading changes within a run, and {', '.join(split)} was split: each part has "
                "other draws than the dataset in one piece"
            )
    return lines


def _is_split(dataset: str, traces: Sequence[RoutingTrace]) -> bool:
    """Also into a single part: its draws are seeded with the part's name."""
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
    """The profiles and ways to score texts that the runs' traces were recorded with, and what a footnote says."""
    every = [trace.metadata for trace in _all_traces(runs)]
    found = {(_profile_key(metadata), metadata.perplexity): metadata for metadata in every}
    return [
        dict(
            profile_hash=metadata.profile_hash,
            perplexity=metadata.perplexity,
            text="; ".join([_describe(metadata), _versions(metadata), *metadata.routed_notes()]),
        )
        for metadata in found.values()
    ]


def profile_line(runs: Sequence[ModelRun]) -> str:
    """Profiles and seeds of the runs' traces, in one line."""
    return "; ".join([*_all_routed_notes(runs), *(_describe(metadata) for metadata in _by_profile(runs))])


def _by_profile(runs: Sequence[ModelRun]) -> list[TraceMetadata]:
    """-> metadata of one trace under each profile; equal values of different origins are two profiles."""
    return list({_profile_key(trace.metadata): trace.metadata for trace in _all_traces(runs)}.values())


def _profile_key(metadata: TraceMetadata) -> str:
    return json.dumps([metadata.profile_hash, metadata.profile.name, metadata.profile.origin])


def _all_traces(runs: Sequence[ModelRun]) -> list[RoutingTrace]:
    return [trace for run in runs for trace in run.all_traces]


def _packages(every: Sequence[TraceMetadata]) -> dict[str, list[str]]:
    """Package -> its versions, of which there should be but one."""
    pairs = sorted({pair for metadata in every for pair in metadata.versions.items()})
    return {name: [number for other, number in pairs if other == name] for name, _ in pairs}


def _profile(metadata: TraceMetadata) -> dict[str, Any]:
    fading = metadata.profile.fading
    return dict(
        name=metadata.profile.name,
        profile_hash=metadata.profile_hash,
        seed=metadata.seed,
        fading=fading.model,
        coherence=fading.coherence,
        origin=keys_by_origin(metadata.profile.value_origins()),
    )


def _model(run: ModelRun) -> dict[str, Any]:
    facts: dict[str, Any] = dict(model=run.abbr, policy=run.policy, weights=run.base[0])
    first = next(iter(run.all_traces), None)
    if first is not None:
        metadata = first.metadata
        facts |= dict(
            parameters=_plain(metadata.policy_parameters),
            renormalise=metadata.renormalise,
            kept_share=metadata.kept_share,
            calibration_hash=metadata.calibration_hash,
            quantise_payload=metadata.quantise_payload,
            couples_tokens=run.couples_tokens,
            dtype=metadata.dtype,
            top_k=metadata.top_k,
            experts=metadata.experts,
            layers=metadata.layers,
            batch_size=run.batch_size,
            own_batch_sizes=run.own_batch_sizes,
            profile_hash=metadata.profile_hash,
            seed=metadata.seed,
            trace_format=metadata.format_version,
        )
        if metadata.routed_from != "model":
            facts |= {name: getattr(metadata, name) for name in FACTS_OF_ROUTED}
        else:  # without the model no text is scored
            facts["perplexity"] = metadata.perplexity
    facts |= dict(datasets=list(run.traces), files=run.sources, files_sha256=files_digest(run))
    of_all, of_some = _answer_facts(run)
    return facts | dict(answers_depend_on=of_all, answers_depend_on_by_dataset=of_some)


NOT_NAMED = (*DATASET_FACTS, "method")  # of all facts; identity.json has them


def _answer_facts(run: ModelRun) -> tuple[Facts, dict[str, Facts]]:
    """-> the facts of `identity_of` that all of a model's datasets have in common, and the others by dataset."""
    traced = [
        name for name, traces in run.traces.items() if all(trace.metadata.routed_from == "model" for trace in traces)
    ]
    datasets = list(dict.fromkeys((*traced, *run.accuracies)))  # what was routed without a model has no answers
    every = {name: plain(run.identity_of(name) or run.asked_of(name)) for name in datasets}
    for facts in every.values():
        if isinstance(facts.get("config"), dict):
            facts["config"] = f"sha256:{key_of(facts['config'])}"
        for name in NOT_NAMED:
            facts.pop(name, None)
    first: Facts = next(iter(every.values()), {})
    of_all = {k: value for k, value in first.items() if all(facts.get(k) == value for facts in every.values())}
    of_some = {name: {k: v for k, v in facts.items() if k not in of_all} for name, facts in every.items()}
    return of_all, {name: facts for name, facts in of_some.items() if facts}


def _is_sampled(generation: Any) -> bool:
    return isinstance(generation, dict) and bool(generation.get("do_sample"))


def answer_notes(run: ModelRun) -> list[str]:
    """One line on all that a model's answers depend on besides policy and profile, adapter and arguments included."""
    of_all, of_some = _answer_facts(run)
    if not of_all and not of_some:
        return []
    alike = by_reason((describe(facts), name) for name, facts in of_some.items())
    parts = [describe(of_all), *(f"on {names}: {text}" for text, names in alike.items())]
    is_known = all(run.identity_of(name) for name in run.traces) and bool(run.traces)
    source = "" if is_known else ", by the configs alone"
    lines = [f"{run.abbr}: answers depend on{source} {'; '.join(filter(None, parts))}"]
    sampled = [name for name in run.traces if _is_sampled(run.identity_of(name).get("generation_kwargs"))]
    if sampled:
        lines.append(
            f"{run.abbr}: its answers on {', '.join(sampled)} were sampled: differences hold the chance of the draws "
            "too, which no interval covers"
        )
    return lines


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
    metadata = traces[0].metadata
    parameters = ", ".join(f"{k}={v}" for k, v in metadata.policy_parameters.items()) or "no parameters"
    scored = f"; perplexity {metadata.perplexity}{PADDED if metadata.perplexity == 'stock' else ''}"
    digest = f", SHA-256 of all files {files_digest(run)[:12]} (of each: {PROVENANCE_FILE})" if run.sources else ""
    return [
        f"{run.abbr}: policy {metadata.policy} ({parameters}), renormalise {metadata.renormalise}, {metadata.dtype}"
        f"{scored if metadata.routed_from == 'model' else ''}; weights {metadata.weights}, top-{metadata.top_k} of "
        f"{metadata.experts} experts; {len(traces)} traces of format {metadata.format_version}{digest}"
    ]


def _versions(metadata: TraceMetadata) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(metadata.versions.items()))


def _describe(metadata: TraceMetadata) -> str:
    fading = metadata.profile.fading
    return (
        f"profile {metadata.profile.name} (hash {metadata.profile_hash[:12]}), "
        f"fading {fading.model} per {fading.coherence}, seed {metadata.seed}"
    )
