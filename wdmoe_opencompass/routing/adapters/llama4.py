"""Llama 4: the router answers with dense scores, and every expert computes every token scaled by its score."""

from typing import Any

import torch
from torch import Tensor, nn

from ...latency import ExpertShape
from ..experts_interface import Contract, Handle, OnRouterOutput, RouterOutput, Select


class Llama4Contract(Contract):
    """The chosen experts have a score above 0; a dropped expert's score, and so its output, becomes 0.

    The released models have one expert per token, which no policy drops.
    """

    skips_dropped = False

    def experts_of(self, block: nn.Module) -> nn.Module | None:
        """By name: no structure tells these experts from others."""
        return next((child for child in block.children() if type(child).__name__ == "Llama4TextExperts"), None)

    def sizes(self, experts: Any) -> tuple[int, ExpertShape]:
        """From `down_proj`, [experts, ffn, hidden]."""
        num_experts, ffn_size, hidden_size = experts.down_proj.shape
        return num_experts, ExpertShape(hidden_size, ffn_size)

    def probe(self, block: nn.Module, experts: nn.Module, on_router_output: OnRouterOutput) -> list[Handle]:
        """Watch the router, which returns (dense scores, logits)."""
        router: Any = block.router

        def on_answer(module: nn.Module, args: tuple, answer: tuple[Tensor, Tensor]) -> None:
            on_router_output(router, _router_output(router.top_k, *answer), "")

        return [router.register_forward_hook(on_answer)]

    def hook_selection(self, router: Any, experts: Any, select: Select) -> list[Handle]:
        """Replace the router's scores by the kept ones."""

        def on_answer(module: nn.Module, args: tuple, answer: tuple[Tensor, Tensor]) -> tuple | None:
            selected = select(_router_output(router.top_k, *answer))
            if selected is None:
                return None
            dense, logits = answer
            return torch.zeros_like(dense).scatter(1, selected.expert_index, selected.weights.to(dense.dtype)), logits

        return [router.register_forward_hook(on_answer)]


def _router_output(top_k: int, dense: Tensor, logits: Tensor) -> RouterOutput:
    expert_index = logits.topk(top_k, dim=1).indices  # as the router itself chooses
    return RouterOutput(logits, dense.gather(1, expert_index), expert_index)
