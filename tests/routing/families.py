"""A tiny random one of every MoE causal language model of the installed transformers, and what can be done with it.

`python -m tests.routing.families` writes docs/model_families.md.
"""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.tiny import example_policy, prompts
from wdmoe_opencompass import load_profile
from wdmoe_opencompass.errors import ModelError
from wdmoe_opencompass.routing.attachment import Attachment, find_moe_layers
from wdmoe_opencompass.routing.channel_state import ChannelStates
from wdmoe_opencompass.selection import POLICIES, Selection, SelectionPolicy

TABLE = Path(__file__).parents[2] / "docs" / "model_families.md"
TOLERANCE = 1e-5  # of the largest logit, float32

# Policies run on every family: one that only drops, one that may add. All of them run on families of every kind: with
# weights normalised or not, of a softmax or not, dropped by a mark, by weight zero or by score zero.
EVERYWHERE = ("expanded_drop", "wlr")
ALL_POLICIES_ON = ("dbrx", "deepseek_v3", "gpt_oss", "llama4_text", "mixtral", "qwen2_moe")

# Every config class takes those of these that it has.
SIZES = dict(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    moe_intermediate_size=24,
    shared_expert_intermediate_size=24,
    shared_intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    n_shared_experts=1,
    n_group=2,
    topk_group=2,
    first_k_dense_replace=1,
    max_position_embeddings=256,
    initializer_range=0.3,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
TOP_K = ("num_experts_per_tok", "moe_topk")
LATENT = dict(
    num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8
)
INDEXED = LATENT | dict(index_n_heads=2, index_head_dim=16, index_topk=64)
LINEAR = dict(linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4)
HYBRID = dict(layer_types=["linear_attention", "full_attention", "linear_attention"])

# model type of transformers -> what differs from SIZES
FAMILIES = {
    "afmoe": {},
    "aria_text": {},
    "axk1": LATENT,
    "axk2": INDEXED,
    "bailing_hybrid": LATENT | HYBRID,
    "beam": dict(mlp_layer_types=["dense", "sparse", "sparse"]),
    "cohere2_moe": {},
    "dbrx": dict(
        d_model=32,
        n_heads=4,
        n_layers=3,
        max_seq_len=256,
        attn_config=dict(kv_n_heads=2, rope_theta=10000.0, clip_qkv=8.0),
        ffn_config=dict(hidden_size=32, ffn_hidden_size=48, moe_num_experts=8, moe_top_k=2),
    ),
    "deepseek_v2": LATENT | dict(topk_method="group_limited_greedy"),
    "deepseek_v3": LATENT,
    "deepseek_v32": INDEXED,
    "deepseek_v4": dict(
        num_key_value_heads=1,
        head_dim=16,
        q_lora_rank=16,
        o_groups=2,
        o_lora_rank=16,
        index_n_heads=2,
        index_head_dim=16,
        mlp_layer_types=["hash_moe", "moe", "moe"],
        layer_types=["sliding_attention"] * 3,
    ),
    "doge": dict(is_moe=True, num_experts=16),
    "dots1": {},
    "dots3_note_text": INDEXED
    | dict(mlp_layer_types=["dense", "sparse", "sparse"], shared_experts_intermediate_size=24),
    "ernie4_5_moe": {},
    "exaone_moe": {},
    "flex_olmo": {},
    "flint": dict(num_hidden_layers=4),
    "gemma4_text": dict(
        enable_moe_block=True, top_k_experts=2, hidden_size_per_layer_input=0, vocab_size_per_layer_input=97
    ),
    "glm4_moe": {},
    "glm4_moe_lite": LATENT,
    "glm_moe_dsa": INDEXED,
    "gpt_oss": {},
    "granitemoe": {},
    "granitemoe_swa": {},
    "granitemoehybrid": HYBRID | dict(mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_chunk_size=16),
    "granitemoeshared": {},
    "hunyuan_v1_moe": {},
    "hy_v3": {},
    "hy_v4": INDEXED,
    "inkling2_text": dict(unpadded_vocab_size=97),
    "inkling_text": dict(unpadded_vocab_size=97),
    "jamba": dict(num_hidden_layers=4, attn_layer_period=2, attn_layer_offset=1, use_mamba_kernels=False),
    "jetmoe": dict(num_key_value_heads=2, kv_channels=8),
    "kimi_linear": LATENT | HYBRID | dict(linear_head_dim=8, linear_num_heads=4, q_lora_rank=None),
    "kolibri1": {},
    "laguna": {},
    "lfm2_moe": dict(layer_types=["conv", "full_attention", "full_attention"], num_dense_layers=1),
    "llama4_text": dict(num_experts_per_tok=1, intermediate_size_mlp=48, interleave_moe_layer_step=1),
    "longcat_flash": LATENT | dict(num_layers=2, ffn_hidden_size=48, expert_ffn_hidden_size=24, zero_expert_num=2),
    "mellum": {},
    "mimo_v2_flash": {},
    "minimax": {},
    "minimax_m2": {},
    "minimax_m3_vl_text": {},
    "mistral4": LATENT,
    "mixtral": {},
    "nemotron_h": dict(
        layers_block_type=["linear_attention", "moe", "full_attention", "moe"],
        mamba_num_heads=4,
        mamba_head_dim=8,
        ssm_state_size=8,
        n_groups=2,
        chunk_size=16,
        use_mamba_kernels=False,
        moe_shared_expert_intermediate_size=24,
        moe_latent_size=16,
    ),
    "olmoe": {},
    "phimoe": {},
    "qwen2_moe": {},
    "qwen3_5_moe_text": HYBRID | LINEAR,
    "qwen3_moe": dict(norm_topk_prob=True),
    "qwen3_next": HYBRID | LINEAR,
    "qwen4_exp_text": HYBRID
    | LINEAR
    | dict(indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=8, indexer_budget=64, indexer_compress_ratio=4),
    "solar_open": {},
    "zaya": dict(num_experts_per_tok=1, router_hidden_size=16, layer_types=["hybrid"] * 3),
}


def model_class(model_type):
    derived = CONFIG_MAPPING[model_type].__name__.replace("Config", "ForCausalLM")
    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type, derived)


