"""Turn a policy's knob until it keeps a given share of the assignments on a calibration sample."""

from collections.abc import Callable
from typing import Any

import torch

from ..errors import PolicyError
from .base import ChannelState, Routing, SelectionPolicy
from .calibration import Calibration

PASS_TOKENS = 256
MATCHING_STEPS = 40
DIGITS = 6  # of the matched parameter, so that it can be written down
UNREACHABLE = 0.01  # by how much the nearest reachable share may miss the asked one before it is refused

ChannelOfLayer = Callable[[int, int, torch.device], ChannelState]


def kept_share(policy: SelectionPolicy, calibration: Calibration, channel_of_layer: ChannelOfLayer) -> float:
    """Share of the sample's assignments that a policy keeps, all layers together, in prefill passes of PASS_TOKENS."""
    kept = total = 0
    for layer in range(len(calibration.need("probabilities"))):
        channel = channel_of_layer(0, layer, torch.device("cpu"))
        for routing in sampled_passes(calibration, layer):
            keep = policy.select(routing, channel).keep
            kept, total = kept + int(keep.sum()), total + keep.numel()
    return kept / total


def sampled_passes(calibration: Calibration, layer: int) -> list[Routing]:
    """What the router chose for the sample's tokens in one layer, in passes of PASS_TOKENS."""
    probabilities, index, weights = (
        calibration.need(name)[layer].split(PASS_TOKENS) for name in ("probabilities", "top_k_index", "top_k_weights")
    )
    return [
        Routing(p, i, w, torch.ones(len(i), dtype=torch.bool), layer, "prefill")
        for p, i, w in zip(probabilities, index, weights)
    ]


def matched_parameters(
    kind: type[SelectionPolicy],
    parameters: dict[str, Any],
    share: float,
    calibration: Calibration,
    channel_of_layer: ChannelOfLayer,
) -> dict[str, Any]:
    """-> the parameters with the policy's knob turned, by bisection, until `share` of the sample is kept (our choice).

    What a run keeps differs from it a little: dropping changes what later layers see, and passes have other sizes.
    Raises PolicyError where the policy has no knob or where no setting of it comes within UNREACHABLE of the share.
    """
    assert kind.knob is not None
    name, low, high = kind.knob

    def share_at(value: float) -> float:
        return kept_share(kind(**parameters, **{name: value}), calibration, channel_of_layer)

    parameters = {key: value for key, value in parameters.items() if key != name}
    ends = {low: share_at(low), high: share_at(high)}
    grows = ends[high] >= ends[low]
    tried = dict(ends)
    for _ in range(MATCHING_STEPS):
        middle = float(f"{(low + high) / 2:.{DIGITS}g}")
        if middle in tried:
            break
        tried[middle] = share_at(middle)
        if (tried[middle] < share) == grows:
            low = middle
        else:
            high = middle
    value = min(tried, key=lambda number: abs(tried[number] - share))
    if abs(tried[value] - share) > UNREACHABLE:
        least, most = min(tried.values()), max(tried.values())
        raise PolicyError(
            f"{kind.__name__}: kept_share must be between {least:.3f} and {most:.3f} on this calibration, got {share}"
            + (f"; the nearest that its steps allow is {tried[value]:.3f}" if least <= share <= most else "")
        )
    return parameters | {name: value}
