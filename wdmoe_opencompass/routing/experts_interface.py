"""How router and experts of a MoE layer talk to each other, and where a selection policy can step in between."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..latency import ExpertShape
from .dropping_experts import DroppingExperts
from .payload import Payload


class Handle(Protocol):
    """A change that can be undone, such as one of torch's hooks."""

    def remove(self) -> None:
        """Undo it."""


class RouterOutput(NamedTuple):
    """The output of a router.

    scores:        [tokens, experts] logits, or what the router returns instead of logits
    top_k_weights: [tokens, k] weights as passed to the experts
    top_k_index:   [tokens, k] expert numbers, in the router's order
    """

    scores: Tensor
    top_k_weights: Tensor
    top_k_index: Tensor


class SelectedExperts(NamedTuple):
    """What a policy keeps of it: expert_index, keep and weights, [tokens, k]; weights are 0 where keep is False."""

    expert_index: Tensor
    keep: Tensor
    weights: Tensor


Select = Callable[[RouterOutput], SelectedExperts | None]
OnRouterOutput = Callable[[nn.Module | None, RouterOutput, str], None]


class Contract:
    """The contract of transformers 5: the experts are called with (hidden states, top-k index, top-k weights).

    A router module next to the experts returns one score per expert, alone or as its first result. ExpertsInterface
    registers implementations of the experts. They skip the index `num_experts`, so a dropped expert costs nothing.

    skips_dropped: whether dropped (token, expert) pairs are skipped; otherwise they are computed with weight 0
    """

    skips_dropped = True

    def experts_of(self, block: nn.Module) -> nn.Module | None:
        """Return the experts module among a module's children, if there is one."""
        return next((child for child in block.children() if hasattr(child, "_is_expert_parallel")), None)

    def sizes(self, experts: Any) -> tuple[int, ExpertShape]:
        """Return the number of experts and the sizes of an expert; ModelError if the weights do not show them."""
        down = getattr(experts, "down_proj", None)  # [experts, hidden, ffn], or the last two swapped
        if not isinstance(down, Tensor) or down.ndim != 3:
            raise ModelError(f"{type(experts).__name__} has no weights down_proj [experts, hidden, ffn]")
        num_experts, hidden_size, ffn_size = down.transpose(1, 2).shape if experts.is_transposed else down.shape
        return num_experts, ExpertShape(hidden_size, ffn_size)

    def probe(self, block: nn.Module, experts: nn.Module, on_router_output: OnRouterOutput) -> list[Handle]:
        """Watch a forward pass.

        on_router_output: called with the router, its output, and a text on what the other modules returned.
        """
        answers: list[_Answer] = []
        num_experts = self.sizes(experts)[0]

        def on_answer(module: nn.Module, args: tuple, answer: Any) -> None:
            parts = answer if isinstance(answer, tuple) and answer else (answer,)
            if isinstance(parts[0], Tensor) and parts[0].is_floating_point():
                answers.append(_Answer(module, parts[0], parts))

        def on_call(module: nn.Module, args: tuple, kwargs: dict) -> None:
            expert_index, weights = _find_index_and_weights(module, args, kwargs)
            fitting = [answer for answer in answers if answer.scores.numel() == len(expert_index) * num_experts]
            router, scores, _ = _router_among(fitting, expert_index, weights) if fitting else (None, weights, ())
            seen = "".join(
                f"; {type(answer.module).__name__} returns {list(answer.scores.shape)}" for answer in answers
            )
            on_router_output(router, RouterOutput(scores.reshape(len(expert_index), -1), weights, expert_index), seen)
            answers.clear()

        others = [child for child in block.children() if child is not experts]
        handles = [child.register_forward_hook(on_answer) for child in others]
        return [*handles, experts.register_forward_pre_hook(on_call, with_kwargs=True)]

    def hook_selection(self, router: nn.Module, experts: Any, select: Select) -> list[Handle]:
        """Let `select` replace what the router passes to the experts; if it returns None, nothing changes."""
        scores: list[Tensor] = []

        num_experts = self.sizes(experts)[0]  # read now: a base station may keep fewer of them later

        def on_answer(module: nn.Module, args: tuple, answer: Any) -> None:
            scores[:] = [answer[0] if isinstance(answer, tuple) else answer]

        def on_call(module: nn.Module, args: tuple, kwargs: dict) -> tuple | None:
            expert_index, weights = _find_index_and_weights(module, args, kwargs)
            selected = select(RouterOutput(scores.pop().reshape(len(expert_index), -1), weights, expert_index))
            if selected is None:
                return None
            new = {id(expert_index): self._mark_dropped(num_experts, selected), id(weights): selected.weights}
            args = tuple(new.get(id(value), value) for value in args)
            return args, {name: new.get(id(value), value) for name, value in kwargs.items()}

        return [router.register_forward_hook(on_answer), experts.register_forward_pre_hook(on_call, with_kwargs=True)]

    def skip_dropped(self, experts: Any, payload: Payload | None = None) -> list[Handle]:
        """Make the experts skip dropped pairs, if they can, and round what is sent as `payload` says.

        Raises ModelError if they cannot round.
        """
        if self.skips_dropped:
            return [DroppingExperts(experts, payload)]
        if payload is not None:
            raise ModelError(f"{type(experts).__name__} does not let what its experts get and answer be quantised")
        return []

    def _mark_dropped(self, num_experts: int, selected: SelectedExperts) -> Tensor:
        """-> [tokens, k] index for the experts; a dropped expert is marked, or keeps its slot with weight 0."""
        dropped = num_experts if self.skips_dropped else selected.expert_index
        return torch.where(selected.keep, selected.expert_index, dropped)


class _Answer(NamedTuple):
    """The results of a module next to the experts; the first may be scores."""

    module: nn.Module
    scores: Tensor
    parts: tuple


def _router_among(fitting: list[_Answer], expert_index: Tensor, weights: Tensor) -> _Answer:
    """Find the module that returned what the experts are given, or whose highest scores are the chosen experts."""

    def returned_them(answer: _Answer) -> bool:
        return any(part is expert_index or part is weights for part in answer.parts)

    def ranks_them_first(answer: _Answer) -> bool:
        scores = answer.scores.reshape(len(expert_index), -1)
        chosen, k = scores.gather(1, expert_index.long()), expert_index.shape[1]
        return torch.equal(chosen.sort(dim=1, descending=True).values, scores.topk(k, dim=1).values)

    if len(fitting) == 1:
        return fitting[0]
    for is_router in (returned_them, ranks_them_first):
        if is_router is ranks_them_first and expert_index.is_meta:
            return fitting[-1]  # for inspection only: without weights nothing is attached
        routers = [answer for answer in fitting if is_router(answer)]
        if len(routers) == 1:
            return routers[0]
    names = " and ".join(type(answer.module).__name__ for answer in fitting)
    raise ModelError(f"{names} both return one score per expert: which of them is the router is not clear")


def _find_index_and_weights(experts: nn.Module, args: tuple, kwargs: dict) -> tuple[Tensor, Tensor]:
    """Find in the experts' arguments the integers [tokens, k] and the floats of the same shape."""
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    for index in tensors:
        for weights in tensors:
            if not index.is_floating_point() and weights.is_floating_point() and weights.shape == index.shape:
                return index, weights
    raise ModelError(
        f"{type(experts).__name__} is called with {[list(tensor.shape) for tensor in tensors]}, "
        "not with (hidden states, top-k index, top-k weights)"
    )
