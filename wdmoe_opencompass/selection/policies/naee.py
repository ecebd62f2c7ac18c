"""NAEE: drop the second expert where its weight is small next to the first's."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from ..base import ChannelState, Knob, Renormalise, Routing, Selection, SelectionPolicy
from ..calibration import given_calibration
from ..ratio_rules import drop_below
from ..validation import check_number, check_per_layer, of_layer


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
        return given_calibration("naee", self.calibration, "beta").need("ratio_median").tolist()

    def select(self, routing: Routing, channel: ChannelState) -> Selection:
        """Compare each weight with the token's highest."""
        weights = routing.top_k_weights.float()
        ratio = weights / weights.amax(dim=1, keepdim=True).clamp(min=1e-30)
        return drop_below(routing, ratio, self.scale * of_layer("naee", "beta", self.betas, routing.layer))
