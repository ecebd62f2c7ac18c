import numpy as np
import pytest
from pytest import approx

from tests import oracles
from wdmoe_opencompass.channel import draw_channel, list_profiles, load_profile
from wdmoe_opencompass.channel.propagation import FadingSource, mean_amplitude, path_loss_db

DRAWS = 20_000
# The mean of n exponential (Rayleigh) draws has a relative standard error of 1 (0.52) / sqrt(n): five of them.
POWER_TOLERANCE = 5 / np.sqrt(DRAWS)
AMPLITUDE_TOLERANCE = 5 * 0.5227 / np.sqrt(DRAWS)


def with_fading(profile, **fading):
    return profile.model_copy(update={"fading": profile.fading.model_copy(update=fading)})


@pytest.mark.parametrize("name", list_profiles())
def test_path_loss_is_the_papers_formula(name):
    profile = load_profile(name)
    expected = [oracles.path_loss_db(d.distance_m, profile.carrier_frequency_hz) for d in profile.devices]
    assert path_loss_db(profile) == approx(expected)


def test_without_fading_the_gain_is_the_path_loss_itself():
    profile = with_fading(load_profile("paper_8_devices"), model="none")
    assert draw_channel(profile).downlink_gain == approx(10 ** (-path_loss_db(profile) / 10))


def test_rayleigh_draws_have_the_papers_mean_amplitude_and_the_power_that_follows():
    profile = with_fading(load_profile("paper_8_devices"), coherence="pass")
    gains = np.array([draw_channel(profile, "d", item).downlink_gain for item in range(DRAWS)])
    amplitude = mean_amplitude(profile)
    assert np.sqrt(gains).mean(axis=0) / amplitude == approx(np.ones(8), abs=AMPLITUDE_TOLERANCE)
    assert gains.mean(axis=0) / (4 * amplitude**2 / np.pi) == approx(np.ones(8), abs=POWER_TOLERANCE)


def with_duplex(profile, duplex):
    return profile.model_copy(update={"duplex": duplex})


def test_the_draw_of_a_seed_stays_what_was_published():
    """Of PCG64 seeded by the SHA-256 of its text; numbers of before the directions could differ."""
    profile = load_profile("paper_8_devices")
    unit = draw_channel(profile).downlink_gain / (4 * mean_amplitude(profile) ** 2 / np.pi)
    assert unit == approx(
        [
            0.356449304122,
            0.861578181226,
            2.17697403819,
            0.181472560302,
            0.25236225333,
            0.963564000928,
            2.66081667092,
            0.556780492993,
        ],
        rel=1e-9,
    )


@pytest.mark.parametrize("coherence", ["run", "pass", "layer"])
def test_directions_share_a_gain_where_they_share_a_band(coherence):
    profile = with_fading(load_profile("paper_8_devices"), coherence=coherence)
    shared, divided = (
        draw_channel(with_duplex(profile, duplex), "d", 4, 1, 2) for duplex in ("shared", "frequency_division")
    )
    assert np.array_equal(shared.downlink_gain, shared.uplink_gain)
    assert np.array_equal(shared.downlink_gain, divided.downlink_gain)
    assert (divided.uplink_gain != divided.downlink_gain).all()


def test_directions_of_divided_bands_fade_independently_by_the_same_law():
    profile = with_duplex(load_profile("paper_8_devices"), "frequency_division")
    drawn = FadingSource(profile, "", 0, 0, 0).draw(DRAWS)
    down, up = (gain / (4 * mean_amplitude(profile) ** 2 / np.pi) for gain in (drawn.downlink_gain, drawn.uplink_gain))
    assert up.mean(axis=0) == approx(np.ones(8), abs=POWER_TOLERANCE)
    assert np.sqrt(up).mean(axis=0) == approx(np.full(8, np.sqrt(np.pi) / 2), abs=AMPLITUDE_TOLERANCE)
    for k in range(8):
        assert abs(np.corrcoef(down[:, k], up[:, k])[0, 1]) < POWER_TOLERANCE
    assert np.array_equal(draw_channel(profile).uplink_gain, drawn.uplink_gain[0])


def test_divided_bands_without_fading_have_equal_gains():
    profile = with_duplex(with_fading(load_profile("paper_8_devices"), model="none"), "frequency_division")
    assert np.array_equal(draw_channel(profile).downlink_gain, draw_channel(profile).uplink_gain)


@pytest.mark.parametrize(("coherence", "changing"), [("run", []), ("pass", [0, 1, 2]), ("layer", [0, 1, 2, 3])])
def test_coherence_says_which_arguments_change_the_draw(coherence, changing):
    profile = with_fading(load_profile("paper_8_devices"), coherence=coherence)
    base = ["ARC-c", 0, 0, 0]
    other = ["piqa", 8, 1, 1]
    same = draw_channel(profile, *base)
    for position in range(4):
        moved = [*base[:position], other[position], *base[position + 1 :]]
        differs = not np.array_equal(draw_channel(profile, *moved).uplink_gain, same.uplink_gain)
        assert differs == (position in changing)


def test_another_seed_gives_another_draw_and_the_same_seed_the_same():
    profile = load_profile("paper_8_devices")
    same, again = draw_channel(profile), draw_channel(profile)
    other = draw_channel(with_fading(profile, seed=1))
    assert np.array_equal(same.downlink_gain, again.downlink_gain)
    assert not np.array_equal(same.downlink_gain, other.downlink_gain)
