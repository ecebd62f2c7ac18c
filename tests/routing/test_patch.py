import pytest
import torch
from torch import nn
from transformers import DynamicCache, GenerationConfig, StaticCache, StoppingCriteria, StoppingCriteriaList

from tests import oracles
from tests.tiny import channel_states, example_parameters, prompts, tiny_mixtral
from wdmoe_opencompass.errors import ModelError
from wdmoe_opencompass.routing.attachment import Attachment, find_moe_layers
from wdmoe_opencompass.routing.dropping_experts import DROPPING_EXPERTS
from wdmoe_opencompass.selection import POLICIES, Selection, SelectionPolicy, TopK, build_policy


def attach(model, policy="top_k", renormalise="model", **parameters):
    if isinstance(policy, str):
        policy = build_policy(policy, example_parameters(policy, layers=3) | parameters)
    return Attachment(model, policy, channel_states(model), renormalise)


def block_of(model, run, policy="top_k", items=4, **parameters):
    with attach(model, policy, **parameters) as attachment, torch.no_grad():
        run(model)
        return attachment.recorder.finish_batch(0, items)


class KeepEvery(SelectionPolicy):
    """Keeps the masked pairs of a fixed pattern; it represents any dropping policy."""

    def select(self, routing, channel):
        keep = torch.ones_like(routing.top_k_index, dtype=torch.bool)
        keep[::2, 1] = False
        return Selection(routing.top_k_index, keep)


def test_top_k_leaves_logits_bit_identical():
    model = tiny_mixtral()
    ids, mask = prompts()
    with torch.no_grad():
        plain = model(input_ids=ids, attention_mask=mask).logits
        with attach(model):
            patched = model(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(plain, patched)


@pytest.mark.parametrize("renormalise", ["model", True, False])
def test_dropped_experts_equal_zeroed_weights(renormalise):
    model = tiny_mixtral()
    ids, mask = prompts()

    def zeroing(module, args, answer):
        logits, weights, index = answer
        kept = weights.clone()
        kept[::2, 1] = 0
        return logits, kept if renormalise is False else kept / kept.sum(1, keepdim=True), index

    handles = [layer.router.register_forward_hook(zeroing) for layer in find_moe_layers(model)]
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits
        for handle in handles:
            handle.remove()
        with attach(model, KeepEvery(), renormalise):
            dropped = model(input_ids=ids, attention_mask=mask).logits
    assert torch.allclose(dropped[mask.bool()], expected[mask.bool()], atol=1e-4)
    assert not torch.allclose(dropped, tiny_mixtral(seed=1)(input_ids=ids, attention_mask=mask).logits, atol=1e-2)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_detaching_gives_the_model_back(policy):
    model = tiny_mixtral()
    ids, mask = prompts()
    implementation = model.config._experts_implementation
    with torch.no_grad():
        plain = model(input_ids=ids, attention_mask=mask).logits
        with attach(model, policy) as attachment:
            used = [layer.experts.config._experts_implementation for layer in attachment.layers]
            assert [name == DROPPING_EXPERTS for name in used] == [policy != "top_k"] * len(attachment.layers)
            with pytest.raises(ModelError, match="attached to this model already"):
                attach(model)
        assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, plain)
    assert model.config._experts_implementation == implementation
    assert "generate" not in model.__dict__
    assert all(layer.experts.config is model.config for layer in find_moe_layers(model))


@pytest.mark.parametrize("side", ["left", "right"])
def test_loads_sum_to_k_times_the_real_tokens(side):
    ids, mask = prompts(side=side)
    block = block_of(tiny_mixtral(), lambda model: model(input_ids=ids, attention_mask=mask))
    assert block["tokens"].tolist() == [mask.sum().item()]
    assert (block["device_load"].sum(axis=-1) == 2 * mask.sum().item()).all()
    assert (block["assignments"] == 2 * mask.sum().item()).all()
    assert (block["co_selection"].sum(axis=-1) == mask.sum().item()).all()


