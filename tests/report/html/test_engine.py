"""The page's engine against the Python that it repeats, on the same traces, profiles and settings."""

import json
import warnings
from dataclasses import replace
from functools import reduce
from typing import get_args

import hypothesis
import numpy as np
import pytest
import yaml
from hypothesis import strategies as st
from pytest import approx
from typer.testing import CliRunner

from tests.builders.measured_profiles import measured, trace_of
from tests.channel.profiles import st_profiles
from tests.examples import seeds
from tests.report.html.javascript import NOTHING, available, javascript
from wdmoe_opencompass import list_profiles, load_profile
from wdmoe_opencompass.allocation.base import Scope
from wdmoe_opencompass.channel.duplex import Duplex
from wdmoe_opencompass.channel.path_loss import PATH_LOSS_MODELS
from wdmoe_opencompass.channel.profile import ChannelProfile, Fading, changed_profile
from wdmoe_opencompass.channel.propagation import draw_channel
from wdmoe_opencompass.errors import AllocationError, ProfileError
from wdmoe_opencompass.latency import ExpertShape, device_latency_s, link_budget
from wdmoe_opencompass.replay import pooled_mean, replay
from wdmoe_opencompass.report.batches import batch_sums
from wdmoe_opencompass.report.html.counts import counts, packed_bytes
from wdmoe_opencompass.report.html.page import script
from wdmoe_opencompass.report.runs import ModelRun
from wdmoe_opencompass.trace.format import PHASES

PAPER = load_profile("paper_8_devices")
SAME = 1e-12  # of what both sides compute by the same formula
GAP = {"layer": 1e-9, "pass": 1e-7}  # of an optimum: that of a layer is sharp, Python's of a pass is proven to 1e-7
PHASE_NAMES = ("all", *PHASES)


@pytest.fixture(scope="module")
def engine():
    """-> function(source of a JavaScript function, argument) with the engine loaded."""
    if not available():
        pytest.skip(NOTHING)
    with javascript(available()[0]) as evaluate:
        yield lambda function, argument=None: evaluate(script("engine"), function, argument)


def of(profile, **changes):
    """The profile with other values, checked again."""
    data = profile.model_dump(mode="json", exclude_none=True)
    for key, value in changes.items():
        data[key] = data[key] | value if isinstance(value, dict) else value
    return ChannelProfile.model_validate(data)


PROFILES = {name: load_profile(name) for name in list_profiles()} | {
    "coherence pass": of(PAPER, fading=dict(coherence="pass")),
    "coherence layer": of(PAPER, fading=dict(coherence="layer", seed=10**18)),
    "frequency division": of(PAPER, duplex="frequency_division"),
    "frequency division, coherence layer": of(PAPER, duplex="frequency_division", fading=dict(coherence="layer")),
    "one device": of(PAPER, devices=[PAPER.devices[0].model_dump(exclude_none=True)]),
    "measured": measured(),
    "measured, several messages": measured(message_s=0.02),
    "measured, with bursts": measured(message_s=0.02, burst_bit=2000.0),
    "measured, one radio": measured(message_s=0.02, shared_bit_per_s=1e6),
}


def run_of(profile, abbr="m", **traces):
    return ModelRun(abbr, "top_k", ("w", profile.content_hash), traces=traces)


def split_run(profile, abbr="m", seed=0):
    """A dataset in two parts and a whole one that is smaller."""
    parts = [trace_of(profile, f"d_{n}", seed=seed + n) for n in range(2)]
    return run_of(profile, abbr, d=parts, e=[trace_of(profile, "e", seed=seed + 7, batches=2, passes=1)])


