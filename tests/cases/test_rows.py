"""Rows are not prompts: which rows of a batch have ended, against a replay of each row, token by token."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opencompass.models.huggingface_above_v4_33 import _get_stopping_criteria
from transformers import DynamicCache

from tests.conftest import ROOT
from tests.routing.families import attached, find_moe_layers
from tests.routing.recordings import recording_metadata
from tests.tiny import END, PAD, prompts, tiny_mixtral
from wdmoe_opencompass.routing.router_recorder import RouterRecorder
from wdmoe_opencompass.trace.recording import new_recording

NEW_TOKENS = 9
WORDS = {"none": [], "letter": ["5", "9"], "two letters": ["2a", "4b", "b"], "many": ["1", "3", "5c"]}
ANSWERS = "123456789abc"
EXAMPLES = settings(deadline=None, max_examples=16, derandomize=True)


class Letters:
    """A tokenizer of letters: id 3 is `1`, ..., 14 is `c`; any other token is its number."""

    def encode(self, text, add_special_tokens=False):
        return [3 + ANSWERS.index(letter) for letter in text]

    def batch_decode(self, rows):
        letters = {3 + position: letter for position, letter in enumerate(ANSWERS)}
        return ["".join(letters.get(token, f"<{token}>") for token in row.tolist()) for row in rows]


def talkative_model():
    """A tiny model that mostly writes the twelve letters and sometimes the end token."""
    model = tiny_mixtral(layers=2)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = END, PAD
    own = model.lm_head.forward

    def favouring(hidden_states):
        logits = own(hidden_states)
        logits[..., 3 : 3 + len(ANSWERS)] += 12.0
        logits[..., END] += 10.0
        return logits

    model.lm_head.forward = favouring
    return model


MODEL = talkative_model()


def generate(rows, seed, words, **asked):
    """-> [rows * samples, length], as OpenCompass lets a model generate."""
    ids, mask = prompts(rows=rows, seed=seed, side="left")
    if words:
        asked["stopping_criteria"] = _get_stopping_criteria(words, Letters(), rows)
    torch.manual_seed(seed)
    return MODEL.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, **{"do_sample": False, **asked}
    )


def counted(rows, run):
    """-> [passes, devices] load of the layers together, [passes] tokens, what `run` gives, [items] passes of each."""
    with attached(MODEL, "top_k") as attachment:
        attachment.router_recorder = RouterRecorder(attachment.layers)
        answer = run()
        block = attachment.recorder.finish_batch(0, rows)
        recorded = attachment.router_recorder.finish_batch(0, rows)
    recording = new_recording("rows", recording_metadata(layers=2), recorded)
    assert [len(taken.expert_index) for taken in recording.router_passes()] == block["tokens"].tolist()
    return (
        torch.tensor(block["device_load"]).sum(dim=1),
        block["tokens"].tolist(),
        answer,
        block["item_passes"].tolist(),
    )


def shows_stop_word(sequence, words):
    """OpenCompass's rule for one row: its last tokens, as many as its longest stop word has, hold a stop word."""
    last = max((len(Letters().encode(word)) for word in words), default=0)
    text = Letters().batch_decode([torch.tensor(sequence[-last:])])[0] if last else ""
    return any(word in text for word in words)


def ends_after(sequence, prompt_length, words):
    """-> how many new tokens a row writes until it has ended; all of them where it never does."""
    for new in range(1, len(sequence) - prompt_length + 1):
        so_far = sequence[: prompt_length + new]
        if so_far[-1] == END or shows_stop_word(so_far, words):
            return new
    return len(sequence) - prompt_length


def load_of(token_rows):
    """-> [devices] load of sequences that are forwarded one by one, token by token, by the unpatched model."""
    layers = find_moe_layers(MODEL)
    loads = torch.zeros(8, dtype=torch.int64)

    def count(module, args):
        loads.add_(torch.bincount(args[1].flatten(), minlength=8))

    handles = [layer.experts.register_forward_pre_hook(count) for layer in layers]
    for tokens in token_rows:
        cache = None
        for token in tokens:
            with torch.no_grad():
                cache = MODEL(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True).past_key_values
    for handle in handles:
        handle.remove()
    return loads


