"""Profiles that no radio has: refused where impossible, said where implausible, and never a bare infinity."""

import contextlib
import math
import warnings
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.builders.measured_profiles import measured, trace_of
from tests.builders.profile_text import GOOD
from wdmoe_opencompass import ExpertShape, draw_channel, link_budget, token_latency_s
from wdmoe_opencompass.allocation import allocate
from wdmoe_opencompass.channel.plausibility import RANGES
from wdmoe_opencompass.channel.profile import ChannelProfile, changed_profile, list_profiles, load_profile
from wdmoe_opencompass.channel.propagation import FadingSource
from wdmoe_opencompass.cli import app
from wdmoe_opencompass.energy import pass_energy
from wdmoe_opencompass.errors import ProfileError, WdmoeError
from wdmoe_opencompass.placement.problem import latency
from wdmoe_opencompass.replay import replay, replay_draws
from wdmoe_opencompass.report.provenance import origin_notes
from wdmoe_opencompass.routing.channel_state import ChannelStates

PAPER = load_profile("paper_8_devices")
STATION, DEVICE = "base_station.transmit_power_w", "devices[0].transmit_power_w"


def written(tmp_path, key, value):
    """A file of the profile with one number changed."""
    data = yaml.safe_load(yaml.safe_dump(GOOD))
    part = data
    for step in key.replace("devices[0]", "devices.0").split(".")[:-1]:
        part = part[int(step) if step.isdigit() else step]
    part[key.rpartition(".")[2]] = value
    path = tmp_path / "lab.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def spoken(tmp_path, key, value):
    """-> what is said of a value: the refusal, or the notes; empty where nothing is."""
    path = written(tmp_path, key, value)
    try:
        return "; ".join(load_profile(path).unusual_values)
    except ProfileError as error:
        return str(error).removeprefix(f"{path}: ")


SLIPS = [  # key, value in the wrong unit, that unit, what to write
    ("carrier_frequency_hz", 3.5, "GHz", "3.5e+09"),
    ("carrier_frequency_hz", 28.0, "GHz", "2.8e+10"),
    ("carrier_frequency_hz", 3500.0, "MHz", "3.5e+09"),
    ("carrier_frequency_hz", 868.0, "MHz", "8.68e+08"),
    ("carrier_frequency_hz", 3.5e6, "kHz", "3.5e+09"),
    ("total_bandwidth_hz", 100.0, "MHz", "1e+08"),
    ("total_bandwidth_hz", 20.0, "MHz", "2e+07"),
    ("total_bandwidth_hz", 2160.0, "MHz", "2.16e+09"),
    ("total_bandwidth_hz", 0.1, "GHz", "1e+08"),
    ("total_bandwidth_hz", 20000.0, "kHz", "2e+07"),
    (DEVICE, 200.0, "mW", "0.2"),
    (DEVICE, 100.0, "mW", "0.1"),
    (DEVICE, 23.0, "dBm", "0.199526"),
    (DEVICE, -10.0, "dBm", "0.0001"),
    (DEVICE, 0.0, "dBm", "0.001"),
    (STATION, 10000.0, "mW", "10"),
    (STATION, 40.0, "dBm", "10"),
    (STATION, 30.0, "dBm", "1"),
    ("devices[0].distance_m", 0.04, "km", "40"),
    ("devices[0].distance_m", 0.2, "km", "200"),
    ("devices[0].distance_m", 0.001, "km", "1"),
    ("devices[0].distance_m", 1.5, "km", "1500"),
    ("devices[0].distance_m", 4e6, "mm", "4000"),
    ("devices[0].compute_flops", 1.0, "TFLOP/s", "1e+12"),
    ("devices[0].compute_flops", 1000.0, "GFLOP/s", "1e+12"),
    ("devices[0].compute_flops", 312000.0, "GFLOP/s", "3.12e+14"),
    ("devices[0].compute_flops", 1e7, "MFLOP/s", "1e+13"),
    ("devices[0].energy_j_per_flop", 20.0, "pJ/FLOP", "2e-11"),
    ("devices[0].energy_j_per_flop", 1e11, "FLOP/J", "1e-11"),
    ("noise_psd_dbm_per_hz", 174.0, "-dBm/Hz", "-174"),
    ("noise_psd_dbm_per_hz", -204.0, "dBW/Hz", "-174"),
    ("noise_psd_dbm_per_hz", 3.98e-21, "W/Hz", "-174.001"),
    ("payload_bits", 2, "bytes", "16"),
    ("payload_bits", 1, "bytes", "8"),
]