def changes_of(profile):
    """-> settings of the engine and the same changes for changed_profile, several cases."""
    last = len(profile.devices) - 1
    devices = [dict(name=device.name, distance_m=None, transmit_power_w=None) for device in profile.devices]
    devices[0]["distance_m"] = 333.25
    devices[last]["transmit_power_w"] = 0.0375
    moved = {"devices[0].distance_m": 333.25, f"devices[{last}].transmit_power_w": 0.0375}
    narrow, wide = dict(total_bandwidth_hz=3.7e7, payload_bits=5), dict(total_bandwidth_hz=2.5e9)
    return [({}, {}), (narrow, narrow), (wide | dict(devices=devices), wide | moved)]


def changed(profile, changes):
    return reduce(lambda changed, change: changed_profile(changed, *change), changes.items(), profile)


def without_fading(profile):
    return profile.model_copy(update=dict(fading=profile.fading.model_copy(update=dict(model="none"))))


COMPUTED = """([counts, cases]) => {
  const run = WdmoeEngine.load(counts);
  return cases.map((changes) => {
    const settings = { ...WdmoeEngine.defaults(run), ...changes };
    const result = WdmoeEngine.compute(run, settings);
    const model = result.models[0];
    const of = (found, make) => Object.fromEntries(["all", "prefill", "decode"].map((phase) => [phase, make(phase)]));
    const datasets = Object.fromEntries(Object.entries(model.datasets).map(([name, found]) => [name, {
      layer_latency_s: found.layer_latency_s,
      waiting_latency_s: found.waiting_latency_s,
      waiting_device: found.waiting_device,
      error: found.error,
      largest_gap: found.largest_gap,
      mean: of(found, (phase) => ["pass", "batch"].map((per) => found.mean_s(per, phase))),
      per_batch_s: of(found, (phase) => found.per_batch_s(phase)),
      groups: of(found, (phase) => found.groups(phase)),
      load: of(found, (phase) => found.layer_device_load(phase)),
      time: of(found, (phase) => found.layer_device_time_s(phase)),
      waited_on: of(found, (phase) => found.waited_on(phase)),
    }]));
    const profile = WdmoeEngine.changed_profile(run, 0, settings);
    return { datasets, yaml: WdmoeEngine.to_yaml(profile), origins: WdmoeEngine.origin_sentence(profile) };
  });
}"""


def cases_of(profile):
    """-> (settings, the profile that they make) of every allocation, scope and change, one with fading on and off."""
    for number, (settings, changes) in enumerate(changes_of(profile)):
        for fading in (True, False) if number == 1 and profile.fading.model != "none" else (None,):
            expected = changed(profile, changes)
            expected = without_fading(expected) if fading is False else expected
            for allocation in ("uniform", "optimal"):
                for scope in get_args(Scope):
                    yield settings | dict(allocation=allocation, scope=scope, fading=fading), expected


@pytest.mark.parametrize("name", PROFILES)
def test_every_number_is_that_of_a_replay(engine, name, tmp_path):
    profile = PROFILES[name]
    run = split_run(profile)
    cases = list(cases_of(profile))
    answers = engine(COMPUTED, [counts([run]), [settings for settings, _ in cases]])
    for (settings, expected), answer in zip(cases, answers, strict=True):
        near = GAP[settings["scope"]] if settings["allocation"] == "optimal" else SAME
        path = tmp_path / f"{profile.name}.yaml"
        path.write_text(answer["yaml"])
        saved = load_profile(path)
        assert saved == expected
        assert saved.content_hash == expected.content_hash
        assert answer["origins"] == expected.origin_sentence == saved.origin_sentence
        for dataset, traces in run.traces.items():
            parts = [replay(trace, expected, settings["allocation"], settings["scope"]) for trace in traces]
            same_numbers(answer["datasets"][dataset], parts, near)


