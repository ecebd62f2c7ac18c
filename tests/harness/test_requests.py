"""Passes of each request, and the time of each batch, through the real model class: alone, together, interrupted."""

import json

import pytest
import torch

from tests.builders.stock_models import MODEL, VANILLA
from wdmoe_opencompass.harness.models import WdmoeHuggingFaceBaseModel
from wdmoe_opencompass.trace.format import read_trace
from wdmoe_opencompass.trace.speed import measured_batches

PROMPTS = [
    "Question: Ada has 7 pens, loses 3. How many pens are there now?\nAnswer:",
    "Question: Bo has 12 cups, buys 25 more, then loses 9. How many cups are there now?\nAnswer:",
    "A bolo",
    "What is this, then?",
    "Question: Cy has 3 owls, buys 4. How many owls are there now?\nAnswer:",
    "1",
]
NEW_TOKENS = 20


@pytest.fixture(scope="module")
def model():
    return WdmoeHuggingFaceBaseModel(**MODEL, wdmoe=VANILLA)


def traced(model, folder, run):
    """-> (the sealed trace of what `run` does, its measured batches)."""
    predictions = folder / "d.json"
    assert model.open_trace(predictions, "m", "d", len(PROMPTS), 0) == 0
    with torch.no_grad():
        run()
    model.close_trace(seal=True)
    trace = read_trace(folder / "d.trace.safetensors")
    return trace, measured_batches(folder / "d.speed.jsonl", trace)


@pytest.mark.parametrize("stop_words", [[], ["."], ["\n", "1"]])
def test_a_request_takes_part_in_as_many_passes_as_alone(model, tmp_path, stop_words):
    """The oracle: every prompt alone, with passes of its own."""

    def together():
        for first in (0, 4):  # the last batch is smaller
            model.generate(PROMPTS[first : first + 4], NEW_TOKENS, stopping_criteria=stop_words)

    def alone():
        for prompt in PROMPTS:
            model.generate([prompt], NEW_TOKENS, stopping_criteria=stop_words)

    trace, speeds = traced(model, tmp_path, together)
    passes = [int((own.batch == n).sum()) for own in [traced(model, tmp_path, alone)[0]] for n in range(len(PROMPTS))]
    assert trace.item_passes.tolist() == passes
    assert trace.items.tolist() == [4, 2]
    assert len(set(passes)) > 1  # rows end at different passes
    for speed in speeds.values():
        assert 0 < speed.prefill_s + speed.decode_s < speed.batch_s
        assert "thread" in speed.device
    assert sorted(speeds) == [0, 1]


def test_several_answers_per_prompt_wait_for_the_longest(tmp_path):
    several = WdmoeHuggingFaceBaseModel(**MODEL, wdmoe=VANILLA, generation_kwargs=dict(num_beams=2))
    trace, _ = traced(several, tmp_path, lambda: several.generate(PROMPTS, NEW_TOKENS, stopping_criteria=["."]))
    assert len(trace.item_passes) == len(PROMPTS)
    assert trace.item_passes.max() == len(trace.batch)


def test_perplexity_is_a_pass_per_possible_answer_and_all_of_it_prefill(model, tmp_path):
    def ranked():
        for label in (" A", " B", " C"):
            for first in (0, 4):
                model.get_ppl([prompt + label for prompt in PROMPTS[first : first + 4]])

    trace, speeds = traced(model, tmp_path, ranked)
    assert trace.item_passes.tolist() == [1] * 3 * len(PROMPTS)
    assert trace.item_numbers.tolist() == [0, 1, 2, 3, 4, 5] * 3
    assert sorted(speeds) == list(range(6))
    assert all(speed.decode_s == 0 < speed.prefill_s < speed.batch_s for speed in speeds.values())


def test_a_run_that_goes_on_measures_every_batch_once(model, tmp_path):
    predictions = tmp_path / "d.json"
    model.open_trace(predictions, "m", "d", 6, 0)
    for first in (0, 2, 4):
        model.generate(PROMPTS[first : first + 2], 4)
    model.close_trace(seal=False)  # killed: the answers of the first two batches were kept
    lines = (tmp_path / "d.speed.jsonl").read_text().splitlines()
    assert [json.loads(line)["end"] for line in lines] == [2, 4, 6]
    assert model.open_trace(predictions, "m", "d", 6, 4) == 4
    model.generate(PROMPTS[4:], 4)
    model.close_trace(seal=True)
    after = (tmp_path / "d.speed.jsonl").read_text().splitlines()
    assert after[:2] == lines[:2]
    assert after[2] != lines[2]
    trace = read_trace(tmp_path / "d.trace.safetensors")
    assert sorted(measured_batches(tmp_path / "d.speed.jsonl", trace)) == [0, 1, 2]
    assert len(trace.item_passes) == 6


def test_a_batch_that_fails_is_not_measured(model, tmp_path):
    model.open_trace(tmp_path / "d.json", "m", "d", 6, 0)
    model.generate(PROMPTS[:2], 4)
    with pytest.raises(ValueError):
        model.generate(PROMPTS[2:4], 0)
    model.generate(PROMPTS[2:4], 4)
    model.close_trace(seal=True)
    trace = read_trace(tmp_path / "d.trace.safetensors")
    assert trace.items.tolist() == [2, 2]
    assert sorted(measured_batches(tmp_path / "d.speed.jsonl", trace)) == [0, 1]


def test_equal_runs_leave_equal_traces_whatever_they_took(model, tmp_path):
    contents = []
    for name in "ab":
        (tmp_path / name).mkdir()
        traced(model, tmp_path / name, lambda: model.generate(PROMPTS, 6))
        contents.append([(tmp_path / name / f"d.{kind}").read_bytes() for kind in ("trace.safetensors", "speed.jsonl")])
    assert contents[0][0] == contents[1][0]
    assert contents[0][1] != contents[1][1]
