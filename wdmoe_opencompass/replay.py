"""Latency of a recorded run under any allocation: a routing trace and a channel are enough, no model is run."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .allocation import allocate
from .channel.profile import ChannelProfile
from .channel.propagation import draw_channel
from .errors import TraceError
from .latency import Array, ExpertShape, LinkBudget, link_budget
from .routing.trace import PHASES, RoutingTrace


@dataclass(frozen=True)
class ReplayedLatency:
    """Attention waiting latency of every recorded forward pass.

    layer_latency_s: [passes, layers] Eq. (11)
    """

    trace: RoutingTrace
    layer_latency_s: Array

    @property
    def waiting_latency_s(self) -> Array:
        """-> [passes] summed over the layers."""
        return self.layer_latency_s.sum(axis=1)

    def mean_s(self, per: str, phase: str) -> float | None:
        """Mean over forward passes, or over batches of the sum of their passes; None without any such pass."""
        chosen = self.trace.is_phase(phase)
        if not chosen.any():
            return None
        total = float(self.waiting_latency_s[chosen].sum())
        count = chosen.sum() if per == "pass" else len(np.unique(self.trace.batch[chosen]))
        return total / float(count)

    def records(self) -> list[dict]:
        """One record per pass: dataset, batch, pass, phase, layer_latency_s, waiting_latency_s."""
        trace = self.trace
        return [
            {
                "dataset": trace.metadata.dataset,
                "batch": int(trace.batch[n]),
                "pass": int(trace.pass_index[n]),
                "phase": PHASES[int(trace.phase[n])],
                "layer_latency_s": self.layer_latency_s[n].tolist(),
                "waiting_latency_s": float(self.waiting_latency_s[n]),
            }
            for n in range(len(trace.batch))
        ]


def replay(trace: RoutingTrace, profile: ChannelProfile, method: str, scope: str) -> ReplayedLatency:
    """Compute the waiting latency of every pass, Eq. (11), under a bandwidth allocation of the given method and scope.

    The draw of each pass and layer is the one the run itself met, if the profile is the run's. Raises TraceError where
    the profile has other devices or another placement than the run: the recorded loads would mean nothing.
    """
    check_same_devices(trace, profile)
    shape = ExpertShape(trace.metadata.hidden_size, trace.metadata.ffn_size)
    load, evaluations = trace.device_load, trace.expert_evaluations
    total_hz = profile.total_bandwidth_hz
    latency = np.zeros(load.shape[:2])
    if profile.fading.model == "none" or profile.fading.coherence == "run":
        budget = link_budget(profile, draw_channel(profile), shape)
        for rows in _equal_passes(load, evaluations):
            first = rows[0]
            answer = allocate(method, scope, budget, load[first], total_hz, evaluations[first])
            latency[rows] = answer.layer_latency_s
    else:
        for row in range(len(load)):
            budget = budget_of_pass(trace, profile, shape, row)
            latency[row] = allocate(method, scope, budget, load[row], total_hz, evaluations[row]).layer_latency_s
    return ReplayedLatency(trace, latency)


def budget_of_pass(trace: RoutingTrace, profile: ChannelProfile, shape: ExpertShape, row: int) -> LinkBudget:
    """The link budget, [layers, devices], of one recorded pass."""
    first_item = int(trace.first_item[trace.batch[row]])
    moment = (trace.metadata.dataset, first_item, int(trace.pass_index[row]))
    layers = [
        link_budget(profile, draw_channel(profile, *moment, layer), shape) for layer in range(trace.metadata.layers)
    ]
    return LinkBudget(
        layers[0].payload_bit,
        np.stack([one.downlink_snr_hz for one in layers]),
        np.stack([one.uplink_snr_hz for one in layers]),
        layers[0].computation_s,
    )


def check_same_devices(trace: RoutingTrace, profile: ChannelProfile) -> None:
    """Raise TraceError unless the profile has the devices and the placement of the run."""
    own = trace.metadata.profile
    for what, ours, theirs in (
        ("devices", [d.name for d in own.devices], [d.name for d in profile.devices]),
        ("placement", own.placement, profile.placement),
    ):
        if ours != theirs:
            raise TraceError(
                f"the trace of {trace.metadata.dataset} was recorded with the {what} of profile {own.name!r}, "
                f"which differ from those of {profile.name!r}; its loads cannot be used there"
            )


def _equal_passes(load: NDArray, evaluations: NDArray) -> list[NDArray]:
    """Row numbers of passes with equal counts: decoding repeats itself, and each problem is solved once."""
    both = np.concatenate([load, evaluations], axis=1).reshape(len(load), -1)
    if not len(both):
        return []
    _, inverse = np.unique(both, axis=0, return_inverse=True)
    order = np.argsort(inverse.ravel(), kind="stable")
    return np.split(order, np.flatnonzero(np.diff(inverse.ravel()[order])) + 1)