@pytest.mark.parametrize(("key", "value", "unit", "right"), SLIPS)
def test_a_slip_of_the_unit_is_refused_or_said_with_what_to_write(tmp_path, key, value, unit, right):
    said = spoken(tmp_path, key, value)
    assert key in said
    assert f"{right} if it is in {unit}" in said


MEASURED_SLIPS = [
    ("downlink_bit_per_s", 100.0, "Mbit/s", "1e+08"),
    ("uplink_bit_per_s", 1.0, "Gbit/s", "1e+09"),
    ("downlink_bit_per_s", 50000.0, "kbit/s", "5e+07"),
    ("fixed_s", 2.0, "ms", "0.002"),
    ("fixed_s", 200.0, "ms", "0.2"),
]


@pytest.mark.parametrize(("key", "value", "unit", "right"), MEASURED_SLIPS)
def test_so_is_a_slip_in_a_measured_profile(key, value, unit, right):
    profile = measured()
    try:
        said = "; ".join(changed_profile(profile, f"devices[1].{key}", value).unusual_values)
    except ProfileError as error:
        said = str(error)
    assert f"devices[1].{key}" in said
    assert f"{right} if it is in {unit}" in said


@pytest.mark.parametrize("name", list_profiles())
def test_of_shipped_profiles_nothing_is_said(name):
    assert load_profile(name).unusual_values == []
    done = CliRunner().invoke(app, ["profile", "show", name])
    assert (done.exit_code, done.stderr) == (0, "")


USUAL = [  # radios that there are
    ("carrier_frequency_hz", [169e6, 433e6, 868e6, 2.4e9, 3.5e9, 5.2e9, 28e9, 60e9, 140e9, 300e9]),
    ("total_bandwidth_hz", [125e3, 180e3, 1.4e6, 20e6, 100e6, 400e6, 2.16e9, 7e9]),
    ("noise_psd_dbm_per_hz", [-192.6, -174.0, -169.0, -164.0, -150.0]),
    (DEVICE, [1e-4, 1e-3, 0.02, 0.1, 0.2, 1.0, 2.0]),
    (STATION, [0.1, 0.2, 1.0, 5.0, 10.0]),
    ("devices[0].distance_m", [10.0, 40.0, 1000.0, 35000.0]),
    ("devices[0].compute_flops", [1e9, 472e9, 1e13, 989e12]),
    ("payload_bits", [4, 8, 16, 32]),
]


@pytest.mark.parametrize(("key", "values"), USUAL)
def test_of_radios_that_there_are_nothing_is_said(tmp_path, key, values):
    assert [spoken(tmp_path, key, value) for value in values] == [""] * len(values)


RARE = {  # radios that there are, and hardly anybody uses
    "light over fibre or air": dict(carrier_frequency_hz=1.93e14, total_bandwidth_hz=5e12),
    "visible light": dict(carrier_frequency_hz=6e14, total_bandwidth_hz=2e7),
    "a LoRa channel": dict(carrier_frequency_hz=868e6, total_bandwidth_hz=7.8e3),
    "ultra-narrow band": dict(carrier_frequency_hz=868e6, total_bandwidth_hz=100.0),
    "short wave": dict(carrier_frequency_hz=7e6, total_bandwidth_hz=31.0, distance_m=1e6, transmit_power_w=1500.0),
    "long wave": dict(carrier_frequency_hz=24e3, total_bandwidth_hz=200.0, distance_m=5e6, transmit_power_w=1e6),
    "deep space": dict(carrier_frequency_hz=8.4e9, total_bandwidth_hz=1e5, distance_m=2.5e13, transmit_power_w=23.0),
    "between chips": dict(carrier_frequency_hz=60e9, total_bandwidth_hz=16e9, distance_m=2e-3, transmit_power_w=1e-3),
    "backscatter": dict(carrier_frequency_hz=915e6, total_bandwidth_hz=1e5, transmit_power_w=1e-10),
}


@pytest.mark.parametrize("radio", RARE)
def test_a_rare_radio_is_taken_with_a_note_of_what_is_unusual(radio):
    values = dict(RARE[radio])
    device = {key: values.pop(key) for key in ("distance_m", "transmit_power_w") if key in values}
    data = PAPER.model_dump(mode="json", exclude_none=True) | values
    data["devices"] = [entry | dict(distance_m=40.0, energy_j_per_flop=1e-12) | device for entry in data["devices"][:3]]
    data.pop("origin", None)
    profile = ChannelProfile.model_validate(data)
    said = " ".join(profile.unusual_values)
    for key, value in (values | device).items():
        lowest, highest = RANGES["devices." + key if key == "transmit_power_w" else key].usual
        assert (f"{key} " in said) == (not lowest <= value <= highest)
    check_finite(profile)


