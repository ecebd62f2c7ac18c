"""How a device's bandwidth serves both directions: the scaled latency of one token and its derivatives.

With ``snr = P g / N0`` in the unit of the bandwidth, one direction takes ``1 / (b ln(1 + snr / b))`` in units of
``payload ln 2 / unit``. `shared`: downlink and uplink use the same band one after the other, Eq. (2) and (3).
`frequency_division`: a device's bandwidth is divided into a downlink and an uplink band, so that a token's latency is
least (our choice; the paper has no such mode).
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Duplex = Literal["shared", "frequency_division"]

SMALL_SNR = 1e-4  # below it log1p(u) - u / (1 + u) loses digits and is taken from its series
SPLIT_STEPS = 100
SPLIT_TOLERANCE = 1e-14


class Curve(NamedTuple):
    """A function of the bandwidth and its first two derivatives; a curvature that was not asked for is 0."""

    value: Array
    slope: Array
    curvature: Array


def one_direction(snr: Array, bandwidth: Array, curvature: bool = True) -> Curve:
    """``1 / (b ln(1 + snr / b))``: convex and falling in b > 0.

    snr, bandwidth: [...] in one unit; they broadcast.
    curvature: whether to give the second derivative too.
    """
    u = snr / bandwidth
    log = np.log1p(u)
    ratio = u / (1 + u)
    rate_slope = log - ratio
    if u.min(initial=np.inf) < SMALL_SNR:
        rate_slope = np.where(u < SMALL_SNR, u * u * (0.5 - u * (2 / 3 - 0.75 * u)), rate_slope)
    inverse = 1 / (bandwidth * log)
    square = inverse * inverse
    second = np.zeros(1)
    if curvature:
        second = (2 * rate_slope * rate_slope * inverse + ratio * ratio / bandwidth) * square
    return Curve(inverse, -rate_slope * square, second)


def both_directions(duplex: Duplex, snr_down: Array, snr_up: Array, bandwidth: Array, curvature: bool = True) -> Curve:
    """Latency of one token down and up, as a function of a device's bandwidth > 0; convex and falling in either mode.

    duplex: how the bandwidth serves both directions.
    snr_down, snr_up, bandwidth: [...] in one unit; they broadcast.
    curvature: whether to give the second derivative too.
    """
    if duplex == "shared":
        down, up = (one_direction(snr, bandwidth, curvature) for snr in (snr_down, snr_up))
        return Curve(down.value + up.value, down.slope + up.slope, down.curvature + up.curvature)
    downlink = downlink_share(snr_down, snr_up, bandwidth) * bandwidth
    down, up = one_direction(snr_down, downlink), one_direction(snr_up, bandwidth - downlink)
    # the least sum of two convex functions under a common budget: slopes agree, curvatures add like resistances
    second = down.curvature * up.curvature / (down.curvature + up.curvature)
    return Curve(down.value + up.value, 0.5 * (down.slope + up.slope), second)


def downlink_share(snr_down: Array, snr_up: Array, bandwidth: Array) -> Array:
    """Divide a device's bandwidth so that a token's latency is least.

    There both directions gain equally from more bandwidth; Newton on the share, kept inside a shrinking bracket. It
    follows the channel: under fading that changes from layer to layer it changes with it, also where all layers share
    one split of the bandwidth among devices (our choice).

    snr_down, snr_up, bandwidth: [...] in one unit; they broadcast.
    Returns: [...] the downlink's share, in (0, 1).
    """
    snr_down, snr_up, bandwidth = np.broadcast_arrays(snr_down, snr_up, bandwidth)
    low, high = np.zeros(bandwidth.shape), np.ones(bandwidth.shape)
    share = np.full(bandwidth.shape, 0.5)
    for _ in range(SPLIT_STEPS):
        down = one_direction(snr_down, share * bandwidth)
        up = one_direction(snr_up, (1 - share) * bandwidth)
        excess = up.slope - down.slope  # > 0: the downlink is the one to gain more
        low, high = np.where(excess > 0, share, low), np.where(excess > 0, high, share)
        moved = share + excess / ((down.curvature + up.curvature) * bandwidth)
        moved = np.where((moved > low) & (moved < high), moved, 0.5 * (low + high))
        change = np.abs(moved - share)
        share = moved
        if (change <= SPLIT_TOLERANCE * np.minimum(share, 1 - share)).all():
            break
    return share
