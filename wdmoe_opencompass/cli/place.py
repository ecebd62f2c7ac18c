"""`wdmoe place`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._util.atomic_write import write_whole
from .._util.given_paths import check_out_file
from ..errors import WdmoeError
from .console import Progress, print_json, print_table
from .options import OBJECTIVE_NAMES, PROFILE_HELP, AsJson, names, open_profile, profile_names

if TYPE_CHECKING:
    from ..placement import Comparison

EXAMPLES = (
    "wdmoe place RUN/predictions/VANILLA/*.trace.safetensors --devices 4",
    "wdmoe place d.trace.safetensors --objective transfers --out placed.yaml",
)


def place_command(
    traces: Annotated[list[Path], typer.Argument(metavar="TRACE", help="Sealed routing traces of one vanilla model.")],
    devices: Annotated[int | None, typer.Option(help="Use the first N devices of the profile; default all.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write a channel profile with our placement: FILE.yaml.")] = None,
    profile: Annotated[
        str | None, typer.Option(help=f"{PROFILE_HELP} Default: the run's own.", autocompletion=profile_names)
    ] = None,
    objective: Annotated[
        str,
        typer.Option(help=f"What to minimise: {' or '.join(OBJECTIVE_NAMES)}.", autocompletion=names(OBJECTIVE_NAMES)),
    ] = "latency",
    experts_per_device: Annotated[
        int | None, typer.Option(min=1, help="Maximum experts per device; default experts / devices, rounded up.")
    ] = None,
    time_limit: Annotated[
        float, typer.Option(min=0, help="Seconds for the exact solver; 0: local search only.")
    ] = 30.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the local search's random starts.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Place experts often chosen together on one device, Section V-D: exact for pairs (K = 2), heuristic beyond."""
    from ..placement import compare_placements, profile_text
    from ..trace.format import read_trace

    if out is not None and out.suffix not in (".yaml", ".yml"):
        raise WdmoeError(f"{out}: a channel profile file must end in .yaml")
    if out is not None:
        check_out_file(out)
    if out is not None and profile is not None and out.resolve() == Path(profile).resolve():
        raise WdmoeError(f"{out}: --out would overwrite the profile that is read; give another name")
    loaded = None if profile is None else open_profile(profile)
    read = [read_trace(path) for path in traces]
    with Progress("placing experts", 2) as progress:
        answer = compare_placements(
            read, loaded, devices, objective, experts_per_device, time_limit, seed, progress.advance
        )
    if out is not None:
        try:
            write_whole(out, profile_text(answer, read))
        except OSError as error:
            raise WdmoeError(f"{out}: cannot be written: {error.strerror}") from None
    if as_json:
        print_json(_placement_record(answer) | dict(written=None if out is None else str(out)))
        return
    print_table(answer.records())
    print(f"least {objective}; experts per device: at most {answer.experts_per_device}; savings against the default")
    for name, experts in answer.experts_of(answer.ours).items():
        print(f"{name}: {' '.join(map(str, experts)) or 'no expert'}")
    for note in answer.notes:
        print(f"note: {note}")
    if out is not None:
        print(f"written: {out}")


def _placement_record(answer: Comparison) -> dict[str, Any]:
    from ..placement import placed_profile

    placements = [
        record | dict(experts_of_device=answer.experts_of(judged))
        for record, judged in zip(answer.records(), answer.judged, strict=True)
    ]
    placed = placed_profile(answer.profile, answer.ours.device_of_expert)
    return dict(
        objective=answer.objective,
        experts_per_device=answer.experts_per_device,
        profile_hash=placed.content_hash,
        placement={str(expert): name for expert, name in placed.placement.experts.items()},
        placements=placements,
        notes=answer.notes,
    )
