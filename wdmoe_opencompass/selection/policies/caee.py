"""CAEE: drop where it helps, on the device that finishes last."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..base import ChannelState, Knob, Renormalise, Routing, Selection, SelectionPolicy, is_earlier
from ..loads import device_loads, device_time_s
from ..validation import check_number

ROUNDS = 16  # with more than two experts per token
ROUNDING = 1e-9  # relative; levels of equal devices are equal


@dataclass(frozen=True)
class Caee(SelectionPolicy):
    """CAEE, arXiv 2606.29982: drop experts of little weight for their cost, first on the device that finishes last.

    Idea from notes on the paper ([note]: rank by weight over cost, drop on the last device, give the weight to experts
    that run anyway); the rule is our completion ([ours]), in steps: on the device with the largest time T_k the pair of
    token and expert with the smallest ``w_jk / c_k`` goes, among the pairs whose token would keep at least `tau` of its
    top-k weight. It ends when the device that finishes last has no such pair. T_k is Eq. (10) under evenly split
    bandwidth; as c_k is one number per device, the order on a device is that of the weights. Kept weights are
    renormalised always.

    tau: share of a token's top-k weight that it keeps; 0.8 is the recommended value, of what was not read

    Our choices: a token's top expert stays; pairs at the base station are not dropped, nothing waits for them; a token
    with several experts on a device is sent once, and the drop of its last one there saves the sending.

    No loop over steps is needed. Which pairs may go is fixed for k = 2, where a token has one lower expert. A device's
    n-th drop then happens when its time has come down to a known level, devices take turns by falling level, and all
    stops at the highest level to which some device comes down without a pair left: a pair goes if and only if its own
    level is above. For k > 2 what a token may lose depends on what it has lost: ROUNDS rounds, each with fixed
    candidates (our choice): as many of a token's lower experts as may all go together, those on later devices first,
    then by rising weight. Every token keeps `tau`; the device that finishes last may be left with a pair that could go.
    On random routings (k = 3 and 6, 8 devices) the last device finished 0.94 to 1.05 times as late as step by step.
    """

    renormalise: ClassVar[Renormalise] = True
    knob = Knob("tau", 0.0, 1.0)
    neutral: ClassVar[dict[str, Any]] = dict(tau=1.0)

    tau: float = 0.8

    def __post_init__(self) -> None:
        """Check the parameter's range."""
        check_number("caee", "tau", self.tau, ">= 0 and <= 1")

    def select(self, routing: Routing, channel: ChannelState) -> Selection:
        """Drop round by round; all pairs of a round at once."""
        device = channel.device_of_expert[routing.top_k_index]  # [tokens, k]
        counted = routing.is_real_token[:, None] & (device >= 0)
        keep = torch.ones_like(counted)
        for _ in range(1 if keep.shape[1] <= 2 else ROUNDS):
            time = device_time_s(channel, *device_loads(device, keep & counted, len(channel.communication_s)))
            may_go = self._candidates(routing, keep & counted & (routing.rank > 0), keep, _later_first(time)[device])
            keep = keep & ~_dropped(routing.top_k_weights.double(), device, keep & counted, may_go, time, channel)
        return Selection(routing.top_k_index, keep)

    def _candidates(self, routing: Routing, may_go: Tensor, keep: Tensor, turn: Tensor) -> Tensor:
        """-> [tokens, k] a set of each token's pairs that may all go together, those of the first turns first."""
        shares = routing.shares.double()
        left = 1 - self.tau - torch.where(keep, 0.0, shares).sum(dim=1, keepdim=True)
        may_go = may_go & (shares <= left)
        order = torch.where(may_go, 2 * turn + shares, torch.inf).argsort(dim=1, stable=True)
        gone = torch.where(may_go, shares, torch.inf).gather(1, order).cumsum(dim=1)
        return torch.zeros_like(may_go).scatter(1, order, gone <= left)


def _dropped(
    weights: Tensor, device: Tensor, runs: Tensor, may_go: Tensor, time: Tensor, channel: ChannelState
) -> Tensor:
    """-> [tokens, k] the pairs that go, of those that may, before the device that finishes last has none left."""
    # A pair's drop saves the sending if all of the token's others there go before it: they may, and weigh less.
    same = _same_device(device, runs)
    lighter = (weights[:, None, :] < weights[:, :, None]) | (
        (weights[:, None, :] == weights[:, :, None]) & is_earlier(device.shape[1], device.device)
    )
    stays = same & ~(may_go[:, None, :] & lighter) & ~torch.eye(device.shape[1], dtype=torch.bool, device=device.device)
    saves = channel.computation_s.double()[device] + ~stays.any(dim=2) * channel.communication_s.double()[device]
    saves = torch.where(may_go, saves, 0.0).flatten()
    where = torch.where(may_go, device, len(time)).flatten()
    order = weights.flatten().argsort(stable=True)
    order = order.gather(0, where.gather(0, order).argsort(stable=True))  # by device, then by weight
    saved = saves.gather(0, order).cumsum(0)
    total = torch.zeros(len(time) + 1, dtype=torch.float64, device=device.device).index_add(0, where, saves)
    before = torch.nn.functional.pad(total.cumsum(0), (1, 0))  # saved on the devices before
    sorted_where = where.gather(0, order)
    level = torch.nn.functional.pad(time, (0, 1))[sorted_where] - (saved - saves[order] - before[sorted_where])
    stop = (time - total[:-1]).max()
    goes = (level > stop * (1 + ROUNDING)) & (sorted_where < len(time))
    return torch.zeros_like(goes).scatter(0, order, goes).view(may_go.shape)


def _later_first(time: Tensor) -> Tensor:
    """-> [devices] 0 for the device that finishes last, 1 for the one before, ..."""
    return time.argsort(descending=True, stable=True).argsort()


def _same_device(device: Tensor, runs: Tensor) -> Tensor:
    """-> [tokens, k, k] whether both pairs run, on the same device."""
    return (device[:, :, None] == device[:, None, :]) & runs[:, :, None] & runs[:, None, :]
