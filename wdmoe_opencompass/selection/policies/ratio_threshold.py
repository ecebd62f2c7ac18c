"""Drop the experts whose weight is small beside the token's others: NAEE, 1T-Drop, AdapMoE and top-p.

With two experts per token all four drop the second expert where ``r = w_(2) / w_(1)`` is small, and differ only in how
the threshold varies: NAEE ``r < beta_l``; 1T-Drop ``r / (1 + r) < T``; AdapMoE ``r / (1 + r) < sqrt(T / h_l)``; top-p
``1 / (1 + r) > p``. With more experts each class says how we go on. `p_j` are a token's top-k weights scaled to sum 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ...errors import PolicyError
from ..base import ChannelState, Knob, Renormalise, Routing, Selection, SelectionPolicy
from ..loads import device_time_s, device_tokens
from ..validation import check_choice, check_number, check_per_layer, of_layer

# h_l of Mixtral 8x7B, layers 1 to 32, as released with AdapMoE's code (PKU-SEC-Lab/AdapMoE), rounded.
MIXTRAL_8X7B_SENSITIVITY = (
    *(46.69, 17.30, 13.02, 7.641, 4.169, 2.230, 1.256, 0.8445, 0.6838, 0.5603, 0.5126),
    *(0.4780, 0.4454, 0.4356, 0.3836, 0.3099, 0.2331, 0.1761, 0.1384, 0.1138, 0.1047, 0.0954),
    *(0.0862, 0.0771, 0.0694, 0.0611, 0.0502, 0.0426, 0.0335, 0.0253, 0.0207, 0.0229),
)


def drop_below(routing: Routing, measure: Tensor, threshold: Tensor | float, spare_top: bool = True) -> Selection:
    """The core of the family: drop every expert whose measure [tokens, k] is below the threshold, the top one spared.

    threshold: a number, or [tokens, k]
    """
    keep = ~(measure < threshold)
    return Selection(routing.top_k_index, keep | (routing.rank == 0) if spare_top else keep)


@dataclass(frozen=True)
class Naee(SelectionPolicy):
    """NAEE's dynamic expert skipping, arXiv 2402.14800: drop the second expert if ``w_(2) / w_(1) < scale beta_l``.

    The rule is from the authors' code (Lucky-Lance/Expert_Sparsity), two experts per token. With more, every further
    expert is compared with the first (our choice). Kept weights are renormalised always, as there.

    beta:        threshold on the ratio, >= 0: one number, or a list with one per MoE layer
    calibration: file that beta is read from where it is not given: the median ratio of each layer, the authors' choice
    scale:       multiplies beta (ours, to turn the rule up and down); 1 is the authors'
    """

    renormalise: ClassVar[Renormalise] = True
    knob = Knob("scale", 0.0, 1e3)
    neutral: ClassVar[dict[str, Any]] = dict(beta=0.0)
    couples_tokens = False

    beta: float | Sequence[float] | None = None
    calibration: str | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Check the parameters' ranges, and that the calibration can be read."""
        check_number("naee", "scale", self.scale, ">= 0")
        check_per_layer("naee", "beta", self.betas, ">= 0")

    @cached_property
    def betas(self) -> float | Sequence[float]:
        """beta_l, as given or from the calibration."""
        if self.beta is not None:
            return self.beta
        from ..calibration import ratio_medians

        return ratio_medians(_needed("naee", "beta", self.calibration))

    def select(self, routing: Routing, channel: ChannelState) -> Selection:
        """Compare each weight with the token's highest."""
        weights = routing.top_k_weights.float()
        ratio = weights / weights.amax(dim=1, keepdim=True).clamp(min=1e-30)
        return drop_below(routing, ratio, self.scale * of_layer("naee", "beta", self.betas, routing.layer))


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
        load = device_time_s(routing, channel) if self.load_aware == "time" else device_tokens(routing, channel)[1]
        rho = load / load.mean().clamp(min=1e-30)  # [devices]
        highest = self.threshold if self.max_threshold is None else self.max_threshold
        of_device = torch.where(rho > 1, highest, self.threshold * rho)
        of_device = torch.cat([of_device, torch.zeros_like(of_device[:1])])  # the last is the base station, index -1
        return of_device[channel.device_of_expert].float()


