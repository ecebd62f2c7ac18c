"""From a channel profile to power gains: path loss and fading."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .path_loss import PATH_LOSS_MODELS
from .profile import ChannelProfile


@dataclass(frozen=True)
class Channel:
    """One draw of a profile.

    downlink_gain: [..., devices] linear power gain base station -> device, g_BS,k of Eq. (2)
    uplink_gain:   [..., devices] linear power gain device -> base station, g_k,BS of Eq. (3)
    """

    downlink_gain: NDArray[np.float64]
    uplink_gain: NDArray[np.float64]


def path_loss_db(profile: ChannelProfile) -> NDArray[np.float64]:
    """-> [devices] path loss in dB of the profile's model."""
    model = PATH_LOSS_MODELS[profile.path_loss]
    return model(np.array([device.distance_m for device in profile.devices]), profile.carrier_frequency_hz)


def mean_amplitude(profile: ChannelProfile) -> NDArray[np.float64]:
    """-> [devices] mean amplitude a = ``10^(-PL/20)`` of the fading law, section V of the paper."""
    return 10 ** (-path_loss_db(profile) / 20)


def draw_channel(
    profile: ChannelProfile, dataset: str = "", first_item: int = 0, pass_index: int = 0, layer: int = 0
) -> Channel:
    """Draw the gains that hold in one layer of one forward pass, a pure function of all its arguments.

    Both directions see one gain (channel reciprocity, our choice). `coherence` says which arguments matter: `run` none,
    `pass` all but the layer, `layer` all.
    """
    gain = FadingSource(profile, dataset, first_item, pass_index, layer).power_gains(1)[0]
    return Channel(downlink_gain=gain, uplink_gain=gain.copy())


class FadingSource:
    """Endless independent draws for one moment of a run; the first is the run's own (`draw_channel`).

    Without fading the power gain is a^2. Rayleigh fading: the paper fixes the mean *amplitude* a, so the power gain is
    exponential with mean ``4 a^2 / pi`` (our choice of reading; taking a^2 as the mean would be 21 % too low).
    """

    def __init__(self, profile: ChannelProfile, dataset: str, first_item: int, pass_index: int, layer: int):
        self._amplitude = mean_amplitude(profile)
        self._generator = None
        if profile.fading.model != "none":
            self._generator = np.random.default_rng(_draw_seed(profile, dataset, first_item, pass_index, layer))

    def power_gains(self, draws: int) -> NDArray[np.float64]:
        """-> [draws, devices] the next draws' power gains."""
        shape = (draws, len(self._amplitude))
        if self._generator is None:
            return np.broadcast_to(self._amplitude**2, shape).copy()
        return 4 * self._amplitude**2 / np.pi * self._generator.standard_exponential(shape)


def _draw_seed(profile: ChannelProfile, dataset: str, first_item: int, pass_index: int, layer: int) -> int:
    coherence = profile.fading.coherence
    if coherence == "run":
        moment: tuple = ()
    elif coherence == "pass":
        moment = (dataset, first_item, pass_index)
    else:
        moment = (dataset, first_item, pass_index, layer)
    text = repr((profile.fading.seed, *moment))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
