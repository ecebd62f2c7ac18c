"""Fitted profiles give back what was planted; profiles of measured rates predict by loads x bits / rate."""

import json
from functools import cache

import numpy as np
import pytest
import torch
import yaml
from pytest import approx
from typer.testing import CliRunner

from tests.examples import seeds
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
    layer_times,
    probe,
    synthetic_profile,
)
from wdmoe_opencompass import ExpertShape, allocate, draw_channel, link_budget, load_profile
from wdmoe_opencompass.channel.profile import MEASURED, changed_profile
from wdmoe_opencompass.cli import app
from wdmoe_opencompass.errors import PolicyError, ProfileError
from wdmoe_opencompass.latency import device_latency_s, waiting_latency_s
from wdmoe_opencompass.routing.channel_state import ChannelStates
from wdmoe_opencompass.selection import Routing, build_policy
from wdmoe_opencompass.testbed.fit import fit_testbed, measured_profile, measured_profile_text
from wdmoe_opencompass.trace.times import LayerTimes

SHAPE = ExpertShape(HIDDEN, FFN)
NAMES = [device.name for device in synthetic_profile().devices]
HASH_BEFORE = "927d2b173d0b"
FITTED = 0.03  # relative: medians of 5 messages with 3 % noise, 5 sizes, and a slope that the fixed time hides


def fit_of(times):
    return fit_testbed(NAMES, times, SHAPE, PAYLOAD_BITS)


@cache
def planted_fit():
    return fit_of(probe(seed=None))


@cache
def planted_profile():
    return measured_profile(synthetic_profile(), NAMES, planted_fit(), PAYLOAD_BITS)


def planted_waiting_s(loads):
    """By plain loops: each message but one delays the last answer by MESSAGE_S."""
    flat = planted_s(loads).reshape(-1, DEVICES)
    answers = [max(row) + MESSAGE_S * max(sum(seconds > 0 for seconds in row) - 1, 0) for row in flat]
    return np.array(answers).reshape(np.shape(loads)[:-1])


def planted_s(loads):
    per_token = BITS / RATE_DOWN + BITS / RATE_UP + FLOP / FLOP_PER_S
    return np.where(np.asarray(loads) > 0, 2 * FIXED_S + loads * per_token, 0.0)


@pytest.mark.parametrize(("seed", "within"), [(None, 1e-5), (0, FITTED), (1, FITTED)])
def test_the_planted_rates_come_back(seed, within):
    fit_of_testbed = fit_of(probe(sizes=(1, 8, 64, 512, 2048), repeats=9, seed=seed))
    assert fit_of_testbed.message_s == approx(MESSAGE_S, rel=10 * within)
    assert fit_of_testbed.median_relative_error < within
    assert fit_of_testbed.layers == 5 * 9 * 7
    for k, fit in enumerate(fit_of_testbed.devices):
        assert fit.downlink_bit_per_s == approx(RATE_DOWN[k], rel=within)
        assert fit.uplink_bit_per_s == approx(RATE_UP[k], rel=within)
        assert fit.compute_flops == approx(FLOP_PER_S[k], rel=within)
        assert fit.fixed_s == approx(2 * FIXED_S[k], rel=within)
        assert fit.burst_bit == 0
        assert fit.messages in (45 * 3, 45 * 4)
        assert fit.tokens == (1, 2048)


def test_one_late_message_of_a_size_moves_nothing():
    times = probe(seed=None)
    times[0] = times[0]._replace(send_s=9.0, total_s=10.0)
    assert fit_of(times).devices[0].downlink_bit_per_s == approx(RATE_DOWN[0], rel=1e-5)


def test_a_base_station_that_sends_all_at_once_has_no_seconds_per_message():
    fit = fit_of(probe(seed=None, message_s=0.0))
    assert fit.message_s == approx(0.0, abs=1e-6)
    assert fit.shared_bit_per_s is None


