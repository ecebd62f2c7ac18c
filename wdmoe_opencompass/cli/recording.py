"""`wdmoe recording`: recordings of a router."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .._util.given_paths import check_out_file
from .console import Progress, print_json, print_table
from .options import AsJson, examples, new_app

app = new_app(help="Recordings of a router, for wdmoe route: import, show.")


@app.command(
    "import",
    epilog=examples(
        "wdmoe recording import mixtral.npz --out mixtral.routing.safetensors",
        "wdmoe recording import x.jsonl --out x.routing.safetensors --num-experts 8",
    ),
)
def recording_import(
    file: Annotated[Path, typer.Argument(help="FILE.npz or FILE.jsonl; docs/recordings.md says what it holds.")],
    out: Annotated[Path, typer.Option(help="Where to write the recording: NAME.routing.safetensors.")],
    model: Annotated[str | None, typer.Option(help="Name of the model. Default: the file's name.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Name of the dataset. Default: the file's name.")] = None,
    num_experts: Annotated[int | None, typer.Option(min=1, help="Experts per layer, if the file lacks it.")] = None,
    hidden_size: Annotated[int | None, typer.Option(min=1, help="Hidden size m, if the file lacks it.")] = None,
    ffn_size: Annotated[int | None, typer.Option(min=1, help="FFN hidden size m_h, if the file lacks it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check arrays recorded from a router, and write them as a recording."""
    from ..errors import TraceError
    from ..trace.recording import RECORDING_SUFFIX, summary, write_recording
    from ..trace.recording_import import import_recording

    if not out.name.endswith(RECORDING_SUFFIX):
        raise TraceError(f"{out}: a recording's name must end in {RECORDING_SUFFIX}")
    check_out_file(out)
    with Progress(f"importing {file}"):
        recording = import_recording(file, model, dataset, num_experts, hidden_size, ffn_size)
        write_recording(out, recording)
    _show(dict(written=str(out)) | summary(recording), as_json)


@app.command("show", epilog=examples("wdmoe recording show mixtral.routing.safetensors"))
def recording_show(
    file: Annotated[Path, typer.Argument(metavar="RECORDING", help="A recording.")],
    as_json: AsJson = False,
) -> None:
    """Show what a recording holds and how evenly its experts are used."""
    from ..trace.recording import read_recording, summary

    _show(summary(read_recording(file)), as_json)


def _show(record: dict[str, object], as_json: bool) -> None:
    print_json(record) if as_json else print_table([dict(what=key, value=value) for key, value in record.items()])