def test_loads_do_not_depend_on_batch_size_or_padding_side():
    model = tiny_mixtral()

    def loads(rows, side):
        total = 0
        ids, mask = prompts(rows=8, side=side)
        for first in range(0, 8, rows):
            part = slice(first, first + rows)
            block = block_of(model, lambda m, part=part: m(input_ids=ids[part], attention_mask=mask[part]))
            total = total + block["device_load"].sum(axis=0)
        return total.tolist()

    ids_right, mask_right = prompts(rows=8, side="right")
    left, left_mask = torch.zeros_like(ids_right), torch.zeros_like(mask_right)
    for row in range(8):
        real = ids_right[row][mask_right[row].bool()]
        left[row, len(left[row]) - len(real) :] = real
        left_mask[row, len(left[row]) - len(real) :] = 1
    positions = (left_mask.cumsum(1) - 1).clamp(min=0)
    from_left = block_of(model, lambda m: m(input_ids=left, attention_mask=left_mask, position_ids=positions))
    assert loads(8, "right") == loads(1, "right") == loads(3, "right")
    assert from_left["device_load"].sum(axis=0).tolist() == loads(8, "right")


OFTEN = {81, 83, 94}  # tokens that this random model often writes


class StopRowsAt(StoppingCriteria):
    """As transformers' stop_strings: a bool per row."""

    def __init__(self, tokens):
        self.tokens = torch.tensor(sorted(tokens))

    def __call__(self, input_ids, scores, **kwargs):
        return torch.isin(input_ids[:, -1], self.tokens)


class StopAt(StoppingCriteria):
    """As OpenCompass's: a done_tracker per row, true only when all rows are done."""

    def __init__(self, tokens, rows):
        self.tokens, self.done_tracker = tokens, [False] * rows

    def __call__(self, input_ids, scores, **kwargs):
        for row, last in enumerate(input_ids[:, -1].tolist()):
            self.done_tracker[row] = self.done_tracker[row] or last in self.tokens
        return False not in self.done_tracker


