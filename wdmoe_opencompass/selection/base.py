"""What a selection policy reads and returns."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

Renormalise = Literal["model"] | bool


# A policy runs in every MoE layer, where on a GPU each small kernel counts: constants are made once per device.
@lru_cache(maxsize=64)
def is_earlier(k: int, device: torch.device) -> Tensor:
    """-> [k, k] whether the second slot comes before the first."""
    return torch.ones(k, k, dtype=torch.bool, device=device).tril(-1)


@dataclass(frozen=True)
class Routing:
    """The router's choice in one MoE layer of one forward pass.

    probabilities: [tokens, experts] float32, softmax over all experts, w_jk
    top_k_index:   [tokens, k] the router's experts, in the router's order (need not be sorted)
    top_k_weights: [tokens, k] their weights as the model uses them
    is_real_token:       [tokens] bool; False for padding and for what a finished sequence goes on producing
    layer:         index of the MoE layer, from 0
    phase:         prefill or decode
    """

    probabilities: Tensor
    top_k_index: Tensor
    top_k_weights: Tensor
    is_real_token: Tensor
    layer: int
    phase: Literal["prefill", "decode"]

    def weights_of(self, expert_index: Tensor) -> Tensor:
        """-> [tokens, m] weights that the router would give any experts [tokens, m] of its own.

        A softmax router scales a token's probabilities by one factor (1 over the top-k's sum where it normalises),
        which the top-k shows. Only softmax routers may be asked about experts outside the top-k.
        """
        chosen = self.probabilities.gather(1, self.top_k_index).sum(1, keepdim=True)
        scale = self.top_k_weights.float().sum(1, keepdim=True) / chosen.clamp(min=1e-30)
        return self.probabilities.gather(1, expert_index) * scale

    @cached_property
    def shares(self) -> Tensor:
        """-> [tokens, k] float32 the top-k weights scaled to sum 1, p_j of the rival rules."""
        weights = self.top_k_weights.float()
        return weights / weights.sum(1, keepdim=True).clamp(min=1e-30)

    @cached_property
    def rank(self) -> Tensor:
        """-> [tokens, k] 0 for a token's highest weight, 1 for the next, ...; equal weights keep the router's order."""
        weights = self.top_k_weights
        ours, others = weights[:, :, None], weights[:, None, :]
        return ((others > ours) | ((others == ours) & is_earlier(weights.shape[1], weights.device))).sum(dim=2)


@dataclass(frozen=True)
class ChannelState:
    """What the base station knows of its devices in this layer, under evenly split bandwidth.

    communication_s:  [devices] seconds to send one token there and back, Eq. (6)
    computation_s:    [devices] seconds of one token in one expert, Eq. (7)
    device_of_expert: [experts] int64 placement; -1 is the base station, which costs nothing
    device_is_shared: whether some device holds several experts
    token_energy_j:   [devices] joules to send one token there and back and, where the profile tells, to compute it in
                      one expert; None where nobody asked
    curve:            what communication_s would be at other bandwidths; None where nobody asked
    mean_token_s:     [devices] seconds that each device was measured to take per token, Eq. (30); None in simulation
    """

    communication_s: Tensor
    computation_s: Tensor
    device_of_expert: Tensor
    device_is_shared: bool = True
    token_energy_j: Tensor | None = None
    curve: "BandwidthCurve | None" = None
    mean_token_s: Tensor | None = None

    @cached_property
    def expert_latency_s(self) -> Tensor:
        """-> [experts] t_k of Eq. (8) of each expert's device; 0 at the base station."""
        return self.of_experts(self.communication_s + self.computation_s)

    def of_experts(self, of_devices: Tensor) -> Tensor:
        """-> [experts] a number [devices] of each expert's device; 0 at the base station."""
        held = self.device_of_expert >= 0
        return torch.where(held, of_devices[self.device_of_expert.clamp(min=0)], torch.zeros_like(of_devices[:1]))


@dataclass(frozen=True)
class BandwidthCurve:
    """Communication latency of one token, Eq. (6), of every device at a grid of bandwidths.

    share:           [points] of the total bandwidth, ascending, the last is 1
    communication_s: [devices, points]
    """

    share: Tensor
    communication_s: Tensor

    def share_for(self, communication_s: Tensor, device: Tensor) -> Tensor:
        """-> share of the total bandwidth at which a device takes so long for a token: the curves read backwards.

        communication_s: [..., n] seconds; device: [n]. Linear between the grid's points in logarithms and beyond its
        ends, where the answer may exceed 1.
        """
        seconds = self.communication_s.double().log().flip(1)  # [devices, points] ascending
        devices, points = seconds.shape
        start = seconds[:, :1]
        span = (seconds[:, -1:] - start).max() + 1
        number = torch.arange(devices, device=device.device)[:, None]
        all_curves = (seconds - start + number * span).flatten()  # one after the other, so that one search serves all
        wanted = communication_s.double().log()
        within = (wanted - start[device, 0]).clamp(min=0).minimum(span - 0.5)
        right = torch.searchsorted(all_curves, within + device * span) - device * points
        right = right.clamp(1, points - 1)
        log_share = self.share.double().log().flip(0)
        low, high = seconds[device, right - 1], seconds[device, right]
        slope = (log_share[right] - log_share[right - 1]) / (high - low)
        return (log_share[right - 1] + (wanted - low) * slope).exp()


class Selection(NamedTuple):
    """A policy's answer.

    expert_index: [tokens, k]
    keep:         [tokens, k] bool
    weights:      [tokens, k] weights of the experts; None where they are the router's own, in the router's slots
    """

    expert_index: Tensor
    keep: Tensor
    weights: Tensor | None = None


class Knob(NamedTuple):
    """The number of a policy that says how much it drops: the kept share grows, or falls, with it from low to high."""

    parameter: str
    low: float
    high: float


class SelectionPolicy(ABC):
    """Maps the router's choice to the experts a token keeps; one method to implement.

    Runs inside the forward pass on the model's own device: an implementation must not copy to the host. Subclasses are
    dataclasses whose fields are the policy's parameters.

    may_add:      may change an index: a token may get an expert outside its top-k (softmax routers only)
    renormalise:  its author's default: kept weights are scaled back to the sum of the router's top-k where the model's
                  own router normalises (`model`), always (True) or never (False)
    needs_weights: whether it reads the router's weights; False: expert numbers are enough
    may_lose_all: whether a token may lose all its experts; a field where the author lets it be chosen
    knob:         what is turned to match a share of kept assignments; None where there is nothing to turn
    neutral:      parameters at which it keeps the router's own top-k
    couples_tokens: whether what a token keeps depends on the other tokens of its forward pass, and so on how a dataset
                  is cut into batches; True, as may be, where its author does not say otherwise
    """

    may_add: ClassVar[bool] = False
    needs_weights: ClassVar[bool] = True
    renormalise: ClassVar[Renormalise] = "model"
    may_lose_all: bool = False
    knob: ClassVar[Knob | None] = None
    neutral: ClassVar[dict[str, Any]] = {}
    couples_tokens: bool = True

    @abstractmethod
    def select(self, routing: Routing, channel: ChannelState) -> Selection:
        """Choose for every token; every token keeps its highest-weight expert unless `may_lose_all`."""