def tiny_model(model_type, seed=0, experts=8, top_k=2, **changes):
    """A random model of a family; tensors that its initialisation leaves at zero (routers, biases) are random too."""
    config_class = CONFIG_MAPPING[model_type]
    sizes = SIZES | dict.fromkeys(EXPERTS, experts) | dict.fromkeys(TOP_K, top_k)
    known = {name for name in sizes if hasattr(config_class, name) or name in config_class.attribute_map}
    given = {name: sizes[name] for name in known} | FAMILIES[model_type] | changes
    torch.manual_seed(seed)
    model = getattr(transformers, model_class(model_type))(config_class(**given)).eval()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point() and not tensor.any():
                tensor.normal_(0, 0.3)
    for module in model.modules():
        if hasattr(module, "tid2eid"):  # the fixed experts of each token of the vocabulary
            module.tid2eid[:] = torch.rand(len(module.tid2eid), module.num_experts).topk(module.top_k).indices
    return model


@dataclass
class Findings:
    """What happens to a family's tiny model; error: why it cannot be attached to, and nothing else then.

    deviation: per policy, largest difference from the model with the dropped weights set to zero, of the largest logit.
    dropped: per policy, the share of assignments. added: per policy, whether a token got another expert. decoded:
    generation with the cache counts every token once, in two phases, and `top_k` generates what the unpatched model
    does.
    """

    error: str | None = None
    router: str = ""
    normalises: bool = False
    skips_dropped: bool = False
    shared_experts: bool = False
    identical: bool = False
    detached: bool = False
    decoded: bool = False
    deviation: dict[str, float] = field(default_factory=dict)
    dropped: dict[str, float] = field(default_factory=dict)
    added: dict[str, bool] = field(default_factory=dict)


