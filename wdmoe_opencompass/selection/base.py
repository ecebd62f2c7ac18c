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
    """Tell which of `k` slots come first; `device`: where the answer is kept.

    Returns: [k, k] bool, whether the second slot comes before the first.
    """
    return torch.ones(k, k, dtype=torch.bool, device=device).tril(-1)


@dataclass(frozen=True)
class Routing:
    """The router's choice in one MoE layer of one forward pass.

    probabilities: [tokens, experts] float32, softmax over all experts, w_jk
    top_k_index:   [tokens, k] the router's experts, in the router's order (need not be sorted)
    top_k_weights: [tokens, k] their weights as the model uses them
    is_real_token: [tokens] bool; False for padding and tokens generated after a sequence has finished
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
        """Weights that the router would give any experts.

        A softmax router scales a token's probabilities by one factor (1 over the top-k's sum where it normalises),
        which the top-k shows. Only softmax routers may be asked about experts outside the top-k.

        expert_index: [tokens, m] a token's experts.
        Returns: [tokens, m] weights.
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
                      one expert; None where not needed
    curve:            what communication_s would be at other bandwidths; None where not needed
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
        """Look up each expert's device.

        of_devices: [devices] a number of each device.
        Returns: [experts] that of the expert's device; 0 at the base station.
        """
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
        """Share of the total bandwidth at which a token takes a given time: the curves read backwards.

        communication_s: [..., n] s.
        device: [n] the device of each curve to read.
        Returns: [..., n], linear between the grid's points in logarithms and beyond its ends, where it may exceed 1.
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


class TunedParameter(NamedTuple):
    """The number that says how much a policy drops: the kept share grows, or falls, with it from low to high."""

    name: str
    low: float
    high: float


class SelectionPolicy(ABC):
    """Maps the router's choice to the experts a token keeps; one method to implement.

    Runs inside the forward pass on the model's own device: an implementation must not copy to the host. Subclasses are
    dataclasses; their fields are the policy's parameters.

    may_add:      may change an index: a token may get an expert outside its top-k (softmax routers only)
    renormalise:  its author's default: kept weights are scaled back to the sum of the router's top-k where the model's
                  own router normalises (`model`), always (True) or never (False)
    needs_weights: whether it reads the router's weights; False: expert numbers are enough
    may_lose_all: whether a token may lose all its experts; a field where the author lets it be chosen
    tuned:        what is set to match a share of kept assignments; None where no parameter does
    neutral:      parameters at which it keeps the router's own top-k
    couples_tokens: whether what a token keeps depends on the other tokens of its forward pass, and so on how a dataset
                  is cut into batches; True unless the policy says otherwise
    """

    may_add: ClassVar[bool] = False
    needs_weights: ClassVar[bool] = True
    renormalise: ClassVar[Renormalise] = "model"
    may_lose_all: bool = False
    tuned: ClassVar[TunedParameter | None] = None
    neutral: ClassVar[dict[str, Any]] = {}
    couples_tokens: bool = True

    @abstractmethod
    def select(self, routing: Routing, channel: ChannelState) -> Selection:
        """Choose for every token; every token keeps its highest-weight expert unless `may_lose_all`."""