def same_numbers(found, parts, near):
    assert found["error"] is None
    latency = np.concatenate([part.layer_latency_s for part in parts])
    waiting = latency.sum(axis=1)
    assert found["waiting_latency_s"] == approx(waiting, rel=near, abs=0)
    # where several splits of a pass are equally good its layers differ by more than their sum
    layer_near = near if near < GAP["pass"] else 100 * near
    assert np.reshape(found["layer_latency_s"], latency.shape) == approx(latency, rel=layer_near, abs=0)
    for phase in PHASE_NAMES:
        means = [pooled_mean(parts, lambda part: part.waiting_latency_s, per, phase) for per in ("pass", "batch")]
        assert found["mean"][phase] == approx(means, rel=near) if None not in means else found["mean"][phase] == means
        chosen = [part.trace.is_phase(phase) for part in parts]
        by_batch = [
            np.bincount(part.trace.batch[rows], part.waiting_latency_s[rows], len(part.trace.items))
            for part, rows in zip(parts, chosen)
        ]
        assert found["per_batch_s"][phase] == approx(np.concatenate(by_batch), rel=near, abs=0)
        sums, groups = batch_sums(parts, phase), found["groups"][phase]
        assert [tuple(item) for item in groups["items"]] == sums.items
        assert groups["latency_s"] == approx(sums.latency_s, rel=near, abs=0)
        assert (groups["passes"], groups["batches"]) == (sums.passes.tolist(), sums.batches.tolist())
        loads = np.concatenate([part.trace.device_load[rows] for part, rows in zip(parts, chosen)])
        mean_load = loads.mean(axis=0) if len(loads) else np.zeros(loads.shape[1:])
        assert np.array(found["load"][phase]) == approx(mean_load)


def test_no_passes_are_no_latency(engine):
    run = run_of(PAPER, d=[trace_of(PAPER, batches=0)])
    for scope in get_args(Scope):
        (answer,) = engine(COMPUTED, [counts([run]), [dict(scope=scope)]])
        found = answer["datasets"]["d"]
        assert found["mean"] == {phase: [None, None] for phase in PHASE_NAMES}
        assert found["groups"]["all"]["items"] == []
        assert found["error"] is None


# ---- heat maps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["paper_8_devices", "measured", "measured, several messages", "measured, one radio"])
def test_times_and_waits_are_those_of_a_plain_loop_over_passes(engine, name):
    profile = PROFILES[name]
    trace = trace_of(profile, batches=5)
    budget = link_budget(profile, draw_channel(profile), ExpertShape(32, 48))
    even_hz = profile.total_bandwidth_hz / len(profile.devices)
    times = device_latency_s(budget, even_hz, trace.device_load, trace.expert_evaluations)
    answer = engine(COMPUTED, [counts([run_of(profile, d=[trace])]), [dict(allocation="uniform")]])
    found = answer[0]["datasets"]["d"]
    message_s = profile.base_station.message_s or 0.0
    token_s = 2 * budget.payload_bit / (profile.base_station.shared_bit_per_s or np.inf)
    waits, last, latency = np.zeros(times.shape), np.full(times.shape[:2], -1), np.zeros(times.shape[:2])
    for cell in np.ndindex(times.shape[:2]):
        loaded = [k for k in range(times.shape[2]) if times[cell][k] > 0]
        if loaded:
            last[cell] = max(loaded, key=times[cell].__getitem__)
            waits[cell][last[cell]] = 1
            tokens = sum(trace.device_load[cell][k] for k in loaded if k != last[cell])
            latency[cell] = times[cell][last[cell]] + (len(loaded) - 1) * message_s + tokens * token_s
    assert found["waiting_device"] == last.ravel().tolist()
    for phase in PHASE_NAMES:
        chosen = trace.is_phase(phase)
        assert np.array(found["time"][phase]) == approx(times[chosen].mean(axis=0), rel=SAME)
        assert np.array(found["waited_on"][phase]) == approx(waits[chosen].mean(axis=0), rel=SAME)
    assert found["layer_latency_s"] == approx(latency.ravel(), rel=SAME)