@cache
def examine(model_type):
    """Attach policies to a family's tiny model, run it, detach."""
    model = tiny_model(model_type)
    try:
        layers = find_moe_layers(model)
    except ModelError as error:
        return Findings(str(error))
    found = Findings(
        router=" and ".join(sorted({layer.router_kind for layer in layers})),
        normalises=any(layer.normalises for layer in layers),
        skips_dropped=all(layer.contract.skips_dropped for layer in layers),
        shared_experts=any("shared" in name for name, _ in model.named_modules()),
    )
    plain = logits(model)
    with attached(model, "top_k"):
        found.identical = torch.equal(logits(model), plain)
    for name in policies_for(model_type, found.router):
        with attached(model, name) as attachment:
            attachment.policy = watching = Watching(attachment.policy)
            kept = logits(model)
            block = attachment.recorder.finish_batch(0, 1)
        expected = zeroed_logits(model, layers, watching.answers, attachment.renormalise)
        found.deviation[name] = ((kept - expected).abs().max() / plain.abs().max()).item()
        found.dropped[name] = 1 - block["assignments"].sum() / block["assignments_before"].sum()
        found.added[name] = watching.added
    found.detached = torch.equal(logits(model), plain) and "generate" not in vars(model)
    found.decoded = decodes(model, layers)
    return found


def policies_for(model_type, router):
    """-> names of the policies that `examine` runs; only a softmax gives experts outside the top-k a weight."""
    names = set(POLICIES) - {"top_k"} if model_type in ALL_POLICIES_ON else EVERYWHERE
    return sorted(name for name in names if router == "softmax" or not POLICIES[name].may_add)


def example_for(layers, name):
    return example_policy(name, len(layers), layers[0].num_experts, layers[0].top_k)


def attached(model, policy):
    layers = find_moe_layers(model)
    experts = max(layer.num_experts for layer in layers)
    states = ChannelStates(load_profile("paper_8_devices"), layers[0].shape, experts)
    return Attachment(model, example_for(layers, policy) if isinstance(policy, str) else policy, states)


def logits(model):
    ids, mask = prompts()
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits[mask.bool()]


def zeroed_logits(model, layers, answers, renormalise="model"):
    """The unpatched model with the weights of dropped experts set to zero, and renormalised as `renormalise` says."""
    handles = [
        layer.experts.register_forward_pre_hook(
            _zeroing(layer, answer, renormalise is True or (renormalise == "model" and layer.normalises))
        )
        for layer, answer in zip(layers, answers)
    ]
    try:
        return logits(model)
    finally:
        for handle in handles:
            handle.remove()


def _zeroing(layer, answer, scaled_back):
    kept_experts = torch.zeros(len(answer.keep), layer.num_experts, dtype=torch.bool)
    kept_experts.scatter_(1, answer.expert_index, answer.keep)

    def hook(module, args):
        if len(args) < 3:  # Llama 4: every expert is given every token, expert by expert, times its score
            return (args[0] * kept_experts.T.reshape(-1, 1),)
        hidden_states, index, weights = args
        kept = weights * kept_experts.gather(1, index)
        if answer.weights is not None:
            index, kept = answer.expert_index, torch.where(answer.keep, answer.weights, 0)
        if scaled_back:
            kept = kept / kept.sum(1, keepdim=True).clamp(min=1e-9) * weights.sum(1, keepdim=True)
        return hidden_states, index, kept

    return hook


class Watching(SelectionPolicy):
    """Another policy, whose answers are kept, one per layer; added: whether it gave a token another expert."""

    def __init__(self, policy):
        self.policy, self.answers, self.added = policy, [], False

    def select(self, routing, channel):
        answer = self.policy.select(routing, channel)
        self.added |= bool((answer.keep & (answer.expert_index != routing.top_k_index)).any())
        self.answers.append(Selection(*(None if part is None else part.clone() for part in answer)))
        return answer


