"""Link rates, Eq. (2) and (3)."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def rate_bit_per_s(
    bandwidth_hz: ArrayLike, power_w: ArrayLike, gain: ArrayLike, noise_psd_w_per_hz: ArrayLike
) -> NDArray[np.float64]:
    """Rate of a link: ``B log2(1 + P g / (N0 B))``, Eq. (2) downlink and Eq. (3) uplink.

    bandwidth_hz:       [..., devices] Hz; 0 Hz gives 0 bit/s, the limit of the formula
    power_w:            [..., devices] transmit power (W)
    gain:               [..., devices] power gain, linear (not an amplitude, not dB)
    noise_psd_w_per_hz: [..., devices] or a number, noise power spectral density N0 (W/Hz)
    Returns: [..., devices] bit/s.
    """
    bandwidth = np.asarray(bandwidth_hz, dtype=np.float64)
    snr_hz = np.asarray(power_w) * np.asarray(gain) / np.asarray(noise_psd_w_per_hz)
    # adding 1 Hz where there is none avoids 0 * inf = nan; the product with the true bandwidth is 0 all the same
    return bandwidth * np.log1p(snr_hz / (bandwidth + (bandwidth == 0))) / np.log(2)  # [..., devices]
