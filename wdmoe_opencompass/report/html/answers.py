"""What each model answered to each item of a run, as much of it as fits a page."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..._util.bounded_read import read_regular
from ..._util.file_names import dataset_file
from ..._util.utf8_text import clean_text
from ...errors import WdmoeError

MAX_BYTES = 1 << 30  # of one prediction file
MAX_QUESTION_LENGTH, MAX_ANSWER_LENGTH = 1200, 800  # letters shown
LABEL = "label: "  # what OpenCompass's perplexity inferencer writes before each possible answer

Items = list[Mapping[str, Any]]  # of a prediction file


def answered_items(
    run_folder: Path, models: Sequence[Mapping[str, Any]], rights: Mapping[tuple[str, str], str], most_bytes: int
) -> dict[str, Any]:
    """Questions and answers of every dataset, for the page.

    models: (abbr, vanilla: abbr of the model it is compared with or None); rights: (abbr, dataset) -> "1" or "0" per
    item, empty where its evaluator does not tell, of every pair in the run's tables.
    An answer equal to its vanilla's is left out of the item: None. Where not all items fit into most_bytes of JSON,
    those that selection changed come first, then all others in order, a dataset as often as the next.

    -> datasets: per dataset its models, number of items, and those that are shown; problems: what could not be read
    """
    problems: list[str] = []
    datasets = []
    for dataset in dict.fromkeys(dataset for _, dataset in rights):
        read: dict[str, Items] = {}
        for abbr in (model["abbr"] for model in models if (model["abbr"], dataset) in rights):
            try:
                read[abbr] = list(_predictions(run_folder / "predictions", abbr, dataset))
            except WdmoeError as reason:
                problems.append(f"{abbr}, {dataset}: {reason}")
        if read:
            datasets.append(_dataset(dataset, models, read, {m: rights[m, dataset] for m in read}))
    for found, kept in zip(datasets, _fit([found["items"] for found in datasets], most_bytes), strict=True):
        found["items"] = kept
    return dict(datasets=datasets, problems=problems)


def _dataset(
    dataset: str, models: Sequence[Mapping[str, Any]], read: Mapping[str, Items], rights: Mapping[str, str]
) -> dict[str, Any]:
    """items: of [number, question, possible answers or None, reference, answers by model, changed by selection]."""
    names = list(read)
    vanilla = {model["abbr"]: model["vanilla"] for model in models}
    count = max(map(len, read.values()))
    items = []
    for number in range(count):
        texts = {name: _answer(them[number]) for name, them in read.items() if number < len(them)}
        question, options, reference = _question(next(them[number] for them in read.values() if number < len(them)))
        answers: list[str | None] = []
        changed = False
        for name in names:
            before = vanilla[name] if vanilla[name] != name else None
            same = name in texts and before in texts and texts[name] == texts[before]
            changed |= name in texts and before in texts and not same
            answers.append(None if same else _cut(texts.get(name, ""), MAX_ANSWER_LENGTH))
        items.append([number, question, options, reference, answers, int(changed)])
    known = {name: marks for name, marks in rights.items() if len(marks) == len(read[name])}
    return dict(dataset=dataset, models=names, count=count, right=known, items=items)


def _predictions(root: Path, model: str, dataset: str) -> Iterator[Mapping[str, Any]]:
    """The items of a dataset in order, also where OpenCompass split it into `<dataset>_0`, `<dataset>_1`, ..."""
    whole = dataset_file(root, model, dataset, ".json")
    paths = [whole]
    if not whole.exists():
        paths = []
        while (part := dataset_file(root, model, f"{dataset}_{len(paths)}", ".json")).exists():
            paths.append(part)
    if not paths:
        raise WdmoeError("its predictions are not there")
    for path in paths:
        try:
            content = json.loads(read_regular(path, MAX_BYTES, WdmoeError))
        except (ValueError, RecursionError):
            raise WdmoeError(f"{path.name} is not JSON") from None
        if not isinstance(content, dict) or set(content) != {str(number) for number in range(len(content))}:
            raise WdmoeError(f"{path.name} must hold items numbered from 0")
        items = [content[str(number)] for number in range(len(content))]
        if not all(isinstance(item, dict) for item in items):
            raise WdmoeError(f"{path.name} must hold one mapping per item")
        yield from items


def _question(item: Mapping[str, Any]) -> tuple[str, dict[str, str] | None, str]:
    """-> (question, possible answers by label where perplexity ranked them, reference)."""
    ranked = {key.removeprefix(LABEL): value for key, value in item.items() if key.startswith(LABEL)}
    reference = _cut(_text(item.get("gold", "")), MAX_ANSWER_LENGTH)
    if not ranked:
        return _cut(_text(item.get("origin_prompt", "")), MAX_QUESTION_LENGTH, from_end=True), None, reference
    texts = {
        label: _text(value.get("testing input", "") if isinstance(value, dict) else value)
        for label, value in ranked.items()
    }
    start = _common_start(list(texts.values()))
    options = {label: _cut(text[len(start) :], MAX_ANSWER_LENGTH) for label, text in texts.items()}
    return _cut(start, MAX_QUESTION_LENGTH, from_end=True), options, reference


def _common_start(texts: Sequence[str]) -> str:
    """What all begin with, up to the last white space."""
    first, last = min(texts), max(texts)
    length = next((n for n, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))
    return first[: max(first.rfind(sign, 0, length) for sign in " \n") + 1]


def _answer(item: Mapping[str, Any]) -> str:
    return _text(item.get("prediction", ""))


def _text(value: Any) -> str:
    """A prompt or an answer as text; a conversation's turns one after the other."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(turn, dict) and "prompt" in turn for turn in value):
        return "\n".join(f"{turn.get('role', '')}: {_text(turn['prompt'])}" for turn in value)
    return json.dumps(value, ensure_ascii=False)


def _cut(text: str, letters: int, from_end: bool = False) -> str:
    """Shorten a text and say how much is left out. A prompt's question is at its end."""
    left_out = len(text) - letters
    if left_out <= 0:
        return text
    note = f"[… {left_out} letters left out …]"
    return f"{note}\n{text[-letters:]}" if from_end else f"{text[:letters]}\n{note}"


def _fit(datasets: Sequence[list[list]], most_bytes: int) -> list[list[list]]:
    """The items that fit, in order: those that changed first, a dataset as often as the next."""
    chosen: list[list[int]] = [[] for _ in datasets]
    left = most_bytes
    for changed in (1, 0):
        queues = [[n for n, item in enumerate(items) if item[-1] == changed] for items in datasets]
        for position in range(max(map(len, queues), default=0)):
            for queue, items, own in zip(queues, datasets, chosen, strict=True):
                if position < len(queue):
                    size = len(clean_text(json.dumps(items[queue[position]], ensure_ascii=False)).encode())
                    if size <= left:
                        left -= size
                        own.append(queue[position])
    return [[items[n] for n in sorted(own)] for items, own in zip(datasets, chosen, strict=True)]