def decodes(model, layers, new_tokens=4):
    ids, mask = prompts(rows=3, side="left")
    model.generation_config.eos_token_id = -1

    def generate():
        return model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, pad_token_id=0
        )

    plain = generate()
    with attached(model, "top_k") as attachment:
        same = torch.equal(generate(), plain)
        block = attachment.recorder.finish_batch(0, 3)
    tokens = [mask.sum().item()] + [3] * (new_tokens - 1)
    top_k = torch.tensor([layer.top_k for layer in layers])
    loads = torch.tensor(block["device_load"]).sum(dim=2)  # [passes, layers]
    return (
        same
        and block["tokens"].tolist() == tokens
        and torch.equal(loads, torch.tensor(tokens)[:, None] * top_k)
        and block["phase"].tolist() == [0] + [1] * (new_tokens - 1)
    )


HEADER = """# MoE families of transformers {version}

Every MoE causal language model (`...ForCausalLM`); models of images, audio or an encoder are not listed. Written by
`make families` from checks of a tiny random model of each family (`tests/routing/families.py`); a test compares.
Every working family ran with `top_k`, with a policy that only drops and, if the router is a softmax, with one that may
give a token other experts. All policies ran on
{all_policies_on}.
There:

- `top_k` leaves the logits bit-identical to the unpatched model;
- a dropped expert equals one with weight zero, within {tolerance:g} of the largest logit in float32;
- generation with the cache counts every real token once; detaching leaves the logits bit-identical.

**Router**: *softmax*, policies read the full softmax over all experts; *other* (sigmoid, sparsemixer, ...) and *one
expert*, they read the weights as the model uses them, 0 outside the top-k. **Normalised**: whether the top-k weights of
every token have the same sum; `renormalise='model'` then scales kept weights back to it. **Dropped**: whether a dropped
expert is skipped, or computed with weight zero. **Shared**: whether there are shared experts; they run at the base
station and add no device load. Experts and top-k are those of the default configuration, if it has them.

| model class | router | normalised | experts | top-k | shared | dropped | result |
|---|---|---|---|---|---|---|---|
"""


def table():
    """-> the text of docs/model_families.md."""
    rows = [_row(model_type) for model_type in sorted(FAMILIES, key=model_class)]
    header = HEADER.format(
        version=transformers.__version__,
        tolerance=TOLERANCE,
        all_policies_on=", ".join(f"`{name}`" for name in ALL_POLICIES_ON),
    )
    return header + "\n".join(rows) + "\n"


def _row(model_type):
    found = examine(model_type)
    experts = _default(model_type, *EXPERTS)
    top_k = _default(model_type, *TOP_K, "top_k_experts")
    known = ["", "", experts, top_k, "", "", found.error]
    if found.error is None:
        normalised, shared = ("yes" if flag else "no" for flag in (found.normalises, found.shared_experts))
        dropped = "skipped" if found.skips_dropped else "weight zero"
        known = [found.router, normalised, experts, top_k, shared, dropped, _result(found)]
    return "| " + " | ".join([f"`{model_class(model_type)}`", *known]) + " |"


def _result(found):
    claims = {
        "`top_k` changes the logits": found.identical,
        "a dropped expert differs from weight zero": all(value <= TOLERANCE for value in found.deviation.values()),
        "decoding is counted wrongly": found.decoded,
        "detaching leaves traces": found.detached,
    }
    return "; ".join(claim for claim, holds in claims.items() if not holds) or "works"


def _default(model_type, *names):
    values = (getattr(CONFIG_MAPPING[model_type], name, None) for name in names)
    return str(next((value for value in values if isinstance(value, int)), ""))


if __name__ == "__main__":
    TABLE.write_text(table())
    print(TABLE)
