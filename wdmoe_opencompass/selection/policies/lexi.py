"""LExI: every layer has its own number of experts per token."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...errors import PolicyError
from ..base import ChannelState, Knob, Routing, Selection, SelectionPolicy
from ..calibration import given_calibration
from ..validation import check_number

POLICY = "lexi"


@dataclass(frozen=True)
class Lexi(SelectionPolicy):
    """LExI, arXiv 2509.02753: k_l experts in layer l, ``sum_l k_l <= B``, so that the layers' losses sum to the least.

    From notes on the paper ([note]). The loss D_l(k') is the mean Frobenius norm of ``Y(k') - Y(k)`` of the layer's
    outputs on Gaussian inputs: no data. For k = 2 the layers with the largest D_l(1) keep both experts; for any k the
    best k_l are found exactly, by dynamic programming ([ours]). Kept weights are renormalised where the model does so,
    as a model with k_l for its k would.

    budget:      mean experts per token and layer, >= 1; B = floor(budget times the layers). Infinite, or at least k:
                 all are kept (and where it is infinite no calibration is needed)
    calibration: file of `wdmoe calibrate` on this model, which holds the losses
    """

    knob = Knob("budget", 1.0, 16.0)
    neutral: ClassVar[dict[str, Any]] = dict(budget=math.inf)
    couples_tokens = False

    budget: float = 1.5
    calibration: str | None = None

    def __post_init__(self) -> None:
        """Check the parameter's range, and that the calibration can be read."""
        check_number(POLICY, "budget", self.budget, ">= 1", may_be_infinite=True)
        if math.isfinite(self.budget):
            _ = self.experts_of_layer

    @cached_property
    def losses(self) -> NDArray[np.float64]:
        """D, [layers, k - 1] of 1, 2, ... experts."""
        return given_calibration(POLICY, self.calibration).need("fewer_experts_difference").double().numpy()

    @cached_property
    def experts_of_layer(self) -> list[int]:
        """k_l of every layer."""
        return least_loss(self.losses, math.floor(min(self.budget, self.losses.shape[1] + 1) * len(self.losses) + 1e-9))

    def select(self, routing: Routing, channel: ChannelState) -> Selection:
        """Keep each token's k_l highest weights."""
        k = routing.top_k_index.shape[1]
        if math.isinf(self.budget):
            return Selection(routing.top_k_index, routing.rank < k)
        layers, most = len(self.losses), self.losses.shape[1] + 1
        if routing.layer >= layers or most != k:
            raise PolicyError(
                f"{self.calibration} is of {layers} MoE layers with {most} experts per token; layer "
                f"{routing.layer + 1} of this model has {k}"
            )
        return Selection(routing.top_k_index, routing.rank < self.experts_of_layer[routing.layer])


def least_loss(losses: NDArray[np.float64], budget: int) -> list[int]:
    """-> k_l of every layer, each at least 1, at most `budget` in all, with the least sum of losses.

    losses: [layers, k - 1] of 1, 2, ... experts; with k there is none. Of equal sums the one that gives earlier layers
    more.
    """
    layers, k = losses.shape[0], losses.shape[1] + 1
    spare = budget - layers  # beyond one expert per layer
    of_more = np.pad(losses, ((0, 0), (0, 1)))  # [layers, k] with 0, 1, ... more than one
    least = np.zeros((layers + 1, spare + 1))  # of the layers from here on, with so much to spare
    for layer in reversed(range(layers)):
        least[layer] = np.inf
        for more in range(min(k - 1, spare) + 1):
            rest = least[layer + 1, : spare + 1 - more]
            least[layer, more:] = np.minimum(least[layer, more:], of_more[layer, more] + rest)
    chosen = []
    for layer in range(layers):
        sums = [of_more[layer, more] + least[layer + 1, spare - more] for more in range(min(k - 1, spare) + 1)]
        chosen.append(max(more for more, value in enumerate(sums) if value == min(sums)))
        spare -= chosen[-1]
    return [more + 1 for more in chosen]
