"""Attach a selection policy to a transformers MoE model, undoably."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate.hooks import remove_hook_from_module
from torch import Tensor, nn
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.integrations.finegrained_fp8 import ALL_FP8_EXPERTS_FUNCTIONS, fp8_grouped_mm_experts_forward
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

from ..errors import ModelError
from ..latency import ExpertShape
from ..selection.base import ChannelState, Routing, SelectionPolicy
from ..selection.top_k import TopK
from .recorder import Recorder

# `generate` switches experts named "grouped_mm" to "batched_mm" on GPUs, which computes dropped rows too.
DROPPING_EXPERTS = "wdmoe_grouped_mm"
ALL_EXPERTS_FUNCTIONS.register(DROPPING_EXPERTS, grouped_mm_experts_forward)
ALL_FP8_EXPERTS_FUNCTIONS.register(DROPPING_EXPERTS, fp8_grouped_mm_experts_forward)

Renormalise = Literal["model"] | bool
PROBE_TOKENS = 16
PROBE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class MoeLayer:
    """One MoE layer of a model: its router module and its experts module, and what the router does to its weights."""

    name: str
    router: nn.Module
    experts: Any
    num_experts: int
    top_k: int
    shape: ExpertShape
    is_softmax: bool
    normalises: bool


def find_moe_layers(model: nn.Module) -> list[MoeLayer]:
    """Find MoE layers by structure: an experts module that takes sentinels, and beside it a router.

    Raises ModelError naming what is missing.
    """
    layers = []
    for name, block in model.named_modules():
        experts = next((child for child in block.children() if hasattr(child, "_is_expert_parallel")), None)
        if experts is None:
            continue
        num_experts = int(experts.num_experts)
        router = next((child for child in block.children() if _looks_like_router(child, num_experts)), None)
        if router is None:
            raise ModelError(f"{type(model).__name__}: {name} has experts but no router module beside them")
        layers.append(_probed(name, router, experts, num_experts))
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no MoE layer that can be patched: no module holds experts and a router"
        )
    return layers


def _looks_like_router(module: nn.Module, num_experts: int) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2 and weight.shape[0] == num_experts


def _probed(name: str, router: nn.Module, experts: nn.Module, num_experts: int) -> MoeLayer:
    """Ask the router about random tokens: top-k, whether its weights are a softmax and whether it normalises them."""
    twin = _twin_on_cpu(router)
    tokens = torch.randn(PROBE_TOKENS, twin.weight.shape[1], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        answer = twin(tokens)
    if not (isinstance(answer, tuple) and len(answer) == 3 and answer[1].shape == answer[2].shape):
        raise ModelError(f"{name}: its router does not return (router_logits, top_k_weights, top_k_index)")
    logits, weights, index = answer
    chosen = torch.softmax(logits.float(), dim=-1).gather(1, index)
    plain = torch.allclose(weights.float(), chosen, rtol=PROBE_TOLERANCE, atol=1e-6)
    normalised = torch.allclose(weights.float(), chosen / chosen.sum(1, keepdim=True), rtol=PROBE_TOLERANCE, atol=1e-6)
    sums = weights.float().sum(dim=1)
    return MoeLayer(
        name,
        router,
        experts,
        num_experts,
        index.shape[1],
        _expert_shape(experts),
        is_softmax=plain or normalised,
        normalises=torch.allclose(sums, sums[:1], rtol=PROBE_TOLERANCE) and index.shape[1] > 1,
    )


def _twin_on_cpu(router: nn.Module) -> Any:
    """A copy with random weights: the router's own may be offloaded, or not loaded at all (meta device)."""
    twin = copy.deepcopy(router)
    remove_hook_from_module(twin, recurse=True)
    twin = twin.to_empty(device="cpu").float()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
        for buffer in twin.buffers():
            buffer.zero_()
    return twin


def _runs_grouped(experts: Any) -> bool:
    """Whether grouped products can read the experts' weights; those of torchao know the eager experts only."""
    return not hasattr(experts.down_proj, "__tensor_flatten__")


def _expert_shape(experts: Any) -> ExpertShape:
    down = experts.down_proj.shape  # [experts, hidden, ffn], or the last two swapped
    hidden, ffn = (down[2], down[1]) if experts.is_transposed else (down[1], down[2])
    return ExpertShape(int(hidden), int(ffn))


class _FinishedRows(StoppingCriteria):
    """Knows, after each decoding step, which sequences have ended; never stops anything itself.

    A sequence has ended after its end token, or as soon as another criterion with a `done_tracker` (OpenCompass's
    stop words) says so; what the batch's other sequences still make it produce is no load.
    """

    def __init__(self, others: StoppingCriteriaList, end_tokens: Tensor):
        self.others = others
        self.end_tokens = end_tokens
        self.finished: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        ended = torch.isin(input_ids[:, -1], self.end_tokens.to(input_ids.device))
        for criterion in self.others:
            tracker = getattr(criterion, "done_tracker", None)
            if tracker is not None and len(tracker) == len(ended):
                ended = ended | torch.tensor(tracker, device=ended.device)
        self.finished = ended if self.finished is None else self.finished | ended
        return torch.zeros_like(ended)


