"""Llama 4: the router answers with dense scores, and every expert computes every token scaled by its score."""

from typing import Any

import torch
from torch import Tensor, nn

from ...latency import ExpertShape
from ..experts_interface import Contract, Handle, OnRouterOutput, RouterOutput, Select


class Llama4Contract(Contract):
    """The chosen experts are those with a score above 0; a dropped one's score becomes 0, and so its output.

    The released models have one expert per token, which no policy drops.
    """

    skips_dropped = False

    def experts_of(self, block: nn.Module) -> nn.Module | None:
        """By name: no structure tells these experts from others."""
        return next((child for child in block.children() if type(child).__name__ == "Llama4TextExperts"), None)

    def sizes(self, experts: Any) -> tuple[int, ExpertShape]:
        """From `down_proj`, [experts, ffn, hidden]."""
        num_experts, ffn, hidden = experts.down_proj.shape
        return num_experts, ExpertShape(hidden, ffn)

    def probe(self, block: nn.Module, experts: nn.Module, saw: OnRouterOutput) -> list[Handle]:
        """Watch the router, which answers (dense scores, logits)."""
        router: Any = block.router

        def answered(module: nn.Module, args: tuple, answer: tuple[Tensor, Tensor]) -> None:
            saw(router, _choice(router.top_k, *answer), "")

        return [router.register_forward_hook(answered)]

    def hook_selection(self, router: Any, experts: Any, select: Select) -> list[Handle]:
        """Put the kept scores in the place of the router's."""

        def answered(module: nn.Module, args: tuple, answer: tuple[Tensor, Tensor]) -> tuple | None:
            kept = select(_choice(router.top_k, *answer))
            if kept is None:
                return None
            dense, logits = answer
            return torch.zeros_like(dense).scatter(1, kept.expert_index, kept.weights.to(dense.dtype)), logits

        return [router.register_forward_hook(answered)]


def _choice(top_k: int, dense: Tensor, logits: Tensor) -> RouterOutput:
    index = logits.topk(top_k, dim=1).indices  # as the router itself chooses
    return RouterOutput(logits, dense.gather(1, index), index)
