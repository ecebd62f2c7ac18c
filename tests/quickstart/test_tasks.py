import hashlib
import json
import re

import pytest
from scipy.stats import kendalltau

from tests.builders.quickstart_world import WORLD, tasks
from tests.conftest import ROOT

TRAINING_TEXT_SHA256 = "3cc730b99eeb853f420e18d366d76083048c05885f3ca735261600cf1d89fd2b"


def read_by_the_model():
    """Every document that tokenizer, training and calibration read."""
    training = [(seed, tasks.DOCUMENTS_PER_SEED) for seed in range(1, tasks.MAX_TRAINING_SEED + 1)]
    for seed, count in (tasks.TOKENIZER_TEXT, *training, tasks.CALIBRATION_TEXT):
        yield from WORLD.documents(seed, count)


def asked_in(document):
    """A document up to where its answer begins."""
    return re.split(r"\n(?:Answer|A|Code):", document)[0]


def numbers_of(question):
    """The numbers of a sum in a sentence, those taken away negative."""
    signed = re.findall(r"(loses )?(\d+)( are taken away)?", question)
    return tuple(-int(number) if loses or taken else int(number) for loses, number, taken in signed)


@pytest.mark.slow
def test_nothing_that_the_model_read_holds_a_held_out_question_or_sum():
    held = {asked_in(question) for question in tasks.held_out_questions(WORLD)}
    sums = {numbers_of(row["question"]) for row in WORLD.items()["arith/test.jsonl"]}
    assert len(sums) == len(WORLD.items()["arith/test.jsonl"])
    documents = 0
    for document in read_by_the_model():
        documents += 1
        asked = asked_in(document)
        assert asked not in held
        assert not asked.endswith("are there now?") or numbers_of(asked) not in sums
    assert documents > 700_000


def test_the_text_of_training_is_that_of_the_shipped_model():
    text = "\n".join(document for seed in (1, 200, 358) for document in WORLD.documents(seed, 2000))
    assert hashlib.sha256(text.encode()).hexdigest() == TRAINING_TEXT_SHA256


@pytest.mark.slow
def test_training_reads_no_further_than_items_are_held_out_of():
    from transformers import PreTrainedTokenizerFast

    model = ROOT / "quickstart" / "model"
    training = json.loads((model / "training.json").read_text())
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    tokens = 0
    for seed in range(1, tasks.MAX_TRAINING_SEED + 1):
        tokens += sum(len(ids) + 1 for ids in tokenizer(WORLD.documents(seed, 2000))["input_ids"])  # 1: </s>
    assert tokens >= training["steps"] * training["rows"] * training["sequence_tokens"]


def test_shipped_items_are_those_of_the_generator(tmp_path):
    tasks.write_items(WORLD, tmp_path)
    tasks.write_calibration_text(WORLD, tmp_path / "calibration.txt")
    written = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.*")}
    shipped = ROOT / "quickstart" / "data"
    assert written == {path.relative_to(shipped): path.read_text() for path in shipped.rglob("*.*")}


def test_items_are_all_that_no_text_asks_up_to_the_most_of_each_file():
    items = WORLD.items()
    assert {name: len(rows) for name, rows in items.items()} == {
        "choice.jsonl": len(set(WORLD.choice) - WORLD.asked),
        "twoway/dev.jsonl": len(set(WORLD.twoway) - WORLD.asked),
        "yesno.jsonl": len(set(WORLD.yesno) - WORLD.asked),
        "arith/test.jsonl": tasks.MAX_ITEMS,
        "program.jsonl": tasks.EXAMPLE_PROGRAMS + tasks.MAX_PROGRAMS,
    }
    assert min(map(len, items.values())) >= 250
    for rows in items.values():
        assert len({json.dumps(row, sort_keys=True) for row in rows}) == len(rows)


def test_items_are_in_no_order():
    """By what a generator would sort them, items do not rise or fall along their file."""
    items = WORLD.items()
    keys = {
        "choice.jsonl": [row["id"] for row in items["choice.jsonl"]],
        "twoway/dev.jsonl": [row["id"] for row in items["twoway/dev.jsonl"]],
        "yesno.jsonl": [row["question"].split()[-1] for row in items["yesno.jsonl"]],
        "arith/test.jsonl": [numbers_of(row["question"])[0] for row in items["arith/test.jsonl"]],
        "program.jsonl": [row["text"] for row in items["program.jsonl"][tasks.EXAMPLE_PROGRAMS :]],
    }
    for name, found in keys.items():
        statistic = kendalltau(range(len(found)), [sorted(set(found)).index(key) for key in found])
        assert statistic.pvalue > 0.01, name


def test_facts_behind_held_out_questions_occur_in_training_in_other_words():
    # A training run sees about four times as much text: what is missing here is met later.
    text = "\n".join(WORLD.documents(seed=5, count=200_000))
    met = sum(f"What does the {name} eat?" in text for name, relation in WORLD.held_choice if relation == "eat")
    assert met > 0.8 * sum(relation == "eat" for _, relation in WORLD.held_choice)


def test_reference_programs_pass_their_own_tests():
    for row in WORLD.items()["program.jsonl"]:
        scope = {}
        exec(row["code"], scope)
        for test in row["test_list"]:
            exec(test, scope)


def test_model_fits_the_repository_and_is_stored_in_16_bit():
    from safetensors import safe_open

    path = ROOT / "quickstart" / "model" / "model.safetensors"
    assert path.stat().st_size <= 8e6
    with safe_open(path, "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118
    config = json.loads((path.parent / "config.json").read_text())
    assert config["num_local_experts"] == 8
    assert config["num_experts_per_tok"] == 2
    assert config["num_hidden_layers"] >= 4


@pytest.mark.slow
def test_training_is_reproducible(tmp_path):
    import train

    for name in ("first", "second"):
        train.train(steps=4, out=tmp_path / name, seed=0, peak=2e-3, rows=4)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second
