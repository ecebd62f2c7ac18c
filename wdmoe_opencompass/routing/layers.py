"""Find the MoE layers of a transformers model and what their routers do, by structure and by one small forward pass."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import ModelError
from ..latency import ExpertShape
from .adapters import ADAPTERS
from .contract import Choice, Contract

CONTRACTS = (Contract(), *ADAPTERS)
PROBE_TOKENS = 16
RouterKind = Literal["softmax", "one expert", "other", "unknown"]


@dataclass(frozen=True)
class MoeLayer:
    """One MoE layer of a model: its modules, its sizes, and what its router does to its weights.

    name:        of the module that holds router and experts
    contract:    how router and experts talk to each other
    shape:       sizes of one expert (of what is sent to it, where a model projects tokens down first)
    router_kind: `softmax`, the weights are the router's softmax over all experts, perhaps scaled or normalised over the
                 top-k; `one expert`, which shows no kind; `other`; `unknown`, the weights are not loaded
    scores_are_probabilities: the router gives that softmax in the logits' place
    normalises:  the router's weights have the same sum for every token
    """

    name: str
    contract: Contract
    router: nn.Module
    experts: Any
    num_experts: int
    top_k: int
    shape: ExpertShape
    router_kind: RouterKind
    scores_are_probabilities: bool
    normalises: bool


def find_moe_layers(model: nn.Module) -> list[MoeLayer]:
    """Find the MoE layers in the order they run, and ask them about a few tokens (one forward pass).

    Raises ModelError naming what is missing.
    """
    if getattr(model, "_wdmoe_attachment", None) is not None:
        return model._wdmoe_attachment.layers  # type: ignore[union-attr, return-value]
    probes = [
        _Probe(name, block, contract, experts)
        for name, block in model.named_modules()
        for contract in CONTRACTS
        if (experts := contract.experts_of(block)) is not None
    ]
    if not probes:
        raise ModelError(_nothing_found(model))
    running: list[_Probe] = []
    with ExitStack() as stack:
        for probe in probes:
            stack.enter_context(probe.watching(running))
        _forward_pass(model)
    if not running:
        raise ModelError(f"{type(model).__name__}: no forward pass reaches its experts ({probes[0].name})")
    return [probe.layer() for probe in running]


def _nothing_found(model: nn.Module) -> str:
    message = f"{type(model).__name__} has no MoE layer that can be patched: "
    for name, module in model.named_modules():
        if hasattr(module, "num_experts") and not isinstance(module, PreTrainedModel):
            return message + (
                f"{type(module).__name__} ({name}) routes to experts, but the model has no experts module that follows "
                "transformers' ExpertsInterface and is called with (hidden states, top-k index, top-k weights)"
            )
    return message + "no module holds experts"


def _forward_pass(model: Any) -> None:
    embedding = model.get_input_embeddings().weight
    is_offloaded = any(hasattr(module, "_hf_hook") for module in model.modules())  # on meta until a layer runs
    device = "cpu" if is_offloaded and embedding.is_meta else embedding.device
    ids = torch.arange(1, PROBE_TOKENS + 1, device=device) * len(embedding) // (PROBE_TOKENS + 2)
    try:
        with torch.no_grad():
            model(input_ids=ids[None])
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__}: a forward pass of {PROBE_TOKENS} tokens, to see how it routes, failed: "
            f"{type(error).__name__}: {error}"
        ) from error


def _nothing(*args: Any, **kwargs: Any) -> Tensor:
    return torch.zeros_like(next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)))


class _Probe:
    """Watches one block during the forward pass, whose experts are not run: they may be slow to load, or not loaded."""

    def __init__(self, name: str, block: nn.Module, contract: Contract, experts: Any):
        self.name, self.block, self.contract, self.experts = name, block, contract, experts

    @contextmanager
    def watching(self, running: list["_Probe"]) -> Iterator[None]:
        self._running = running
        own_forward = vars(self.experts).get("forward")  # accelerate's hooks put one there
        handles = self.contract.probe(self.block, self.experts, self._saw)
        self.experts.forward = _nothing
        try:
            yield
        finally:
            del self.experts.forward
            if own_forward is not None:
                self.experts.forward = own_forward
            for handle in handles:
                handle.remove()

    def _saw(self, router: nn.Module | None, choice: Choice, seen: str) -> None:
        if self in self._running:
            raise ModelError(f"{self.name}: its experts run more than once in a forward pass")
        self.router, self.choice, self._seen = router, choice, seen
        self._running.append(self)

    def layer(self) -> MoeLayer:
        num_experts, shape = self.contract.sizes(self.experts)
        if self.router is None:
            raise ModelError(
                f"{self.name}: no router beside {type(self.experts).__name__} answers with one score for each of its "
                f"{num_experts} experts{self._seen}"
            )
        return MoeLayer(
            self.name,
            self.contract,
            self.router,
            self.experts,
            num_experts,
            self.choice.top_k_index.shape[1],
            shape,
            *_what_router_does(self.choice),
        )


def _what_router_does(choice: Choice) -> tuple[RouterKind, bool, bool]:
    """-> router_kind, scores_are_probabilities, normalises."""
    if choice.top_k_weights.is_meta:
        return "unknown", False, False
    return _router_kind(choice), _are_probabilities(choice.scores), _normalises(choice.top_k_weights)


def _tolerance(weights: Tensor) -> float:
    return 1e-5 + 2 * torch.finfo(weights.dtype).eps  # weights may be rounded to a short type


def _normalises(weights: Tensor) -> bool:
    """Equal sums of unequal weights; of equal ones (sparsemixer gives 1 to most) no sum was ever made equal."""
    weights, tolerance = weights.float(), _tolerance(weights)
    sums = weights.sum(dim=1)
    equal_sums = torch.allclose(sums, sums[:1], rtol=tolerance, atol=0)
    return equal_sums and not torch.allclose(weights, weights[:1, :1], rtol=tolerance, atol=0)


def _are_probabilities(scores: Tensor) -> bool:
    sums = scores.float().sum(dim=1)
    return bool((scores >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-2)


def _router_kind(choice: Choice) -> RouterKind:
    """A softmax's weights keep the softmax's proportions within each token, whatever scales them."""
    if choice.top_k_weights.shape[1] == 1:
        return "one expert"
    if _are_probabilities(choice.scores):
        return "softmax"
    softmax = torch.softmax(choice.scores.float(), dim=-1).gather(1, choice.top_k_index)
    weights = choice.top_k_weights.float()
    shares, expected = weights / weights.sum(1, keepdim=True), softmax / softmax.sum(1, keepdim=True)
    tolerance = _tolerance(choice.top_k_weights)
    return "softmax" if torch.allclose(shares, expected, rtol=tolerance, atol=tolerance / 100) else "other"
