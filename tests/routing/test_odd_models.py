"""Models that differ from the common run: other layouts, other implementations, broken contracts, two at a time."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import MixtralForCausalLM

from tests.builders.odd_models import mixed_mixtral
from tests.routing.families import Watching, attached, logits, tiny_model, zeroed_logits
from tests.tiny import prompts, tiny_mixtral
from wdmoe_opencompass.errors import ModelError
from wdmoe_opencompass.routing import dropping_experts
from wdmoe_opencompass.routing.attachment import find_moe_layers
from wdmoe_opencompass.selection import POLICIES, Selection, SelectionPolicy, build_policy


class KeepTop(SelectionPolicy):
    """Keeps the top expert of every second token and everything of the others."""

    def select(self, routing, channel):
        keep = torch.ones_like(routing.top_k_index, dtype=torch.bool)
        keep[::2] = routing.top_k_weights[::2] == routing.top_k_weights[::2].amax(dim=1, keepdim=True)
        return Selection(routing.top_k_index, keep)


def kept_and_expected(model):
    layers = find_moe_layers(model)
    with attached(model, KeepTop()) as attachment:
        attachment.policy = watching = Watching(attachment.policy)
        kept = logits(model)
    return kept, zeroed_logits(model, layers, watching.answers)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Dropped rows are marked, not left out: what experts do where the host must not be waited for."""
    monkeypatch.setattr(dropping_experts, "can_leave_rows_out", lambda hidden_states: False)


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("family", ["gpt_oss", "mixtral", "nemotron_h"])
def test_any_experts_implementation_of_the_model_gives_way_and_comes_back(family, implementation):
    """The eager experts of some families (GPT-OSS) crash on the index that marks a dropped expert."""
    check_dropping(family, implementation)


@pytest.mark.parametrize("family", ["gpt_oss", "mixtral", "nemotron_h", "deepseek_v3", "granitemoe", "qwen2_moe"])
def test_marked_rows_equal_zeroed_weights_as_on_a_gpu(family, as_on_a_gpu):
    check_dropping(family, "grouped_mm")


def check_dropping(family, implementation):
    model = tiny_model(family)
    model.set_experts_implementation(implementation)
    plain = logits(model)
    kept, expected = kept_and_expected(model)
    assert torch.allclose(kept, expected, atol=1e-5 * plain.abs().max().item())
    assert not torch.allclose(kept, plain, atol=1e-2)
    assert model.get_experts_implementation()[""] == implementation
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("smaller_first", [False, True])
@pytest.mark.parametrize("policy", ["top_k", "wlr"])
def test_layers_may_differ_in_experts_and_top_k(policy, smaller_first):
    model = mixed_mixtral()
    ids, mask = prompts()
    if smaller_first:
        first, second = model.model.layers
        first.mlp, second.mlp = second.mlp, first.mlp
    tokens = mask.sum().item()
    with attached(model, policy) as attachment, torch.no_grad():
        assert model(input_ids=ids, attention_mask=mask).logits.isfinite().all()
        block = attachment.recorder.finish_batch(0, 4)
    order = slice(None, None, -1) if smaller_first else slice(None)
    assert block["assignments_before"][0, order].tolist() == [2 * tokens, 3 * tokens]
    assert block["device_load_before"][0, order][1, 4:].sum() == 0
    assert block["co_selection"].sum(axis=-1)[0, order].tolist() == [tokens, 3 * tokens]


def test_llama_4_with_two_experts_per_token_drops_by_zero_scores():
    """The released models have one expert per token; the adapter does not rely on it."""
    model = tiny_model("llama4_text", num_experts_per_tok=2)
    answers = []

    def zeroing(module, args, answer):
        scores, router_logits = answer
        answers.append(scores)
        lower = scores == scores.masked_fill(scores == 0, 2.0).amin(dim=1, keepdim=True)
        lower[1::2] = False
        return scores.masked_fill(lower, 0.0), router_logits

    layers = find_moe_layers(model)
    assert [layer.top_k for layer in layers] == [2, 2, 2]
    plain = logits(model)
    with attached(model, KeepTop()):
        kept = logits(model)
    handles = [layer.router.register_forward_hook(zeroing) for layer in layers]
    expected = logits(model)
    for handle in handles:
        handle.remove()
    assert torch.allclose(kept, expected, atol=1e-5)
    assert not torch.allclose(kept, plain, atol=1e-2)


