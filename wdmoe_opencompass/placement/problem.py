"""What a placement is to minimise, and for which devices: the waiting latency or the number of token transfers."""

from dataclasses import dataclass, replace

import numpy as np

from ..channel.profile import ChannelProfile
from ..channel.propagation import draw_channel
from ..errors import ProfileError
from ..latency import Array, ExpertShape, communication_latency_s, link_budget
from .co_selection import CoSelection, DeviceIndex, device_load

SEARCH_NUMBERS = 4_000_000  # of [rows, experts, experts] counts that a search works on: tens of MB


@dataclass(frozen=True)
class Objective:
    """Cost of one layer of one batch: the largest or the sum of ``load * per_token + evaluations * per_evaluation``.

    per_token, per_evaluation: [devices] cost of a token sent to a device, and of a (token, expert) pair computed there
    largest:                   whether the slowest device counts, as in Eq. (11), or all of them together
    """

    per_token: Array
    per_evaluation: Array
    largest: bool

    @property
    def devices(self) -> int:
        """Number of devices."""
        return len(self.per_token)

    def alike_before(self) -> list[int | None]:
        """-> per device the nearest one before it that costs the same: exchanging the two changes nothing."""
        costs = list(zip(self.per_token.tolist(), self.per_evaluation.tolist(), strict=True))
        return [max((j for j in range(k) if costs[j] == costs[k]), default=None) for k in range(len(costs))]


def transfers(devices: int) -> Objective:
    """Tokens sent to devices, Section V-D: a token goes once to a device that holds several of its experts."""
    return Objective(np.ones(devices), np.zeros(devices), largest=False)


def latency(profile: ChannelProfile, shape: ExpertShape) -> Objective:
    """Attention waiting latency in seconds, Eq. (11), under evenly split bandwidth, the same in both scopes.

    The gains are the profile's own draw; where its fading changes during a run, those without fading (our choice: one
    placement holds for the whole run).
    """
    if profile.fading.coherence != "run":
        profile = profile.model_copy(update=dict(fading=profile.fading.model_copy(update=dict(model="none"))))
    budget = link_budget(profile, draw_channel(profile), shape)
    communication_s = communication_latency_s(budget, profile.total_bandwidth_hz / len(profile.devices))
    if not np.isfinite(communication_s + budget.computation_s).all():
        raise ProfileError(f"a latency is beyond what numbers can hold; {budget.blame}")
    return Objective(communication_s, budget.computation_s, largest=True)


@dataclass(frozen=True)
class PlacementProblem:
    """Place the experts of every layer, alike in all layers, on devices that hold at most `capacity` each."""

    counts: CoSelection
    objective: Objective
    capacity: int

    def __post_init__(self) -> None:
        if self.capacity * self.devices < self.counts.experts:
            raise ProfileError(
                f"{self.devices} devices with {self.capacity} experts each cannot hold {self.counts.experts} experts; "
                f"experts per device must be >= {fewest_per_device(self.counts.experts, self.devices)}"
            )

    @property
    def devices(self) -> int:
        """Number of devices."""
        return self.objective.devices

    def cost(self, device_of_expert: DeviceIndex) -> float:
        """Mean over batches of the sum over layers: seconds, or token transfers (at least so much for K > 2)."""
        load, evaluations = self.counts.on_devices(device_of_expert, self.devices)
        per_device = load * self.objective.per_token + evaluations * self.objective.per_evaluation  # [rows, devices]
        rows = per_device.max(axis=1) if self.objective.largest else per_device.sum(axis=1)
        return float(rows.sum()) / self.counts.batches

    def for_search(self) -> "PlacementProblem":
        """The same problem in fewer rows: one where the cost is linear in the counts, else within SEARCH_NUMBERS.

        Adding up all rows changes nothing for the transfers of pairs (K = 2). Adding up neighbouring batches, where
        there are very many, is an approximation (our choice).
        """
        counts = self.counts
        if not self.objective.largest and counts.top_k == 2:
            return replace(self, counts=counts.summed())
        groups = SEARCH_NUMBERS * counts.batches // (len(counts.pairs) * counts.experts**2)
        return self if groups >= counts.batches else replace(self, counts=counts.grouped(max(1, groups)))


def fewest_per_device(experts: int, devices: int) -> int:
    """How many experts a device must be able to hold: experts / devices, rounded up."""
    return -(-experts // devices)


def modulo(experts: int, devices: int) -> DeviceIndex:
    """The default placement: expert k on device k modulo the number of devices."""
    return np.arange(experts) % devices


def device_costs(
    objective: Objective, device: DeviceIndex | int, evaluations: Array, pairs: Array, top_k: int
) -> Array:
    """Cost of devices from their S1 and S2 (`load_bounds`), [rows, n] each; device: [n] which devices, or one."""
    per_token, per_evaluation = np.take(objective.per_token, device), np.take(objective.per_evaluation, device)
    costs: Array = device_load(evaluations, pairs, top_k) * per_token + evaluations * per_evaluation
    return costs