@pytest.mark.parametrize("tokens", [2.5, 10.0])
@pytest.mark.parametrize(("seed", "within"), [(None, 0.02), (0, 0.1), (1, 0.1)])
def test_a_burst_is_told_from_the_fixed_time(tokens, seed, within):
    """On the slow link, where 2.5 tokens last as long as 0.5 ms; the rate is then right for long messages too."""
    fit = fit_of(probe(sizes=(1, 4, 16, 64, 256), repeats=11, seed=seed, burst_bit=tokens * BITS)).devices[3]
    assert fit.burst_bit == approx(tokens * BITS, rel=within)
    assert fit.fixed_s == approx(2 * FIXED_S[3], rel=within)
    assert fit.downlink_bit_per_s == approx(RATE_DOWN[3], rel=FITTED)
    assert fit.uplink_bit_per_s == approx(RATE_UP[3], rel=FITTED)


@pytest.mark.parametrize("seed", seeds(10))
def test_scatter_is_no_burst(seed):
    assert [device.burst_bit for device in fit_of(probe(seed=seed, repeats=10)).devices] == [0] * DEVICES


def bucket_s(bit, bit_per_s, burst_bit):
    """Seconds until the last of the packets of a message has left a full token bucket."""
    bucket, now_s = burst_bit, 0.0
    for sent in range(0, int(bit), 12_000):
        packet = min(12_000, bit - sent)
        missing = max(packet - bucket, 0.0)
        now_s += missing / bit_per_s
        bucket += missing - packet
    return now_s


def sent_at_s(messages, work_s, quantum_s=5e-6):
    """-> when each message has left a base station that works on all in turn, a quantum each, in random order."""
    left = dict.fromkeys(messages, work_s)
    now_s, done = 0.0, {}
    while left:
        for message in list(left):
            now_s += quantum_s
            left[message] -= quantum_s
            if left[message] < quantum_s / 2:
                done[message] = now_s
                del left[message]
    return done


def simulated(loads, rng, number, burst_bit=12_800.0, work_s=0.5e-3):
    """LayerTimes of one exchange, event by event: what a base station and its token buckets do to [devices] loads."""
    devices = rng.permutation(np.flatnonzero(loads)).tolist()
    sent = sent_at_s(devices, work_s)
    noise = np.exp(rng.normal(scale=0.03, size=(DEVICES, 3)))
    rows = []
    for k in devices:
        bit = float(loads[k] * BITS)
        send_s = sent[k] + (FIXED_S[k] + bucket_s(bit, RATE_DOWN[k], burst_bit)) * noise[k, 0]
        compute_s = (FIXED_S[k] + loads[k] * FLOP / FLOP_PER_S[k]) * noise[k, 1]
        return_s = (FIXED_S[k] + bucket_s(bit, RATE_UP[k], burst_bit)) * noise[k, 2]
        total_s = send_s + compute_s + return_s
        rows.append(LayerTimes(0, k, int(loads[k]), send_s, 0.0, compute_s, return_s, total_s, 0.0, number))
    waiting_s = max(row.total_s for row in rows)
    return [row._replace(waiting_s=waiting_s) for row in rows]


@pytest.mark.parametrize("seed", seeds(3))
def test_a_profile_fitted_to_simulated_events_predicts_layers_that_it_never_saw(seed):
    rng = np.random.default_rng(seed)
    who = [np.ones(DEVICES, int), *np.eye(DEVICES, dtype=int)]
    exchanges = [size * loads for size in (1, 4, 16, 64, 256) for loads in who for _ in range(10)]
    exchanges += [rng.choice([0, 1, 4, 16, 64, 256], DEVICES) for _ in range(50)]
    exchanges = [loads for loads in exchanges if loads.any()]
    times = [row for number, loads in enumerate(exchanges) for row in simulated(loads, rng, number)]
    fit = fit_of(times)
    assert fit.message_s == approx(0.5e-3, rel=0.2)
    profile = measured_profile(synthetic_profile(), NAMES, fit, PAYLOAD_BITS)
    budget = link_budget(profile, draw_channel(profile), SHAPE)
    loads = np.floor(2 ** rng.uniform(-1, 8, (300, DEVICES))).astype(int)
    loads = loads[loads.any(axis=1)]
    predicted = waiting_latency_s(budget, np.full(DEVICES, 1e6), loads)
    happened = np.array([simulated(row, rng, 0)[0].waiting_s for row in loads])
    error = np.abs(predicted / happened - 1)
    assert np.median(error) < 0.03
    assert np.quantile(error, 0.9) < 0.08