def test_two_models_that_share_a_config_do_not_touch_each_other():
    model = tiny_mixtral()
    other = MixtralForCausalLM(model.config).eval()
    assert other.model.layers[0].mlp.experts.config is model.model.layers[0].mlp.experts.config
    ids, mask = prompts()
    plain = logits(other)
    with attached(model, "wlr") as first, torch.no_grad():
        assert torch.equal(logits(other), plain)
        with attached(other, "top_k") as second:
            model(input_ids=ids, attention_mask=mask)
            assert torch.equal(logits(other), plain)
            model(input_ids=ids, attention_mask=mask)
            assert len(first.recorder.finish_batch(0, 4)["tokens"]) == 2
            assert len(second.recorder.finish_batch(0, 4)["tokens"]) == 1


class HostCopies(TorchDispatchMode):
    """Counts the operations that make a GPU wait for the host."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "gpt_oss", "llama4_text"])
def test_nothing_is_copied_to_the_host_inside_a_pass(family, policy, as_on_a_gpu):
    model = tiny_model(family)
    if POLICIES[policy].may_add and find_moe_layers(model)[0].router_kind != "softmax":
        pytest.skip("refused: see test_families.py")
    check_nothing_is_copied(model, policy)


@pytest.mark.parametrize(
    ("policy", "parameters"),
    [
        ("one_t", dict(load_aware="tokens")),
        ("one_t", dict(load_aware="time", may_lose_all=True)),
        ("capacity", dict(by="device", may_lose_all=False)),
        ("capacity", dict(by="time")),
        ("expanded_drop", dict(by="time", gamma=0.5)),
        ("bottleneck", dict(quartile_of="loaded", candidates="visits")),
    ],
)
def test_no_variant_of_a_policy_copies_to_the_host(policy, parameters, as_on_a_gpu):
    check_nothing_is_copied(tiny_model("mixtral"), build_policy(policy, parameters))


def check_nothing_is_copied(model, policy):
    ids, mask = prompts()

    def copies():
        with HostCopies() as mode, torch.no_grad():
            model(input_ids=ids, attention_mask=mask)
        return mode.count

    unpatched = copies()
    with attached(model, policy):
        assert copies() <= unpatched
    with HostCopies() as mode:
        assert bool(ids.any())
    assert mode.count == 1  # what the test would have seen


class Broken(nn.Module):
    def forward(self, *args, **kwargs):
        raise RuntimeError("broken")


class KeepNothing(SelectionPolicy):
    """Some published rules let a token lose all its experts."""

    def select(self, routing, channel):
        return Selection(routing.top_k_index, torch.zeros_like(routing.top_k_index, dtype=torch.bool))


def test_all_experts_of_all_tokens_may_be_dropped():
    model = tiny_model("mixtral")
    layers = find_moe_layers(model)
    with attached(model, KeepNothing()) as attachment:
        kept = logits(model)
        assert attachment.recorder.finish_batch(0, 4)["assignments"].sum() == 0
    handles = [layer.experts.register_forward_hook(lambda module, args, out: torch.zeros_like(out)) for layer in layers]
    assert torch.equal(kept, logits(model))
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("policy", ["top_k", "wlr"])
def test_an_exception_between_two_layers_leaves_nothing_behind(policy):
    model = tiny_mixtral()
    ids, mask = prompts()
    with attached(model, policy) as attachment, torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
        expected = attachment.recorder.finish_batch(0, 4)
        norm = model.model.layers[1].input_layernorm
        model.model.layers[1].input_layernorm = Broken()
        with pytest.raises(RuntimeError, match="broken"):
            model(input_ids=ids, attention_mask=mask)
        model.model.layers[1].input_layernorm = norm
        model(input_ids=ids, attention_mask=mask)
        block = attachment.recorder.finish_batch(0, 4)
    assert all((block[name] == array).all() for name, array in expected.items())


def test_experts_outside_a_forward_pass_of_the_model_are_refused():
    model = tiny_mixtral()
    hidden_states = torch.randn(1, 3, 32)
    with attached(model, "wlr"):
        with pytest.raises(ModelError, match=r"model.layers.0.mlp was run outside a forward pass"):
            model.model.layers[0].mlp(hidden_states)
        logits(model)
        with pytest.raises(ModelError, match="outside a forward pass"):
            model.model.layers[0].mlp(hidden_states)


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (torch.zeros(4, 1, 11, 11), "an attention mask of 4 axes does not say which tokens are padding"),
        ({"full_attention": None}, "an attention mask of type dict does not say"),
    ],
)
def test_a_mask_that_hides_the_padding_is_refused(mask, sentence):
    model = tiny_mixtral()
    with attached(model, "top_k"), pytest.raises(ModelError, match=sentence):
        model(input_ids=prompts()[0], attention_mask=mask)


def test_a_static_cache_of_generate_is_refused():
    model = tiny_mixtral()
    ids, mask = prompts(side="left")
    with attached(model, "top_k"), pytest.raises(ModelError, match="generate with a static cache makes one"):
        model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=2, cache_implementation="static")


def test_experts_that_run_twice_in_a_pass_are_refused():
    model = tiny_mixtral(layers=2)
    model.model.layers[1].mlp = model.model.layers[0].mlp
    with pytest.raises(ModelError, match=r"model.layers.0.mlp: its experts run more than once in a forward pass"):
        find_moe_layers(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "scale"),
    [
        *[(family, 0.01) for family in ("aria_text", "deepseek_v4", "gpt_oss", "jamba", "lfm2_moe", "qwen2_moe")],
        *[(family, 30.0) for family in ("granitemoe", "jamba", "kolibri1", "mixtral", "olmoe", "qwen2_moe")],
    ],
)
def test_what_a_router_does_is_seen_whatever_its_magnitude(family, scale, dtype):
    def seen(model):
        return [(layer.router_kind, layer.normalises) for layer in find_moe_layers(model)]

    model = tiny_model(family)
    expected = seen(model)
    with torch.no_grad():
        for layer in find_moe_layers(model):
            for parameter in layer.router.parameters():
                parameter *= scale
    assert seen(model.to(dtype)) == expected


def test_routers_of_one_class_that_do_different_things_are_refused():
    model = tiny_mixtral(layers=2)

    def unnormalised(module, args, answer):
        logits, _, index = answer
        return logits, logits.softmax(-1).gather(1, index), index

    model.model.layers[1].mlp.gate.register_forward_hook(unnormalised)
    with pytest.raises(ModelError, match=r"MixtralTopKRouter: its top-k weights have one sum .*layers.0.mlp, but not"):
        find_moe_layers(model)


@pytest.mark.parametrize(("family", "sizes"), [("afmoe", dict(experts=32)), ("nemotron_h", dict(experts=16))])
def test_a_module_that_answers_as_many_numbers_as_experts_is_no_router(family, sizes):
    """As many experts as a hidden state has values, or as one projected down has."""
    (router,) = {type(layer.router) for layer in find_moe_layers(tiny_model(family))}
    assert [type(layer.router) for layer in find_moe_layers(tiny_model(family, **sizes))] == [router] * 2


class TwoScores(nn.Module):
    """Two modules answer with a score per expert, but neither's highest are chosen (unless one is told to be)."""

    def __init__(self, experts, deciding=None):
        super().__init__()
        self.experts, self.first, self.second = experts, nn.Linear(32, 8), nn.Linear(32, 8)
        self.deciding = deciding

    def forward(self, hidden_states):
        tokens = hidden_states.flatten(0, 1)
        scores = dict(first=self.first(tokens), second=self.second(tokens))
        chosen = scores[self.deciding] if self.deciding else -scores["first"]
        weights, index = chosen.softmax(-1).topk(2)
        return self.experts(tokens, index, weights).view(hidden_states.shape)


