"""`wdmoe route`: a policy on recorded router outputs, without the model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._util.given_paths import check_out_folder
from ..errors import PolicyError, WdmoeError, unknown_name
from .console import Progress, print_json, print_table
from .options import PROFILE_HELP, SCOPE_NAMES, AsJson, Scope, open_profile, profile_names

if TYPE_CHECKING:
    from ..trace.format import RoutingTrace

EXAMPLES = (
    "wdmoe route mixtral.routing.safetensors --policy wlr",
    "wdmoe route r.routing.safetensors --policy fixed_k --parameters '{\"k\": 1}'",
    "wdmoe route r.routing.safetensors --policy bottleneck --out routed",
)


def route_command(
    recording: Annotated[Path, typer.Argument(help="A recording: NAME.routing.safetensors.")],
    policy: Annotated[str, typer.Option(help="Name of a selection policy.")],
    parameters: Annotated[str, typer.Option(help="Policy parameters other than the defaults, as JSON.")] = "{}",
    profile: Annotated[str, typer.Option(help=PROFILE_HELP, autocompletion=profile_names)] = "paper_8_devices",
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Sequences per forward pass. Default: the recorded run's batches; 64 for an import."),
    ] = None,
    scope: Scope = "layer",
    top_k_mass: Annotated[
        float | None,
        typer.Option(help="Without a recorded full softmax: total weight of the top-k; the rest is even."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for traces, tables, figures and page, as in a run.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a policy on a recording of a router: assignments kept, and the four latencies of Table II.

    No model runs: a drop does not change what later layers see, and there are no answers, so no accuracy.
    """
    from ..allocation import SCOPE_LABELS
    from ..report.routed import routed_rows, write_routed
    from ..routing.route import UNCHANGED, route_recording, vanilla_trace
    from ..trace.recording import read_recording

    if scope not in SCOPE_NAMES:
        raise WdmoeError(unknown_name("scope", scope, SCOPE_NAMES))
    if out is not None:
        check_out_folder(out)
    loaded = open_profile(profile)
    given = policy_arguments(parameters)
    read = read_recording(recording)
    with Progress(f"routing {recording}"):
        with recording.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        routed = route_recording(read, policy, given, loaded, batch_size, top_k_mass, digest)
        vanilla = vanilla_trace(routed, f"{read.metadata.model}-{UNCHANGED}")
        rows = routed_rows(vanilla, routed, scope)
        if out is not None:
            write_routed(out, vanilla, routed)
    answer = _answer(routed, rows, routed.metadata.routed_notes()) | (dict(out=str(out)) if out else {})
    if as_json:
        print_json(answer)
        return
    print_table([row | dict(scope=SCOPE_LABELS[scope]) for row in rows])
    print(
        f"mean per forward pass, saving relative to the first row; {answer['passes']} passes, {answer['tokens']} tokens"
    )
    size = answer["batch_size"]
    print("batches of the recorded run" if size is None else f"batch size {size}: sequences per forward pass, at most")
    print(
        f"{policy} keeps {100 * answer['kept_share']:.1f} % of the assignments; profile {loaded.name} (hash "
        f"{loaded.content_hash[:12]}), seed {loaded.fading.seed}"
    )
    for note in answer["notes"]:
        print(note)
    if out is not None:
        print(f"traces, tables, figures and page: {out}")


def policy_arguments(text: str) -> dict[str, Any]:
    """-> what `--parameters` says; PolicyError where it is no JSON object."""
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        read = None
    if not isinstance(read, dict):
        raise PolicyError(f"--parameters must be a JSON object of parameters and values, got {text[:80]!r}")
    return read


def _answer(routed: RoutingTrace, rows: list[dict[str, Any]], notes: list[str]) -> dict[str, Any]:
    metadata = routed.metadata
    return dict(
        policy=metadata.policy,
        policy_parameters={
            name: value if _is_json(value) else str(value) for name, value in metadata.policy_parameters.items()
        },
        kept_share=float(routed.assignments.sum() / routed.assignments_before.sum()),
        rows=rows,
        batch_size=metadata.batch_size,
        passes=len(routed.batch),
        tokens=int(routed.tokens.sum()),
        model=metadata.model,
        dataset=metadata.dataset,
        profile=metadata.profile.name,
        profile_hash=metadata.profile_hash,
        seed=metadata.seed,
        recording_sha256=metadata.recording_sha256,
        versions=metadata.versions,
        notes=notes,
    )


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, TypeError):  # an infinite parameter
        return False
    return True
