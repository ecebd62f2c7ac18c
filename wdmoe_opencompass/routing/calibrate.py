"""Measure the constants that some selection policies need: on a model and a text, or from traces alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._util.bounded_read import read_regular
from ..errors import ModelError, TraceError
from ..selection.base import ChannelState, Routing, Selection, SelectionPolicy
from ..selection.calibration import Calibration, second_to_first
from ..trace.format import RATIO_BINS, RoutingTrace
from .attachment import Attachment
from .discovery import MoeLayer, find_moe_layers
from .experts_interface import RouterOutput, SelectedExperts

GAUSSIAN_BATCHES, GAUSSIAN_TOKENS = 8, 128
DIFFERENCE_TOKENS = 64  # each computed by every expert
ROWS_AT_ONCE = 2048
CHUNK_TOKENS = 128
MAX_TEXT_BYTES = 1 << 28  # our choice: of a text, of which some thousand tokens are used
Advance = Callable[[float], None]


def calibrate_from_traces(traces: Sequence[RoutingTrace]) -> Calibration:
    """The median ratio of the second to the first router weight per layer, from its histogram (1/50 wide bins)."""
    counts = np.sum([trace.ratio_counts.sum(axis=0) for trace in traces], axis=0)  # [layers, bins]
    if not counts.sum(axis=1).all():
        raise TraceError(f"the trace of {traces[0].metadata.dataset} holds no token with two experts")
    below = np.cumsum(counts, axis=1)
    half = below[:, -1:] / 2
    column = (below < half).sum(axis=1)  # the bin that holds the median
    row = np.arange(len(counts))
    before = below[row, column] - counts[row, column]
    median = (column + (half[:, 0] - before) / counts[row, column]) / RATIO_BINS
    return Calibration(ratio_median=torch.tensor(median, dtype=torch.float32), model=traces[0].metadata.weights)


def load_model(name: str, dtype: str) -> tuple[Any, Any]:
    """-> model and tokenizer of a folder or hub name, on what devices there are; ModelError where they do not load."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from .checkpoint import checked_loading

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        with checked_loading(name):
            model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, device_map="auto").eval()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{name}: cannot be loaded: {' '.join(str(error).split())[:200]}") from None
    return model, tokenizer


def read_chunks(tokenizer: Any, text: Path, tokens: int) -> list[Tensor]:
    """-> the first `tokens` tokens of a text as [1, CHUNK_TOKENS] pieces; ModelError where it holds too few."""
    content = read_regular(text, MAX_TEXT_BYTES, ModelError)
    try:
        ids = tokenizer(content.decode(), add_special_tokens=False)["input_ids"][:tokens]
    except UnicodeDecodeError as error:
        raise ModelError(f"{text}: cannot be read: {error}") from None
    if len(ids) < tokens:
        raise ModelError(f"{text}: must hold at least {tokens} tokens, got {len(ids)}; or lower --tokens")
    pieces = torch.tensor(ids)[None].split(CHUNK_TOKENS, dim=1)
    return [piece for piece in pieces if piece.shape[1] > 1]


def calibrate(model: Any, chunks: Sequence[Tensor], name: str, advance: Advance = lambda share: None) -> Calibration:
    """Run a model on chunks of token ids [rows, tokens] (no padding) and measure everything of Calibration.

    advance: told each part's share of the work.
    """
    layers = find_moe_layers(model)
    if len({(layer.num_experts, layer.top_k) for layer in layers}) > 1:
        raise ModelError(f"{name}: its MoE layers differ in their numbers of experts; calibration needs equal ones")
    if layers[0].top_k < 2:
        raise ModelError(f"{name}: one expert per token leaves nothing to drop, and nothing to calibrate")
    routed, inputs = _routing_of(model, layers, chunks)
    advance(0.4)
    differences = [_output_difference(layer, hidden) for layer, hidden in zip(layers, inputs)]
    advance(0.2)
    fewer = [_fewer_experts_difference(model, layer) for layer in layers]
    advance(0.2)
    sensitivity = _sensitivity(model, layers, chunks)
    advance(0.2)
    return Calibration(
        ratio_median=torch.stack([second_to_first(part.top_k_weights).median() for part in routed]),
        probabilities=torch.stack([part.probabilities for part in routed]),
        top_k_index=torch.stack([part.top_k_index for part in routed]),
        top_k_weights=torch.stack([part.top_k_weights.float() for part in routed]),
        output_difference=torch.stack(differences),
        fewer_experts_difference=torch.stack(fewer),
        sensitivity=sensitivity,
        model=name,
    )


class _Sampling(SelectionPolicy):
    """Notes what the router chooses, and what it chose, on the host."""

    def __init__(self) -> None:
        self.routed: list[Routing] = []

    def select(self, routing: Routing, channel: ChannelState) -> Selection:
        self.routed.append(
            Routing(
                routing.probabilities.cpu(),
                routing.top_k_index.cpu(),
                routing.top_k_weights.cpu(),
                routing.is_real_token.cpu(),
                routing.layer,
                routing.phase,
            )
        )
        return Selection(routing.top_k_index, torch.ones_like(routing.top_k_index, dtype=torch.bool))


def _no_channel(experts: int) -> Callable[[int, int, torch.device], ChannelState]:
    """Everything at the base station."""

    def state(pass_index: int, layer: int, device: torch.device) -> ChannelState:
        nothing = torch.zeros(1, device=device)
        return ChannelState(nothing, nothing, torch.full((experts,), -1, device=device))

    return state