def test_a_part_of_an_attached_model_and_what_it_is_part_of_are_refused():
    model = tiny_mixtral()
    plain = logits(model)
    for first, second in ((model.model, model), (model, model.model)):
        with attached(first, "wlr"), pytest.raises(ModelError, match="attached to a part of this Mixtral"):
            attached(second, "wlr")
    assert torch.equal(logits(model), plain)


def test_a_failing_attachment_leaves_nothing_behind():
    model = tiny_mixtral()
    hooks = count_hooks(model)
    plain = logits(model)
    del model.model.layers[1].mlp.experts.config
    with pytest.raises(ModelError, match=r"MixtralForCausalLM cannot be attached to: .* no attribute 'config'"):
        attached(model, "wlr")
    model.model.layers[1].mlp.experts.config = model.config
    assert count_hooks(model) == hooks
    assert torch.equal(logits(model), plain)
    assert "generate" not in vars(model)
    assert model.model.layers[0].mlp.experts.config is model.config


def count_hooks(model):
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


def test_experts_that_are_parallel_already_are_refused():
    model = tiny_mixtral()
    model.model.layers[1].mlp.experts._is_expert_parallel = True
    with pytest.raises(ModelError, match=r"model.layers.1.mlp: the experts are spread over processes"):
        attached(model, "top_k")


