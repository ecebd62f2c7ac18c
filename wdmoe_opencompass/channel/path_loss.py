"""Path-loss models by name; a new one is one function and one line in PATH_LOSS_MODELS."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def free_space_db(distance_m: ArrayLike, carrier_frequency_hz: float) -> NDArray[np.float64]:
    """Free-space path loss: ``32.4 + 20 log10(f_GHz) + 20 log10(d_m)``, section V of the paper.

    distance_m: [devices] m.
    carrier_frequency_hz: Hz.
    Returns: [devices] dB.
    """
    return 32.4 + 20 * np.log10(carrier_frequency_hz / 1e9) + 20 * np.log10(np.asarray(distance_m, dtype=np.float64))


PATH_LOSS_MODELS = {"free_space": free_space_db}
