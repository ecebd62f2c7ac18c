"""Whether routing traces belong in the tables of a run: every check of what must not be mixed is here."""

import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opencompass.utils import dataset_abbr_from_cfg, model_abbr_from_cfg

from .._util.file_names import dataset_file, parts_of, whole_of
from ..errors import PolicyError, TraceError, WdmoeError, unknown_name
from ..identity import Facts, compare_facts, key_of
from ..identity.facts import sentence
from ..selection import POLICIES, build_policy, policy_parameters
from ..trace.format import SEALED_SUFFIX, RoutingTrace, TraceMetadata, read_trace, routing_name
from .identify import asked_facts
from .settings import WdmoeSettings, parse_settings, validate_settings

TraceKey = tuple[str, str]  # model, and the name of a trace's file: a dataset, or a part of one


@dataclass(frozen=True)
class Expected:
    """What a run's config says about a model.

    routing:          its policy, and the bits that its payload is really rounded to
    parameters:       of the policy, as JSON; without the one tuned to match kept_share
    calibration_hash: None without one; "" where its file is not on this machine
    asked:            dataset -> what `identify.asked_facts` gives
    """

    model: str
    weights: str
    routing: str
    parameters: dict[str, Any]
    renormalise: bool | str
    kept_share: float | None
    calibration_hash: str | None
    perplexity: str
    profile_hash: str
    asked: dict[str, Facts] = field(default_factory=dict)

    @classmethod
    def of(cls, model_cfg: Any, recorded: Sequence[TraceMetadata], dataset_cfgs: Sequence[Any] = ()) -> "Expected":
        """Read a model's config; ModelError, PolicyError, ProfileError or TestbedError where it breaks a rule.

        dataset_cfgs: of the run; its traces must have been recorded with their arguments.
        If its profile, lab or calibration file is not on this machine, the first trace's values are expected: the
        other traces must then agree with them.
        """
        settings = validate_settings(model_cfg["wdmoe"])
        if settings.policy not in POLICIES:
            raise PolicyError(unknown_name("selection policy", settings.policy, POLICIES))
        if recorded and _files_are_elsewhere(settings):
            routing, profile_hash = recorded[0].routing, recorded[0].profile_hash
            parameters, calibration_hash = settings.policy_parameters, None if settings.calibration is None else ""
        else:
            settings = parse_settings(model_cfg["wdmoe"])
            profile = settings.load_profile()
            bits = profile.payload_bits if settings.payload_is_rounded else None
            routing, profile_hash = routing_name(settings.policy, bits), profile.content_hash
            parameters = policy_parameters(settings.build_policy())
            calibration_hash = None if settings.calibration is None else settings.read_calibration().content_hash
        kind = POLICIES[settings.policy]
        matched = kind.tuned.name if settings.kept_share is not None and kind.tuned is not None else None
        return cls(
            model=model_abbr_from_cfg(model_cfg),
            weights=str(model_cfg["path"]),
            routing=routing,
            parameters=_as_json({name: value for name, value in parameters.items() if name != matched}),
            renormalise=kind.renormalise if settings.renormalise is None else settings.renormalise,
            kept_share=settings.kept_share,
            calibration_hash=calibration_hash,
            perplexity=settings.perplexity,
            profile_hash=profile_hash,
            asked={dataset_abbr_from_cfg(cfg): asked_facts(model_cfg, cfg) for cfg in dataset_cfgs},
        )


def _as_json(parameters: Any) -> Any:
    return json.loads(json.dumps(parameters, default=str))


def _files_are_elsewhere(settings: WdmoeSettings) -> bool:
    named = [str(name or "") for name in (settings.profile, settings.testbed)]
    files = [name for name in named if name.endswith((".yaml", ".yml"))]
    return any(not Path(name).is_file() for name in [*files, *filter(None, [settings.calibration])])


def _of_identity(name: str) -> tuple[str, Callable[[TraceMetadata], Any], Callable[[TraceMetadata], Any]]:
    """A fact of a model that its datasets share: files may have been replaced between two starts of a run."""

    def group(metadata: TraceMetadata) -> Any:
        return metadata.model, bool(metadata.identity)

    def fact(metadata: TraceMetadata) -> Any:
        found = metadata.identity.get(name)
        return f"sha256:{key_of(found)}" if isinstance(found, dict) else found

    return name, group, fact


# What all traces of a group must have in common: its name, the group, the fact.
ALIKE: tuple[tuple[str, Callable[[TraceMetadata], Any], Callable[[TraceMetadata], Any]], ...] = (
    ("top-k", lambda metadata: metadata.weights, lambda metadata: metadata.top_k),
    ("MoE layers", lambda metadata: metadata.weights, lambda metadata: metadata.layers),
    ("experts", lambda metadata: metadata.weights, lambda metadata: metadata.experts),
    (
        "hidden and FFN size",
        lambda metadata: metadata.weights,
        lambda metadata: (metadata.hidden_size, metadata.ffn_size),
    ),
    ("precision", lambda metadata: metadata.model, lambda metadata: metadata.dtype),
    *(_of_identity(name) for name in ("weights", "peft_path", "tokenizer", "config")),
    ("wdmoe_opencompass version", lambda metadata: "", lambda metadata: metadata.versions.get("wdmoe_opencompass")),
)


