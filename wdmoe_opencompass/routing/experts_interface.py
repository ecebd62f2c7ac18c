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
    """Something that can be undone, as torch's hooks can."""

    def remove(self) -> None:
        """Undo it."""


class RouterOutput(NamedTuple):
    """What a router chose.

    scores:        [tokens, experts] logits, or what the router gives in their place
    top_k_weights: [tokens, k] as the experts are given them
    top_k_index:   [tokens, k] experts, in the router's order
    """

    scores: Tensor
    top_k_weights: Tensor
    top_k_index: Tensor


class SelectedExperts(NamedTuple):
    """What a policy left of it: expert_index, keep and weights [tokens, k]; weights are 0 where keep is False."""

    expert_index: Tensor
    keep: Tensor
    weights: Tensor


Select = Callable[[RouterOutput], SelectedExperts | None]
OnRouterOutput = Callable[[nn.Module | None, RouterOutput, str], None]


class Contract:
    """The contract of transformers 5: the experts are called with (hidden states, top-k index, top-k weights).

    A router module beside them answers with one score per expert, first or alone. The experts' implementation is open
    to registration (ExpertsInterface) and skips the index `num_experts`, which is how a dropped expert costs nothing.

    skips_dropped: whether dropped (token, expert) pairs are not computed; else they are, with weight 0
    """

    skips_dropped = True

    def experts_of(self, block: nn.Module) -> nn.Module | None:
        """The experts among a module's children, if it holds any."""
        return next((child for child in block.children() if hasattr(child, "_is_expert_parallel")), None)

    def sizes(self, experts: Any) -> tuple[int, ExpertShape]:
        """-> number of experts, sizes of one."""
        down = getattr(experts, "down_proj", None)  # [experts, hidden, ffn], or the last two swapped
        if not isinstance(down, Tensor) or down.ndim != 3:
            raise ModelError(f"{type(experts).__name__} has no weights down_proj [experts, hidden, ffn]")
        num_experts, hidden, ffn = down.transpose(1, 2).shape if experts.is_transposed else down.shape
        return num_experts, ExpertShape(hidden, ffn)

    def probe(self, block: nn.Module, experts: nn.Module, saw: OnRouterOutput) -> list[Handle]:
        """Watch a forward pass: `saw` gets the router, what it chose, and the answers of other modules in words."""
        answers: list[_Answer] = []
        num_experts = self.sizes(experts)[0]

        def answered(module: nn.Module, args: tuple, answer: Any) -> None:
            parts = answer if isinstance(answer, tuple) and answer else (answer,)
            if isinstance(parts[0], Tensor) and parts[0].is_floating_point():
                answers.append(_Answer(module, parts[0], parts))

        def called(module: nn.Module, args: tuple, kwargs: dict) -> None:
            index, weights = _index_and_weights(module, args, kwargs)
            fitting = [answer for answer in answers if answer.scores.numel() == len(index) * num_experts]
            router, scores, _ = _router_among(fitting, index, weights) if fitting else (None, weights, ())
            seen = "".join(f"; {type(seen.module).__name__} answers {list(seen.scores.shape)}" for seen in answers)
            saw(router, RouterOutput(scores.reshape(len(index), -1), weights, index), seen)
            answers.clear()

        others = [child for child in block.children() if child is not experts]
        handles = [child.register_forward_hook(answered) for child in others]
        return [*handles, experts.register_forward_pre_hook(called, with_kwargs=True)]

    def hook_selection(self, router: nn.Module, experts: Any, select: Select) -> list[Handle]:
        """Let `select` choose among what the router gives the experts; None leaves everything untouched."""
        scores: list[Tensor] = []

        num_experts = self.sizes(experts)[0]  # now: a base station may keep fewer of them later

        def answered(module: nn.Module, args: tuple, answer: Any) -> None:
            scores[:] = [answer[0] if isinstance(answer, tuple) else answer]

        def called(module: nn.Module, args: tuple, kwargs: dict) -> tuple | None:
            index, weights = _index_and_weights(module, args, kwargs)
            kept = select(RouterOutput(scores.pop().reshape(len(index), -1), weights, index))
            if kept is None:
                return None
            new = {id(index): self._index(num_experts, kept), id(weights): kept.weights}
            args = tuple(new.get(id(value), value) for value in args)
            return args, {name: new.get(id(value), value) for name, value in kwargs.items()}

        return [router.register_forward_hook(answered), experts.register_forward_pre_hook(called, with_kwargs=True)]

    def skip_dropped(self, experts: Any, payload: Payload | None = None) -> list[Handle]:
        """Make the experts skip what is marked as dropped, if they can, and round what travels where `payload` says so.

        Raises ModelError where they cannot round.
        """
        if self.skips_dropped:
            return [DroppingExperts(experts, payload)]
        if payload is not None:
            raise ModelError(f"{type(experts).__name__} does not let what its experts get and answer be quantised")
        return []

    def _index(self, num_experts: int, kept: SelectedExperts) -> Tensor:
        """-> [tokens, k] index for the experts; a dropped one is marked, or keeps its place with weight 0."""
        dropped = num_experts if self.skips_dropped else kept.expert_index
        return torch.where(kept.keep, kept.expert_index, dropped)


class _Answer(NamedTuple):
    """What a module beside the experts answered: parts, the first of which may be scores."""

    module: nn.Module
    scores: Tensor
    parts: tuple


def _router_among(fitting: list[_Answer], index: Tensor, weights: Tensor) -> _Answer:
    """The module that answered with what the experts are given, or else whose highest scores are the chosen experts."""

    def answers_choice(one: _Answer) -> bool:
        return any(part is index or part is weights for part in one.parts)

    def scores_choice(one: _Answer) -> bool:
        scores = one.scores.reshape(len(index), -1)
        chosen, k = scores.gather(1, index.long()), index.shape[1]
        return torch.equal(chosen.sort(dim=1, descending=True).values, scores.topk(k, dim=1).values)

    if len(fitting) == 1:
        return fitting[0]
    for is_router in (answers_choice, scores_choice):
        if is_router is scores_choice and index.is_meta:
            return fitting[-1]  # only looked at: without weights nothing is attached
        routers = [answer for answer in fitting if is_router(answer)]
        if len(routers) == 1:
            return routers[0]
    names = " and ".join(type(answer.module).__name__ for answer in fitting)
    raise ModelError(f"{names} both answer with one score per expert: which of them is the router is not clear")


def _index_and_weights(experts: nn.Module, args: tuple, kwargs: dict) -> tuple[Tensor, Tensor]:
    """What the experts are called with: the integers [tokens, k], and the floats of the same shape."""
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    for index in tensors:
        for weights in tensors:
            if not index.is_floating_point() and weights.is_floating_point() and weights.shape == index.shape:
                return index, weights
    raise ModelError(
        f"{type(experts).__name__} is called with {[list(tensor.shape) for tensor in tensors]}, "
        "not with (hidden states, top-k index, top-k weights)"
    )
