"""A Mixtral with different layers."""

import torch
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from tests.tiny import tiny_mixtral


def mixed_mixtral():
    """8 experts, top-2 in the first layer; 4 experts, top-3 in the second."""
    torch.manual_seed(0)
    model = tiny_mixtral(experts=8, top_k=2, layers=2)
    smaller = tiny_mixtral(experts=4, top_k=3, layers=1)
    model.model.layers[1].mlp = smaller.model.layers[0].mlp
    assert isinstance(model.model.layers[1].mlp, MixtralSparseMoeBlock)
    return model