@given(
    rows=st.integers(1, 3),
    samples=st.integers(1, 4),
    words=st.sampled_from(sorted(WORDS)),
    seed=st.integers(0, 10_000),
)
@EXAMPLES
def test_each_sample_counts_until_its_own_end(rows, samples, words, seed):
    words = WORDS[words]
    asked = dict(num_return_sequences=samples, do_sample=samples > 1 or seed % 2 == 0)
    plain = generate(rows, seed, words, **asked)
    loads, tokens, answer, item_passes = counted(rows, lambda: generate(rows, seed, words, **asked))
    assert torch.equal(answer, plain)  # OpenCompass decides when the batch ends, as it would alone
    ids, mask = prompts(rows=rows, seed=seed, side="left")
    length, passes = ids.shape[1], plain.shape[1] - ids.shape[1]
    lives = [ends_after(row.tolist(), length, words) for row in plain]
    real = mask.sum(dim=1).repeat_interleave(samples).tolist()
    assert tokens == [sum(real)] + [sum(new > number for new in lives) for number in range(1, passes)]
    replayed = load_of([row[length - own : length + new - 1].tolist() for row, own, new in zip(plain, real, lives)])
    assert torch.equal(loads.sum(dim=0), replayed)
    assert item_passes == [max(lives[n * samples : (n + 1) * samples]) for n in range(rows)]


def beam_histories(rows, beams, run, monkeypatch):
    """What an unpatched beam search forwards, from its tokens and from how it reorders its cache.

    Returns: per pass the rows' whole sequences so far, and [rows, experts] load of the layers together
    """
    ids, mask = prompts_of(rows, run)
    sequences = ids.repeat_interleave(beams, dim=0).tolist()
    order, passes, loads = list(range(len(sequences))), [], []
    reorder = DynamicCache.reorder_cache

    def reordered(cache, beam_idx):
        order[:] = beam_idx.tolist()
        return reorder(cache, beam_idx)

    def forwarded(module, args, kwargs):
        nonlocal sequences
        if passes:
            new = kwargs["input_ids"][:, -1].tolist()
            sequences = [sequences[parent] + [token] for parent, token in zip(order, new, strict=True)]
        passes.append(sequences)
        loads.append(torch.zeros(len(sequences), 8, dtype=torch.int64))

    def routed(module, args):
        per_token = torch.nn.functional.one_hot(args[1], 8).sum(dim=1)
        per_row = per_token.view(len(sequences), -1, 8)
        if len(passes) == 1:  # a prompt's padding is no load
            per_row = per_row * mask.repeat_interleave(beams, dim=0)[..., None]
        loads[-1] += per_row.sum(dim=1)

    layers = find_moe_layers(MODEL)
    handles = [MODEL.register_forward_pre_hook(forwarded, with_kwargs=True)]
    handles += [layer.experts.register_forward_pre_hook(routed) for layer in layers]
    with monkeypatch.context() as patch:
        patch.setattr(DynamicCache, "reorder_cache", reordered)
        answer = run()
    for handle in handles:
        handle.remove()
    return passes, loads, answer


def prompts_of(rows, run):
    return prompts(rows=rows, seed=run.seed, side="left")


class Search:
    """One call of beam search."""

    def __init__(self, rows, seed, words, **asked):
        self.rows, self.seed, self.words, self.asked = rows, seed, words, asked

    def __call__(self):
        return generate(self.rows, self.seed, self.words, **self.asked)

    def passes_alone(self, row):
        """How many passes the search of one prompt takes without the others and without stop words."""
        ids, mask = prompts(rows=self.rows, seed=self.seed, side="left")
        real = ids[row][mask[row].bool()][None]
        seen = []
        handle = MODEL.register_forward_pre_hook(lambda *_: seen.append(1))
        MODEL.generate(input_ids=real, max_new_tokens=NEW_TOKENS, **{"do_sample": False, **self.asked})
        handle.remove()
        return len(seen)