@dataclass(frozen=True)
class AdapMoe(SelectionPolicy):
    """AdapMoE's adaptive gating, arXiv 2408.10284: drop the second expert if its share ``p_(2) < sqrt(T / h_l)``.

    The rule is from the authors' code (PKU-SEC-Lab/AdapMoE), two experts per token; its runner applies it with one
    token per pass only, we apply it in every pass. With more experts every further one is compared (our choice). Kept
    weights are renormalised always, as there.

    threshold:   T, in the units of h (a squared gradient); 0.005 is the authors', for their h
    h:           sensitivity of each MoE layer (their Fisher information), > 0: one number, a list with one per layer,
                 or `mixtral_8x7b`, the released values
    calibration: file whose `sensitivity` is taken where h is not given
    """

    renormalise: ClassVar[Renormalise] = True
    knob = Knob("threshold", 0.0, 1e3)
    neutral: ClassVar[dict[str, Any]] = dict(threshold=0.0, h=1.0)
    couples_tokens = False

    threshold: float = 0.005
    h: float | Sequence[float] | Literal["mixtral_8x7b"] | None = None
    calibration: str | None = None

    def __post_init__(self) -> None:
        """Check the parameters' ranges, and that the calibration can be read."""
        check_number("adapmoe", "threshold", self.threshold, ">= 0")
        if isinstance(self.h, str):
            check_choice("adapmoe", "h", self.h, ("mixtral_8x7b",))
        check_per_layer("adapmoe", "h", self.sensitivity, "> 0")

    @cached_property
    def sensitivity(self) -> float | Sequence[float]:
        """h_l, as given or from the calibration."""
        if self.h == "mixtral_8x7b":
            return MIXTRAL_8X7B_SENSITIVITY
        if self.h is not None:
            return self.h  # type: ignore[return-value]
        from ..calibration import read_calibration

        return read_calibration(_needed("adapmoe", "h", self.calibration)).need("sensitivity").tolist()

    def select(self, routing: Routing, channel: ChannelState) -> Selection:
        """Compare each share with the layer's threshold."""
        sensitivity = of_layer("adapmoe", "h", self.sensitivity, routing.layer)
        return drop_below(routing, routing.shares, math.sqrt(self.threshold / sensitivity))


@dataclass(frozen=True)
class TopP(SelectionPolicy):
    """Top-p routing, arXiv 2403.07652: the fewest experts whose weights sum to more than `p`; no renormalisation.

    The rule is from the authors' code (ZhenweiAn/Dynamic_MoE), for routers trained with it (p = 0.4 there) and over all
    experts. As a cut inside the top-k of any router, on its shares ``p_j``, it is our use: nothing is added.

    p: share of a token's top-k weight that its kept experts must exceed; at 1 all are kept
    """

    renormalise: ClassVar[Renormalise] = False
    knob = Knob("p", 0.0, 1.0)
    neutral: ClassVar[dict[str, Any]] = dict(p=1.0)
    couples_tokens = False

    p: float = 0.7

    def __post_init__(self) -> None:
        """Check the parameter's range."""
        check_number("top_p", "p", self.p, ">= 0 and <= 1")

    def select(self, routing: Routing, channel: ChannelState) -> Selection:
        """Drop an expert where those before it, by falling weight, already exceed p."""
        falling = torch.zeros_like(routing.shares).scatter(1, routing.rank, routing.shares)
        before = torch.nn.functional.pad(falling.cumsum(dim=1)[:, :-1], (1, 0)).clamp(max=1.0).gather(1, routing.rank)
        return drop_below(routing, -before, -self.p)


def _needed(policy: str, name: str, calibration: str | None) -> str:
    if calibration is None:
        raise PolicyError(
            f"selection policy {policy!r} needs {name}, or calibration: a file of `wdmoe calibrate` for this model"
        )
    return calibration
