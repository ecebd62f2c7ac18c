import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from tests.builders.trace_blocks import block, metadata
from tests.conftest import ROOT
from wdmoe_opencompass import ExpertShape, draw_channel, link_budget, load_profile, token_latency_s
from wdmoe_opencompass.channel.profile import changed_profile
from wdmoe_opencompass.replay import replay_draws
from wdmoe_opencompass.trace.format import join, read_trace, write_trace


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "d.trace.safetensors"
    write_trace(path, join(metadata(), [block(0), block(4, seed=1)]))
    return path


def test_profile_show_gives_the_draw_and_token_latency(wdmoe):
    shown = json.loads(wdmoe("profile", "show", "paper_8_devices", "--json").stdout)["devices"]
    profile = load_profile("paper_8_devices")
    channel = draw_channel(profile)
    assert [d["downlink_gain"] for d in shown] == channel.downlink_gain.tolist()
    expected = token_latency_s(link_budget(profile, channel, ExpertShape()), 12.5e6)
    assert np.allclose([d["token_latency_s"] for d in shown], expected, rtol=1e-12)
    small = json.loads(
        wdmoe("profile", "show", "paper_8_devices", "--json", "--hidden-size", 64, "--ffn-size", 96).stdout
    )
    assert small["devices"][0]["token_latency_s"] < shown[0]["token_latency_s"]


def test_profile_list_names_the_shipped_profiles(wdmoe):
    assert "paper_8_devices" in wdmoe("profile", "list").stdout


@pytest.mark.parametrize("allocation", ["uniform", "slsqp"])
def test_replay_gives_every_pass_and_the_mean(wdmoe, trace, allocation):
    done = wdmoe(
        "replay", trace, "--profile", "paper_8_devices", "--allocation", allocation, "--scope", "layer", "--json"
    )
    answer = json.loads(done.stdout)
    assert [(p["dataset"], p["batch"], p["pass"]) for p in answer["passes"]] == [
        ("d", b, int(p)) for b, numbers in enumerate(np.split(read(trace).pass_index, 2)) for p in numbers
    ]
    for forward_pass in answer["passes"]:
        assert forward_pass["waiting_latency_s"] == pytest.approx(sum(forward_pass["layer_latency_s"]))
    mean = np.mean([forward_pass["waiting_latency_s"] for forward_pass in answer["passes"]])
    assert answer["mean_waiting_latency_s"] == pytest.approx(mean)


SHARES = {"median": 0.5, "quantile_0.05": 0.05, "quantile_0.95": 0.95}


def test_draws_give_paired_savings_over_the_even_split_and_over_vanilla(wdmoe, trace, tmp_path):
    """In JSON and CSV; a model's own split is compared with its own even split and with that of vanilla's trace."""
    vanilla = tmp_path / "vanilla.trace.safetensors"
    write_trace(vanilla, join(metadata(policy="top_k"), [block(0, seed=2), block(4, seed=3)]))
    files = [vanilla, trace]
    options = ["--allocation", "optimal", "--scope", "layer", "--draws", 30]
    answer = json.loads(wdmoe("replay", *files, *options, "--json").stdout)
    rows = list(csv.DictReader(wdmoe("replay", *files, *options, "--csv").stdout.splitlines()))
    profile = read(trace).metadata.profile
    even, best = (
        [replay_draws(read(path), profile, method, "layer", 30).mean_latency_s for path in files]
        for method in ("uniform", "optimal")
    )
    for number, record in enumerate(answer["summary"]):
        for against, other in (("even", even[number]), ("vanilla_even", even[0])):
            saving = 1 - best[number] / other
            for name, share in SHARES.items():
                key = f"{name}_saving_over_{against}"
                assert record[key] == pytest.approx(np.quantile(saving, share))
                assert float(rows[number][key]) == record[key]
    assert any("selection never saw the other draws" in note for note in answer["notes"])
    assert "selection never saw the other draws" in wdmoe("replay", *files, *options).stdout


def test_what_has_nothing_to_be_compared_with_has_no_saving(wdmoe, trace, tmp_path):
    """The even split saves nothing over itself; a trace of other weights is not vanilla's."""
    other = tmp_path / "other.trace.safetensors"
    write_trace(other, join(metadata(policy="top_k", weights="models/other"), [block(0, seed=2)]))
    for options in ([trace], [trace, other]):
        answer = json.loads(wdmoe("replay", *options, "--draws", 5, "--json").stdout)
        assert not [key for record in answer["summary"] for key in record if "saving" in key]
    alone = json.loads(wdmoe("replay", trace, "--allocation", "optimal", "--draws", 5, "--json").stdout)["summary"][0]
    assert alone["median_saving_over_even"] > 0
    assert "median_saving_over_vanilla_even" not in alone