ENDINGS = {
    "end token": lambda rows: dict(eos_token_id=sorted(OFTEN)),
    "end token of the call": lambda rows: dict(generation_config=GenerationConfig(eos_token_id=sorted(OFTEN))),
    "stop word": lambda rows: dict(stopping_criteria=StoppingCriteriaList([StopAt(OFTEN, rows)])),
    "stop string": lambda rows: dict(stopping_criteria=StoppingCriteriaList([StopRowsAt(OFTEN)])),
    "length": lambda rows: {},
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_batch_generation_counts_exactly_what_single_sequences_count(ending):
    """The oracle: each sequence generated alone stops by itself, so nothing of it is ever finished."""
    model = tiny_mixtral()
    ids, mask = prompts(rows=5, side="left")
    model.generation_config.eos_token_id = 95
    settings = dict(max_new_tokens=12, do_sample=False, pad_token_id=0)

    def generate(rows):
        return lambda m: m.generate(
            input_ids=ids[rows], attention_mask=mask[rows], **settings, **ENDINGS[ending](len(ids[rows]))
        )

    together = block_of(model, generate(slice(0, 5)))
    alone = [block_of(model, generate(slice(row, row + 1)), items=1) for row in range(5)]
    lengths = {len(block["tokens"]) for block in alone}
    assert (len(lengths) > 1) == (ending != "length")  # else the test shows nothing
    for pass_index, tokens in enumerate(together["tokens"]):
        running = [block for block in alone if pass_index < len(block["tokens"])]
        assert tokens == sum(block["tokens"][pass_index] for block in running)
        loads = sum(block["device_load"][pass_index] for block in running)
        assert (together["device_load"][pass_index] == loads).all()
    assert together["phase"].tolist() == [0] + [1] * (len(together["phase"]) - 1)


def test_a_call_without_an_end_token_counts_every_row_to_the_end():
    model = tiny_mixtral()
    ids, mask = prompts(rows=5, side="left")
    settings = dict(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
    model.generation_config.eos_token_id = sorted(OFTEN)
    ended = block_of(model, lambda m: m.generate(**settings))
    endless = block_of(model, lambda m: m.generate(**settings, eos_token_id=None))
    assert endless["tokens"][1:].tolist() == [5] * 5
    assert ended["tokens"].sum() < endless["tokens"].sum()


def test_a_subclass_of_top_k_that_drops_changes_the_model():
    class TopOne(TopK):
        def select(self, routing, channel):
            return Selection(routing.top_k_index, routing.rank == 0)

    model = tiny_mixtral()
    ids, mask = prompts()
    with torch.no_grad():
        plain = model(input_ids=ids, attention_mask=mask).logits
        with attach(model, TopOne()):
            assert not torch.allclose(model(input_ids=ids, attention_mask=mask).logits, plain, atol=1e-2)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_padding_and_phase_are_told_from_the_cache_also_by_place(kind):
    """The mask of a static cache covers all its slots, even those not yet filled."""
    model = tiny_mixtral()
    ids, mask = prompts(side="left")
    slot_mask = torch.cat([mask, torch.ones(4, 1, dtype=mask.dtype)], dim=1)
    if kind == "static":
        slot_mask = torch.cat([slot_mask, torch.zeros(4, 9, dtype=mask.dtype)], dim=1)
    cache = StaticCache(model.config, max_cache_len=21) if kind == "static" else DynamicCache(config=model.config)

    def run(m):
        m(ids, slot_mask if kind == "static" else mask, None, cache)
        m(ids[:, :1], slot_mask, None, cache)

    block = block_of(model, run)
    assert block["tokens"].tolist() == [mask.sum().item(), 4]
    assert block["phase"].tolist() == [0, 1]


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("policy", ["top_k", "wlr", "expanded_drop"])
def test_loads_are_the_same_with_gradients_and_in_inference_mode(policy, mode):
    model = tiny_mixtral()
    ids = torch.randint(3, 97, (32, 400), generator=torch.Generator().manual_seed(0))  # counted in several goes

    def block(mode):
        with attach(model, policy) as attachment:
            with mode():
                for part in (ids, ids, ids[:, :9]):
                    model(input_ids=part)
            return attachment.recorder.finish_batch(0, 32)

    expected, counted = block(torch.no_grad), block(mode)
    assert all((counted[name] == array).all() for name, array in expected.items())


def test_a_gradient_passes_what_was_attached_in_inference_mode():
    model = tiny_mixtral()
    ids, mask = prompts()
    states = channel_states(model)
    for policy in (build_policy("wlr"), build_policy("expanded_drop")):
        with torch.inference_mode():
            attachment = Attachment(model, policy, states, payload_bits=8)
            model(input_ids=ids, attention_mask=mask)
        with attachment:
            model(input_ids=ids, attention_mask=mask).logits.sum().backward()
        assert model.model.layers[0].mlp.gate.weight.grad.any()
        model.zero_grad()


def test_autocast_changes_neither_counting_nor_selection():
    model = tiny_mixtral()
    ids = torch.randint(3, 97, (16, 250), generator=torch.Generator().manual_seed(0))
    policy, asked = build_policy("wlr"), []

    class Asking(SelectionPolicy):
        def select(self, routing, channel):
            asked.append((routing, channel, policy.select(routing, channel).keep))
            return Selection(routing.top_k_index, asked[-1][2])

    with attach(model, Asking()) as attachment, torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(input_ids=ids)
        block = attachment.recorder.finish_batch(0, 16)
    assert block["co_selection"].sum(axis=-1).tolist() == [[4000] * 3]
    for routing, channel, keep in asked:
        assert torch.equal(policy.select(routing, channel).keep, keep)


def test_wlr_never_sends_a_token_to_a_dropped_expert_and_keeps_all_real_tokens():
    ids, mask = prompts(rows=6)
    block = block_of(tiny_mixtral(), lambda m: m(input_ids=ids, attention_mask=mask), policy="wlr")
    tokens = mask.sum().item()
    assert (block["device_load"] <= block["device_load_before"]).all()
    assert (block["assignments"] >= tokens).all()
    assert (block["assignments"] < 2 * tokens).any()


def test_experts_of_one_device_are_one_transfer_and_two_evaluations():
    model = tiny_mixtral()
    ids, mask = prompts()
    with Attachment(model, TopK(), channel_states(model, "testbed_4_devices")) as attachment, torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
        block = attachment.recorder.finish_batch(0, 4)
    assert (block["assignments"] == 2 * mask.sum().item()).all()
    assert block["expert_evaluations"].sum() < block["assignments"].sum()  # some experts are at the base station
    assert (block["device_load"] == block["expert_evaluations"]).all()


@pytest.mark.parametrize("placement", [[0, 1, 2, 3, 4, 5, 6, 7], [0, 0, 1, 1, -1, 2, 2, -1]])
@pytest.mark.parametrize("policy", ["top_k", "wlr"])
def test_recorded_loads_equal_a_token_by_token_count(placement, policy):
    model = tiny_mixtral(top_k=3)
    ids, mask = prompts(rows=6)
    states = channel_states(model)
    states._device_of_expert = placement
    seen = []
    with Attachment(model, build_policy(policy), states) as attachment, torch.no_grad():
        attachment.policy = Watching(attachment.policy, seen)
        model(input_ids=ids, attention_mask=mask)
        block = attachment.recorder.finish_batch(0, 6)
    for layer, (chosen, keep) in enumerate(seen):
        for ending, kept in (("_before", torch.ones_like(keep)), ("", keep)):
            pairs = [row[flags].tolist() for row, flags in zip(chosen, kept, strict=True)]
            device_load, computed = oracles.loads(pairs, mask.flatten().tolist(), placement, devices=8)
            assert block[f"device_load{ending}"][0, layer].tolist() == device_load
            assert block[f"expert_evaluations{ending}"][0, layer].tolist() == computed
            real = [pair for pair, counts in zip(pairs, mask.flatten().tolist(), strict=True) if counts]
            assert block[f"assignments{ending}"][0, layer] == sum(map(len, real))


class Watching(SelectionPolicy):
    """Another policy's answers, kept for the test."""

    def __init__(self, policy, seen):
        self.policy, self.seen = policy, seen

    def select(self, routing, channel):
        answer = self.policy.select(routing, channel)
        self.seen.append((answer.expert_index.clone(), answer.keep.clone()))
        return answer


class Failing:
    """Raises at the n-th call: as a hook of a module, or as a logits processor."""

    def __init__(self, error, calls=1):
        self.error, self.left = error, calls

    def __call__(self, *args):
        self.left -= 1
        if self.left == 0:
            raise self.error("broken")
        return args[-1]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("name", ["model.embed_tokens", "model.layers.1", "lm_head"])
def test_an_exception_inside_a_forward_pass_leaves_no_counts(name, error):
    model = tiny_mixtral()
    ids, mask = prompts()
    with attach(model) as attachment, torch.no_grad():
        handle = model.get_submodule(name).register_forward_pre_hook(Failing(error))
        with pytest.raises(error, match="broken"):
            model(input_ids=ids, attention_mask=mask)
        handle.remove()
        model(input_ids=ids, attention_mask=mask)
        assert len(attachment.recorder.finish_batch(0, 4)["tokens"]) == 1


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_between_two_passes_of_generate_leaves_no_counts(error, beams):
    model = tiny_mixtral()
    ids, mask = prompts(side="left")
    settings = dict(input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False, num_beams=beams)
    with attach(model) as attachment:
        with pytest.raises(error, match="broken"):
            model.generate(**settings, logits_processor=[Failing(error, calls=3)])
        assert attachment.recorder.passes == 0


def test_a_model_without_a_router_gets_one_sentence():
    with pytest.raises(ModelError, match="Linear has no MoE layer that can be patched"):
        find_moe_layers(nn.Linear(2, 2))
