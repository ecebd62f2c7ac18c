"""Files that a run reads besides ours, and names that it is given: checkpoints, results, predictions, abbreviations.

    python -m tests.fuzz_runs 200 [SEED]

As in `tests.fuzz`, with an oracle of its own for each kind.
"""

import functools
import json
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.fuzz import Found, Rng
from tests.tiny import tiny_mixtral
from wdmoe_opencompass._util.file_names import file_name
from wdmoe_opencompass.routing.checkpoint import check_checkpoint
from wdmoe_opencompass.run.files import read_whole
from wdmoe_opencompass.run.scores import main_score

MAX_CHECKPOINTS = 60  # transformers builds a model for each
MAX_NAME_BYTES = 255
Tensors = dict[str, Any]


def _without_a_tensor(rng: Rng, tensors: Tensors) -> None:
    del tensors[_any_name(rng, tensors)]


def _with_another_name(rng: Rng, tensors: Tensors) -> None:
    name = _any_name(rng, tensors)
    tensors[name.replace("model.", "modle.", 1) + ".x" * int(rng.integers(2))] = tensors.pop(name)


def _of_another_shape(rng: Rng, tensors: Tensors) -> None:
    name = _any_name(rng, tensors)
    array = tensors[name]
    tensors[name] = np.ascontiguousarray(
        [array[:-1], np.stack([array, array]), array.reshape(-1)[:1]][int(rng.integers(3))]
    )


def _with_one_more(rng: Rng, tensors: Tensors) -> None:
    name = next(name for name in tensors if ".gate." in name or ".router." in name)
    tensors[name.replace(".0.", ".97.", 1)] = tensors[name]


def _any_name(rng: Rng, tensors: Tensors) -> str:
    """A tensor that the model has only there: an embedding that is tied to another may be missing."""
    names = sorted(name for name in tensors if "embed" not in name and "lm_head" not in name)
    return names[int(rng.integers(len(names)))]


CHECKPOINT_MUTATIONS: list[Callable[[Rng, Tensors], None]] = [
    *(_without_a_tensor, _without_a_tensor, _with_another_name, _of_another_shape, _with_one_more)
]


def fuzz_checkpoints(count: int, seed: int) -> dict[str, Any]:
    """Check a small model's checkpoint that lacks a tensor, has another or one of another shape: always refused."""
    rng, found = np.random.default_rng(seed), Found()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_mixtral(layers=2).save_pretrained(folder)
        weights = folder / "model.safetensors"
        sound = load_file(weights)
        sound_answer = check_checkpoint(folder, {})
        if sound_answer is not None:
            found.wrongly_accepted.append(f"a sound checkpoint is not checked: {sound_answer}")
        for _ in range(min(count, MAX_CHECKPOINTS)):
            tensors = dict(sound)
            mutation = CHECKPOINT_MUTATIONS[int(rng.integers(len(CHECKPOINT_MUTATIONS)))]
            mutation(rng, tensors)
            save_file(tensors, weights, metadata=dict(format="pt"))
            found.read(mutation.__name__, functools.partial(check_checkpoint, folder, {}), lambda _: "accepted")
    return found.counts()


NUMBERS = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e999",
    "1" + "0" * 400,
    "0",
    "-0.0",
    "50",
    "62.5",
    "100",
    "100.5",
]
NUMBERS += ["-1", "true", "null", '"NaN"', '"62.5"', '"\\ud800"', "[62.5]", "{}", "1e-400", "01", "1_0"]
METRICS = ["accuracy", "score", "f1", "exact_match", "my metric", "\\ud800", "details"]


def fuzz_scores(count: int, seed: int) -> dict[str, Any]:
    """Read results files with odd scores; wrong is an accuracy that is not what the file says, from 0 to 100."""
    rng, found = np.random.default_rng(seed), Found()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.json"
        for _ in range(count):
            chosen = [METRICS[int(k)] for k in rng.permutation(len(METRICS))[: int(rng.integers(1, 4))]]
            numbers = [NUMBERS[int(rng.integers(len(NUMBERS)))] for _ in chosen]
            text = "{" + ", ".join(f'"{metric}": {number}' for metric, number in zip(chosen, numbers)) + "}"
            path.write_text(text)
            judge = functools.partial(_wrong_score, text)
            found.read(text[:100], lambda: main_score(read_whole(path) or {}), judge)
    return found.counts()


def _wrong_score(text: str, score: Any) -> str | None:
    if score.percent is None:
        return None if score.why_not else "no score, and no reason"
    try:
        said = json.loads(text)[score.metric]
    except ValueError:
        return f"{score.percent} of what is no JSON"
    is_number = isinstance(said, int | float) and not isinstance(said, bool)
    if not is_number or not math.isfinite(said) or not 0 <= said <= 100 or said != score.percent:
        return f"{said!r} read as {score.percent!r}"
    return None


LETTERS = [
    "a",
    "B",
    "/",
    "\\",
    ".",
    "..",
    "~",
    "^",
    "_0",
    "_1",
    "é",
    "e\u0301",
    "ß",
    "漢",
    "😀",
    "\ud800",
    " ",
    "*",
    "[",
    "?",
]
LETTERS += ["{lib}", "%", "&", "$", "#", "CON", "x" * 200, "\u202e", "~" + "0" * 16, ".json", "tmp_"]


def fuzz_names(count: int, seed: int) -> dict[str, Any]:
    """Make file names from odd abbreviations; wrong is a name too long, or one that two abbreviations share."""
    rng, found, stems = np.random.default_rng(seed), Found(), {}

    def wrong(stem: str, name: str) -> str | None:
        if len(name.encode(errors="surrogatepass")) > MAX_NAME_BYTES:
            return f"{len(name)} letters"
        return None if stems.setdefault(name, stem) == stem else f"also the name of {stems[name]!r}"

    for _ in range(count):
        parts = [LETTERS[int(k)] for k in rng.integers(len(LETTERS), size=int(rng.integers(1, 6)))]
        stem = "".join(parts).replace("/", "-")  # of one name: folders are OpenCompass's own
        made = functools.partial(file_name, stem, ".trace.safetensors")
        found.read(repr(stem)[:100], made, functools.partial(wrong, stem))
    return found.counts()


def fuzz_surrogates(count: int, seed: int) -> dict[str, Any]:
    """Read predictions that hold half of a surrogate pair, torn or whole; wrong is what is not what was written."""
    rng, found = np.random.default_rng(seed), Found()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "d.json"
        for _ in range(count):
            half = f"\\ud{int(rng.integers(8, 16)):x}{int(rng.integers(256)):02x}"
            content = f'{{"0": {{"prediction": "a{half}b", "gold": "{half}"}}}}'
            content = content[: int(rng.integers(len(content)))] if rng.random() < 0.3 else content
            path.write_text(content)

            def wrong(read: Any, content: str = content) -> str | None:
                try:
                    return None if (read or {}) == json.loads(content) else f"read {str(read)[:80]!r}"
                except ValueError:
                    return None if not read else "what is torn was read"

            found.read("surrogate", functools.partial(read_whole, path), wrong)
    return found.counts()


ALL = (fuzz_checkpoints, fuzz_scores, fuzz_names, fuzz_surrogates)

if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    its_seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    for fuzz in ALL:
        print(fuzz.__name__, json.dumps(fuzz(wanted, its_seed), indent=1))