def test_devices_that_finish_together_share_the_wait(engine):
    trace = trace_of(PAPER, batches=3)
    answer = engine(COMPUTED, [counts([run_of(PAPER, d=[trace])]), [dict(allocation="optimal", scope="layer")]])
    found = answer[0]["datasets"]["d"]
    loaded = trace.device_load > 0
    expected = loaded / np.maximum(loaded.sum(axis=2, keepdims=True), 1)
    assert np.array(found["waited_on"]["all"]) == approx(expected.mean(axis=0))
    first = np.where(loaded.any(axis=2), loaded.argmax(axis=2), -1)
    assert found["waiting_device"] == first.ravel().tolist()


def test_messages_to_equal_devices_delay_each_other(engine):
    profile = measured(message_s=0.02, alike=True)
    trace = trace_of(profile)
    trace.arrays["device_load"][:] = trace.arrays["expert_evaluations"][:] = 7
    (answer,) = engine(COMPUTED, [counts([run_of(profile, d=[trace])]), [dict(allocation="uniform")]])
    latency = replay(trace, profile, "uniform", "pass").layer_latency_s
    assert answer["datasets"]["d"]["layer_latency_s"] == approx(latency.ravel(), rel=SAME)
    assert set(answer["datasets"]["d"]["waiting_device"]) == {0}
    assert np.array(answer["datasets"]["d"]["waited_on"]["all"]) == approx(0.25)


# ---- optima ---------------------------------------------------------------------------------------------------


def random_profile(seed, decades=(0, 6)):
    """Distances over the given decades, FLOP/s over 6, powers over 4, 1 to 9 devices, any duplex and coherence."""
    rng = np.random.default_rng(seed)
    devices = [
        dict(
            name=f"d{k}",
            distance_m=float(10 ** rng.uniform(*decades)),
            transmit_power_w=float(10 ** rng.uniform(-3, 1)),
            compute_flops=float(10 ** rng.uniform(9, 15)),
        )
        for k in range(rng.integers(1, 10))
    ]
    distances_m = [device["distance_m"] for device in devices]
    possible = [device | dict(distance_m=min(device["distance_m"], 1e9)) for device in devices]
    profile = of(
        PAPER,
        devices=possible,
        duplex=str(rng.choice(get_args(Duplex))),
        total_bandwidth_hz=float(10 ** rng.uniform(5, 9)),
        fading=dict(coherence=str(rng.choice(["run", "pass", "layer"])), seed=seed),
    )
    return at_distances(profile, distances_m)


def at_distances(profile, distances_m):
    """The profile with distances that no profile file may have."""
    changes = [dict(distance_m=distance_m) for distance_m in distances_m]
    moved = (device.model_copy(update=change) for device, change in zip(profile.devices, changes, strict=True))
    return profile.model_copy(update=dict(devices=tuple(moved)))


OPTIMA = """(counts) => {
  const run = WdmoeEngine.load(counts);
  return ["layer", "pass"].map((scope) => WdmoeEngine.compute(run, { ...WdmoeEngine.defaults(run), scope }).models.map(
    ({ datasets: { d } }) => [d.layer_latency_s, d.error, d.largest_gap]));
}"""


def test_optima_of_hundreds_of_random_problems_are_those_of_python(engine):
    runs, problems = [], 0
    for seed in seeds(48):
        profile = random_profile(seed, ((0, 6), (0, 9), (0, 6), (8, 9))[seed % 4])  # gains over twice as many decades
        layers, largest = 1 + seed % 5, (3, 60, 5000)[seed % 3]
        shape = ((32, 48), (4096, 14336))[seed % 2]
        trace = trace_of(profile, seed=seed, batches=2, largest=largest, layers=layers, shape=shape)
        problems += trace.device_load.any(axis=2).sum()
        runs.append(run_of(profile, f"m{seed}", d=[trace]))
    assert problems > 600
    answers = engine(OPTIMA, counts(runs))
    for scope, of_models in zip(("layer", "pass"), answers, strict=True):
        for run, (latency, error, gap) in zip(runs, of_models, strict=True):
            (trace,) = run.traces["d"]
            assert error is None
            assert -1e-12 <= gap <= GAP[scope]
            expected = replay(trace, trace.metadata.profile, "optimal", scope).layer_latency_s
            found = np.reshape(np.array(latency, dtype=float), expected.shape)  # JavaScript writes large ones as whole
            assert found.sum(axis=1) == approx(expected.sum(axis=1), rel=GAP[scope], abs=0)
            if scope == "layer":
                assert found == approx(expected, rel=GAP["layer"], abs=0)


