"""What the base station has measured of its devices: Eq. (30). NumPy only, no gRPC and no torch."""

from collections import deque
from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np

from ..errors import WdmoeError, unknown_name
from ..latency import Array
from ..trace.times import LayerTimes

Average = Literal["ratios", "totals"]


class MeasuredHistory:
    """Seconds and tokens of every message, per MoE layer and device; gives the mean time per token, Eq. (30).

    window:  the mean is over so many last messages of each layer and device; None: over all
    average: `ratios`, ``tbar_k = E[t_k^i / J_k^i]``, the paper's: every message counts the same, so that many short
             ones (generation), in which the fixed time of a message weighs most, raise what is predicted for a long
             one; `totals`, ``sum t_k^i / sum J_k^i`` (ours), every token counts the same

    Our choices. t_k^i is the round trip that the base station saw, `total_s`: sending, queueing, computing, returning.
    Before anything was measured:

    1. a device without a message in this layer is taken for what it did in all other layers together;
    2. one without any message, for the mean of the others in this layer: nobody is slow, or fast, by ignorance;
    3. where there is no message at all, all means are 0 s: no device is a bottleneck, and nothing is dropped.

    Messages without a token, and those cut short (a total that is no finite number, or below 0), are left out.
    """

    def __init__(self, layers: int, devices: int, window: int | None = None, average: Average = "ratios"):
        if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
            raise WdmoeError(f"history: window must be a whole number >= 1, or None for all, got {window!r}")
        if average not in get_args(Average):
            raise WdmoeError(unknown_name("history average", str(average), get_args(Average)))
        self.layers, self.devices, self.window, self.average = layers, devices, window, average
        self._recent: dict[tuple[int, int], deque[tuple[float, int]]] = {}
        self._sums = np.zeros((4, layers, devices))  # seconds, tokens, seconds per token, messages

    def add(self, times: Iterable[LayerTimes]) -> None:
        """Take in what was measured; IndexError for a layer or device that is not there."""
        for message in times:
            if not (0 <= message.layer < self.layers and 0 <= message.device < self.devices):
                raise IndexError(f"layer {message.layer} or device {message.device} is not in this history")
            if message.tokens > 0 and np.isfinite(message.total_s) and message.total_s >= 0:
                self._add(message.layer, message.device, float(message.total_s), int(message.tokens))

    def _add(self, layer: int, device: int, seconds: float, tokens: int) -> None:
        if self.window is None:
            self._sums[:, layer, device] += _summands(seconds, tokens)
            return
        recent = self._recent.setdefault((layer, device), deque(maxlen=self.window))
        recent.append((seconds, tokens))
        self._sums[:, layer, device] = np.sum([_summands(*message) for message in recent], axis=0)

    @property
    def seconds(self) -> Array:
        """-> [layers, devices] summed over the window."""
        return self._sums[0].copy()

    @property
    def tokens(self) -> Array:
        """-> [layers, devices] summed over the window."""
        return self._sums[1].copy()

    def mean_token_s(self, layer: int) -> Array:
        """-> [devices] mean seconds per token in a layer, Eq. (30); see the class for devices that are not measured."""
        mean = self._mean(self._sums[:, layer])
        mean = np.where(np.isnan(mean), self._mean(self._sums.sum(axis=1)), mean)
        known = ~np.isnan(mean)
        return np.where(known, mean, mean[known].mean() if known.any() else 0.0)

    def _mean(self, sums: Array) -> Array:
        """[4, devices] -> [devices]; NaN without a message."""
        seconds, tokens, ratios, messages = sums
        above, below = (ratios, messages) if self.average == "ratios" else (seconds, tokens)
        return np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)


def _summands(seconds: float, tokens: int) -> tuple[float, float, float, float]:
    return seconds, tokens, seconds / tokens, 1
