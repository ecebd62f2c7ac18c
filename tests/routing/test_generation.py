"""Loads of `generate`, counted again by running the unpatched model token by token."""

import pytest
import torch
from transformers import GenerationConfig

from tests import oracles
from tests.routing.families import attached, find_moe_layers, tiny_model
from tests.tiny import PAD, prompts
from wdmoe_opencompass.selection import Routing, build_policy

FAMILIES = ["mixtral", "deepseek_v3", "gpt_oss", "qwen2_moe", "dbrx"]
NEW_TOKENS = 9
END = 96


def routed(model, run):
    """What the unpatched model's experts are given while `run` runs: -> per layer, a list of index tensors."""
    layers = find_moe_layers(model)
    seen = [[] for _ in layers]
    handles = [
        layer.experts.register_forward_pre_hook(lambda _, args, seen=seen[number]: seen.append(args[1].clone()))
        for number, layer in enumerate(layers)
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def counted(seen, experts=8):
    """-> [layers, experts] tokens that each expert got."""
    return torch.stack([torch.bincount(torch.cat(layer).flatten(), minlength=experts) for layer in seen])


def token_by_token(model, tokens):
    """Forward one sequence with the cache, a token at a time."""
    cache = None
    for token in tokens:
        with torch.no_grad():
            cache = model(input_ids=token.view(1, 1), past_key_values=cache, use_cache=True).past_key_values


def forwarded_tokens(sequence, prompt):
    """What a sequence generated alone would have forwarded: its last token never is, nor anything after an end."""
    generated = sequence[len(prompt) :]
    ends = (generated == END).nonzero().flatten().tolist()
    kept = generated[: ends[0] + 1] if ends else generated
    return torch.cat([prompt[prompt != PAD], kept[:-1]])


def often_ending(family):
    """A tiny model whose end token is likely, so that sequences of one batch end at different times."""
    model = tiny_model(family)
    model.generation_config.eos_token_id = END
    model.generation_config.pad_token_id = PAD
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head[END] = 1.5 * head[torch.randint(3, 90, (1,), generator=torch.Generator().manual_seed(1))]
    return model


SETTINGS = {
    "greedy": dict(do_sample=False),
    "sampling": dict(do_sample=True, temperature=1.5),
    "several per prompt": dict(do_sample=True, num_return_sequences=3),
    "generation_config": dict(generation_config=GenerationConfig(do_sample=True, eos_token_id=END, pad_token_id=PAD)),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_loads_equal_a_token_by_token_replay(family, setting):
    model = often_ending(family)
    ids, mask = prompts(rows=5, side="left")

    def generate():
        torch.manual_seed(3)
        return model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, **SETTINGS[setting])

    plain = generate()
    with attached(model, "top_k") as attachment:
        assert torch.equal(generate(), plain)
        block = attachment.recorder.finish_batch(0, 5)
    per_prompt = len(plain) // len(ids)
    rows = [forwarded_tokens(row, ids[number // per_prompt]) for number, row in enumerate(plain)]
    replayed = counted(routed(model, lambda: [token_by_token(model, row) for row in rows]))
    assert torch.equal(torch.tensor(block["device_load"]).sum(dim=0), replayed)
    assert len({len(row) for row in rows}) > 2  # sequences ended at different times
    real = mask.sum(dim=1).tolist()
    own = [len(row) - real[number // per_prompt] + 1 for number, row in enumerate(rows)]  # a prefill and the rest
    assert block["item_passes"].tolist() == [max(own[n * per_prompt : (n + 1) * per_prompt]) for n in range(5)]


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "deepseek_v3"])
def test_loads_under_wlr_equal_a_replay_step_by_step(family):
    """One row: the unpatched model with dropped weights set to zero, whose kept experts are counted one by one."""
    model = tiny_model(family)
    model.generation_config.eos_token_id = -1
    layers = find_moe_layers(model)
    prompt = prompts(rows=1)[0]
    with attached(model, "wlr") as attachment:
        states = attachment.channel_of_layer
        sequence = model.generate(input_ids=prompt, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=PAD)
        block = attachment.recorder.finish_batch(0, 1)

    loads, scores = [], {}
    policy = build_policy("wlr")
    channel = states(0, 0, torch.device("cpu"))

    def dropping(number, layer):
        def hook(module, args):
            hidden_states, index, weights = args
            full = scores[number].flatten(0, -2).softmax(-1)
            if layer.router_kind != "softmax":
                full = torch.zeros_like(full).scatter(1, index, weights)
            real = torch.ones(len(index), dtype=torch.bool)
            keep = policy.select(Routing(full, index, weights, real, number, "decode"), channel).keep
            kept = [row[flags].tolist() for row, flags in zip(index, keep, strict=True)]
            loads.append(oracles.loads(kept, real.tolist(), channel.device_of_expert.tolist(), devices=8)[0])
            scale = weights.sum(1, keepdim=True) / (weights * keep).sum(1, keepdim=True) if layer.normalises else 1
            return hidden_states, index, weights * keep * scale

        return hook

    for number, layer in enumerate(layers):
        layer.router.register_forward_hook(
            lambda module, args, answer, number=number: scores.update(
                {number: answer[0] if isinstance(answer, tuple) else answer}
            )
        )
        layer.experts.register_forward_pre_hook(dropping(number, layer))
    cache, written = None, []
    for part in (prompt, *sequence[:, prompt.shape[1] : -1].split(1, dim=1)):
        with torch.no_grad():
            answer = model(input_ids=part, past_key_values=cache, use_cache=True)
        cache = answer.past_key_values
        written.append(answer.logits[0, -1].argmax().item())
    assert written == sequence[0, prompt.shape[1] :].tolist()
    assert torch.equal(torch.tensor(block["device_load"]).flatten(0, 1), torch.tensor(loads))
    assert block["assignments"][1:].sum() < block["assignments_before"][1:].sum()


@pytest.mark.parametrize(("early_stopping", "length_penalty"), [(True, 1.0), (False, 1.0), ("never", 0.0)])
@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_every_beam_counts_until_the_search_of_its_prompt_is_over(family, early_stopping, length_penalty):
    """The oracle: the beam search of each prompt alone, without padding, whose every row counts."""
    model = often_ending(family)
    model.generation_config.eos_token_id = list(range(80, 97))
    ids, mask = prompts(rows=5, side="left")
    settings = dict(
        num_beams=3, do_sample=False, max_new_tokens=12, early_stopping=early_stopping, length_penalty=length_penalty
    )

    def alone(row):
        real = ids[row][mask[row].bool()][None]
        return routed(model, lambda: model.generate(input_ids=real, **settings))

    searches = [alone(row) for row in range(5)]
    plain = model.generate(input_ids=ids, attention_mask=mask, **settings)
    with attached(model, "top_k") as attachment:
        assert torch.equal(model.generate(input_ids=ids, attention_mask=mask, **settings), plain)
        block = attachment.recorder.finish_batch(0, 5)
    together = torch.tensor(block["device_load"])
    assert torch.equal(together.sum(dim=0), sum(counted(search) for search in searches))
    passes = [len(search[0]) for search in searches]
    assert len(together) == max(passes)
    assert block["item_passes"].tolist() == passes
    assert len(set(passes)) > 1  # searches ended at different times


@pytest.mark.parametrize("beams", [1, 2])
def test_generation_gives_the_model_its_own_methods_back(beams):
    model = often_ending("mixtral")
    own = set(vars(model))
    ids, mask = prompts(rows=2, side="left")
    with attached(model, "wlr"):
        model.generate(input_ids=ids, attention_mask=mask, num_beams=beams, max_new_tokens=2)
        assert set(vars(model)) - own == {"_wdmoe_attachment", "generate"}