@pytest.mark.parametrize("rate", [18.0, 100.0, 250.0, 293.0, 5470.0])
def test_so_are_the_rates_of_a_wide_area_sensor_network(rate):
    profile = changed_profile(measured(), "devices[1].downlink_bit_per_s", rate)
    profile = changed_profile(profile, "devices[1].uplink_bit_per_s", rate)
    said = " ".join(profile.unusual_values)
    assert f"devices[1].downlink_bit_per_s is {rate:g} bit/s" in said
    assert f"devices[1].uplink_bit_per_s is {rate:g} bit/s" in said


@pytest.mark.parametrize("key", RANGES)
def test_outside_a_possible_range_is_refused_and_its_ends_are_not(key):
    _, (lowest, highest), usual, _ = RANGES[key]
    assert lowest <= usual[0] < usual[1] <= highest
    part, _, name = key.rpartition(".")
    profile = measured(message_s=0.01, burst_bit=1.0, shared_bit_per_s=1e9)
    if name == "energy_j_per_flop":
        devices = tuple(device.model_copy(update=dict(energy_j_per_flop=1e-12)) for device in profile.devices)
        profile = profile.model_copy(update=dict(devices=devices))

    def changed(value):
        data = profile.model_dump(mode="json", exclude_none=True)
        of_device = part == "devices" or (not part and name in data["devices"][1])
        section = data["devices"][1] if of_device else data["base_station"] if part or name not in data else data
        assert name in section
        section[name] = int(value) if name == "payload_bits" else value
        return ChannelProfile.model_validate(data)

    for value in (lowest, highest):
        changed(value)
    beyond = [highest * 2 if highest > 0 else highest / 2, lowest - 1 if lowest <= 1 else lowest / 2]
    for value in [*beyond, math.inf, math.nan, -math.inf]:
        with pytest.raises((ValueError, OverflowError)):
            changed(value)


@settings(max_examples=300, deadline=None)
@given(
    st.floats(1, 16).map(lambda x: 10**x),
    st.floats(-4, 14).map(lambda x: 10**x),
    st.sampled_from(["none", "rayleigh"]),
)
def test_a_profile_is_taken_if_and_only_if_no_mean_power_gain_is_above_one(carrier_hz, distance_m, fading):
    """Against the mean of many draws, and the formula of section V."""
    data = GOOD | dict(carrier_frequency_hz=carrier_hz, fading=dict(model=fading), name="x")
    data["devices"] = [GOOD["devices"][0], dict(GOOD["devices"][1], distance_m=distance_m)]
    mean = 10 ** (-(32.4 + 20 * math.log10(carrier_hz / 1e9) + 20 * math.log10(distance_m)) / 10)
    mean *= 1 if fading == "none" else 4 / math.pi
    near = 10 ** (-(32.4 + 20 * math.log10(carrier_hz / 1e9) + 20) / 10) * (1 if fading == "none" else 4 / math.pi)
    if abs(mean - 1) < 1e-9 or abs(near - 1) < 1e-9:
        return
    if max(mean, near) > 1:
        with pytest.raises(ValueError, match=r"devices\[[01]\].distance_m .*carrier_frequency_hz .*mean power gain of"):
            ChannelProfile.model_validate(data)
        return
    profile = ChannelProfile.model_validate(data)
    drawn = FadingSource(profile, "", 0, 0, 0).draw(4000).downlink_gain.mean(axis=0)
    assert drawn[1] == pytest.approx(mean, rel=0.15)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_profile_that_is_taken_gives_finite_latencies_and_energies(data):
    """Whatever the ends of the ranges are combined to: no infinity, no warning of NumPy, no solver that gives up."""

    def end(key):
        lowest, highest = RANGES[key].possible
        return data.draw(st.sampled_from([lowest, highest]))

    devices = [
        dict(
            name=f"d{k}",
            distance_m=end("distance_m"),
            transmit_power_w=end("devices.transmit_power_w"),
            compute_flops=end("compute_flops"),
            energy_j_per_flop=end("energy_j_per_flop"),
        )
        for k in range(3)
    ]
    content = dict(
        name="x",
        carrier_frequency_hz=end("carrier_frequency_hz"),
        total_bandwidth_hz=end("total_bandwidth_hz"),
        noise_psd_dbm_per_hz=end("noise_psd_dbm_per_hz"),
        payload_bits=end("payload_bits"),
        base_station=dict(transmit_power_w=end("base_station.transmit_power_w")),
        fading=dict(model=data.draw(st.sampled_from(["none", "rayleigh"]))),
        devices=devices,
    )
    profile = None
    with contextlib.suppress(ValueError):  # of a gain above 1
        profile = ChannelProfile.model_validate(content)
    hypothesis.assume(profile is not None)
    check_finite(profile)