class Attachment:
    """A policy at work in a model; `detach` gives the model back as it was.

    channel_of_layer: (pass index, layer, torch device) -> ChannelState there at that moment.
    renormalise: kept weights are scaled back to the sum of the router's top-k: `model`, where the model's own router
    normalises its top-k; True, always; False, never.
    """

    def __init__(
        self,
        model: nn.Module,
        policy: SelectionPolicy,
        channel_of_layer: Callable[[int, int, torch.device], ChannelState],
        renormalise: Renormalise = "model",
    ):
        if getattr(model, "_wdmoe_attachment", None) is not None:
            raise ModelError("a selection policy is attached to this model already; detach it first")
        self.model: Any = model
        self.policy = policy
        self.layers = find_moe_layers(model)
        self.channel_of_layer = channel_of_layer
        self.renormalise = renormalise
        self.recorder = Recorder(len(self.layers), self.layers[0].num_experts)
        self._generation: _FinishedRows | None = None
        self._pass: tuple[int, str, Tensor | None] | None = None
        self._attach()

    # -- attaching and detaching ---------------------------------------------------------------------------------
    def _attach(self) -> None:
        model = self.model
        self._handles = [model.register_forward_pre_hook(self._begin_pass, with_kwargs=True)]
        for number, layer in enumerate(self.layers):
            self._handles.append(layer.router.register_forward_hook(self._routed(number, layer)))
        self._generate = model.generate if hasattr(model, "generate") else None
        if self._generate is not None:
            model.generate = self._generate_watching
        self._experts_before = None
        if not isinstance(self.policy, TopK):
            if all(_runs_grouped(layer.experts) for layer in self.layers):
                self._experts_before = model.get_experts_implementation()
                model.set_experts_implementation(DROPPING_EXPERTS)
            for layer in self.layers:
                layer.experts._is_expert_parallel = True
        model._wdmoe_attachment = self

    def detach(self) -> None:
        """Undo everything; harmless when called twice."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._generate is not None:
            self.model.__dict__.pop("generate", None)
            self._generate = None
        if self._experts_before is not None:
            self.model.set_experts_implementation(self._experts_before)
            self._experts_before = None
        for layer in self.layers:
            layer.experts._is_expert_parallel = False
        if getattr(self.model, "_wdmoe_attachment", None) is self:
            self.model._wdmoe_attachment = None

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.detach()

    # -- one forward pass ----------------------------------------------------------------------------------------
    def _generate_watching(self, *args: Any, **kwargs: Any) -> Any:
        criteria = StoppingCriteriaList(kwargs.pop("stopping_criteria", None) or [])
        assert self._generate is not None
        end = kwargs.get("eos_token_id", self.model.generation_config.eos_token_id)
        end_tokens = torch.tensor([end] if isinstance(end, int) else list(end or [-1]))
        if kwargs.get("num_beams", self.model.generation_config.num_beams or 1) > 1:
            return self._generate(*args, stopping_criteria=criteria, **kwargs)  # beams change rows; each one counts
        self._generation = _FinishedRows(criteria, end_tokens)
        try:
            return self._generate(
                *args, stopping_criteria=StoppingCriteriaList([*criteria, self._generation]), **kwargs
            )
        finally:
            self._generation = None

    def _begin_pass(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        tokens = kwargs.get("input_ids", args[0] if args else None)
        if tokens is None:
            tokens = kwargs["inputs_embeds"][..., 0]
        rows, length = tokens.shape
        cache = kwargs.get("past_key_values")
        phase = "prefill" if cache is None or cache.get_seq_length() == 0 else "decode"
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        if mask is None:
            is_load = torch.ones(rows, length, dtype=torch.bool, device=tokens.device)
        elif mask.ndim == 2:
            is_load = mask[:, -length:] != 0
        else:
            raise ModelError(
                f"an attention mask of {mask.ndim} axes does not say which tokens are padding; pass [rows, tokens]"
            )
        finished = self._generation.finished if self._generation is not None else None
        if finished is not None and len(finished) == rows:
            is_load = is_load & ~finished.to(is_load.device)[:, None]
        self._pass = (self.recorder.begin_pass(phase), phase, is_load.flatten())

    def _routed(self, number: int, layer: MoeLayer) -> Callable:
        def hook(module: nn.Module, args: tuple, answer: tuple[Tensor, Tensor, Tensor]) -> tuple | None:
            if self._pass is None:
                raise ModelError("the router was called outside a forward pass of the attached model")
            return self._select(number, layer, *answer)

        return hook

    def _select(self, number: int, layer: MoeLayer, logits: Tensor, weights: Tensor, index: Tensor) -> tuple | None:
        assert self._pass is not None
        pass_index, phase, is_load = self._pass
        assert is_load is not None
        routing = Routing(
            _probabilities(layer, logits, weights, index),
            index,
            weights,
            is_load.to(index.device),
            number,
            phase,  # type: ignore[arg-type]
        )
        channel = self.channel_of_layer(pass_index, number, index.device)
        expert_index, keep = self.policy.select(routing, channel)
        self.recorder.record(routing, channel, expert_index, keep)
        if isinstance(self.policy, TopK):
            return None  # the model's own tensors go on untouched: bit for bit the unpatched model
        return logits, self._kept_weights(layer, weights, keep), torch.where(keep, expert_index, layer.num_experts)

    def _kept_weights(self, layer: MoeLayer, weights: Tensor, keep: Tensor) -> Tensor:
        kept = torch.where(keep, weights, 0)
        if self.renormalise is True or (self.renormalise == "model" and layer.normalises):
            kept = kept * (weights.sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp(min=1e-9))
        return kept


def _probabilities(layer: MoeLayer, logits: Tensor, weights: Tensor, index: Tensor) -> Tensor:
    """-> [tokens, experts] the full softmax; for a router of another kind the weights as the model uses them."""
    if layer.is_softmax:
        return torch.softmax(logits.float(), dim=-1)
    full = torch.zeros(len(index), layer.num_experts, dtype=torch.float32, device=index.device)
    return full.scatter(1, index, weights.float())
