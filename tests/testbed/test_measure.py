"""Fitted profiles give back what was planted; profiles of measured rates predict by loads x bits / rate."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
import yaml
from pytest import approx
from typer.testing import CliRunner

from tests.testbed.synthetic import (
    BITS,
    DEVICES,
    FFN,
    FIXED_S,
    FLOP,
    FLOP_PER_S,
    HIDDEN,
    MESSAGE_S,
    PAYLOAD_BITS,
    RATE_DOWN,
    RATE_UP,
    lab_profile,
    layer_times,
    probe,
)
from wdmoe_opencompass import ExpertShape, allocate, draw_channel, link_budget, load_profile
from wdmoe_opencompass.channel.profile import MEASURED, changed_profile
from wdmoe_opencompass.cli import app
from wdmoe_opencompass.errors import PolicyError, ProfileError
from wdmoe_opencompass.latency import device_latency_s, waiting_latency_s
from wdmoe_opencompass.routing.channel_state import ChannelStates
from wdmoe_opencompass.routing.times import LayerTimes
from wdmoe_opencompass.selection import Routing, build_policy
from wdmoe_opencompass.testbed.measure import fit_lab, measured_profile, measured_profile_text

SHAPE = ExpertShape(HIDDEN, FFN)
NAMES = [device.name for device in lab_profile().devices]
HASH_BEFORE = "5f8661850ab4"
FITTED = 0.03  # relative: medians of 5 messages with 3 % noise, 5 sizes, and a slope that the fixed time hides


def fit_of(times):
    return fit_lab(NAMES, times, SHAPE, PAYLOAD_BITS)


def planted_profile():
    return measured_profile(lab_profile(), NAMES, fit_of(probe(seed=None)), PAYLOAD_BITS)


def planted_waiting_s(loads):
    """By plain loops: the slowest device's message leaves first, each next one MESSAGE_S later."""
    flat = planted_s(loads).reshape(-1, DEVICES)
    answers = [
        max((n * MESSAGE_S + seconds for n, seconds in enumerate(sorted(row[row > 0], reverse=True))), default=0.0)
        for row in flat
    ]
    return np.array(answers).reshape(np.shape(loads)[:-1])


def planted_s(loads):
    per_token = BITS / RATE_DOWN + BITS / RATE_UP + FLOP / FLOP_PER_S
    return np.where(np.asarray(loads) > 0, 2 * FIXED_S + loads * per_token, 0.0)


@pytest.mark.parametrize(("seed", "within"), [(None, 1e-5), (0, FITTED), (1, FITTED)])
def test_the_planted_rates_come_back(seed, within):
    fit_of_lab = fit_of(probe(sizes=(1, 8, 64, 512, 2048), repeats=9, seed=seed))
    assert fit_of_lab.message_s == approx(MESSAGE_S, rel=10 * within)
    assert fit_of_lab.median_relative_error < within
    assert fit_of_lab.layers == 5 * 9 * 7
    for k, fit in enumerate(fit_of_lab.devices):
        assert fit.downlink_bit_per_s == approx(RATE_DOWN[k], rel=within)
        assert fit.uplink_bit_per_s == approx(RATE_UP[k], rel=within)
        assert fit.compute_flops == approx(FLOP_PER_S[k], rel=within)
        assert fit.fixed_s == approx(2 * FIXED_S[k], rel=within)
        assert fit.messages in (45 * 3, 45 * 4)
        assert fit.tokens == (1, 2048)


def test_one_late_message_of_a_size_moves_nothing():
    times = probe(seed=None)
    times[0] = times[0]._replace(send_s=9.0, total_s=10.0)
    assert fit_of(times).devices[0].downlink_bit_per_s == approx(RATE_DOWN[0], rel=1e-5)


def test_a_base_station_that_sends_all_at_once_has_no_seconds_per_message():
    fit = fit_of(probe(seed=None, message_s=0.0))
    assert fit.message_s == approx(0.0, abs=1e-6)


def test_devices_that_share_the_radio_are_measured_together():
    """Alone each sends at twice the rate: what is fitted is that of layers in which all of them are sent to."""
    times = probe(seed=None)
    in_exchange = Counter(one.pass_index for one in times)
    times = [
        one._replace(send_s=one.send_s / 2, total_s=one.total_s - one.send_s / 2)
        if in_exchange[one.pass_index] == 1
        else one
        for one in times
    ]
    for k, fit in enumerate(fit_of(times).devices):
        assert fit.downlink_bit_per_s == approx(RATE_DOWN[k], rel=1e-5)


