import statistics

import numpy as np
import pytest
from pytest import approx

from tests import oracles
from tests.builders.trace_blocks import metadata
from tests.builders.traces import PROFILE, trace_of, with_fading
from wdmoe_opencompass import ExpertShape, draw_channel, link_budget, load_profile, token_latency_s
from wdmoe_opencompass.allocation import allocate
from wdmoe_opencompass.channel.profile import changed_profile
from wdmoe_opencompass.channel.propagation import Channel, FadingSource
from wdmoe_opencompass.errors import ProfileError, TraceError
from wdmoe_opencompass.latency import expert_flop
from wdmoe_opencompass.replay import replay, replay_draws
from wdmoe_opencompass.trace.format import RoutingTrace, empty_arrays, join

SHAPE = ExpertShape(32, 48)


@pytest.mark.parametrize("coherence", ["run", "pass", "layer"])
def test_replay_meets_the_runs_own_draws(coherence):
    profile, trace = with_fading(coherence=coherence), trace_of()
    latency = replay(trace, profile, "uniform", "layer").layer_latency_s
    for row in range(len(trace.batch)):
        for layer in range(3):
            moment = ("d", int(trace.items_before[trace.batch[row]]), int(trace.pass_index[row]), layer)
            budget = link_budget(profile, draw_channel(profile, *moment), SHAPE)
            per_token = token_latency_s(budget, 12.5e6)
            load, extra = (
                trace.device_load[row, layer],
                trace.expert_evaluations[row, layer] - trace.device_load[row, layer],
            )
            times = load * per_token + np.where(load > 0, extra, extra) * budget.computation_s
            assert latency[row, layer] == approx(times.max())


def test_replay_without_shared_devices_equals_a_token_by_token_replay():
    trace = trace_of(largest=5)
    trace.arrays["expert_evaluations"] = trace.arrays["device_load"]
    per_token = token_latency_s(link_budget(PROFILE, draw_channel(PROFILE), SHAPE), 12.5e6)
    waiting = replay(trace, PROFILE, "uniform", "pass").waiting_latency_s
    for row, loads in enumerate(trace.device_load):
        tokens = [[[k] for k, count in enumerate(layer) for _ in range(count)] for layer in loads]
        assert waiting[row] == approx(oracles.replay(tokens, per_token))


@pytest.mark.parametrize("coherence", ["run", "pass", "layer"])
@pytest.mark.parametrize("scope", ["pass", "layer"])
def test_the_first_draw_is_the_runs_own(coherence, scope):
    profile, trace = with_fading(coherence=coherence), trace_of()
    own = replay(trace, profile, "optimal", scope).waiting_latency_s.mean()
    drawn = replay_draws(trace, profile, "optimal", scope, 5)
    assert drawn.mean_latency_s[0] == approx(own, rel=1e-6)
    assert len(set(drawn.mean_latency_s.tolist())) == 5


@pytest.mark.parametrize("coherence", ["run", "pass", "layer"])
def test_draws_do_not_depend_on_the_chunks(coherence, monkeypatch):
    profile, trace = with_fading(coherence=coherence), trace_of()
    whole = replay_draws(trace, profile, "uniform", "pass", 50)
    monkeypatch.setattr("wdmoe_opencompass.replay.CHUNK_NUMBERS", 500)
    pieces = replay_draws(trace, profile, "uniform", "pass", 50)
    assert whole.mean_latency_s == approx(pieces.mean_latency_s, rel=1e-12)


@pytest.mark.parametrize("duplex", ["shared", "frequency_division"])
@pytest.mark.parametrize("coherence", ["run", "pass", "layer"])
@pytest.mark.parametrize("method", ["uniform", "optimal"])
def test_every_draw_is_the_mean_of_its_passes_allocated_one_by_one(method, coherence, duplex):
    profile = with_fading(coherence=coherence).model_copy(update=dict(duplex=duplex))
    trace = trace_of(passes=2, batches=2)
    trace.arrays["device_load"][1], trace.arrays["expert_evaluations"][1] = 0, 0  # a pass without load
    trace.arrays["device_load"][2] = trace.arrays["device_load"][0]  # and layers that are alike
    trace.arrays["expert_evaluations"][2] = trace.arrays["expert_evaluations"][0]
    expected = np.zeros(4)
    for row, batch in enumerate(trace.batch):
        for layer in range(3):
            source = FadingSource(profile, "d", int(trace.items_before[batch]), int(trace.pass_index[row]), layer)
            drawn = source.draw(4)
            for n in range(4):
                budget = link_budget(profile, Channel(drawn.downlink_gain[n], drawn.uplink_gain[n]), SHAPE)
                loads = trace.device_load[row, [layer]], trace.expert_evaluations[row, [layer]]
                answer = allocate(method, "layer", budget, loads[0], profile.total_bandwidth_hz, loads[1])
                expected[n] += answer.waiting_latency_s[0] / len(trace.batch)
    assert replay_draws(trace, profile, method, "layer", 4).mean_latency_s == approx(expected, rel=1e-9)


