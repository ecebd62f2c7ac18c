"""1T-Drop: drop every expert whose share of the token's weight is below one threshold."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..base import ChannelState, Knob, Renormalise, Routing, Selection, SelectionPolicy
from ..loads import device_time_s, routed_loads
from ..ratio_rules import drop_below
from ..validation import check_choice, check_number


@dataclass(frozen=True)
class OneThreshold(SelectionPolicy):
    """1T-Drop of DualSparse-MoE, arXiv 2508.18376: drop an expert if its share ``p_j < T``; no renormalisation.

    From notes on the paper, any number of experts per token. Its load-aware variant: ``rho_k`` is device k's load over
    the mean load; the threshold is T_max on devices with ``rho_k > 1`` and ``T rho_k`` on the others. `time` takes the
    device's time in this layer before any drop (load times token latency, evenly split bandwidth) for its load, which
    is ours; `tokens` its (token, expert) pairs. Experts at the base station have rho = 0: dropping them saves no wait.

    threshold:     T, in shares of a token's top-k weight; about 0.05 is reported to be harmless
    load_aware:    `no`, `tokens` or `time`
    max_threshold: T_max; where not given it is T (our choice)
    may_lose_all:  whether the top expert is dropped too where its share is below T, possible for T > 1/k only. The
                   notes make no exception for it; sparing it is our choice, the same at the reported T.
    """

    renormalise: ClassVar[Renormalise] = False
    knob = Knob("threshold", 0.0, 1.0)
    neutral: ClassVar[dict[str, Any]] = dict(threshold=0.0, max_threshold=None)

    threshold: float = 0.05
    load_aware: Literal["no", "tokens", "time"] = "no"
    max_threshold: float | None = None
    may_lose_all: bool = False

    def __post_init__(self) -> None:
        """Check the parameters' ranges."""
        check_number("one_t", "threshold", self.threshold, ">= 0 and <= 1")
        check_choice("one_t", "load_aware", self.load_aware, ("no", "tokens", "time"))
        if self.max_threshold is not None:
            check_number("one_t", "max_threshold", self.max_threshold, ">= 0 and <= 1")
        check_choice("one_t", "may_lose_all", self.may_lose_all, (True, False))

    @property
    def couples_tokens(self) -> bool:  # type: ignore[override]
        """Through the devices' loads."""
        return self.load_aware != "no"

    def select(self, routing: Routing, channel: ChannelState) -> Selection:
        """Compare each share with the threshold of its expert's device."""
        threshold: Tensor | float = self.threshold
        if self.load_aware != "no":
            threshold = self._threshold_of_expert(routing, channel)[routing.top_k_index]
        return drop_below(routing, routing.shares, threshold, spare_top=not self.may_lose_all)

    def _threshold_of_expert(self, routing: Routing, channel: ChannelState) -> Tensor:
        device_load, evaluations = routed_loads(routing, channel)
        load = device_time_s(channel, device_load, evaluations) if self.load_aware == "time" else evaluations
        rho = load / load.mean().clamp(min=1e-30)  # [devices]
        highest = self.threshold if self.max_threshold is None else self.max_threshold
        of_device = torch.where(rho > 1, highest, self.threshold * rho)
        of_device = torch.cat([of_device, torch.zeros_like(of_device[:1])])  # the last is the base station, index -1
        return of_device[channel.device_of_expert].float()