@pytest.mark.parametrize("changed", ["batches", "scoring"])
def test_traces_of_other_batches_or_scoring_are_not_compared(wdmoe, tmp_path, changed):
    cut = [block(0, 8, seed=2)] if changed == "batches" else [block(0, seed=2), block(4, seed=3)]
    scoring = dict(perplexity="exact") if changed == "scoring" else {}
    files = [tmp_path / f"{name}.trace.safetensors" for name in ("vanilla", "d")]
    write_trace(files[0], join(metadata(policy="top_k", **scoring), cut))
    write_trace(files[1], join(metadata(), [block(0), block(4, seed=1)]))
    (vanilla, own) = json.loads(wdmoe("replay", *files, "--draws", 5, "--json").stdout)["summary"]
    assert not [key for record in (vanilla, own) for key in record if "saving" in key]


def test_a_trace_without_load_has_no_saving_and_no_warning(wdmoe, trace, tmp_path):
    """Nor has another over it, where it is vanilla's."""
    idle = tmp_path / "idle.trace.safetensors"
    blocks = [
        passes
        | {
            name: np.zeros_like(passes[name])
            for name in passes
            if name.startswith(("device_load", "expert_evaluations"))
        }
        for passes in (block(0, seed=2), block(4, seed=3))
    ]
    write_trace(idle, join(metadata(policy="top_k"), blocks))
    for files in ([idle], [idle, trace]):
        done = wdmoe("replay", *files, "--allocation", "optimal", "--draws", 5, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        summary = json.loads(done.stdout)["summary"]
        assert not [key for record in summary for key in record if "saving_over_vanilla" in key]
        assert summary[0].get("median_saving_over_even") is None


def test_replay_names_both_hashes(wdmoe, trace, tmp_path):
    near = tmp_path / "near.yaml"
    own = load_profile("paper_8_devices")
    near.write_text((ROOT / "channel_profiles" / "paper_8_devices.yaml").read_text().replace("1000.0", "20.0"))
    done = wdmoe("replay", trace, "--profile", near)
    assert f"replayed under profile near (hash {load_profile(near).content_hash[:12]})" in done.stdout
    assert f"under profile paper_8_devices (hash {own.content_hash[:12]})" in done.stdout
    answer = json.loads(wdmoe("replay", trace, "--profile", near, "--json").stdout)
    assert answer["recorded_profile_hashes"] == [own.content_hash] != [answer["profile_hash"]]


def test_replay_takes_the_run_s_own_profile_and_asks_where_there_are_several(wdmoe, trace, tmp_path):
    own = wdmoe("replay", trace, "--json").stdout
    assert own == wdmoe("replay", trace, "--profile", "paper_8_devices", "--json").stdout
    near = changed_profile(load_profile("paper_8_devices"), "devices[7].distance_m", 20.0)
    other = tmp_path / "other.trace.safetensors"
    changes = dict(profile=near, profile_hash=near.content_hash)
    write_trace(other, replace(read_trace(trace), metadata=read_trace(trace).metadata.model_copy(update=changes)))
    done = wdmoe("replay", trace, other)
    assert done.returncode == 2
    assert "recorded under different profiles" in done.stderr


def test_sweep_draws_and_payload_give_one_row_each_as_csv(wdmoe, trace):
    sweep = "total_bandwidth_hz=20e6:120e6:3"
    options = ["--allocation", "optimal", "--draws", 20, "--payload-bits", 8, "--csv"]
    rows = list(
        csv.DictReader(
            wdmoe("replay", trace, "--profile", "paper_8_devices", "--sweep", sweep, *options).stdout.splitlines()
        )
    )
    assert [float(row["total_bandwidth_hz"]) for row in rows] == [20e6, 70e6, 120e6]
    means = [float(row["mean_waiting_latency_s"]) for row in rows]
    assert means == sorted(means, reverse=True)
    assert all(0 < float(row["standard_error_s"]) < float(row["mean_waiting_latency_s"]) for row in rows)
    ordered = ("quantile_0.05_s", "median_95_low_s", "median_waiting_latency_s", "median_95_high_s", "quantile_0.95_s")
    for row in rows:
        values = [float(row[name]) for name in ordered]
        assert values == sorted(values)
        assert (row["allocation"], row["scope"]) == ("optimal", "layer")
        assert row["recorded_profile_hash"] == load_profile("paper_8_devices").content_hash[:12] != row["profile_hash"]
    printed = wdmoe(
        "replay", trace, "--profile", "paper_8_devices", "--scope", "pass", "--allocation", "optimal"
    ).stdout
    assert printed.count("pass (hindsight)") == 2  # in the table's row, and below
    answer = json.loads(wdmoe("replay", trace, "--profile", "paper_8_devices", "--sweep", sweep, "--json").stdout)
    assert "mean_waiting_latency_s" not in answer
    assert "expected latency is infinite" in wdmoe("replay", trace, "--profile", "paper_8_devices", "--draws", 9).stdout


@pytest.mark.parametrize("scope", ["pass", "layer"])
def test_allocate_answers_with_a_certificate(wdmoe, tmp_path, scope):
    loads = tmp_path / "loads.json"
    loads.write_text(json.dumps([[120, 80, 95, 60, 33, 71, 150, 0], [1, 2, 3, 4, 5, 6, 7, 8], [0] * 8]))
    answers = {}
    for method in ("uniform", "slsqp", "optimal"):
        done = wdmoe("allocate", "paper_8_devices", "--loads", loads, "--scope", scope, "--method", method, "--json")
        answers[method] = answer = json.loads(done.stdout)
        assert set(answer) == {
            "bandwidth_hz", "layer_latency_s", "waiting_latency_s", "lower_bound_s", "relative_gap", "method", "scope"
        }  # fmt: skip
        assert np.sum(answer["bandwidth_hz"], axis=1) == pytest.approx([1e8] * (3 if scope == "layer" else 1))
        assert answer["waiting_latency_s"] == pytest.approx(sum(answer["layer_latency_s"]))
        assert answer["layer_latency_s"][2] == 0
    assert answers["optimal"]["relative_gap"] < 1e-6
    assert answers["uniform"]["relative_gap"] > 0.01
    assert answers["optimal"]["lower_bound_s"] == answers["uniform"]["lower_bound_s"]


def test_no_load_at_all_takes_no_time(wdmoe, tmp_path):
    loads = tmp_path / "loads.json"
    loads.write_text(json.dumps([[0] * 8]))
    answer = json.loads(wdmoe("allocate", "paper_8_devices", "--loads", loads, "--json").stdout)
    assert (answer["waiting_latency_s"], answer["lower_bound_s"], answer["relative_gap"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[[1, 2, 3]]", "must be layers x 8 devices"),
        ("[[1, 2, 3, 4, 5, 6, 7, -8]]", "must be finite and >= 0"),
        ("[[1, 2, 3, 4, 5, 6, 7, NaN]]", "must be finite and >= 0"),
        ('[[1, 2, 3, 4, 5, 6, 7, "1"]]', "each a list of tokens per device; [0][7] is 1"),
        ("[[1, 2, 3, 4, 5, 6, 7, true]]", "each a list of tokens per device; [0][7] is True"),
        ("[[[1, 2, 3, 4, 5, 6, 7, 8]]]", "each a list of tokens per device; [0][0] is [1, 2"),
        (f"[[1, 2, 3, 4, 5, 6, 7, 1{'0' * 400}]]", "must be finite and >= 0"),
        ("[" * 100_000, "must be JSON"),
        ("[[1, 2, 3, 4, 5, 6, 7, 8], [1]]", "must be rows of 8 numbers"),
        ("{}", "must be a list of layers"),
        ("[]", "must be layers x 8 devices"),
        ("[[1", "must be JSON"),
    ],
)
def test_bad_loads_get_one_sentence(wdmoe, tmp_path, content, sentence):
    loads = tmp_path / "loads.json"
    loads.write_text(content)
    done = wdmoe("allocate", "paper_8_devices", "--loads", loads, "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "loads.json: " in done.stderr
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def read(path):
    from wdmoe_opencompass.trace.format import read_trace

    return read_trace(path)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["profile", "show", "paper_8"], "did you mean 'paper_8_devices'"),
        (["profile", "show", "no.yaml"], "no.yaml: no such channel profile file"),
        (["profile", "validate", "setup.cfg"], "must end in .yaml"),
        (["replay", "no.trace", "--profile", "paper_8_devices"], "no.trace: cannot be read"),
        (["replay", "TRACE", "--profile", "testbed_4_devices"], "devices of profile 'paper_8_devices'"),
        (["replay", "TRACE", "--profile", "paper_8_devices", "--allocation", "slsq"], "did you mean 'slsqp'"),
        (["replay", "TRACE", "--profile", "paper_8_devices", "--scope", "batch"], "scope 'batch' is unknown"),
        (["replay", "TRACE", "--profile", "paper_8_devices", "--sweep", "1:2:3"], "--sweep must be KEY=FROM:TO:POINTS"),
        (["replay", "TRACE", "--profile", "paper_8_devices", "--sweep", "bandwidth=1:2:3"], "is unknown"),
        (
            ["replay", "TRACE", "--profile", "paper_8_devices", "--payload-bits", "0"],
            "payload_bits must be >= 1, got 0",
        ),
        (["figures", "no-such-run"], "no-such-run: does not exist"),
        (["replay", "TRACE", "--profile", "paper_8_devices", "--csv", "--json"], "exclude each other"),
        (
            ["replay", "TRACE", "--profile", "paper_8_devices", "--sweep", "total_bandwidth_hz=1:inf:3"],
            "between finite numbers",
        ),
        (
            ["replay", "TRACE", "--profile", "paper_8_devices", "--sweep", "total_bandwidth_hz=1:2:99999999999"],
            "--sweep must have 1 to 10000 points",
        ),
        (
            [
                *("replay", "TRACE", "--profile", "paper_8_devices", "--allocation", "optimal"),
                *("--sweep", "devices[0].distance_m=1e200:1e201:2"),
            ],
            "devices[0].distance_m must be between 0.0001 and 1e+14 m, got 1e+200",
        ),
        (["report", "no-such-run"], "no-such-run: does not exist; give a run's time-stamped folder"),
    ],
)
def test_bad_input_gets_one_sentence_and_exit_code_2(wdmoe, trace, arguments, sentence):
    done = wdmoe(*(trace if word == "TRACE" else word for word in arguments))
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
