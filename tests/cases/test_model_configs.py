"""A config.json, or an argument, that changes what a model returns with its logits and tokens changes no answer."""

import json
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
from mmengine.config import ConfigDict

from tests.conftest import ROOT
from wdmoe_opencompass.errors import ModelError
from wdmoe_opencompass.harness.models import WdmoeHuggingFaceBaseModel
from wdmoe_opencompass.harness.plan.facts import ModelFacts, Plan
from wdmoe_opencompass.harness.plan.generation import check_generation
from wdmoe_opencompass.harness.plan.models import PlannedModel, check_weights

QUICKSTART = ROOT / "quickstart" / "model"
QUESTIONS = (ROOT / "quickstart" / "data" / "arith" / "test.jsonl").read_text().splitlines()[:2]
PROMPTS = [f"Question: {json.loads(line)['question']}\nAnswer:" for line in QUESTIONS]

# what is changed -> of config.json, of generation_config.json, model_kwargs, generation_kwargs
CHANGES = {
    "router logits": (dict(output_router_logits=True), {}, {}, {}),
    "tuples": (dict(return_dict=False), {}, {}, {}),
    "tuples with router logits": (dict(return_dict=False, output_router_logits=True), {}, {}, {}),
    "hidden states": (dict(output_hidden_states=True), {}, {}, {}),
    "attentions": (dict(output_attentions=True), {}, {}, {}),
    "no cache in config.json": (dict(use_cache=False), {}, {}, {}),
    "torchscript": (dict(torchscript=True), {}, {}, {}),
    "chunks": (dict(chunk_size_feed_forward=2), {}, {}, {}),
    "jitter in training": (dict(router_jitter_noise=0.3), {}, {}, {}),
    "a dict of generation": ({}, dict(return_dict_in_generate=True, output_scores=True), {}, {}),
    "router logits by argument": ({}, {}, dict(output_router_logits=True), {}),
    "tuples by argument": ({}, {}, dict(return_dict=False), {}),
    "a dict of generation by argument": ({}, {}, {}, dict(return_dict_in_generate=True, output_logits=True)),
    "router logits of generation": ({}, {}, {}, dict(output_router_logits=True)),
    "loading information": ({}, {}, dict(output_loading_info=True), {}),
}


def answers(path, model_kwargs=None, generation_kwargs=None):
    """-> perplexities, texts, tokens of each forward pass."""
    model = WdmoeHuggingFaceBaseModel(
        path=str(path),
        model_kwargs=dict(torch_dtype="torch.float32", device_map="cpu") | (model_kwargs or {}),
        generation_kwargs=generation_kwargs or {},
        max_seq_len=256,
        wdmoe=dict(profile="paper_8_devices", policy="wlr"),
    )
    perplexities = model.get_ppl(PROMPTS)
    model._session.record = lambda items: nullcontext()  # without a trace it would forget what it counted
    recorder = model.attachment.recorder
    recorder.reset()
    texts = model.generate(PROMPTS, 6)
    return perplexities, texts, recorder.finish_batch(0, 2)["tokens"].tolist()


def copied(folder, **files):
    shutil.copytree(QUICKSTART, folder)
    for name, changes in files.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.fixture(scope="module")
def plain():
    return answers(QUICKSTART)


@pytest.mark.parametrize("what", CHANGES)
def test_answers_and_loads_are_those_of_the_model_without_it(plain, tmp_path, what):
    config, generation_config, model_kwargs, generation_kwargs = CHANGES[what]
    folder = copied(tmp_path / "model", config=config, generation_config=generation_config)
    perplexities, texts, tokens = answers(folder, model_kwargs, generation_kwargs)
    np.testing.assert_allclose(perplexities, plain[0], rtol=1e-5)
    assert texts == plain[1]
    assert tokens == plain[2]


