"""A model's logits, and its channel states under a testbed's profile."""

import dataclasses

import torch

from tests.tiny import channel_states, prompts


def logits(model, rows=4, padded=True):
    ids, mask = prompts(rows=rows, side="left")
    mask = mask if padded else torch.ones_like(mask)
    return model(input_ids=ids, attention_mask=mask).logits  # of padding too: perplexities read its last one


def states_of(model, testbed):
    """Channel states under the testbed's placement."""
    states = channel_states(model, "testbed_4_devices")
    placement = torch.tensor(testbed.device_of_expert(model.config.num_local_experts))
    return lambda *moment: dataclasses.replace(states(*moment), device_of_expert=placement)