FAR = ((10, 20), (20, 65), (65, 80), (85, 90))  # decades of metres; slopes leave the range of numbers in the last


def test_what_python_cannot_prove_is_reported_here_too(engine):
    """Neither gives a number that it cannot prove. Profiles of one device, where nothing is split, are left out."""
    profiles = [random_profile(seed, FAR[seed % len(FAR)]) for seed in seeds(48)]
    profiles = [profile for profile in profiles if len(profile.devices) > 1]
    runs = [run_of(profile, f"m{n}", d=[trace_of(profile, seed=n)]) for n, profile in enumerate(profiles)]
    proven = []
    for scope, of_models in zip(("layer", "pass"), engine(OPTIMA, counts(runs)), strict=True):
        for run, profile, (latency, error, _) in zip(runs, profiles, of_models, strict=True):
            try:
                with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
                    expected = replay(run.traces["d"][0], profile, "optimal", scope).layer_latency_s
            except AllocationError:
                proven.append(False)
                assert error is not None
                continue
            proven.append(True)
            assert error is None
            found = np.reshape(np.array(latency, dtype=float), expected.shape)
            assert found.sum(axis=1) == approx(expected.sum(axis=1), rel=GAP[scope], abs=0)
    assert set(proven) == {True, False}


def test_a_latency_beyond_numbers_is_an_error_in_both(engine):
    far = at_distances(PAPER, [1e170, *(device.distance_m for device in PAPER.devices[1:])])
    trace = trace_of(far)
    with pytest.raises(ProfileError, match=r"paper_8_devices: devices\[0\].distance_m is 1e\+170, must be between"):
        replay(trace, far, "uniform", "pass")
    cases = [dict(allocation="uniform"), dict(scope="layer"), dict(scope="pass")]
    for answer in engine(COMPUTED, [counts([run_of(far, d=[trace])]), cases]):
        assert answer["datasets"]["d"]["error"]


# ---- settings and profiles ------------------------------------------------------------------------------------


def test_settings_are_changes_of_each_models_own_profile(engine):
    two = [device.model_dump(exclude_none=True) for device in PAPER.devices[:2]]
    other = of(PAPER, name="other", payload_bits=8, devices=two)
    packed = counts([split_run(PAPER, "a"), split_run(other, "b")])
    settings, own, profiles, bits = engine(
        """(counts) => {
          const run = WdmoeEngine.load(counts), settings = WdmoeEngine.defaults(run);
          const changed = { ...settings, total_bandwidth_hz: 7e7 };
          const profiles = ["a", "b"].map((abbr) => WdmoeEngine.changed_profile(run, abbr, changed));
          return [settings, WdmoeEngine.own(run), profiles, WdmoeEngine.own(run, 1).payload_bits];
        }""",
        packed,
    )
    names = [device.name for device in PAPER.devices]
    nothing = [dict(name=name, distance_m=None, transmit_power_w=None) for name in names]
    assert settings == dict(
        total_bandwidth_hz=None, payload_bits=None, fading=None, allocation="optimal", scope="layer", devices=nothing
    )
    assert (own["total_bandwidth_hz"], own["payload_bits"], own["fading"], bits) == (1e8, 16, True, 8)
    assert [device["distance_m"] for device in own["devices"]] == [device.distance_m for device in PAPER.devices]
    for profile, plain in zip((PAPER, other), profiles, strict=True):
        assert ChannelProfile.model_validate(plain) == changed_profile(profile, "total_bandwidth_hz", 7e7)


HOSTILE = ['"', "a: b", "- x", "#no", "1e3", "null", "%TAG", "é漢😀", "{a}", "&a", "back\\slash", "base station"]