def test_what_remains_of_the_round_trip_is_not_lost():
    times = [one._replace(total_s=one.total_s + 1e-3 + one.tokens * 1e-5) for one in probe(seed=None)]
    for k, fit in enumerate(fit_of(times).devices):
        assert fit.total_s(np.array([500.0]), BITS, FLOP) == approx(planted_s(500)[k] + 1e-3 + 500e-5, rel=1e-4)


@pytest.mark.parametrize(
    ("times", "sentence"),
    [
        (probe(sizes=(5,)), "jetson_agx_orin_1: messages of at least 2 sizes are needed"),
        ([], "got 0; probe with other numbers"),
        (
            [LayerTimes(0, 0, tokens, 1e-3, 0.0, 1e-3, 1e-3, 3e-3, 3e-3, tokens) for tokens in (1, 9)],
            "the total time does not grow from 1 to 9 tokens",
        ),
    ],
)
def test_a_probe_that_tells_nothing_is_refused(times, sentence):
    with pytest.raises(ProfileError, match=sentence):
        fit_of(times)


def test_the_prediction_is_loads_times_bits_over_rate_plus_computing_plus_the_fixed_time():
    profile = planted_profile()
    budget = link_budget(profile, draw_channel(profile), SHAPE)
    loads = np.random.default_rng(0).integers(0, 100, (5, 3, DEVICES))
    hertz = np.full(DEVICES, 1e6)
    assert device_latency_s(budget, hertz, loads) == approx(planted_s(loads), rel=1e-4)
    assert waiting_latency_s(budget, 7 * hertz, loads) == approx(planted_waiting_s(loads), rel=1e-4)
    measured = {one.device: one.total_s for one in layer_times(0, loads[0, 0])}
    for k, seconds in measured.items():
        assert device_latency_s(budget, hertz, loads[0, 0])[k] == approx(seconds, rel=1e-4)


@pytest.mark.parametrize("method", ["uniform", "optimal", "slsqp"])
@pytest.mark.parametrize("scope", ["pass", "layer"])
def test_every_allocation_leaves_measured_rates_as_they_are(method, scope):
    profile = planted_profile()
    budget = link_budget(profile, draw_channel(profile), SHAPE)
    loads = np.array([[[5, 0, 3, 1], [0, 0, 0, 0]], [[9, 9, 9, 9], [1, 2, 3, 4]]])
    answer = allocate(method, scope, budget, loads, profile.total_bandwidth_hz, certified=True)
    assert answer.layer_latency_s == approx(planted_waiting_s(loads), rel=1e-4)
    assert (answer.bandwidth_hz == profile.total_bandwidth_hz / DEVICES).all()
    assert answer.relative_gap.tolist() == [0, 0]


def test_a_measured_profile_is_written_read_and_shown(tmp_path):
    fit = fit_of(probe())
    profile = measured_profile(lab_profile(), NAMES, fit, PAYLOAD_BITS, name="lab")
    path = tmp_path / "lab.yaml"
    path.write_text(measured_profile_text(profile, fit))
    assert load_profile(path) == profile
    assert "jetson_xavier_nx: 100 messages of 1 to 256 tokens" in path.read_text()
    shown = CliRunner().invoke(
        app, ["profile", "show", str(path), "--hidden-size", str(HIDDEN), "--ffn-size", str(FFN), "--json"]
    )
    records = json.loads(shown.output)["devices"]
    assert [one["downlink_bit_per_s"] for one in records] == [one.downlink_bit_per_s for one in fit.devices]
    assert [one["fixed_s"] for one in records] == [one.fixed_s for one in fit.devices]
    assert records[3]["token_latency_s"] == approx(
        BITS / RATE_DOWN[3] + BITS / RATE_UP[3] + FLOP / FLOP_PER_S[3], rel=0.05
    )
    assert CliRunner().invoke(app, ["profile", "validate", str(path)]).exit_code == 0
    assert "rates: measured" in path.read_text()
    origins, measured_keys = load_profile(path).value_origins(), (*MEASURED, "compute_flops")
    wanted = {f"devices[{k}].{key}": "measured" for k in range(DEVICES) for key in measured_keys}
    assert wanted.items() <= origins.items()
    assert origins["base_station.message_s"] == "measured"
    assert not {"total_bandwidth_hz", "path_loss", "fading.model", "devices[0].distance_m"} & origins.keys()
    slower = changed_profile(profile, "devices[0].downlink_bit_per_s", 1e6)
    assert slower.value_origins() == origins | {"devices[0].downlink_bit_per_s": "own"}
    assert slower.content_hash != profile.content_hash


