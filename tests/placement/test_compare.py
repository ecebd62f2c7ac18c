"""`wdmoe place` on traces, from the counts to the channel profile it writes."""

import json

import numpy as np
import pytest
from pytest import approx

from tests.builders.planted_routing import counted, planted, replayed, routing
from tests.builders.random_traces import random_trace, trace_of
from tests.builders.trace_blocks import metadata
from wdmoe_opencompass.channel import load_profile
from wdmoe_opencompass.errors import TraceError
from wdmoe_opencompass.latency import ExpertShape
from wdmoe_opencompass.placement import co_selection_of, compare_placements, latency, placed_profile
from wdmoe_opencompass.trace.format import RoutingTrace, empty_arrays, write_trace

PROFILE = load_profile("paper_8_devices")


@pytest.fixture
def written(tmp_path):
    def write(trace, name="d"):
        path = tmp_path / f"{name}.trace.safetensors"
        write_trace(path, trace)
        return path

    return write


@pytest.mark.parametrize("objective", ["latency", "transfers"])
def test_what_is_printed_is_what_a_replay_of_the_routing_gives(objective):
    chosen = routing(rows=6, tokens=40, experts=8, top_k=2)
    answer = compare_placements([trace_of(counted(chosen, 8, 2))], devices=4, objective=objective)
    budget = latency(answer.profile, ExpertShape(32, 48))
    for one in answer.judged:
        assert one.mean_waiting_latency_s == approx(sum(replayed(chosen, one.device_of_expert, budget)) / 2)
        visits = [len({one.device_of_expert[e] for e in token}) for token in chosen.reshape(-1, 2)]
        assert one.transfers_per_token_layer == approx(np.mean(visits))
    key = dict(latency="mean_waiting_latency_s", transfers="transfers_per_token_layer")[objective]
    assert all(getattr(answer.ours, key) <= getattr(one, key) * (1 + 1e-12) for one in answer.judged)
    assert answer.ours.status == "proven optimal"
    assert answer.records()[0]["latency_saving_percent"] == 0


def test_out_of_time_it_is_a_heuristic_with_a_bound():
    status = compare_placements([random_trace()], devices=4, time_limit_s=1e-9).ours.status
    assert status.startswith("heuristic, the optimum is at most ")


def test_progress_adds_up_to_two_shares():
    for top_k, limit in ((2, 30), (2, 0), (3, 30)):
        shares = []
        compare_placements([random_trace(top_k=top_k)], time_limit_s=limit, advance=shares.append)
        assert sum(shares) == approx(2)


def test_several_traces_count_as_one():
    traces = [random_trace(seed, batches=seed + 1) for seed in range(3)]
    together = co_selection_of(traces)
    assert together.batches == 6
    assert np.array_equal(together.pairs, np.concatenate([t.co_selection for t in traces]).reshape(18, 28))


def test_beyond_pairs_it_is_called_a_heuristic(wdmoe, written):
    done = wdmoe("place", written(random_trace(top_k=3)), "--devices", 4, "--json")
    answer = json.loads(done.stdout)
    assert [one["status"] for one in answer["placements"]] == ["baseline", "heuristic", "heuristic"]
    assert any("3 experts per token" in note and "heuristic" in note for note in answer["notes"])


def test_notes_name_what_is_assumed():
    trace = random_trace(policy="wlr", batches=2)
    trace.arrays["pass_index"][1] = 1
    placed = placed_profile(PROFILE, np.arange(8)[::-1])
    notes = " ".join(compare_placements([trace], placed, time_limit_s=0).notes)
    for text in (
        "recorded under policy wlr",
        "several forward passes",
        "split evenly over the 8",
        "is replaced",
        "seed 0",
    ):
        assert text in notes
    assert "policy" not in " ".join(compare_placements([random_trace()], time_limit_s=0).notes)