def test_any_profile_goes_through_yaml_unchanged(engine, tmp_path):
    devices = [
        dict(name=name, distance_m=10.0 ** (0.7 * n), transmit_power_w=10.0 ** (4 - n), compute_flops=1.5e6 * 10.0**n)
        for n, name in enumerate(HOSTILE)
    ]
    odd = of(
        PAPER,
        name="odd: [name]",
        devices=devices,
        noise_psd_dbm_per_hz=-100.1 - 0.2,
        fading=dict(seed=2**53 + 1),
        placement=dict(others="base_station", experts=dict(enumerate(HOSTILE))),
    )
    saved = engine(
        "(counts) => WdmoeEngine.load(counts).models.map(({ profile }) => WdmoeEngine.to_yaml(profile))",
        counts([split_run(odd), split_run(measured(message_s=1e-7), "b")]),
    )
    for profile, text in zip((odd, measured(message_s=1e-7)), saved, strict=True):
        path = tmp_path / f"{profile.name.replace(':', '')}.yaml"
        path.write_text(text)
        assert load_profile(path).content_hash == profile.content_hash
    from wdmoe_opencompass.cli import app

    done = CliRunner().invoke(app, ["profile", "validate", str(path)])
    assert done.exit_code == 0, done.output


@hypothesis.settings(max_examples=10, deadline=None)
@hypothesis.given(profiles=st.lists(st_profiles(), min_size=10, max_size=10))
def test_origins_of_any_profile_are_those_that_python_finds_and_go_through_yaml(engine, tmp_path_factory, profiles):
    runs = [run_of(profile, f"m{n}", d=[trace_of(profile, batches=1, passes=1)]) for n, profile in enumerate(profiles)]
    found = engine(
        """(counts) => WdmoeEngine.load(counts).models.map(({ profile }) =>
             [WdmoeEngine.origin_sentence(profile), WdmoeEngine.to_yaml(profile)])""",
        counts(runs),
    )
    folder = tmp_path_factory.mktemp("saved")
    for profile, (sentence, text) in zip(profiles, found, strict=True):
        assert sentence == profile.origin_sentence
        path = folder / "saved.yaml"
        path.write_text(text)
        data = {"name": profile.name, **yaml.safe_load(text)}
        assert ChannelProfile.model_validate(data).value_origins() == profile.value_origins()


REFUSED = """([counts, cases]) => {
  const run = WdmoeEngine.load(counts);
  return cases.map((changes) => {
    try {
      WdmoeEngine.compute(run, { ...WdmoeEngine.defaults(run), ...changes });
      return null;
    } catch (error) {
      return error.message;
    }
  });
}"""


@pytest.mark.parametrize(
    "key, values",
    [
        ("total_bandwidth_hz", [0, -1.0, 0.5, 1.0, 1e15, 2e15]),
        ("payload_bits", [0, 1, 64, 65, 1.5]),
        ("devices[0].distance_m", [0, -0.0, 1e-5, 0.001, 0.01, 1e14, 2e14]),
        ("devices[0].transmit_power_w", [0, -5.0, 1e-13, 1e-12, 1e9, 2e9]),
    ],
)
def test_the_engine_takes_what_a_profile_takes(engine, key, values):
    def allowed(value):
        try:
            changed_profile(PAPER, key, value)
        except ProfileError:
            return False
        return True

    name = key.rpartition(".")[2]
    settings = [
        {name: value} if name == key else dict(devices=[dict(name="device_1") | {name: value}]) for value in values
    ]
    refused = engine(REFUSED, [counts([split_run(PAPER)]), settings])
    assert [reason is None for reason in refused] == [allowed(value) for value in values]
    assert all(name in reason for reason in refused if reason)


