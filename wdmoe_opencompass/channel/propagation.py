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
    """Path loss by the model of `profile`. Returns: [devices] dB."""
    model = PATH_LOSS_MODELS[profile.path_loss]
    return model(np.array([device.distance_m for device in profile.devices]), profile.carrier_frequency_hz)


def mean_amplitude(profile: ChannelProfile) -> NDArray[np.float64]:
    """Mean amplitude a = ``10^(-PL/20)`` of the fading law of `profile`, section V of the paper. Returns: [devices]."""
    return 10 ** (-path_loss_db(profile) / 20)


def draw_channel(
    profile: ChannelProfile, dataset: str = "", items_before: int = 0, pass_index: int = 0, layer: int = 0
) -> Channel:
    """Draw the gains that hold in one layer of one forward pass, a pure function of all its arguments.

    items_before: items that were run before the pass's batch, each counted as often as it was run: no two batches of a
    dataset have the same number, also where perplexity runs every item once per label
    pass_index:   of the pass within its batch

    `coherence` says which arguments matter: `run` none, `pass` all but the layer, `layer` all.
    """
    channel = FadingSource(profile, dataset, items_before, pass_index, layer).draw(1)
    return Channel(channel.downlink_gain[0], channel.uplink_gain[0])


class FadingSource:
    """Endless independent draws for one moment of a run; the first is the run's own (`draw_channel`).

    The moment is the whole run, a pass, or a layer of one, by the profile's `coherence`.

    Without fading the power gain is a^2. Rayleigh fading: the paper fixes the mean *amplitude* a, so the power gain is
    exponential with mean ``4 a^2 / pi`` (our choice of reading; taking a^2 as the mean would be 21 % too low).

    With `duplex: shared` both directions use one band and see one gain (channel reciprocity, our choice). With
    `frequency_division` they use different bands and fade independently; the downlink's gains are those of `shared`.
    """

    def __init__(self, profile: ChannelProfile, dataset: str, items_before: int, pass_index: int, layer: int):
        self._amplitude = mean_amplitude(profile)
        self._downlink = self._uplink = None
        if profile.fading.model != "none":
            moment = _moment(profile, dataset, items_before, pass_index, layer)
            self._downlink = _generator(moment)
            if profile.duplex == "frequency_division":
                self._uplink = _generator((*moment, "uplink"))

    def draw(self, draws: int) -> Channel:
        """-> the next draws' power gains, [draws, devices] each."""
        downlink = self._power_gains(self._downlink, draws)
        return Channel(downlink, downlink if self._uplink is None else self._power_gains(self._uplink, draws))

    def _power_gains(self, generator: np.random.Generator | None, draws: int) -> NDArray[np.float64]:
        shape = (draws, len(self._amplitude))
        if generator is None:
            return np.broadcast_to(self._amplitude**2, shape).copy()
        return 4 * self._amplitude**2 / np.pi * generator.standard_exponential(shape)


def _moment(profile: ChannelProfile, dataset: str, items_before: int, pass_index: int, layer: int) -> tuple:
    seed, coherence = profile.fading.seed, profile.fading.coherence
    if coherence == "run":
        return (seed,)
    moment = (seed, dataset, items_before, pass_index)
    return moment if coherence == "pass" else (*moment, layer)


def _generator(moment: tuple) -> np.random.Generator:
    digest = hashlib.sha256(repr(moment).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))