SHARED = 40e6  # bit/s of one radio for all


def on_one_radio(loads, number, noise):
    """LayerTimes of one exchange whose packets take turns on one radio, there and back; 1 us of computing a token."""
    devices = np.flatnonzero(loads).tolist()
    air_s = {k: 2 * loads[k] * BITS / SHARED for k in devices}
    left, now_s, done = dict(air_s), 1e-3, {}
    while left:  # fair shares: whoever has the least left is done first
        first = min(left, key=left.__getitem__)
        now_s += left[first] * len(left)
        left = {k: seconds - left[first] for k, seconds in left.items() if k != first}
        done[first] = now_s
    totals = {k: (done[k] + loads[k] * 1e-6) * np.exp(noise.normal(scale=0.02)) for k in devices}
    return [
        LayerTimes(
            *(0, k, int(loads[k]), (totals[k] - loads[k] * 1e-6) / 2, 0.0, loads[k] * 1e-6),
            *((totals[k] - loads[k] * 1e-6) / 2, totals[k], max(totals.values()), number),
        )
        for k in devices
    ]


def test_a_radio_that_all_devices_share_is_told_from_rates_of_their_own():
    rng = np.random.default_rng(0)
    exchanges = [
        size * loads for size in (1, 4, 16, 64, 256) for loads in np.eye(DEVICES, dtype=int) for _ in range(10)
    ]
    exchanges += [rng.choice([0, 1, 4, 16, 64, 256], DEVICES) for _ in range(100)]
    exchanges = [loads for loads in exchanges if loads.any()]
    times = [row for number, loads in enumerate(exchanges) for row in on_one_radio(loads, number, rng)]
    fit = fit_of(times)
    assert [device.downlink_bit_per_s for device in fit.devices] == approx([SHARED] * DEVICES, rel=0.05)
    assert fit.shared_bit_per_s == approx(SHARED, rel=0.05)
    profile = measured_profile(synthetic_profile(), NAMES, fit, PAYLOAD_BITS)
    budget = link_budget(profile, draw_channel(profile), SHAPE)
    loads = rng.integers(0, 200, (200, DEVICES))
    predicted = waiting_latency_s(budget, np.full(DEVICES, 1e6), loads)
    happened = np.array([on_one_radio(row, 0, rng)[0].waiting_s for row in loads])
    assert np.median(np.abs(predicted / happened - 1)) < 0.03


def test_what_remains_of_the_round_trip_is_not_lost():
    times = [
        time._replace(
            total_s=time.total_s + 1e-3 + time.tokens * 1e-5, waiting_s=time.waiting_s + 1e-3 + time.tokens * 1e-5
        )
        for time in probe(seed=None)
    ]
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
    measured = {message.device: message.total_s for message in layer_times(0, loads[0, 0])}
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
    profile = measured_profile(synthetic_profile(), NAMES, fit, PAYLOAD_BITS, name="lab")
    path = tmp_path / "lab.yaml"
    path.write_text(measured_profile_text(profile, fit))
    assert load_profile(path) == profile
    assert "jetson_xavier_nx: 100 messages of 1 to 256 tokens" in path.read_text()
    shown = CliRunner().invoke(
        app, ["profile", "show", str(path), "--hidden-size", str(HIDDEN), "--ffn-size", str(FFN), "--json"]
    )
    records = json.loads(shown.output)["devices"]
    assert [record["downlink_bit_per_s"] for record in records] == [device.downlink_bit_per_s for device in fit.devices]
    assert [record["fixed_s"] for record in records] == [device.fixed_s for device in fit.devices]
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
    data = yaml.safe_load(measured_profile_text(planted_profile(), planted_fit()))
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
    assert load_profile("near_far_8_devices").content_hash.startswith(HASH_BEFORE)


def test_a_profile_of_other_devices_is_refused():
    with pytest.raises(ProfileError, match="testbed_4_devices: its devices must be those measured, a, b"):
        measured_profile(synthetic_profile(), ["a", "b"], fit_of(probe()), 16)