@pytest.mark.parametrize(
    "key, values",
    [
        ("total_bandwidth_hz", [1e-300, 0.9, 1e16, 1e300]),
        ("distance_m", [1e-9, 1e15, 1e160]),
        ("transmit_power_w", [1e-13, 1e10]),
    ],
)
def test_what_no_radio_has_is_refused(engine, key, values):
    settings = [{key: v} if key.startswith("total") else dict(devices=[{"name": "device_1", key: v}]) for v in values]
    refused = engine(REFUSED, [counts([split_run(PAPER)]), settings])
    assert all(f"{key}" in reason and "must be between" in reason for reason in refused)


def test_wrong_settings_get_a_reason(engine):
    cases = [dict(allocation="slsqp"), dict(scope="run"), dict(fading="rayleigh"), dict(payload_bits="16")]
    reasons = engine(REFUSED, [counts([split_run(PAPER)]), cases])
    assert reasons == [
        "allocation must be one of uniform, optimal, got slsqp",
        "scope must be one of layer, pass, got run",
        "fading must be one of true, false or null, got rayleigh",
        "payload_bits must be a number, got 16",
    ]


def applicable(engine, runs, settings=None):
    function = "([counts, settings]) => WdmoeEngine.applicable(WdmoeEngine.load(counts), settings)"
    return engine(function, [counts(runs), settings])


def test_controls_that_change_nothing_are_named_with_a_reason(engine):
    found = applicable(engine, [split_run(measured())])
    assert [key for key, control in found.items() if control["applies"]] == ["payload_bits"]
    assert "measured" in found["total_bandwidth_hz"]["reason"]
    found = applicable(engine, [split_run(PAPER)], dict(allocation="uniform"))
    assert [key for key, control in found.items() if not control["applies"]] == ["scope"]
    found = applicable(engine, [split_run(PAPER), split_run(without_fading(PAPER), "calm")])
    assert found["fading"] == dict(applies=True, reason="changes nothing for calm: the profile has no fading")


@pytest.mark.parametrize("name", PROFILES)
def test_a_control_applies_if_and_only_if_it_changes_a_latency(engine, name):
    profile = PROFILES[name]
    first = profile.devices[0].name
    changes = dict(
        total_bandwidth_hz=1.7e7,
        payload_bits=3,
        distance_m=dict(devices=[dict(name=first, distance_m=1e4)]),
        transmit_power_w=dict(devices=[dict(name=first, transmit_power_w=1e-4)]),
        fading=False,
        allocation="uniform",
        scope="pass",
    )
    run = split_run(profile)
    cases = [{}, *(change if isinstance(change, dict) else {key: change} for key, change in changes.items())]
    plain, *others = engine(COMPUTED, [counts([run]), cases])
    found = applicable(engine, [run])
    for key, other in zip(changes, others, strict=True):
        same = other["datasets"]["d"]["waiting_latency_s"] == plain["datasets"]["d"]["waiting_latency_s"]
        assert found[key]["applies"] is not same, key
        assert bool(found[key]["reason"]) is same


def test_the_engine_knows_every_model_that_a_profile_may_name(engine):
    known = engine("() => WdmoeEngine.known")
    assert set(known["path_loss"]) == set(PATH_LOSS_MODELS)
    assert set(known["duplex"]) == set(get_args(Duplex))
    assert set(known["fading"]) == set(get_args(Fading.model_fields["model"].annotation))
    assert set(known["rates"]) == set(get_args(ChannelProfile.model_fields["rates"].annotation))
    assert set(known["scopes"]) == set(get_args(Scope))
    assert known["phases"] == list(PHASES)


# ---- counts ---------------------------------------------------------------------------------------------------