def test_measured_rates_are_the_same_in_every_draw():
    profile = load_profile("testbed_4_devices")
    measured = profile.model_copy(
        update=dict(
            rates="measured",
            fading=profile.fading.model_copy(update=dict(model="none")),
            devices=tuple(
                d.model_copy(update=dict(downlink_bit_per_s=1e7 * (k + 1), uplink_bit_per_s=5e6, fixed_s=0.01))
                for k, d in enumerate(profile.devices)
            ),
        )
    )
    one = metadata(profile=measured, profile_hash=measured.content_hash)
    load = np.random.default_rng(0).integers(0, 9, (3, 3, 4)).astype(np.int32)
    arrays = empty_arrays(one) | dict(
        batch=np.zeros(3, np.int32), pass_index=np.arange(3, dtype=np.int32), device_load=load, expert_evaluations=load,
        first_item=np.zeros(1, np.int32), items=np.ones(1, np.int32),
    )  # fmt: skip
    trace = RoutingTrace(one, arrays)
    mean_s = replay(trace, measured, "uniform", "layer").waiting_latency_s.mean()
    for method in ("uniform", "optimal"):
        assert replay_draws(trace, measured, method, "layer", 3).mean_latency_s == approx(np.full(3, mean_s))


def test_a_sample_of_a_trace_s_layers_stands_for_all():
    """Few passes hold most of the tokens, as prefill does."""
    trace = trace_of(passes=60, batches=8)
    scale = np.where(trace.pass_index == 0, 400, 1).astype(np.int32)[:, None, None]
    for name in ("device_load", "expert_evaluations"):
        trace.arrays[name] = np.minimum(trace.arrays[name], 40) * scale + (trace.arrays[name] > 0)
    whole, sampled = (replay_draws(trace, PROFILE, "optimal", "layer", 6, max_layers=n) for n in (None, 512))
    assert sampled.mean_latency_s == approx(whole.mean_latency_s, rel=3e-3)
    assert (sampled.mean_latency_s != whole.mean_latency_s).all()
    enough = replay_draws(trace, PROFILE, "optimal", "layer", 6, max_layers=10_000)
    assert (enough.mean_latency_s == whole.mean_latency_s).all()


@pytest.mark.parametrize("method", ["uniform", "optimal"])
def test_a_draw_beyond_numbers_is_refused(method):
    far = PROFILE.model_copy(
        update=dict(devices=(PROFILE.devices[0].model_copy(update=dict(distance_m=1e170)), *PROFILE.devices[1:]))
    )
    with pytest.raises(ProfileError, match=r"devices\[0\].distance_m is 1e\+170, must be between 0.0001 and 1e\+14 m"):
        replay_draws(trace_of(), far, method, "layer", 3)


def test_a_saving_is_of_equal_draws():
    trace = trace_of()
    even, best = (replay_draws(trace, PROFILE, method, "layer", 30) for method in ("uniform", "optimal"))
    assert (best.saving_over(even) == 1 - best.mean_latency_s / even.mean_latency_s).all()
    assert (best.saving_over(even) > 0).all()


def test_nothing_is_saved_over_a_latency_of_0_s():
    trace = trace_of()
    for name in ("device_load", "expert_evaluations"):
        trace.arrays[name] = np.zeros_like(trace.arrays[name])
    idle, busy = (replay_draws(one, PROFILE, "uniform", "layer", 3) for one in (trace, trace_of()))
    assert idle.saving_over(idle) is None
    assert busy.saving_over(idle) is None
    assert idle.saving_over(busy).tolist() == [1, 1, 1]


def test_progress_adds_up_to_the_whole_work(monkeypatch):
    monkeypatch.setattr("wdmoe_opencompass.replay.CHUNK_NUMBERS", 100)
    shares = []
    replay(trace_of(), PROFILE, "uniform", "pass", shares.append)
    assert len(shares) > 1
    assert sum(shares) == approx(1)
    replay_draws(trace_of(), PROFILE, "uniform", "pass", 20, shares.append)
    assert sum(shares) == approx(2)


@pytest.mark.parametrize("coherence", ["run", "pass"])
def test_passes_of_equal_counts_are_each_counted(coherence):
    """Two thirds of the passes are alike: solved once where the channel is one, weighed as often as they stand."""
    profile, trace = with_fading(coherence=coherence), trace_of(passes=3, batches=1)
    for name in ("device_load", "expert_evaluations"):
        trace.arrays[name][1] = trace.arrays[name][0]
    trace.arrays["device_load"][2] *= 3
    trace.arrays["expert_evaluations"][2] *= 3
    each = replay(trace, profile, "optimal", "pass").waiting_latency_s
    assert replay_draws(trace, profile, "optimal", "pass", 3).mean_latency_s[0] == approx(each.mean(), rel=1e-6)
    if coherence == "run":
        assert each[1] == each[0] != each[2]