def check_finite(profile):
    load, shape = np.array([[3, 0, 1], [10**6, 5, 7]]), ExpertShape(2**31 - 1, 2**31 - 1)
    with warnings.catch_warnings(action="error"), np.errstate(all="raise", under="ignore"):
        budget = link_budget(profile, draw_channel(profile), shape)
        answer = allocate("uniform", "layer", budget, load, profile.total_bandwidth_hz)
        energy = pass_energy(profile, shape, budget, answer.bandwidth_hz, load, load)
    assert np.isfinite(answer.layer_latency_s).all()
    assert (answer.layer_latency_s > 0).all()
    assert all(np.isfinite(joules).all() for joules in (energy.downlink_j, energy.uplink_j, energy.computation_j))


def unchecked(**changes):
    """The paper's profile with values of device 2 that no file may have."""
    devices = list(PAPER.devices)
    devices[2] = devices[2].model_copy(update=changes)
    return PAPER.model_copy(update=dict(devices=tuple(devices)))


BROKEN = {
    "devices[2].distance_m is 1e+200": unchecked(distance_m=1e200),
    "devices[2].distance_m is inf": unchecked(distance_m=math.inf),
    "devices[2].distance_m is nan": unchecked(distance_m=math.nan),
    "devices[2].compute_flops is 0": unchecked(compute_flops=0.0),
    "devices[2].compute_flops is 1e-310": unchecked(compute_flops=1e-310),
    "devices[2].transmit_power_w is 0": unchecked(transmit_power_w=0.0),
    "devices[2].transmit_power_w is inf": unchecked(transmit_power_w=math.inf),
    "noise_psd_dbm_per_hz is 1e+06": PAPER.model_copy(update=dict(noise_psd_dbm_per_hz=1e6)),
    "noise_psd_dbm_per_hz is -4000": PAPER.model_copy(update=dict(noise_psd_dbm_per_hz=-4000.0)),
    "carrier_frequency_hz is 1e+300": PAPER.model_copy(update=dict(carrier_frequency_hz=1e300)),
}
WAYS = {
    "latency": lambda profile: token_latency_s(link_budget(profile, draw_channel(profile), ExpertShape()), 1e6),
    "replay": lambda profile: replay(trace_of(PAPER), profile, "optimal", "layer"),
    "draws": lambda profile: replay_draws(trace_of(PAPER), profile, "uniform", "layer", 3),
    "placement": lambda profile: latency(profile, ExpertShape()),
    "selection": lambda profile: ChannelStates(profile, ExpertShape(), 8).of_layer(0),
}


@pytest.mark.parametrize("way", ["latency", "replay", "draws", "placement"])
@pytest.mark.parametrize("key", BROKEN)
def test_what_is_not_finite_blames_the_key_of_the_profile(way, key):
    with warnings.catch_warnings(action="error"), pytest.raises(WdmoeError) as caught:
        WAYS[way](BROKEN[key])
    assert f"paper_8_devices: {key}, must be between" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unusual_value_is_said_by_commands_plan_and_tables(tmp_path):
    path = written(tmp_path, DEVICE, 23.0)
    note = "devices[0].transmit_power_w is 23 W: nearly always it is between 1e-05 and 2 W; "
    note += "write 0.023 if it is in mW or 0.199526 if it is in dBm"
    for arguments in (["profile", "show", str(path)], ["profile", "validate", str(path)]):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0
        assert done.stderr == f"note: channel profile lab: {note}\n"
    as_json = CliRunner().invoke(app, ["profile", "validate", str(path), "--json"])
    assert yaml.safe_load(as_json.stdout)["unusual"] == [note]
    from wdmoe_opencompass.report.runs import ModelRun

    profile = load_profile(path)
    trace = trace_of(profile)
    run = ModelRun("m", "top_k", ("w", profile.content_hash), traces=dict(d=[trace]))
    assert f"unusual in profile lab: {note}" in origin_notes([run])


def test_the_documented_ranges_are_those_that_are_checked():
    text = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
    for key, (unit, possible, usual, _) in RANGES.items():
        ends = [f"{low:g} to {high:g} {unit}" for low, high in (possible, usual)]
        assert f"| `{key.replace('devices.', 'devices[*].')}` | {ends[0]} | {ends[1]} |" in text
