"""What the base station knows of the channel while a batch runs."""

from collections import Counter
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch

from ..channel.profile import ChannelProfile
from ..channel.propagation import draw_channel
from ..energy import token_energy
from ..latency import ExpertShape, communication_latency_s, link_budget
from ..selection.base import BandwidthCurve, ChannelState

CURVE_SHARES = np.geomspace(1e-5, 1, 256)  # of the total bandwidth; read in logarithms, within 2e-4


class MeasuredMeans(Protocol):
    """The measurements of a testbed so far."""

    def mean_token_s(self, layer: int) -> Any:
        """Mean time per token on each device.

        layer: its number. Returns: [devices] seconds per token. Source: Eq. (30).
        """
        ...


class ChannelStates:
    """The channel state of every layer of every forward pass, under evenly split bandwidth, Eq. (6) and (7).

    A profile of measured rates has no curve over the bandwidth: its rates do not depend on it.
    Set `dataset` and `items_before` (see `draw_channel`) before each batch. States are cached per torch device until
    the draw changes.
    On a testbed, `history` (testbed/history.py) adds the current mean times per token.
    """

    def __init__(
        self, profile: ChannelProfile, shape: ExpertShape, num_experts: int, history: MeasuredMeans | None = None
    ):
        self.profile = profile
        self.shape = shape
        self.history = history
        self.dataset = ""
        self.items_before = 0
        self._device_of_expert = profile.device_of_expert(num_experts)
        self._held: dict[Any, ChannelState] = {}

    def __call__(self, pass_index: int, layer: int, device: torch.device) -> ChannelState:
        """State of a layer of a pass, as tensors on `device`."""
        moment = (self.dataset, self.items_before, pass_index, layer)
        lasting = {"run": (), "pass": moment[:3], "layer": moment}
        coherence = "run" if self.profile.fading.model == "none" else self.profile.fading.coherence
        key = (device, lasting[coherence])
        if key not in self._held:
            self._held = {k: v for k, v in self._held.items() if k[1] == key[1]}  # other devices' copies of this draw
            self._held[key] = self._state(moment, device)
        if self.history is None:
            return self._held[key]
        measured = torch.tensor(self.history.mean_token_s(layer), dtype=torch.float64, device=device)
        return replace(self._held[key], mean_token_s=measured)

    def _state(self, moment: tuple[str, int, int, int], device: torch.device) -> ChannelState:
        budget = link_budget(self.profile, draw_channel(self.profile, *moment), self.shape)
        total_hz = self.profile.total_bandwidth_hz
        even_hz = total_hz / len(self.profile.devices)

        def tensor(array: Any) -> torch.Tensor:
            return torch.tensor(array, dtype=torch.float32, device=device)

        def curve() -> BandwidthCurve:
            seconds = communication_latency_s(budget, CURVE_SHARES[:, None] * total_hz)
            return BandwidthCurve(tensor(CURVE_SHARES), tensor(seconds.T))

        energy = token_energy(self.profile, self.shape, budget, even_hz)
        computation_j = 0.0 if energy.computation_j is None else energy.computation_j
        return ChannelState(
            tensor(communication_latency_s(budget, even_hz)),
            tensor(budget.computation_s),
            torch.tensor(self._device_of_expert, device=device),
            device_is_shared=any(number >= 0 and held > 1 for number, held in Counter(self._device_of_expert).items()),
            token_energy_j=tensor(energy.downlink_j + energy.uplink_j + computation_j),
            curve=None if budget.measured is not None else curve(),
        )
