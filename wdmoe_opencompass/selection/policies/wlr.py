"""Algorithm 1 of the paper: drop low-weight experts of tokens whose weights do not follow the latencies."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..base import ChannelState, Knob, Routing, Selection, SelectionPolicy
from ..validation import check_choice, check_number


@dataclass(frozen=True)
class WeightToLatencyRatio(SelectionPolicy):
    """Algorithm 1: raise theta until the summed WLR, Eq. (12), has grown by `gain`; P2, Eq. (16) and (17).

    theta:              initial threshold on the cosine similarity of Eq. (18)
    theta_step:         how much theta grows per round
    gain:               the loop goes on while the summed WLR is at most `gain` times its initial value
    extra_pass:         whether one more round, at the raised theta, follows the loop (step 3); see below
    similarity_weights: `softmax`, all weights enter Eq. (18) (our choice); `top_k`, those outside the top-k are 0

    Lines 11 and 12 of Algorithm 1 drop once more with the final theta. Our choice: they restate the loop's last round,
    so nothing follows it. What the paper's Table II implies fits this reading alone (docs/reconstruction.md): the other
    one, theta raised by theta_step and a further round, drops two to four times as much. `extra_pass=True` is that one.

    Our choices: the loop ends at theta > 1 at the latest; it runs per layer and forward pass; with several experts on
    one device the WLR's numerator sums their weights and its denominator counts one transfer and each computation;
    experts at the base station have latency 0 in Eq. (18) and no WLR; where no real token goes to a device the summed
    WLR is 0, and nothing is dropped. A token with k experts loses one per round.

    A router that is no softmax leaves 0 outside the top-k (see routing/attachment.py), as `top_k` does for any: the
    similarity then hardly reaches 0.5, and the default theta drops every expert it may. Choose a lower theta there.
    """

    knob = Knob("theta", 0.0, 1.0)
    neutral: ClassVar[dict[str, Any]] = dict(theta=0.0, gain=0.5)  # no round of the loop; an extra pass would drop none

    theta: float = 0.5
    theta_step: float = 0.1
    gain: float = 1.01
    extra_pass: bool = False
    similarity_weights: Literal["softmax", "top_k"] = "softmax"

    def __post_init__(self) -> None:
        """Check the parameters' ranges."""
        check_number("wlr", "theta", self.theta, ">= 0 and <= 1")
        check_number("wlr", "theta_step", self.theta_step, ">= 0.001")
        check_number("wlr", "gain", self.gain, "> 0")
        check_choice("wlr", "similarity_weights", self.similarity_weights, ("softmax", "top_k"))

    def thresholds(self) -> list[float]:
        """Theta of every possible round; the last, above 1, only serves an extra pass."""
        rounds = int((1 - self.theta) / self.theta_step + 1e-9) + 1
        return [self.theta + n * self.theta_step for n in range(rounds + 1)]

    def select(self, routing: Routing, channel: ChannelState) -> Selection:
        """Run Algorithm 1 for all tokens and all thresholds at once.

        A token's weights never change, so neither does its similarity: the round in which each (token, expert) pair
        would go is known beforehand, and the WLR after every round is a sum over the rounds in which pairs go.
        """
        thetas = _on_device(tuple(self.thresholds()), routing.probabilities.device)
        going_round = self._going_round(routing, channel, thetas)  # [tokens, k]
        wlr = _wlr_after_rounds(routing, channel, going_round, rounds=len(thetas) - 1)  # [rounds + 1]
        goes_on = wlr[:-1] <= self.gain * wlr[0]  # [rounds] whether round n is run
        rounds_run = (goes_on.cumprod(0).sum() + int(self.extra_pass)) * (wlr[0] > 0)  # a WLR of 0 cannot grow
        return Selection(routing.top_k_index, going_round >= rounds_run)

    def _going_round(self, routing: Routing, channel: ChannelState, thetas: Tensor) -> Tensor:
        """-> [tokens, k] the round (from 0) in which a pair is dropped; beyond all rounds for a token's top expert."""
        rank, k = routing.rank, routing.top_k_index.shape[1]
        first = (self.similarity(routing, channel)[:, None] >= thetas).sum(dim=1, keepdim=True)  # S < theta from here
        return torch.where(rank == 0, len(thetas) + k, first + (k - 1 - rank))

    def similarity(self, routing: Routing, channel: ChannelState) -> Tensor:
        """-> [tokens] cosine similarity of weights and latencies, Eq. (18); one entry per expert in both vectors."""
        weights = routing.probabilities
        if self.similarity_weights == "top_k":
            chosen = weights.gather(1, routing.top_k_index)
            weights = torch.zeros_like(weights).scatter(1, routing.top_k_index, chosen)
        norms = weights.norm(dim=1) * channel.expert_latency_s.norm()
        return (weights @ channel.expert_latency_s) / norms.clamp(min=torch.finfo(weights.dtype).tiny)


@lru_cache(maxsize=64)
def _on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)


def _wlr_after_rounds(routing: Routing, channel: ChannelState, going_round: Tensor, rounds: int) -> Tensor:
    """-> [rounds + 1] ``sum_k WLR_k``, Eq. (12), after 0, 1, ... rounds; a device without a token counts 0."""
    devices = len(channel.communication_s)
    device = channel.device_of_expert[routing.top_k_index]  # [tokens, k]
    counted = routing.is_real_token[:, None] & (device >= 0)
    is_visit = _is_last_visit(device, going_round) & counted if channel.device_is_shared else counted
    weight = routing.probabilities.gather(1, routing.top_k_index) * counted

    # Bin every pair by the round it survives last, latest first, and by its device; surviving round n = all such bins.
    column = (rounds - going_round.clamp(max=rounds)) * devices + device.clamp(min=0)
    bins = torch.zeros(3, (rounds + 1) * devices, dtype=torch.float64, device=device.device)
    bins.index_add_(1, column.flatten(), torch.stack([weight, is_visit, counted]).flatten(1).double())
    weight_sum, load, evaluations = bins.view(3, rounds + 1, devices).cumsum(1)  # [rounds + 1, devices] each
    latency = load * channel.communication_s + evaluations * channel.computation_s
    return (weight_sum / latency.clamp(min=1e-300)).sum(dim=1).flip(0)


def _is_last_visit(device: Tensor, going_round: Tensor) -> Tensor:
    """-> [tokens, k] one expert per token and device: a shared device is visited until the last of them is gone."""
    same_device = device[:, :, None] == device[:, None, :]  # [tokens, k, k]
    lasting = torch.where(same_device, going_round[:, None, :], -1).amax(dim=2)
    holder = (same_device & (going_round[:, None, :] == lasting[:, :, None])).int().argmax(dim=2)
    return holder == torch.arange(device.shape[1], device=device.device)
