"""`wdmoe calibrate`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .._util.given_paths import check_out_file
from ..errors import WdmoeError
from .console import Progress, is_terminal, print_json
from .options import DTYPE_NAMES, AsJson, names

if TYPE_CHECKING:
    from ..selection.calibration import Calibration

EXAMPLES = (
    "wdmoe calibrate quickstart/model --text t.md --out c.calibration.safetensors",
    "wdmoe calibrate vanilla.trace.safetensors --out r.calibration.safetensors",
)


def calibrate_command(
    sources: Annotated[
        list[Path], typer.Argument(metavar="MODEL|TRACE", help="A model's folder or name, or sealed routing traces.")
    ],
    out: Annotated[Path, typer.Option(help="File to write, ending in .calibration.safetensors.")],
    text: Annotated[Path | None, typer.Option(help="Text to run a model on.")] = None,
    tokens: Annotated[int, typer.Option(min=16, help="Tokens of the text to use.")] = 2048,
    dtype: Annotated[
        str, typer.Option(help="Precision to load a model in.", autocompletion=names(DTYPE_NAMES))
    ] = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure the constants that some policies need, and a sample of routing to match kept shares on.

    Traces alone give the median weight ratios of `naee`, nothing more.
    """
    for talker in ("torchao", "torch.utils._pytree"):  # on import: kernels that cannot load, ways to be deprecated
        logging.getLogger(talker).setLevel(logging.ERROR)
    from ..routing.calibrate import calibrate_from_traces
    from ..selection.calibration import CALIBRATION_SUFFIX
    from ..trace.format import SEALED_SUFFIX, read_trace

    if not out.name.endswith(CALIBRATION_SUFFIX):
        raise WdmoeError(f"--out must end in {CALIBRATION_SUFFIX}, got {out}")
    check_out_file(out)
    if all(path.name.endswith(SEALED_SUFFIX) for path in sources):
        calibration = calibrate_from_traces([read_trace(path) for path in sources])
    elif len(sources) == 1 and text is not None:
        calibration = _of_model(str(sources[0]), text, tokens, dtype)
    else:
        raise WdmoeError("give one model and --text FILE, or sealed routing traces alone")
    _write(calibration, out)
    parts = {name: list(part.shape) for name, part in calibration.parts().items()}
    if as_json:
        print_json(dict(written=str(out), parts=parts))
    else:
        print(f"{out}: {', '.join(f'{name} {shape}' for name, shape in parts.items())}")


def _of_model(name: str, text: Path, tokens: int, dtype: str) -> Calibration:
    from transformers.utils.logging import disable_progress_bar

    from ..routing.calibrate import calibrate, load_model, read_chunks

    if not is_terminal(sys.stderr):
        disable_progress_bar()
    model, tokenizer = load_model(name, dtype)
    with Progress("calibrating", 1) as progress:
        return calibrate(model, read_chunks(tokenizer, text, tokens), name, progress.advance)


def _write(calibration: Calibration, out: Path) -> None:
    from safetensors import SafetensorError

    try:
        calibration.write(out)
    except (OSError, SafetensorError) as error:
        raise WdmoeError(f"{out}: cannot be written: {error}") from None