def why_refused(traces: Mapping[TraceKey, RoutingTrace], expected: Mapping[str, Expected]) -> dict[TraceKey, str]:
    """-> the reason for each trace that must not enter the run's tables.

    Each is compared with its model's config, its own counts and the other traces. Where traces must agree, the most
    common value holds, or the first of equally common ones. (Another format version is refused on reading.)
    """
    refused: dict[TraceKey, str] = {}
    for key, trace in traces.items():
        why = _unlike_config(trace.metadata, key[1], expected[key[0]]) or _impossible_count(trace)
        if why:
            refused[key] = why
    for what, group, fact in ALIKE:
        left = {key: trace.metadata for key, trace in traces.items() if key not in refused}
        for shared in dict.fromkeys(group(metadata) for metadata in left.values()):
            counts = Counter(fact(metadata) for metadata in left.values() if group(metadata) == shared)
            usual = counts.most_common(1)[0][0]
            refused |= {
                key: f"its trace was recorded with {what} {fact(metadata)}, most of the run's with {usual}"
                for key, metadata in left.items()
                if group(metadata) == shared and fact(metadata) != usual
            }
    return refused


def _unlike_config(metadata: TraceMetadata, name: str, expected: Expected) -> str | None:
    known = {key: metadata.policy_parameters.get(key) for key in expected.parameters}
    calibration = metadata.calibration_hash if expected.calibration_hash != "" else ""
    for what, found, wanted in (
        ("model", metadata.model, expected.model),
        ("weights", metadata.weights, expected.weights),
        ("dataset", metadata.dataset, name),
        ("router outputs of a", metadata.routed_from, "model"),
        ("policy", metadata.routing, expected.routing),
        ("policy parameters", _as_json(known), expected.parameters),
        ("renormalise", metadata.renormalise, expected.renormalise),
        ("kept_share", metadata.kept_share, expected.kept_share),
        ("calibration", calibration, expected.calibration_hash),
        ("perplexity", metadata.perplexity, expected.perplexity),
        ("channel profile of hash", metadata.profile_hash, expected.profile_hash),
    ):
        if found != wanted:
            return f"its trace was recorded with {what} {found}, not {wanted}"
    asked = expected.asked.get(whole_of(name, expected.asked), {})
    changed = compare_facts(metadata.arguments, asked) if metadata.arguments and asked else {}
    changed.pop("batch_size", None)  # what it changes, the trace itself tells
    return f"its trace was recorded with other arguments than the config's: {sentence(changed)}" if changed else None


def _impossible_count(trace: RoutingTrace) -> str | None:
    """Counts that no run gives: load > evaluations, evaluations > assignments, or assignments > k per token."""
    for ending in ("_before", ""):
        load, evaluations, assignments = (
            trace.arrays[name + ending] for name in ("device_load", "expert_evaluations", "assignments")
        )
        most = trace.metadata.top_k * trace.tokens[:, None]
        if (load > evaluations).any() or (evaluations.sum(axis=2) > assignments).any() or (assignments > most).any():
            return "the counts in its trace contradict each other"
    return None


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model's datasets, and of their parts, in a run's `predictions`.

    datasets: all of the run's
    """

    predictions: Path
    model: str
    datasets: Collection[str]

    def path(self, name: str, suffix: str) -> Path:
        """-> where a dataset, or a part of one, has its file with this ending."""
        return dataset_file(self.predictions, self.model, name, suffix)

    def parts_of(self, dataset: str, *suffixes: str) -> list[str]:
        """-> the parts of which there are predictions, or a file with one of these endings."""
        return parts_of(self.predictions, self.model, dataset, self.datasets, suffixes or (".json",))

    def read_traces(self) -> tuple[dict[str, RoutingTrace], dict[str, str]]:
        """-> the sealed traces by name, and why others cannot be read."""
        traces: dict[str, RoutingTrace] = {}
        unreadable: dict[str, str] = {}
        for name in (name for whole in self.datasets for name in (whole, *self.parts_of(whole, SEALED_SUFFIX))):
            path = self.path(name, SEALED_SUFFIX)
            if path.exists():
                try:
                    traces[name] = read_trace(path)
                except TraceError as error:
                    unreadable[name] = str(error)
        return traces, unreadable


def couples_tokens(metadata: TraceMetadata) -> bool:
    """Whether the run's policy, with its parameters, weighs the tokens of a forward pass together."""
    try:
        return build_policy(metadata.policy, metadata.policy_parameters).couples_tokens
    except WdmoeError:  # its calibration is not on this machine
        return bool(POLICIES[metadata.policy].couples_tokens) if metadata.policy in POLICIES else True