def _routing_of(model: Any, layers: Sequence[MoeLayer], chunks: Sequence[Tensor]) -> tuple[list[Routing], list[Tensor]]:
    """-> per layer the routing of all tokens, and the experts' inputs [tokens, hidden] of the first ones."""
    inputs: list[list[Tensor]] = [[] for _ in layers]

    def keep(number: int) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            held = sum(len(part) for part in inputs[number])
            hidden = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            inputs[number].append(hidden.flatten(0, -2)[: DIFFERENCE_TOKENS - held].detach())

        return hook

    sampling = _Sampling()
    with Attachment(model, sampling, _no_channel(layers[0].num_experts)) as attachment, torch.no_grad():
        handles = [
            layer.experts.register_forward_pre_hook(keep(number), with_kwargs=True)
            for number, layer in enumerate(layers)
        ]
        try:
            for chunk in chunks:
                model(input_ids=chunk.to(model.device))
                attachment.recorder.reset()
        finally:
            for handle in handles:
                handle.remove()
    return [_join([part for part in sampling.routed if part.layer == n]) for n in range(len(layers))], [
        torch.cat(parts) for parts in inputs
    ]


def _join(parts: Sequence[Routing]) -> Routing:
    fields = ("probabilities", "top_k_index", "top_k_weights", "is_real_token")
    columns: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in fields}
    return replace(parts[0], **columns)


@torch.no_grad()
def _output_difference(layer: MoeLayer, hidden: Tensor) -> Tensor:
    """-> [experts, experts + 1] mean distances of the experts' outputs on the same tokens; last column: their norms."""
    experts = layer.num_experts
    total = torch.zeros(experts, experts + 1)
    for tokens in hidden.split(max(1, ROWS_AT_ONCE // experts)):
        index = torch.arange(experts, device=tokens.device).repeat(len(tokens))[:, None]
        rows = tokens.repeat_interleave(experts, dim=0)
        answers = layer.experts(rows, index, torch.ones_like(index, dtype=tokens.dtype))
        outputs = answers.float().view(len(tokens), experts, -1)
        distances = torch.cat([torch.cdist(outputs, outputs), outputs.norm(dim=2, keepdim=True)], dim=2)
        total += distances.sum(dim=0).cpu()
    return total / len(hidden)


@torch.no_grad()
def _fewer_experts_difference(model: Any, layer: MoeLayer) -> Tensor:
    """-> [k - 1] mean Frobenius norm of the layer's answer with 1, 2, ... experts less that with k, Gaussian inputs."""
    block = model.get_submodule(layer.name)
    weights = next(layer.router.parameters())
    generator = torch.Generator().manual_seed(0)
    losses = torch.zeros(layer.top_k - 1)
    for _ in range(GAUSSIAN_BATCHES):
        hidden = torch.randn(1, GAUSSIAN_TOKENS, model.config.get_text_config().hidden_size, generator=generator).to(
            weights
        )
        full = _answer_with(block, layer, hidden, layer.top_k)
        for experts in range(1, layer.top_k):
            losses[experts - 1] += (_answer_with(block, layer, hidden, experts) - full).norm().cpu()
    return losses / GAUSSIAN_BATCHES


def _answer_with(block: Any, layer: MoeLayer, hidden: Tensor, experts: int) -> Tensor:
    """What the layer answers when every token keeps its `experts` highest weights."""

    def select(choice: RouterOutput) -> SelectedExperts:
        weights = choice.top_k_weights
        least = weights.topk(experts, dim=1).values[:, -1:]
        kept = torch.where(weights >= least, weights, 0)
        if layer.normalises:
            kept = kept * (weights.sum(1, keepdim=True) / kept.sum(1, keepdim=True))
        return SelectedExperts(choice.top_k_index, torch.ones_like(choice.top_k_index, dtype=torch.bool), kept)

    handles = layer.contract.hook_selection(layer.router, layer.experts, select)
    try:
        answer = block(hidden)
    except TypeError as error:
        raise ModelError(f"{layer.name} cannot be run on hidden states alone: {error}") from None
    finally:
        for handle in handles:
            handle.remove()
    return (answer[0] if isinstance(answer, tuple) else answer).float()


def _sensitivity(model: Any, layers: Sequence[MoeLayer], chunks: Sequence[Tensor]) -> Tensor:
    """-> [layers] mean over tokens of the squared gradient of the summed loss in the experts' summed output."""
    needed = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    outputs: list[Tensor] = []

    def keep(module: nn.Module, args: tuple, answer: Tensor) -> Tensor:
        answer = answer if answer.requires_grad else answer.requires_grad_()
        answer.retain_grad()
        outputs.append(answer)
        return answer

    handles = [layer.experts.register_forward_hook(keep) for layer in layers]
    squared, tokens = torch.zeros(len(layers)), 0
    try:
        for parameter, _ in needed:
            parameter.requires_grad_(False)
        for chunk in chunks:
            outputs.clear()
            ids = chunk.to(model.device)
            logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
            torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:].flatten(), reduction="sum").backward()
            for number, output in enumerate(outputs):
                squared[number] += output.grad.float().square().sum().cpu()  # type: ignore[union-attr]
            tokens += ids.numel()
    finally:
        for handle in handles:
            handle.remove()
        for parameter, wanted in needed:
            parameter.requires_grad_(wanted)
    return squared / tokens
