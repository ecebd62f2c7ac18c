"""A random Mixtral of a few hundred kB, prompts for it, and every policy with parameters that fit."""

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from tests.selection.calibrations import calibration_file
from wdmoe_opencompass import ExpertShape, load_profile
from wdmoe_opencompass.routing.channel_state import ChannelStates
from wdmoe_opencompass.selection import build_policy

PAD, END = 0, 2

# Policy -> (layers, experts, top_k) -> parameters with which it drops something of a tiny random model (and adds, if it
# may), where its defaults do not or where it needs some.
EXAMPLES = {
    "naee": lambda layers, experts, top_k: dict(beta=[0.6] * layers),
    "one_t": lambda layers, experts, top_k: dict(threshold=0.8 / top_k),
    "adapmoe": lambda layers, experts, top_k: dict(threshold=0.64 / top_k**2, h=[1.0] * layers),
    "capacity": lambda layers, experts, top_k: dict(gamma=0.6),
    "expanded_drop": lambda layers, experts, top_k: dict(gamma=0.6, candidates="all"),
    "des": lambda layers, experts, top_k: dict(z=1.5 / experts, gamma_0=1.0),
    "des_top_k": lambda layers, experts, top_k: dict(z=0.5 / experts, gamma_0=1.0),
    "jesa": lambda layers, experts, top_k: dict(z=1.5 / experts, gamma_0=1.0),
    "dual_price": lambda layers, experts, top_k: dict(worth=1.0),
    "caee": lambda layers, experts, top_k: dict(tau=0.3),
    "sift_moe": lambda layers, experts, top_k: dict(
        eta=0.6, relative=True, calibration=calibration_file(layers, experts, top_k)
    ),
    "lexi": lambda layers, experts, top_k: dict(
        budget=(top_k + 1) / 2, calibration=calibration_file(layers, experts, top_k)
    ),
}


ONLY_IN_DECODE = {"oea"}  # does nothing in a prefill pass


def example_parameters(name, layers=1, experts=8, top_k=2):
    return EXAMPLES[name](layers, experts, top_k) if name in EXAMPLES else {}


def example_policy(name, layers=1, experts=8, top_k=2):
    return build_policy(name, example_parameters(name, layers, experts, top_k))


def tiny_mixtral(experts=8, top_k=2, layers=3, seed=0, **others):
    torch.manual_seed(seed)
    values = dict(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=experts,
        num_experts_per_tok=top_k,
        max_position_embeddings=256,
        initializer_range=0.3,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=END,
    )
    return MixtralForCausalLM(MixtralConfig(**(values | others))).eval()


def channel_states(model, profile="paper_8_devices"):
    config = model.config
    shape = ExpertShape(config.hidden_size, config.intermediate_size)
    return ChannelStates(load_profile(profile), shape, config.num_local_experts)


def prompts(rows=4, length=11, seed=0, side="right"):
    """-> input_ids, attention_mask [rows, length] with sequences of several lengths."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 97, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(rows):
        padding = row % 4
        where = slice(length - padding, None) if side == "right" else slice(0, padding)
        if padding:
            ids[row, where], mask[row, where] = PAD, 0
    return ids, mask