@pytest.mark.parametrize("deciding", ["first", "second", None])
def test_of_two_modules_with_scores_the_one_whose_highest_are_chosen_is_the_router(deciding):
    model = tiny_mixtral(layers=1)
    block = model.model.layers[0].mlp = TwoScores(model.model.layers[0].mlp.experts, deciding)
    if deciding is None:
        with pytest.raises(ModelError, match="Linear and Linear both return one score per expert"):
            find_moe_layers(model)
    else:
        assert find_moe_layers(model)[0].router is getattr(block, deciding)


class OneArgument(nn.Module):
    """Passes for experts by its attributes, but is called with hidden states alone."""

    def __init__(self, down_proj):
        super().__init__()
        self.experts = nn.Identity()
        self.experts._is_expert_parallel, self.experts.is_transposed = False, False
        self.experts.down_proj = down_proj

    def forward(self, hidden_states):
        return self.experts(hidden_states)


@pytest.mark.parametrize(
    ("down_proj", "sentence"),
    [
        (torch.zeros(8, 32, 48), r"Identity is called with \[\[1, 16, 32\]\], not with \(hidden states, top-k index"),
        (torch.zeros(32, 48), r"Identity has no weights down_proj \[experts, hidden, ffn\]"),
    ],
)
def test_experts_that_break_the_contract_say_how(down_proj, sentence):
    model = tiny_mixtral()
    plain, sound = logits(model), model.model.layers[1].mlp
    model.model.layers[1].mlp = OneArgument(down_proj)
    with pytest.raises(ModelError, match=sentence):
        find_moe_layers(model)
    model.model.layers[1].mlp = sound
    assert torch.equal(logits(model), plain)


def test_a_model_that_cannot_run_says_why():
    model = tiny_mixtral()
    model.model.norm = Broken()
    with pytest.raises(
        ModelError, match="a forward pass of 16 tokens, to see how it routes, failed: RuntimeError: broken"
    ):
        find_moe_layers(model)


def test_a_generate_of_the_models_own_comes_back():
    model = tiny_mixtral()
    model.generate = own = lambda **kwargs: "mine"
    with attached(model, "wlr"):
        assert model.generate(do_sample=False) == "mine"
    assert model.generate is own
