"""Experts that do not compute dropped (token, expert) pairs, by transformers' own grouped products."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.finegrained_fp8 import ALL_FP8_EXPERTS_FUNCTIONS, fp8_grouped_mm_experts_forward
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

from ..errors import ModelError
from .payload import Payload

# An own name, for `generate` switches "grouped_mm" to "batched_mm" on GPUs, which computes dropped rows too.
DROPPING_EXPERTS = "wdmoe_grouped_mm"
PAYLOAD = "_wdmoe_payload"
ExpertsForward = Callable[[Any, Tensor, Tensor, Tensor], Tensor]


def _skipping(forward: ExpertsForward) -> ExpertsForward:
    """The same experts without what is marked as dropped (index `num_experts`)."""

    def skipping_forward(experts: Any, hidden_states: Tensor, expert_index: Tensor, weights: Tensor) -> Tensor:
        payload: Payload | None = getattr(experts, PAYLOAD, None)
        if payload is not None:
            sent = payload.down(hidden_states, expert_index).flatten(0, 1)
            answers = computed(experts, sent, expert_index.reshape(-1, 1), weights.reshape(-1, 1))
            return payload.up(answers.view(*expert_index.shape, -1), expert_index).to(hidden_states.dtype)
        return computed(experts, hidden_states, expert_index, weights)

    def computed(experts: Any, hidden_states: Tensor, expert_index: Tensor, weights: Tensor) -> Tensor:
        if can_leave_rows_out(hidden_states):
            return _without_dropped_rows(forward, experts, hidden_states, expert_index, weights)
        experts._is_expert_parallel = True  # or else what is marked comes out as NaN now and then
        try:
            return forward(experts, hidden_states, expert_index, weights)
        finally:
            experts._is_expert_parallel = False

    return skipping_forward


def can_leave_rows_out(hidden_states: Tensor) -> bool:
    """A GPU would have to wait for the host to learn how many rows are left: it skips their products alone."""
    return hidden_states.device.type == "cpu"


def _without_dropped_rows(
    forward: ExpertsForward, experts: Any, hidden_states: Tensor, expert_index: Tensor, weights: Tensor
) -> Tensor:
    """Each kept pair as a token of its own with one expert, summed in float32 as transformers does."""
    tokens, slots = (expert_index < experts.num_experts).nonzero(as_tuple=True)
    summed = torch.zeros(hidden_states.shape, dtype=torch.float32)
    if len(tokens):
        kept = (tokens, slots)
        answers = forward(experts, hidden_states[tokens], expert_index[kept][:, None], weights[kept][:, None])
        summed.index_add_(0, tokens, answers.float())
    return summed.to(hidden_states.dtype)


ALL_EXPERTS_FUNCTIONS.register(DROPPING_EXPERTS, _skipping(grouped_mm_experts_forward))
ALL_FP8_EXPERTS_FUNCTIONS.register(DROPPING_EXPERTS, _skipping(fp8_grouped_mm_experts_forward))


class DroppingExperts:
    """Makes an experts module skip dropped tokens; `remove` undoes it.

    The module gets an own copy of its config, which other modules may share. payload: how hidden states travel; None
    sends them as they are. Raises ModelError where the experts cannot do that.
    """

    def __init__(self, experts: Any, payload: Payload | None = None):
        self.experts, self.config = experts, experts.config
        if hasattr(experts.down_proj, "__tensor_flatten__"):  # torchao's weights know the eager experts only
            if payload is not None:
                raise ModelError("quantise_payload needs weights that are not quantised by torchao")
            experts._is_expert_parallel = True
            return
        if payload is not None:
            setattr(experts, PAYLOAD, payload)
        experts.config = copy.copy(experts.config)
        experts.config._experts_implementation_internal = DROPPING_EXPERTS

    def remove(self) -> None:
        """Give the module its own implementation back."""
        self.experts.config = self.config
        self.experts._is_expert_parallel = False
        self.experts.__dict__.pop(PAYLOAD, None)