def test_transfers_are_placed_on_the_devices_that_answer_first():
    """Two planted groups, two unlike devices: more tokens go to the device of lower latency."""
    counts = counted(np.array([[[0, 2]] * 30 + [[1, 3]] * 10] * 3), 4)
    answer = compare_placements([trace_of(counts)], devices=2, objective="transfers")
    fast = int(np.argmin(latency(answer.profile, ExpertShape(32, 48)).per_token))
    assert answer.ours.transfers_per_token_layer == 1
    assert [int(d) for d in answer.ours.device_of_expert] == [fast, 1 - fast, fast, 1 - fast]


def test_the_file_is_a_whole_profile_that_the_other_commands_take(wdmoe, written, tmp_path):
    counts, group = planted(4, 2, seed=1)
    path, out = written(trace_of(counts)), tmp_path / "placed.yaml"
    options = ["--devices", 4, "--objective", "transfers", "--out", out]
    answer = json.loads(wdmoe("place", path, *options, "--json").stdout)
    profile = load_profile(out)
    assert profile.content_hash == answer["profile_hash"]
    assert profile.devices == PROFILE.devices[:4]
    origins = profile.value_origins()
    assert (origins["placement.experts"], origins["placement.others"]) == ("computed", "computed")
    before = PROFILE.value_origins()
    assert {key: before[key] for key in origins if not key.startswith("placement.")} == {
        key: word for key, word in origins.items() if not key.startswith("placement.")
    }
    place = np.array(profile.device_of_expert(8))
    assert ((place[:, None] == place) == (group[:, None] == group)).all()
    assert answer["placement"] == {str(e): profile.devices[d].name for e, d in enumerate(place)}
    assert answer["placements"][2]["experts_of_device"]["device_1"] == np.flatnonzero(place == 0).tolist()
    assert "Made by `wdmoe place` from channel profile paper_8_devices and the routing traces tiny/d" in out.read_text()
    assert "4 devices, hash" in wdmoe("profile", "validate", out).stdout
    table = wdmoe("place", path, *options).stdout.splitlines()
    assert [row.split()[0] for row in table[:4]] == ["placement", "default", "cap_greedy", "ours"]
    assert table[3].endswith("proven optimal")
    assert table[-1] == f"written: {out}"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--devices", 9], "devices must be 1 to 8, those of profile 'paper_8_devices', got 9"),
        (["--devices", 0], "devices must be 1 to 8"),
        (["--experts-per-device", 1, "--devices", 4], "4 devices with 1 experts each cannot hold 8 experts"),
        (["--objective", "latncy"], "objective 'latncy' is unknown; did you mean 'latency'?"),
        (["--out", "placed.json"], "placed.json: a channel profile file must end in .yaml"),
        (["--out", "no/such/folder/placed.yaml"], "placed.yaml: cannot be written: "),
        (["--profile", "paper_8"], "did you mean 'paper_8_devices'"),
        (["--profile", "lab.yaml", "--out", "lab.yaml"], "lab.yaml: --out would overwrite the profile that is read"),
        (["no.trace"], "no.trace: cannot be read"),
    ],
)
def test_bad_input_gets_one_sentence_and_exit_code_2(wdmoe, written, arguments, sentence):
    done = wdmoe("place", written(random_trace()), "--time-limit", 0, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_traces_that_say_too_little_are_refused():
    one = random_trace()
    single = RoutingTrace(metadata(top_k=1), one.arrays)
    other = RoutingTrace(metadata(model="other", hidden_size=64), one.arrays)
    uneven = random_trace()
    uneven.arrays["co_selection"][0, 0, 0] += 1
    empty = RoutingTrace(metadata(), empty_arrays(metadata()))
    for traces, sentence in (
        ([single], "trace of d has top_k = 1: .* top_k must be >= 2"),
        ([one, other], r"traces of tiny/d and other/d differ in hidden_size \(32 and 64\)"),
        ([uneven], "co_selection does not add up to 2 experts per token"),
        ([empty], "the trace of d holds no forward pass"),
    ):
        with pytest.raises(TraceError, match=sentence):
            co_selection_of(traces)