def test_groups_of_datasets_are_pooled_and_lack_what_a_member_lacks(engine):
    runs = [split_run(PAPER, "a"), split_run(PAPER, "b")]
    for run in runs:
        run.groups = {"both": ["d", "e"]}
    del runs[1].traces["e"]
    runs[1].missing["e"] = "the task failed"
    whole, lacking = engine(
        """(counts) => {
          const run = WdmoeEngine.load(counts);
          const result = WdmoeEngine.compute(run, { ...WdmoeEngine.defaults(run), allocation: "uniform" });
          return result.models.map((model) => [model.mean_s("both", "batch", "decode"), model.left_out]);
        }""",
        counts(runs),
    )
    parts = [replay(trace, PAPER, "uniform", "pass") for trace in runs[0].traces_of("both")]
    expected = pooled_mean(parts, lambda part: part.waiting_latency_s, "batch", "decode")
    assert whole == [approx(expected, rel=SAME), {}]
    assert lacking == [None, {"e": "the task failed"}]


def test_equal_rows_are_held_once():
    trace = trace_of(PAPER, batches=1, passes=1, layers=4)
    trace.arrays["device_load"].sort(axis=1)  # rows in the order in which distinct ones are held
    trace.arrays["expert_evaluations"] = trace.arrays["device_load"]
    once = counts([run_of(PAPER, d=[trace])])["models"][0]["datasets"]["d"]
    again = {name: np.repeat(array, 500, axis=0) for name, array in trace.arrays.items()}
    again["batch"] = np.zeros(500, dtype=np.int32)
    again |= {name: trace.arrays[name] for name in ("first_item", "items", "co_selection", "ratio_counts")}
    often = counts([run_of(PAPER, d=[replace(trace, arrays=again)])])["models"][0]["datasets"]["d"]
    assert often["load"] == once["load"]
    assert (once["passes"], often["passes"], often["rows"]) == (1, 500, 4)
    assert packed_bytes(often) < 500 * 8  # the phase and four row numbers of a byte per pass, a third more as text


def test_what_does_not_fit_is_left_out_of_every_model_and_says_so():
    runs = [split_run(PAPER, "a"), split_run(PAPER, "b", seed=50)]
    packed = counts(runs)
    assert all(model["left_out"] == {} for model in packed["models"])
    sizes = {name: sum(packed_bytes(model["datasets"][name]) for model in packed["models"]) for name in ("d", "e")}
    assert sizes["e"] < sizes["d"]
    total = sum(sizes.values())
    for most, kept in ((total, ["d", "e"]), (total - 1, ["e"]), (sizes["e"] - 1, [])):
        for model in counts(runs, most)["models"]:
            assert list(model["datasets"]) == kept
            assert set(model["left_out"]) == {"d", "e"} - set(kept)
            assert all("MB of text" in reason for reason in model["left_out"].values())
            assert packed_bytes(model["datasets"]) <= most


def test_computed_tokens_that_were_not_sent_are_no_counts():
    trace = trace_of(PAPER)
    trace.arrays["expert_evaluations"][0, 0, 0] = 1  # no load there
    (model,) = counts([run_of(PAPER, d=[trace], e=[trace_of(PAPER, "e")])])["models"]
    assert list(model["datasets"]) == ["e"]
    assert model["left_out"] == {"d": "m counts tokens computed on a device that none was sent to"}


def test_counts_are_plain_json_and_the_same_every_time():
    runs = [split_run(PROFILES["coherence layer"])]
    text = json.dumps(counts(runs), allow_nan=False)
    assert text == json.dumps(counts(runs), allow_nan=False)
    assert json.loads(text) == counts(runs)


def test_a_dense_model_has_no_counts():
    assert counts([ModelRun("dense", "dense", ("w", ""))])["models"] == []


def test_node_and_chromium_give_the_same_numbers():
    if len(available()) < 2:
        pytest.skip("only one kind of JavaScript is installed")
    argument = [counts([split_run(PAPER)]), [dict(scope="layer"), dict(scope="pass")]]
    answers = []
    for kind in available():
        with javascript(kind) as evaluate:
            answers.append(evaluate(script("engine"), COMPUTED, argument))
    ours, theirs = ([answer["datasets"]["d"]["waiting_latency_s"] for answer in group] for group in answers)
    assert ours[0] == approx(theirs[0], rel=GAP["layer"])
    assert ours[1] == approx(theirs[1], rel=GAP["pass"])
