"""Link rates, Eq. (2) and (3)."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def rate_bit_per_s(
    bandwidth_hz: ArrayLike, power_w: ArrayLike, gain: ArrayLike, noise_psd_w_per_hz: ArrayLike
) -> NDArray[np.float64]:
    """Bits per second of a link: ``B log2(1 + P g / (N0 B))``, Eq. (2) downlink and Eq. (3) uplink.

    bandwidth_hz:       [..., devices]; 0 Hz gives 0 bit/s, the limit of the formula
    power_w:            [..., devices] transmit power
    gain:               [..., devices] power gain, linear (not an amplitude, not dB)
    noise_psd_w_per_hz: scalar or [..., devices] noise power spectral density N0
    """
    bandwidth = np.asarray(bandwidth_hz, dtype=np.float64)
    safe_hz = np.where(bandwidth > 0, bandwidth, 1.0)  # avoids 0 * inf = nan
    snr = np.asarray(power_w) * np.asarray(gain) / (np.asarray(noise_psd_w_per_hz) * safe_hz)  # [..., devices]
    return np.where(bandwidth > 0, safe_hz * np.log1p(snr) / np.log(2), 0.0)
