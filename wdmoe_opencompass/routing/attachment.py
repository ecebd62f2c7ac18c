"""Attach a selection policy to a transformers MoE model, undoably."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..selection.base import ChannelState, Renormalise, Routing, Selection, SelectionPolicy
from ..selection.policies.top_k import TopK
from .clock import PhaseClock
from .discovery import MoeLayer, find_moe_layers
from .experts_interface import Handle, RouterOutput, SelectedExperts
from .generation import WatchedGenerate
from .payload import MIN_BITS, Payload
from .recorder import Recorder, exact
from .router_recorder import RouterRecorder

__all__ = ["Attachment", "MoeLayer", "find_moe_layers"]


class Sender(Protocol):
    """Computes experts somewhere else, as testbed.client.BaseStation does."""

    def send_layer(self, number: int, current_pass: Callable[[], tuple[int, Tensor]]) -> Handle:
        """Let MoE layer `number` compute its experts there from now on; -> what undoes it.

        current_pass: -> the running forward pass's index, and [tokens] bool, False for padding and finished rows, which
        need not travel
        """


class Attachment:
    """A policy at work in a model; `detach` gives the model back as it was.

    channel_of_layer: (pass index, layer, torch device) -> ChannelState there at that moment.
    renormalise: kept weights are scaled back to the sum of the router's top-k: `model`, where the model's own router
    normalises its top-k; True, always; False, never; None, as the policy's author does.
    payload_bits: what is sent to and from the devices is rounded to so many bits per value; None leaves it as it is.
    sender: sends the tokens to real devices (and rounds what it sends, so payload_bits must be None); tokens that are
    no load, padding for one, are not sent and not computed unless it sends padding.
    router_recorder: keeps what the router chose for every token; None, as at first, keeps counts alone.

    What a policy reads as `probabilities` is the full softmax where the router is one (scaled and normalised ones, and
    those that choose within groups or with a bias, included). Any other router (sigmoid, sparsemixer, one expert per
    token) gives the weights as the model uses them, and 0 outside the top-k. Shared experts run at the base station:
    they are not routed to, so they are no device load.
    """

    def __init__(
        self,
        model: nn.Module,
        policy: SelectionPolicy,
        channel_of_layer: Callable[[int, int, torch.device], ChannelState],
        renormalise: Renormalise | None = None,
        payload_bits: int | None = None,
        sender: Sender | None = None,
    ):
        if any(
            "_wdmoe_attachment" in vars(module) for module in model.modules()
        ):  # a part of it, or what it is part of
            raise ModelError("a selection policy is attached to this model already; detach it first")
        self.model: Any = model
        self.policy = policy
        self.layers = find_moe_layers(model)
        for layer in self.layers:
            if layer.router_kind == "unknown":
                raise ModelError(f"{layer.name}: the weights are not loaded (meta device)")
            if getattr(layer.experts, "_is_expert_parallel", False):
                raise ModelError(
                    f"{layer.name}: the experts are spread over processes; load without expert parallelism"
                )
            if policy.may_add and layer.router_kind != "softmax":
                raise ModelError(
                    f"{layer.name}: {type(policy).__name__} may give a token an expert outside its top-k, but this "
                    f"router is no softmax ({layer.router_kind}): it gives that expert no weight"
                )
        self.channel_of_layer = channel_of_layer
        self.renormalise = policy.renormalise if renormalise is None else renormalise
        if payload_bits is not None and payload_bits < MIN_BITS:
            raise ModelError(f"quantise_payload needs payload_bits of at least {MIN_BITS}, got {payload_bits}")
        if sender is not None and payload_bits is not None:
            raise ModelError("what is sent to real devices is rounded there: give the lab file payload_bits instead")
        self.payload_bits, self.sender = payload_bits, sender
        self.num_experts = max(layer.num_experts for layer in self.layers)
        self.recorder = Recorder(len(self.layers), self.num_experts)
        self.router_recorder: RouterRecorder | None = None
        self.clock = PhaseClock()
        self._pass: tuple[int, str, Tensor] | None = None
        self._arguments = list(inspect.signature(type(model).forward).parameters)[1:]
        self._attach()

    def _attach(self) -> None:
        self._handles: list[Handle] = []
        self._watched: WatchedGenerate | None = None
        try:
            self._attach_all()
        except Exception as error:
            self._undo()
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"{type(self.model).__name__} cannot be attached to: {error}") from error

    def _attach_all(self) -> None:
        model = self.model
        self._handles += [
            model.register_forward_pre_hook(self._begin_pass, with_kwargs=True),
            model.register_forward_hook(self._end_pass, always_call=True),
        ]
        for number, layer in enumerate(self.layers):
            select = partial(self._select, number, layer)
            self._handles += layer.contract.hook_selection(layer.router, layer.experts, select)
        if hasattr(model, "generate"):
            self._watched = WatchedGenerate(model, self.clock.stop, self.forget_batch)
        if self.sender is not None:
            self._handles += [self.sender.send_layer(number, self._current_pass) for number in range(len(self.layers))]
        elif self.changes_experts:  # vanilla runs keep the model's own experts implementation
            for number, layer in enumerate(self.layers):
                self._handles += layer.contract.skip_dropped(layer.experts, self._payload(number, layer))
        for module in self._marked():
            module._wdmoe_attachment = self

    def _marked(self) -> list[Any]:
        """Modules that say it, also to whoever is given a part of the model, or what it is a part of."""
        return [self.model, *(layer.experts for layer in self.layers)]

    def detach(self) -> None:
        """Undo everything; harmless when called twice."""
        if getattr(self.model, "_wdmoe_attachment", None) is not self:
            return
        self._undo()
        for module in self._marked():
            del module._wdmoe_attachment

    def _undo(self) -> None:
        for handle in self._handles:
            handle.remove()
        if self._watched is not None:
            self._watched.remove()

    @property
    def changes_experts(self) -> bool:
        """Whether the model's answers may differ from the unpatched model's."""
        return self.payload_bits is not None or type(self.policy) is not TopK  # a subclass may drop

    def _payload(self, number: int, layer: MoeLayer) -> Payload | None:
        if self.payload_bits is None:
            return None
        placement = self._channel(0, number, layer, torch.device("cpu")).device_of_expert
        return Payload(self.payload_bits, placement)

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.detach()

    def _begin_pass(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self._pass is not None:  # an interrupt has left it open
            self.forget_batch()
        given = dict(zip(self._arguments, args)) | kwargs
        tokens = given.get("input_ids")
        if tokens is None:
            tokens = given["inputs_embeds"][..., 0]
        cache = given.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        is_real_token = _real_tokens(given.get("attention_mask"), tokens, past)
        finished = self._watched.finished_rows(len(tokens)) if self._watched is not None else None
        if finished is not None:
            is_real_token = is_real_token & ~finished.to(is_real_token.device)[:, None]
        phase = "prefill" if past == 0 else "decode"
        self._pass = (self.recorder.begin_pass(phase, finished), phase, is_real_token.flatten())
        self.clock.begin_pass(phase)
        if self.router_recorder is not None:
            self.router_recorder.begin_pass(phase, is_real_token)

    def _end_pass(self, module: nn.Module, args: tuple, answer: Any) -> None:
        if self._pass is not None:  # else it never began
            self.clock.end_pass()
            self._pass = None
            self.recorder.end_pass(failed=answer is None)
            if self.router_recorder is not None:
                self.router_recorder.end_pass(failed=answer is None)

    def forget_batch(self) -> None:
        """Forget what was counted since the last whole batch, and an open forward pass."""
        self._pass = None
        self.recorder.reset()
        self.clock.reset()
        if self.router_recorder is not None:
            self.router_recorder.reset()

    def _current_pass(self) -> tuple[int, Tensor]:
        assert self._pass is not None  # else a layer's selection has raised
        pass_index, _, is_real_token = self._pass
        return pass_index, is_real_token

    def _select(self, number: int, layer: MoeLayer, choice: RouterOutput) -> SelectedExperts | None:
        if self._pass is None:
            raise ModelError(f"{layer.name} was run outside a forward pass of the attached model")
        pass_index, phase, is_real_token = self._pass
        device = choice.top_k_index.device
        self.clock.devices.add(device)
        channel = self._channel(pass_index, number, layer, device)
        with exact(device):
            routing = Routing(
                _probabilities(layer, choice),
                choice.top_k_index,
                choice.top_k_weights,
                is_real_token.to(device),
                number,
                phase,  # type: ignore[arg-type]
            )
            selection = self.policy.select(routing, channel)
        self.recorder.record(routing, channel, selection.expert_index, selection.keep)
        if self.router_recorder is not None:
            self.router_recorder.record(routing)
        if self.sender is not None:
            weights = self._kept_weights(layer, choice.top_k_weights, selection) if self.changes_experts else None
            return SelectedExperts(
                selection.expert_index, selection.keep, choice.top_k_weights if weights is None else weights
            )
        if not self.changes_experts:
            return None  # the model's own tensors go on untouched: bit for bit the unpatched model
        return SelectedExperts(
            selection.expert_index, selection.keep, self._kept_weights(layer, choice.top_k_weights, selection)
        )

    def _channel(self, pass_index: int, number: int, layer: MoeLayer, device: torch.device) -> ChannelState:
        with exact(device):  # states are kept for later passes
            channel = self.channel_of_layer(pass_index, number, device)
        if layer.num_experts == self.num_experts:
            return channel
        return replace(channel, device_of_expert=channel.device_of_expert[: layer.num_experts])

    def _kept_weights(self, layer: MoeLayer, router_weights: Tensor, selection: Selection) -> Tensor:
        weights = router_weights if selection.weights is None else selection.weights
        kept = torch.where(selection.keep, weights, 0)
        if self.renormalise is True or (self.renormalise == "model" and layer.normalises):
            sums, kept_sums = router_weights.float().sum(1, keepdim=True), kept.float().sum(1, keepdim=True)
            kept = kept * (sums / kept_sums.clamp(min=1e-9))
        return kept.to(router_weights.dtype)


def _real_tokens(mask: Any, tokens: Tensor, past: int) -> Tensor:
    """-> [rows, tokens] bool from an attention mask over all tokens so far, or all places of a cache; None: all are."""
    if mask is None:
        return torch.ones(tokens.shape, dtype=torch.bool, device=tokens.device)
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        given = f"{mask.ndim} axes" if isinstance(mask, Tensor) else f"type {type(mask).__name__}"
        raise ModelError(
            f"an attention mask of {given} does not say which tokens are padding (generate with a static cache makes "
            "one); pass [rows, tokens], or let the cache be dynamic"
        )
    length = tokens.shape[1]
    real = mask[:, past : past + length] if mask.shape[1] > past + length else mask[:, -length:]
    return real != 0


def _probabilities(layer: MoeLayer, choice: RouterOutput) -> Tensor:
    """-> [tokens, experts] float32 the full softmax; of a router of another kind the weights as the model uses them."""
    if layer.router_kind == "softmax":
        return choice.scores.float() if layer.scores_are_probabilities else torch.softmax(choice.scores.float(), dim=-1)
    full = torch.zeros(choice.scores.shape, dtype=torch.float32, device=choice.top_k_index.device)
    return full.scatter(1, choice.top_k_index, choice.top_k_weights.float())
