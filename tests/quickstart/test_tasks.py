import json
import sys

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "quickstart"))
import tasks

WORLD = tasks.World()


def test_no_training_text_holds_a_held_out_question():
    """By construction none can; 60,000 documents are looked at all the same."""
    held = set(tasks.held_out_questions(WORLD))
    longest = {len(question) for question in held}
    for document in WORLD.documents(seed=123, count=60_000):
        assert not any(document[:length] in held for length in longest)


def test_shipped_items_are_those_of_the_generator(tmp_path):
    tasks.write_items(WORLD, tmp_path)
    tasks.write_calibration_text(WORLD, tmp_path / "calibration.txt")
    written = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.*")}
    shipped = ROOT / "quickstart" / "data"
    assert written == {path.relative_to(shipped): path.read_text() for path in shipped.rglob("*.*")}


def test_every_task_has_at_least_200_items():
    items = WORLD.items()
    assert {name: len(rows) >= 200 for name, rows in items.items()} == dict.fromkeys(items, True)
    assert len(items["program.jsonl"]) - 10 >= 200  # MBPP's loader keeps ten as examples


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
