"""What a selection policy reads and returns."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Routing:
    """The router's choice in one MoE layer of one forward pass.

    probabilities: [tokens, experts] float32, softmax over all experts, w_jk
    top_k_index:   [tokens, k] the router's experts, in the router's order (need not be sorted)
    top_k_weights: [tokens, k] their weights as the model uses them
    is_load:       [tokens] bool; False for padding and for what a finished sequence goes on producing
    layer:         index of the MoE layer, from 0
    phase:         prefill or decode
    """

    probabilities: Tensor
    top_k_index: Tensor
    top_k_weights: Tensor
    is_load: Tensor
    layer: int
    phase: Literal["prefill", "decode"]


@dataclass(frozen=True)
class ChannelState:
    """What the base station knows of its devices in this layer, under evenly split bandwidth.

    communication_s:  [devices] seconds to send one token there and back, Eq. (6)
    computation_s:    [devices] seconds of one token in one expert, Eq. (7)
    device_of_expert: [experts] int64 placement; -1 is the base station, which costs nothing
    device_is_shared: whether some device holds several experts
    """

    communication_s: Tensor
    computation_s: Tensor
    device_of_expert: Tensor
    device_is_shared: bool = True

    @cached_property
    def expert_latency_s(self) -> Tensor:
        """-> [experts] t_k of Eq. (8) of each expert's device; 0 at the base station."""
        latency = self.communication_s + self.computation_s
        held = self.device_of_expert >= 0
        return torch.where(held, latency[self.device_of_expert.clamp(min=0)], torch.zeros_like(latency[:1]))


class Selection(NamedTuple):
    """A policy's answer: expert_index [tokens, k] and keep [tokens, k] bool."""

    expert_index: Tensor
    keep: Tensor


class SelectionPolicy(ABC):
    """Maps the router's choice to the experts a token keeps; one method to implement.

    Runs inside the forward pass on the model's own device: an implementation must not copy to the host. Subclasses are
    dataclasses whose fields are the policy's parameters. Only a class with ``may_add = True`` may change an index.
    """

    may_add: ClassVar[bool] = False

    @abstractmethod
    def select(self, routing: Routing, channel: ChannelState) -> Selection:
        """Choose for every token; every token keeps its highest-weight expert unless the policy's text says not."""