@given(
    rows=st.integers(1, 3),
    beams=st.integers(2, 4),
    samples=st.integers(1, 4),
    words=st.sampled_from(sorted(WORDS)),
    early_stopping=st.sampled_from([False, True, "never"]),
    seed=st.integers(0, 10_000),
)
@EXAMPLES
def test_each_beam_counts_until_it_holds_a_stop_word_or_its_search_is_over(
    rows, beams, samples, words, early_stopping, seed
):
    words = WORDS[words]
    asked = dict(num_beams=beams, num_return_sequences=min(samples, beams), early_stopping=early_stopping)
    search = Search(rows, seed, words, **asked)
    with pytest.MonkeyPatch.context() as monkeypatch:
        passes, forwarded, plain = beam_histories(rows, beams, search, monkeypatch)
    loads, tokens, answer, _ = counted(rows, search)
    assert torch.equal(answer, plain)
    length = prompts_of(rows, search)[0].shape[1]
    over = [search.passes_alone(row) for row in range(rows)]
    assert len(loads) == len(passes)
    for number, sequences in enumerate(passes):
        live = torch.tensor(
            [
                number < over[row // beams]
                and not any(shows_stop_word(sequence[:end], words) for end in range(length + 1, len(sequence) + 1))
                for row, sequence in enumerate(sequences)
            ]
        )
        assert torch.equal(loads[number], forwarded[number][live].sum(dim=0)), number
        if number:
            assert tokens[number] == live.sum()


def test_samples_of_one_text_count_as_many_times_as_one_sample():
    """The same rows three times, in OpenCompass's own class: each pass has three times the tokens."""
    from contextlib import nullcontext

    from wdmoe_opencompass.harness.models import WdmoeHuggingFaceBaseModel

    lines = (ROOT / "quickstart" / "data" / "arith" / "test.jsonl").read_text().splitlines()[:4]
    texts = [f"Question: {json.loads(line)['question']}\nAnswer:" for line in lines]
    model = WdmoeHuggingFaceBaseModel(
        path=str(ROOT / "quickstart" / "model"),
        model_kwargs=dict(torch_dtype="torch.float32", device_map="cpu"),
        wdmoe=dict(profile="paper_8_devices"),
        max_seq_len=256,
    )
    model._session.record = lambda items: nullcontext()  # without a trace it would forget what it counted

    def tokens(samples, **ending):
        model.stop_words = ending.pop("stop_words", [])
        model.generation_kwargs = dict(num_return_sequences=samples, do_sample=True, temperature=0.01, **ending)
        model.attachment.recorder.reset()
        answers = model.generate(texts, 16)
        return answers, np.array(model.attachment.recorder.finish_batch(0, 4)["tokens"])

    for ending in (dict(stop_words=[" 8"]), dict(stop_words=[" 3"]), dict(stop_strings=[" 8"]), {}):
        answers, once = tokens(1, **ending)
        repeated, three_times = tokens(3, **ending)
        assert repeated == [answer for answer in answers for _ in range(3)]
        assert three_times.tolist() == (3 * once).tolist()
        assert once[-1] < once[1] or not ending  # a row ended before the others


GENERATIONS = {
    "greedy samples": (dict(num_return_sequences=3), "do not support `num_return_sequences`"),
    "more samples than beams": (dict(num_beams=2, num_return_sequences=3), "has to be smaller or equal to `num_beams`"),
    "no new tokens": (dict(max_new_tokens=-1), "must be greater than 0"),
    "groups of beams": (dict(num_beams=4, num_beam_groups=2, diversity_penalty=0.5), "group beam search, which"),
    "contrastive": (dict(penalty_alpha=0.6, top_k=4), "contrastive search, which"),
    "samples": (dict(num_return_sequences=3, do_sample=True), None),
    "beams": (dict(num_beams=3, num_return_sequences=2), None),
    "sampled beams": (dict(num_beams=3, do_sample=True), None),
    "ends": (dict(eos_token_id=[1, 2], stop_strings=["a"]), None),
    "scores": (dict(return_dict_in_generate=True, output_scores=True), None),
}


@pytest.mark.parametrize("what", GENERATIONS)
def test_plan_says_which_ways_of_generating_cannot_work(what):
    from mmengine.config import ConfigDict

    from wdmoe_opencompass.harness.plan.facts import ModelFacts, Plan
    from wdmoe_opencompass.harness.plan.generation import check_generation

    asked, sentence = GENERATIONS[what]
    problems, plan = [], Plan("config.py")
    cfg = ConfigDict(generation_kwargs=asked, stop_words=["."])
    check_generation(cfg, ModelFacts("m", "path"), problems.append, plan)
    assert [sentence in problem for problem in problems] == ([True] if sentence else [])
    several = max(asked.get("num_beams", 1), asked.get("num_return_sequences", 1)) > 1
    assert [("cut other answers short" in note) for note in plan.notes] == ([True] if several and not problems else [])
