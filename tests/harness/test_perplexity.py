"""`wdmoe=dict(perplexity='exact')`: what a text scores does not depend on the texts that it is batched with."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import log_softmax

from tests.builders.stock_models import MODEL, VANILLA, StockBase
from tests.conftest import ROOT
from wdmoe_opencompass.errors import ModelError
from wdmoe_opencompass.harness.models import WdmoeHuggingFaceBaseModel, WdmoeHuggingFacewithChatTemplate

TEXTS = [
    line for line in (ROOT / "quickstart" / "data" / "calibration.txt").read_text().splitlines() if len(line) > 40
][:40]
ROUNDING = 2e-6  # float32 products of other shapes


@pytest.fixture(scope="module")
def exact():
    with torch.no_grad():
        yield WdmoeHuggingFaceBaseModel(**MODEL, wdmoe=dict(VANILLA, perplexity="exact"))


@pytest.fixture(scope="module")
def stock():
    return StockBase(**MODEL)


def by_the_definition(model, text: str, masked: int = 0) -> float:
    """Token by token, of a text alone: minus the log probability of each token after the masked ones."""
    ids = model.tokenizer(text, truncation=True, max_length=model.max_seq_len)["input_ids"]
    with torch.no_grad():
        logits = model.model(torch.tensor([ids]))[0][0]
    scores = [
        -log_softmax(logits[position - 1].double(), dim=0)[token].item()
        for position, token in enumerate(ids)
        if position >= max(masked, 1)
    ]
    return sum(scores) / (len(ids) - masked)


@given(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=12))
@settings(max_examples=25, deadline=None)
def test_a_score_is_the_same_in_any_batch(exact, texts):
    with torch.no_grad():
        assert exact.get_ppl(texts) == pytest.approx([by_the_definition(exact, text) for text in texts], abs=ROUNDING)


@given(st.lists(st.tuples(st.sampled_from(TEXTS), st.integers(0, 6)), min_size=1, max_size=8))
@settings(max_examples=25, deadline=None)
def test_masked_tokens_are_the_texts_own_first_ones(exact, rows):
    texts, masked = map(list, zip(*rows, strict=True))
    expected = [by_the_definition(exact, text, count) for text, count in rows]
    with torch.no_grad():
        assert exact.get_ppl(texts, masked) == pytest.approx(expected, abs=ROUNDING)


def test_alone_a_text_scores_what_opencompass_gives_it(exact, stock):
    with torch.no_grad():
        for text in TEXTS:
            assert exact.get_ppl([text]) == pytest.approx(stock.get_ppl([text]), abs=ROUNDING)
            assert exact.get_ppl([text], [3]) == pytest.approx(stock.get_ppl([text], [3]), abs=ROUNDING)


def test_opencompass_own_scores_depend_on_the_batch(exact, stock):
    """The fault that `exact` is for: where it is mended upstream, this test says so."""
    with torch.no_grad():
        alone = np.concatenate([stock.get_ppl([text]) for text in TEXTS])
        assert np.abs(stock.get_ppl(TEXTS) - alone).max() > 0.1
        assert np.abs(exact.get_ppl(TEXTS) - alone).max() < ROUNDING


def first_tokens(model, count: int) -> str:
    """A text of `count` tokens, the begin token that the tokenizer adds among them."""
    return model.tokenizer.decode(model.tokenizer(TEXTS[0])["input_ids"][1:count])


@pytest.mark.parametrize(("tokens", "masked"), [(1, 50), (1, 1), (1, 0), (1, None), (4, 4), (4, 5)])
def test_a_text_of_which_nothing_is_scored_is_no_answer(exact, tokens, masked):
    text = first_tokens(exact, tokens)
    assert len(exact.tokenizer(text)["input_ids"]) == tokens
    sentence = f"nothing to score in {text!r}: length {tokens} tokens, mask {masked or 0} tokens"
    with torch.no_grad(), pytest.raises(ModelError, match=re.escape(sentence)):
        exact.get_ppl([TEXTS[0], text], None if masked is None else [0, masked])


def test_a_text_with_one_token_to_score_has_a_number(exact):
    text = first_tokens(exact, 4)
    with torch.no_grad():
        assert exact.get_ppl([text], [3]) == pytest.approx([by_the_definition(exact, text, 3)], abs=ROUNDING)


def test_a_text_that_is_too_long_loses_its_beginning(exact):
    long = " ".join(TEXTS)
    assert len(exact.tokenizer(long)["input_ids"]) > exact.max_seq_len
    with torch.no_grad():
        scores = exact.get_ppl([long, TEXTS[0]])
    assert scores == pytest.approx([by_the_definition(exact, text) for text in (long, TEXTS[0])], abs=ROUNDING)


def test_a_real_token_that_is_the_padding_token_is_scored(exact):
    padded = TEXTS[0] + exact.tokenizer.pad_token + TEXTS[1]
    with torch.no_grad():
        assert exact.get_ppl([padded, TEXTS[2]])[0] == pytest.approx(by_the_definition(exact, padded), abs=ROUNDING)


def test_opencompass_scores_no_padding_token_of_a_text(exact, stock):
    """The exception to what a text scores alone."""
    padded = TEXTS[0] + exact.tokenizer.pad_token + TEXTS[1]
    with torch.no_grad():
        assert abs(exact.get_ppl([padded]) - stock.get_ppl([padded])).item() > 0.01


def test_padding_on_the_right_is_no_load(exact):
    recorder = exact.attachment.recorder
    counted = []
    for texts in (TEXTS[:5], *([text] for text in TEXTS[:5])):
        recorder.reset()
        with torch.no_grad():
            exact.model(
                **exact.tokenizer(texts, return_tensors="pt", padding=True, padding_side="right"), use_cache=False
            )
        counted.append(recorder.finish_batch(0, len(texts)))
    together, alone = counted[0], counted[1:]
    assert (together["device_load"][0] == sum(block["device_load"][0] for block in alone)).all()
    assert together["tokens"].sum() == sum(block["tokens"].sum() for block in alone)


def test_a_model_class_that_only_generates_takes_no_exact_perplexity():
    with pytest.raises(ModelError, match="perplexity must be 'stock' with WdmoeHuggingFacewithChatTemplate"):
        WdmoeHuggingFacewithChatTemplate(**MODEL, wdmoe=dict(VANILLA, perplexity="exact"))


def test_an_unknown_way_to_score_is_one_sentence():
    with pytest.raises(ModelError, match=r"wdmoe\.perplexity: input should be 'stock' or 'exact', got 'precise'"):
        WdmoeHuggingFaceBaseModel(**MODEL, wdmoe=dict(VANILLA, perplexity="precise"))
