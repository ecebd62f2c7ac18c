"""Even split: the baseline row of Table II."""

import numpy as np

from ..latency import Array, LinkBudget


def uniform(budget: LinkBudget, load: Array, evaluations: Array, total_bandwidth_hz: float) -> Array:
    """``B_k = B / U`` for all devices, loaded or not.

    budget, load, evaluations, total_bandwidth_hz: [problems, layers, devices] and Hz, as every `Allocator` takes them.
    Returns: [problems, devices] Hz.
    """
    problems, _, devices = load.shape
    return np.full((problems, devices), total_bandwidth_hz / devices)