def test_generation_without_a_cache_counts_what_it_computes_again(plain, tmp_path):
    folder = copied(tmp_path / "model", generation_config=dict(use_cache=False))
    _, texts, tokens = answers(folder)
    assert texts == plain[1]
    once = plain[2]
    assert tokens == [once[0] + 2 * number for number in range(len(once))]  # no row ends before the last pass


def test_an_encoder_and_decoder_is_refused_in_one_sentence(tmp_path):
    folder = copied(tmp_path / "model", config=dict(is_encoder_decoder=True))
    with pytest.raises(ModelError, match=r"is_encoder_decoder in its config\.json must be false"):
        answers(folder)


# -- what plan says of it beforehand -----------------------------------------------------------------------------------
def look_at(folder, **arguments):
    """-> problems of plan, its notes, and what it knows of the model then."""
    problems, plan = [], Plan("config.py")
    model = PlannedModel(ConfigDict(path=str(folder), **arguments), ModelFacts("m", str(folder)))
    check_weights(model, problems.append)
    model.rows_per_prompt = check_generation(model.cfg, model.facts, problems.append, plan) or model.rows_per_prompt
    return list(map(str, problems)), plan.notes, model


def test_plan_refuses_an_encoder_and_decoder(tmp_path):
    folder = copied(tmp_path / "model", config=dict(is_encoder_decoder=True))
    sentence = f"{folder}: is_encoder_decoder in its config.json must be false, got true"
    assert look_at(folder)[0] == [sentence]
    assert look_at(QUICKSTART)[0] == []
    asked = look_at(QUICKSTART, model_kwargs=dict(is_encoder_decoder=True))[0]
    assert [problem.partition(": ")[2] for problem in asked] == [sentence.partition(": ")[2]]


# of generation_config.json, generation_kwargs -> rows per prompt, None where they do not fit each other
MERGED = [
    ({}, {}, 1),
    (dict(num_beams=4), {}, 4),
    (dict(num_beams=4), dict(num_return_sequences=2), 4),
    (dict(num_beams=4), dict(num_beams=1), 1),
    (dict(num_beams=4), dict(num_beams=None), None),
    ({}, dict(num_beams="4"), None),
    (dict(num_beams=2), dict(num_return_sequences=3), None),
    (dict(num_return_sequences=2), dict(num_beams=3), None),  # checked when it is loaded
    (dict(do_sample=True, num_return_sequences=2), dict(do_sample=True), None),  # OpenCompass takes the sampling away
    (dict(do_sample=True), dict(num_return_sequences=2), None),
    (dict(do_sample=True), dict(do_sample=True, num_return_sequences=2), 2),
    (dict(output_scores=True, return_dict_in_generate=True), dict(num_beams=3), 3),
    ({}, dict(num_return_sequences=2), None),
]


@pytest.mark.parametrize(("stored", "asked", "rows"), MERGED)
def test_plan_and_generate_merge_the_same(tmp_path, stored, asked, rows):
    folder = copied(tmp_path / "model", generation_config=stored)
    problems, notes, model = look_at(folder, generation_kwargs=asked, stop_words=["."])
    if rows is None:
        assert ["do not fit each other" in problem for problem in problems] == [True]
        with pytest.raises((ValueError, TypeError, AttributeError)):
            rows_of(folder, asked)
    else:
        assert (problems, model.rows_per_prompt, len(notes)) == ([], rows, int(rows > 1))
        assert rows_of(folder, asked) == rows * len(PROMPTS)


def rows_of(folder, generation_kwargs):
    """-> the most rows of a forward pass."""
    wdmoe = WdmoeHuggingFaceBaseModel(
        path=str(folder),
        model_kwargs=dict(torch_dtype="torch.float32", device_map="cpu"),
        generation_kwargs=generation_kwargs,
        max_seq_len=256,
        wdmoe=dict(profile="paper_8_devices"),
    )
    rows = []
    wdmoe.model.register_forward_pre_hook(lambda *of: rows.append(len(of[2]["input_ids"])), with_kwargs=True)
    wdmoe.generate(PROMPTS, 2)
    return max(rows)