def test_splitting_the_bandwidth_of_measured_rates_is_refused_on_the_command_line(tmp_path):
    path, loads = tmp_path / "lab.yaml", tmp_path / "loads.json"
    path.write_text(measured_profile_text(planted_profile(), fit_of(probe())))
    loads.write_text("[[1, 2, 3, 4]]")
    answer = CliRunner().invoke(app, ["allocate", str(path), "--loads", str(loads)])
    assert answer.exit_code != 0
    assert "its rates are measured and fixed" in str(answer.exception or answer.output)


def test_policies_run_on_measured_rates_and_the_bandwidth_curve_is_missing():
    states = ChannelStates(planted_profile(), SHAPE, 8)
    channel = states(0, 0, torch.device("cpu"))
    assert channel.curve is None
    assert channel.expert_latency_s[:4].tolist() == approx(planted_s(1) - 2 * FIXED_S, rel=1e-4)
    probabilities = torch.softmax(torch.randn(9, 8), dim=1)
    weights, index = probabilities.topk(2, dim=1)
    routing = Routing(probabilities, index, weights, torch.ones(9, dtype=torch.bool), 0, "prefill")
    build_policy("bottleneck").select(routing, channel)
    with pytest.raises(PolicyError, match="bandwidth curve"):
        build_policy("dual_price").select(routing, channel)


def as_yaml(**changes):
    data = yaml.safe_load(measured_profile_text(planted_profile(), fit_of(probe(seed=None))))
    devices = data["devices"]
    for key, value in changes.items():
        if key.startswith("device_"):
            devices[1].pop(key.removeprefix("device_"), None)
            if value is not None:
                devices[1][key.removeprefix("device_")] = value
        else:
            data[key] = value
    return yaml.safe_dump(data)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(rates="guessed"), "rates must be one of 'physical' or 'measured', got 'guessed'"),
        (dict(rates="physical"), "devices[0].downlink_bit_per_s is only read with `rates: measured`"),
        (dict(device_uplink_bit_per_s=None), "devices[1].uplink_bit_per_s is missing; `rates: measured` needs it"),
        (dict(device_downlink_bit_per_s=-5.0), "devices[1].downlink_bit_per_s must be > 0, got -5.0"),
        (dict(device_fixed_s=-1.0), "devices[1].fixed_s must be >= 0, got -1.0"),
        (dict(device_fixed_ms=1.0), "unknown key devices[1].fixed_ms; did you mean devices[1].fixed_s?"),
        (
            dict(base_station=dict(transmit_power_w=0.2, message_s=-1.0)),
            "base_station.message_s must be >= 0, got -1.0",
        ),
        (dict(fading=dict(model="rayleigh")), "fading.model must be none with `rates: measured`, got 'rayleigh'"),
    ],
)
def test_bad_measured_profiles_name_file_key_rule_and_value(tmp_path, changes, sentence):
    path = tmp_path / "lab.yaml"
    path.write_text(as_yaml(**changes))
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    assert f"{path}: " in str(caught.value)
    assert sentence in str(caught.value)


def test_the_fixed_time_may_be_left_out(tmp_path):
    path = tmp_path / "lab.yaml"
    path.write_text(as_yaml(device_fixed_s=None))
    profile = load_profile(path)
    budget = link_budget(profile, draw_channel(profile), SHAPE)
    assert budget.measured.fixed_s[1] == 0


def test_the_hash_of_a_physical_profile_is_what_it_was():
    """Traces that were recorded before profiles could be measured carry it."""
    assert load_profile("paper_8_devices").content_hash.startswith(HASH_BEFORE)


def test_a_profile_of_other_devices_is_refused():
    with pytest.raises(ProfileError, match="testbed_4_devices: its devices must be those measured, a, b"):
        measured_profile(lab_profile(), ["a", "b"], fit_of(probe()), 16)
