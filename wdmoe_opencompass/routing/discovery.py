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
        raise ModelError(_nothing_found(model))
    running: list[_Probe] = []
    with ExitStack() as stack:
        for probe in probes:
            stack.enter_context(probe.watching(running))
        _forward_pass(model)
    if not running:
        raise ModelError(f"{type(model).__name__}: no forward pass reaches its experts ({probes[0].name})")
    alike: dict[Any, list[_Probe]] = defaultdict(list)
    for probe in running:
        probe.check()
        alike[probe.kind()].append(probe)
    does = {kind: _what_routers_do(some) for kind, some in alike.items()}
    return [probe.layer(*does[probe.kind()]) for probe in running]


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

    def _saw(self, router: nn.Module | None, choice: RouterOutput, seen: str) -> None:
        if self in self._running:
            raise ModelError(f"{self.name}: its experts run more than once in a forward pass")
        self.router, self.choice, self._seen = router, choice, seen
        self._running.append(self)

    def check(self) -> None:
        self.num_experts, self.shape = self.contract.sizes(self.experts)
        if self.router is None:
            raise ModelError(
                f"{self.name}: no router beside {type(self.experts).__name__} answers with one score for each of its "
                f"{self.num_experts} experts{self._seen}"
            )

    def says_normalises(self) -> bool | None:
        """-> `norm_topk_prob` of the router, its block or its config; None where none of them says it."""
        for source in (self.router, self.block, getattr(self.experts, "config", None)):
            if isinstance(value := getattr(source, "norm_topk_prob", None), bool):
                return value
        return None

    def kind(self) -> tuple:
        """Routers of one kind do the same, which a few tokens of one alone may not show."""
        return type(self.router), self.choice.top_k_index.shape[1], self.says_normalises()

    def layer(self, router_kind: RouterKind, scores_are_probabilities: bool, normalises: bool) -> MoeLayer:
        return MoeLayer(
            self.name,
            self.contract,
            self.router,  # type: ignore[arg-type]
            self.experts,
            self.num_experts,
            self.choice.top_k_index.shape[1],
            self.shape,
            router_kind,
            scores_are_probabilities,
            normalises,
        )


def _what_routers_do(probes: list[_Probe]) -> tuple[RouterKind, bool, bool]:
    """-> router_kind, scores_are_probabilities, normalises of the routers of one kind."""
    choices = [probe.choice for probe in probes]
    if any(choice.top_k_weights.is_meta for choice in choices):
        return "unknown", False, False
    router_kind, are_probabilities = _router_kind(choices), all(map(_are_probabilities, choices))
    seen = {probe.name: _normalises(probe.choice, router_kind) for probe in probes}
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
    return router_kind, are_probabilities, _looks_normalised(choices, router_kind)


def _tolerance(weights: Tensor) -> float:
    return 1e-5 + 2 * torch.finfo(weights.dtype).eps  # weights may be rounded to a short type


def _have_one_value(values: Tensor, tolerance: float) -> bool:
    return torch.allclose(values, values.flatten()[0], rtol=tolerance, atol=0)


def _normalises(choice: RouterOutput, router_kind: RouterKind) -> bool | None:
    """Whether sums were made equal that differed before; None where these tokens do not show it (peaked routers)."""
    tolerance = _tolerance(choice.top_k_weights)
    if not _have_one_value(choice.top_k_weights.float().sum(dim=1), tolerance):
        return False
    before = (_softmax if router_kind == "softmax" else _sigmoid)(choice).sum(dim=1)
    return None if _are_equal(choice) or _have_one_value(before, 3 * tolerance) else True


def _looks_normalised(choices: list[RouterOutput], router_kind: RouterKind) -> bool:
    """Where sums are equal anyway: whether a softmax as it is, is not clearly nearer than one made to sum the same."""
    if router_kind != "softmax":
        return not all(map(_are_equal, choices))
    from_softmax, from_normalised = 0.0, 0.0
    for choice in choices:
        weights, softmax = choice.top_k_weights.float(), _softmax(choice)
        normalised = softmax / softmax.sum(1, keepdim=True) * weights.sum(1).mean()
        for_type = choice.top_k_weights.dtype
        from_softmax += (weights - softmax.to(for_type).float()).square().sum().item()
        from_normalised += (weights - normalised.to(for_type).float()).square().sum().item()
    return from_normalised <= 4 * from_softmax


def _are_equal(choice: RouterOutput) -> bool:
    """Of equal weights (sparsemixer gives 1 to most) no sum was ever made equal."""
    return _have_one_value(choice.top_k_weights.float(), _tolerance(choice.top_k_weights))


def _are_probabilities(choice: RouterOutput) -> bool:
    sums = choice.scores.float().sum(dim=1)
    return bool((choice.scores >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-2)


def _softmax(choice: RouterOutput) -> Tensor:
    """-> [tokens, k] the chosen experts' softmax over all experts."""
    scores = choice.scores.float()
    full = scores if _are_probabilities(choice) else torch.softmax(scores, dim=-1)
    return full.gather(1, choice.top_k_index)


def _sigmoid(choice: RouterOutput) -> Tensor:
    return choice.scores.float().sigmoid().gather(1, choice.top_k_index)


def _router_kind(choices: list[RouterOutput]) -> RouterKind:
    """A softmax's weights keep the softmax's proportions within each token, whatever scales them."""
    if choices[0].top_k_weights.shape[1] == 1:
        return "one expert"
    if all(map(_are_probabilities, choices)):
        return "softmax"
    fits, from_softmax, from_sigmoid = True, 0.0, 0.0
    for choice in choices:
        shares, softmax, sigmoid = (
            part / part.sum(1, keepdim=True)
            for part in (choice.top_k_weights.float(), _softmax(choice), _sigmoid(choice))
        )
        tolerance = _tolerance(choice.top_k_weights)
        fits = fits and torch.allclose(shares, softmax, rtol=tolerance, atol=tolerance / 100)
        from_softmax += (shares - softmax).square().sum().item()
        from_sigmoid += (shares - sigmoid).square().sum().item()
    # Where all scores are nearly equal, rounded shares are near to those of any rule: the nearer one is right.
    return "softmax" if fits and from_softmax <= from_sigmoid else "other"
