"""AdapMoE: drop the second expert where the layer is not sensitive to it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from ..base import ChannelState, Knob, Renormalise, Routing, Selection, SelectionPolicy
from ..calibration import given_calibration
from ..ratio_rules import drop_below
from ..validation import check_choice, check_number, check_per_layer, of_layer

# h_l of Mixtral 8x7B, layers 1 to 32, as released with AdapMoE's code (PKU-SEC-Lab/AdapMoE), rounded.
MIXTRAL_8X7B_SENSITIVITY = (
    *(46.69, 17.30, 13.02, 7.641, 4.169, 2.230, 1.256, 0.8445, 0.6838, 0.5603, 0.5126),
    *(0.4780, 0.4454, 0.4356, 0.3836, 0.3099, 0.2331, 0.1761, 0.1384, 0.1138, 0.1047, 0.0954),
    *(0.0862, 0.0771, 0.0694, 0.0611, 0.0502, 0.0426, 0.0335, 0.0253, 0.0207, 0.0229),
)


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
        return given_calibration("adapmoe", self.calibration, "h").need("sensitivity").tolist()

    def select(self, routing: Routing, channel: ChannelState) -> Selection:
        """Compare each share with the layer's threshold."""
        sensitivity = of_layer("adapmoe", "h", self.sensitivity, routing.layer)
        return drop_below(routing, routing.shares, math.sqrt(self.threshold / sensitivity))
