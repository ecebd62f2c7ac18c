"""Find the MoE layers of a transformers model and what their routers do, by structure and by one small forward pass."""

from collections import defaultdict
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
from .experts_interface import Contract, RouterOutput

CONTRACTS = (Contract(), *ADAPTERS)
PROBE_TOKENS = 16
RouterKind = Literal["softmax", "one expert", "other", "unknown"]


@dataclass(frozen=True)
class MoeLayer:
    """One MoE layer of a model: its modules, its sizes, and what its router does to its weights.

    name:        of the module that holds router and experts
    contract:    how the router calls the experts
    shape:       sizes of one expert; of its input, if the model projects tokens down first
    router_kind: `softmax`: the weights are the router's softmax over all experts, perhaps scaled or normalised over the
                 top-k; `one expert`: one per token, which shows no kind; `other`; `unknown`: the weights are not loaded
    scores_are_probabilities: the router returns that softmax instead of logits
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
    """Find the MoE layers in the order they run; one forward pass of a few tokens shows what their routers do.

    Raises ModelError naming what is missing.
    """
    if getattr(model, "_wdmoe_attachment", None) is not None:
        return model._wdmoe_attachment.layers  # type: ignore[union-attr, return-value]
    if any("_wdmoe_attachment" in vars(module) for module in model.modules()):
        raise ModelError(
            f"a selection policy is attached to a part of this {type(model).__name__}, or to what it is a part of; "
            "detach it first"
        )
    probes = [
        _Probe(name, block, contract, experts)
        for name, block in model.named_modules()
        for contract in CONTRACTS
        if (experts := contract.experts_of(block)) is not None
    ]
    if not probes:
        raise ModelError(_explain_none_found(model))
    running: list[_Probe] = []
    with ExitStack() as stack:
        for probe in probes:
            stack.enter_context(probe.watch(running))
        _forward_pass(model)
    if not running:
        raise ModelError(f"{type(model).__name__}: no forward pass reaches its experts ({probes[0].name})")
    alike: dict[Any, list[_Probe]] = defaultdict(list)
    for probe in running:
        probe.check()
        alike[probe.kind()].append(probe)
    does = {kind: _what_routers_do(some) for kind, some in alike.items()}
    return [probe.layer(*does[probe.kind()]) for probe in running]


def _explain_none_found(model: nn.Module) -> str:
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


def _zeros(*args: Any, **kwargs: Any) -> Tensor:
    return torch.zeros_like(next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)))


class _Probe:
    """Watches one block during the forward pass. Its experts do not run: they may be slow to load, or not loaded."""

    def __init__(self, name: str, block: nn.Module, contract: Contract, experts: Any):
        self.name, self.block, self.contract, self.experts = name, block, contract, experts

    @contextmanager
    def watch(self, running: list["_Probe"]) -> Iterator[None]:
        self._running = running
        own_forward = vars(self.experts).get("forward")  # accelerate's hooks put one there
        handles = self.contract.probe(self.block, self.experts, self._on_router_output)
        self.experts.forward = _zeros
        try:
            yield
        finally:
            del self.experts.forward
            if own_forward is not None:
                self.experts.forward = own_forward
            for handle in handles:
                handle.remove()

    def _on_router_output(self, router: nn.Module | None, output: RouterOutput, seen: str) -> None:
        if self in self._running:
            raise ModelError(f"{self.name}: its experts run more than once in a forward pass")
        self.router, self.output, self._seen = router, output, seen
        self._running.append(self)

    def check(self) -> None:
        self.num_experts, self.shape = self.contract.sizes(self.experts)
        if self.router is None:
            raise ModelError(
                f"{self.name}: no router next to {type(self.experts).__name__} returns one score for each of its "
                f"{self.num_experts} experts{self._seen}"
            )

    def says_normalises(self) -> bool | None:
        """-> `norm_topk_prob` of the router, its block or its config; None if none of them has it."""
        for source in (self.router, self.block, getattr(self.experts, "config", None)):
            if isinstance(value := getattr(source, "norm_topk_prob", None), bool):
                return value
        return None

    def kind(self) -> tuple:
        """Routers of one kind behave alike; a few tokens of a single one may not show how."""
        return type(self.router), self.output.top_k_index.shape[1], self.says_normalises()

    def layer(self, router_kind: RouterKind, scores_are_probabilities: bool, normalises: bool) -> MoeLayer:
        return MoeLayer(
            self.name,
            self.contract,
            self.router,  # type: ignore[arg-type]
            self.experts,
            self.num_experts,
            self.output.top_k_index.shape[1],
            self.shape,
            router_kind,
            scores_are_probabilities,
            normalises,
        )


def _what_routers_do(probes: list[_Probe]) -> tuple[RouterKind, bool, bool]:
    """-> router_kind, scores_are_probabilities, normalises of the routers of one kind."""
    outputs = [probe.output for probe in probes]
    if any(output.top_k_weights.is_meta for output in outputs):
        return "unknown", False, False
    router_kind, are_probabilities = _router_kind(outputs), all(map(_are_probabilities, outputs))
    seen = {probe.name: _normalises(probe.output, router_kind) for probe in probes}
    told = {seen_here for seen_here in seen.values() if seen_here is not None}
    if len(told) > 1:
        raise ModelError(
            f"{type(probes[0].router).__name__}: its top-k weights have one sum for every token in "
            f"{next(name for name, here in seen.items() if here)}, but not in "
            f"{next(name for name, here in seen.items() if here is False)}: whether it normalises them is not clear"
        )
    if told:
        return router_kind, are_probabilities, told.pop()
    if (says := probes[0].says_normalises()) is not None:
        return router_kind, are_probabilities, says
    return router_kind, are_probabilities, _looks_normalised(outputs, router_kind)


def _tolerance(weights: Tensor) -> float:
    return 1e-5 + 2 * torch.finfo(weights.dtype).eps  # weights may be rounded to a short type


def _have_one_value(values: Tensor, tolerance: float) -> bool:
    return torch.allclose(values, values.flatten()[0], rtol=tolerance, atol=0)


def _normalises(output: RouterOutput, router_kind: RouterKind) -> bool | None:
    """Whether sums that differed were made equal; None if these tokens do not show it (peaked routers)."""
    tolerance = _tolerance(output.top_k_weights)
    if not _have_one_value(output.top_k_weights.float().sum(dim=1), tolerance):
        return False
    before = (_softmax if router_kind == "softmax" else _sigmoid)(output).sum(dim=1)
    return None if _are_equal(output) or _have_one_value(before, 3 * tolerance) else True


def _looks_normalised(outputs: list[RouterOutput], router_kind: RouterKind) -> bool:
    """If sums are equal anyway: whether the plain softmax is not clearly nearer than the normalised one."""
    if router_kind != "softmax":
        return not all(map(_are_equal, outputs))
    from_softmax, from_normalised = 0.0, 0.0
    for output in outputs:
        weights, softmax = output.top_k_weights.float(), _softmax(output)
        normalised = softmax / softmax.sum(1, keepdim=True) * weights.sum(1).mean()
        for_type = output.top_k_weights.dtype
        from_softmax += (weights - softmax.to(for_type).float()).square().sum().item()
        from_normalised += (weights - normalised.to(for_type).float()).square().sum().item()
    return from_normalised <= 4 * from_softmax


def _are_equal(output: RouterOutput) -> bool:
    """Equal weights (sparsemixer gives 1 to most) have equal sums without any normalisation."""
    return _have_one_value(output.top_k_weights.float(), _tolerance(output.top_k_weights))


def _are_probabilities(output: RouterOutput) -> bool:
    sums = output.scores.float().sum(dim=1)
    return bool((output.scores >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-2)


def _softmax(output: RouterOutput) -> Tensor:
    """-> [tokens, k] the chosen experts' softmax over all experts."""
    scores = output.scores.float()
    full = scores if _are_probabilities(output) else torch.softmax(scores, dim=-1)
    return full.gather(1, output.top_k_index)


def _sigmoid(output: RouterOutput) -> Tensor:
    return output.scores.float().sigmoid().gather(1, output.top_k_index)


def _router_kind(outputs: list[RouterOutput]) -> RouterKind:
    """Softmax weights keep the softmax's proportions within each token, whatever scales them."""
    if outputs[0].top_k_weights.shape[1] == 1:
        return "one expert"
    if all(map(_are_probabilities, outputs)):
        return "softmax"
    fits, from_softmax, from_sigmoid = True, 0.0, 0.0
    for output in outputs:
        shares, softmax, sigmoid = (
            part / part.sum(1, keepdim=True)
            for part in (output.top_k_weights.float(), _softmax(output), _sigmoid(output))
        )
        tolerance = _tolerance(output.top_k_weights)
        fits = fits and torch.allclose(shares, softmax, rtol=tolerance, atol=tolerance / 100)
        from_softmax += (shares - softmax).square().sum().item()
        from_sigmoid += (shares - sigmoid).square().sum().item()
    # If all scores are nearly equal, rounded shares fit every rule: the nearer one is right.
    return "softmax" if fits and from_softmax <= from_sigmoid else "other"