def test_a_trace_without_passes_has_no_draws():
    empty = join(metadata(), [])
    assert replay(empty, PROFILE, "optimal", "pass").mean_s("pass", "all") is None
    with pytest.raises(TraceError, match="the trace of d holds no forward pass"):
        replay_draws(empty, PROFILE, "optimal", "pass", 3)


def test_common_random_numbers_pair_the_draws_of_two_bandwidths():
    """More bandwidth is better in every single draw, not only on average."""
    trace = trace_of()
    wide = changed_profile(PROFILE, "total_bandwidth_hz", 2e8)
    narrow = replay_draws(trace, PROFILE, "optimal", "layer", 40)
    broad = replay_draws(trace, wide, "optimal", "layer", 40)
    assert (broad.mean_latency_s < narrow.mean_latency_s).all()


def test_mean_standard_error_and_quantiles_are_those_of_the_draws():
    drawn = replay_draws(trace_of(), PROFILE, "uniform", "layer", 200)
    assert drawn.mean_s == approx(statistics.mean(drawn.mean_latency_s))
    assert drawn.standard_error_s == approx(statistics.stdev(drawn.mean_latency_s) / 200**0.5)
    assert drawn.quantile_s(0.5) == approx(statistics.median(drawn.mean_latency_s))
    assert drawn.quantile_s(0.05) < drawn.quantile_s(0.5) < drawn.quantile_s(0.95)
    assert replay_draws(trace_of(), PROFILE, "uniform", "layer", 4).quantile_interval_s(0.5) is None


MIN_COVERED = 0.88  # of 100 intervals that cover with probability 0.95 or more, 88 or fewer has probability 0.4 %


def test_the_interval_of_the_median_covers_the_law_s_median():
    trace = trace_of(passes=1, batches=1)
    median = replay_draws(trace, with_fading(seed=10**6), "uniform", "pass", 200_000).quantile_s(0.5)
    covered = 0
    for seed in range(100):
        low, high = replay_draws(trace, with_fading(seed=seed), "uniform", "pass", 60).quantile_interval_s(0.5)
        covered += low <= median <= high
    assert covered / 100 > MIN_COVERED


def test_half_the_payload_halves_communication():
    profile = PROFILE.model_copy(
        update=dict(devices=tuple(d.model_copy(update=dict(compute_flops=1e20)) for d in PROFILE.devices))
    )
    trace = trace_of()
    full = replay(trace, profile, "uniform", "pass").waiting_latency_s
    half = replay(trace, changed_profile(profile, "payload_bits", 8), "uniform", "pass").waiting_latency_s
    assert half == approx(full / 2)


def test_energy_is_power_times_time_and_flop_times_joules():
    devices = tuple(
        d.model_copy(update=dict(energy_j_per_flop=1e-12, transmit_power_w=0.1 * (k + 1)))
        for k, d in enumerate(PROFILE.devices)
    )
    profile, trace = PROFILE.model_copy(update=dict(devices=devices)), trace_of()
    channel = draw_channel(profile)
    energy = replay(trace, profile, "uniform", "pass").energy
    bits, noise = 16 * 32, profile.noise_psd_w_per_hz
    for row, (loads, evaluations) in enumerate(zip(trace.device_load, trace.expert_evaluations, strict=True)):
        down = up = 0.0
        for k in range(8):
            tokens, gain = loads[:, k].sum(), channel.uplink_gain[k]
            down += tokens * 10.0 * bits / oracles.rate(12.5e6, 10.0, gain, noise)
            power_w = 0.1 * (k + 1)
            up += tokens * power_w * bits / oracles.rate(12.5e6, power_w, gain, noise)
        assert energy.downlink_j[row] == approx(down)
        assert energy.uplink_j[row] == approx(up)
        assert energy.computation_j[row] == approx(1e-12 * expert_flop(SHAPE) * evaluations.sum())
    assert replay(trace, PROFILE, "uniform", "pass").energy.computation_j is None


def test_another_placement_is_refused():
    moved = PROFILE.model_copy(
        update=dict(placement=PROFILE.placement.model_copy(update=dict(experts={0: "device_2"})))
    )
    with pytest.raises(TraceError, match="recorded with the placement of profile 'paper_8_devices'"):
        replay(trace_of(), moved, "uniform", "pass")


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("total_bandwith_hz", 1e6, "did you mean 'total_bandwidth_hz'"),
        ("devices[8].distance_m", 1.0, r"devices\[0\] to devices\[7\]"),
        ("devices[1].distance_m", -1.0, r"devices\[1\].distance_m must be > 0, got -1.0"),
        ("payload_bits", 4.5, "payload_bits must be"),
    ],
)
def test_a_bad_change_of_a_profile_gets_one_sentence(key, value, sentence):
    with pytest.raises(ProfileError, match=sentence):
        changed_profile(PROFILE, key, value)


def test_a_change_of_a_profile_changes_one_number():
    assert changed_profile(PROFILE, "devices[2].distance_m", 5).devices[2].distance_m == 5
    assert changed_profile(PROFILE, "total_bandwidth_hz", PROFILE.total_bandwidth_hz) == PROFILE
