"""Policies on recorded router outputs: what a run counts, counted again without its model."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders.router_outputs import gpt_oss
from tests.routing.families import example_for, find_moe_layers, tiny_model
from tests.routing.recordings import (
    import_arrays,
    random_recording,
    recorded,
    recorded_batches,
    recording_metadata,
    run_recording,
)
from tests.tiny import PAD, example_parameters, prompts
from wdmoe_opencompass import ExpertShape, load_profile
from wdmoe_opencompass.errors import ModelError, PolicyError, TraceError
from wdmoe_opencompass.replay import replay
from wdmoe_opencompass.report import routed as routed_folder
from wdmoe_opencompass.report.routed import routed_rows
from wdmoe_opencompass.routing.channel_state import ChannelStates
from wdmoe_opencompass.routing.route import full_probabilities, route_passes, route_recording, vanilla_trace
from wdmoe_opencompass.selection import POLICIES, policy_parameters
from wdmoe_opencompass.trace.format import join, read_trace, write_trace
from wdmoe_opencompass.trace.recording import new_recording, read_recording, write_recording
from wdmoe_opencompass.trace.recording_import import import_recording

PROFILE = load_profile("paper_8_devices")


def route(recording, policy, **settings):
    layers, experts, k = (getattr(recording.metadata, name) for name in ("layers", "num_experts", "top_k"))
    return route_recording(recording, policy, example_parameters(policy, layers, experts, k), PROFILE, **settings)


def assert_same_counts(routed, expected):
    for name, array in expected.arrays.items():
        assert np.array_equal(routed.arrays[name], array), name


# -- against the model's own run ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_on_its_own_recording_counts_what_the_run_counted(policy):
    """Also in later layers: the recording is of a run whose later layers saw what this policy had dropped."""
    traced, recording = recorded_batches(tiny_model("mixtral"), policy)
    routed = route(recording, policy)
    assert_same_counts(routed, join(routed.metadata, traced))
    assert recording.metadata.has_probabilities
    assert set(routed.phase.tolist()) == {0, 1}


@pytest.mark.parametrize("policy", ["top_k", "wlr", "naee"])
@pytest.mark.parametrize("family", ["deepseek_v3", "gpt_oss", "qwen2_moe", "dbrx", "olmoe", "llama4_text"])
def test_routers_of_every_kind_are_recorded(family, policy):
    model = tiny_model(family)
    layers = find_moe_layers(model)
    traced, recording = recorded_batches(model, policy)
    built = example_for(layers, policy)
    routed = route_recording(recording, policy, policy_parameters(built), PROFILE)
    assert_same_counts(routed, join(routed.metadata, traced))
    assert recording.metadata.has_probabilities == all(layer.router_kind == "softmax" for layer in layers)


def test_open_loop_the_first_layer_is_the_runs_and_later_ones_are_near():
    """Later layers saw the drops of a run under `wlr`: of random weights their loads differ by at most 15 %."""
    model = tiny_model("mixtral")
    ids, mask = prompts(rows=4)

    def run(policy):
        with recorded(model, policy) as attachment, torch.no_grad():
            model(input_ids=ids, attention_mask=mask)
            return attachment.recorder.finish_batch(0, 4), attachment.router_recorder.finish_batch(0, 4)

    own, _ = run("wlr")
    _, recording = recorded_batches(model, "top_k")
    vanilla_block = run("top_k")[1]
    routed = route(type(recording)(recording.metadata, **vanilla_block), "wlr")
    for name in ("device_load", "device_load_before", "assignments", "weight_sum"):
        assert np.array_equal(routed.arrays[name][:, 0], own[name][:, 0]), name
    distance = np.abs(routed.device_load - own["device_load"]).sum() / own["device_load"].sum()
    assert 0 < distance < 0.15


def test_padding_and_finished_rows_are_not_recorded():
    model = tiny_model("mixtral")
    ids, mask = prompts(rows=4, side="left")
    with recorded(model, "top_k") as attachment:
        model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=PAD)
        block = attachment.router_recorder.finish_batch(0, 4)
    assert block["prompt_length"].tolist() == mask.sum(1).tolist() == [11, 10, 9, 8]
    for sequence in range(4):
        own = block["position"][block["sequence"] == sequence]
        assert own.tolist() == list(range(len(own)))


def test_a_batch_that_failed_leaves_nothing():
    model = tiny_model("mixtral")
    ids, mask = prompts(rows=4)
    with recorded(model, "top_k") as attachment:
        handle = attachment.layers[1].experts.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError), torch.no_grad():
            model(input_ids=ids, attention_mask=mask)
        handle.remove()
        with torch.no_grad():
            model(input_ids=ids, attention_mask=mask)
        assert attachment.router_recorder.finish_batch(0, 4)["passes"].tolist() == [1]


def test_a_pass_of_several_new_tokens_is_refused():
    model = tiny_model("mixtral")
    ids, _ = prompts(rows=1)
    with recorded(model, "top_k"), torch.no_grad():
        cache = model(input_ids=ids[:, :5], use_cache=True).past_key_values
        with pytest.raises(ModelError, match="needs one new token in each of a batch's rows per forward pass"):
            model(input_ids=ids[:, 5:], past_key_values=cache)


# -- on recordings alone -----------------------------------------------------------------------------------------------
@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=6),
    batch_size=st.integers(1, 7),
    policy=st.sampled_from(sorted(POLICIES)),
    seed=st.integers(0, 99),
)
def test_what_holds_for_every_policy(lengths, batch_size, policy, seed):
    prompt, new = zip(*lengths, strict=True)
    recording = random_recording(seed, prompt, new)
    if not len(recording.sequence):
        return
    routed = route(recording, policy, batch_size=batch_size)
    vanilla = vanilla_trace(routed)
    assert_same_counts(vanilla, route(recording, "top_k", batch_size=batch_size))
    assert routed.tokens.sum() == len(recording.sequence)
    assert (routed.assignments_before == 2 * routed.tokens[:, None]).all()
    assert (routed.assignments <= routed.assignments_before).all()
    assert (routed.device_load.sum(axis=2) <= routed.assignments).all()
    for layer in range(3):  # eight experts on eight devices
        expected = np.bincount(recording.expert_index[:, layer].ravel(), minlength=8)
        assert (vanilla.device_load[:, layer].sum(axis=0) == expected).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_runs_on_weights_alone_and_refuses_ids_in_a_sentence(policy):
    weighted = random_recording(probabilities=False)
    if POLICIES[policy].may_add:
        with pytest.raises(
            PolicyError, match=r"may give a token an expert outside its top-k.*or say with --top-k-mass"
        ):
            route(weighted, policy)
    else:
        assert route(weighted, policy).metadata.softmax_recorded is False
    assert route(weighted, policy, top_k_mass=0.7).metadata.top_k_mass == 0.7
    ids = random_recording(weights=False, probabilities=False)
    if policy == "top_k":
        routed = route(ids, policy)
        assert not routed.weight_sum.any()
        assert not routed.ratio_counts.any()
        assert np.array_equal(routed.device_load, route(random_recording(), policy).device_load)
        return
    with pytest.raises(
        PolicyError, match=f"selection policy '{policy}' needs router weights, and the recording has"
    ) as e:
        route(ids, policy)
    assert "\n" not in str(e.value)


def test_the_top_ks_mass_is_what_is_said_and_the_rest_is_even():
    weights = torch.tensor([[[0.75, 0.25]]])
    index = torch.tensor([[[4, 1]]])
    assert full_probabilities(weights, index, 6).tolist() == [[[0, 0.25, 0, 0, 0.75, 0]]]
    spread = full_probabilities(weights, index, 6, 0.8)
    assert torch.allclose(spread, torch.tensor([[[0.05, 0.2, 0.05, 0.05, 0.6, 0.05]]]))


@pytest.mark.parametrize(
    ("changes", "mass", "sentence"),
    [
        (dict(probabilities=False), 1.5, "--top-k-mass must be > 0 and <= 1, got 1.5"),
        (dict(probabilities=False), 0.0, "--top-k-mass must be > 0"),
        (dict(), 0.5, "and this recording has it; leave it out"),
        (dict(weights=False, probabilities=False), 0.5, "--top-k-mass needs the weights of the top-k"),
    ],
)
def test_a_mass_that_cannot_be_is_refused(changes, mass, sentence):
    with pytest.raises(PolicyError, match=re.escape(sentence)):
        route(random_recording(**changes), "top_k", top_k_mass=mass)


def test_a_trace_of_a_models_run_has_no_vanilla_of_its_own():
    routed = route(run_recording(), "wlr")
    own = type(routed)(routed.metadata.model_copy(update=dict(routed_from="model")), routed.arrays)
    with pytest.raises(TraceError, match="comes from a model's run: its router outputs depend on drops"):
        vanilla_trace(own)


def test_passes_are_streamed():
    recording = run_recording()
    routed = route(recording, "wlr")
    states = ChannelStates(PROFILE, ExpertShape(32, 48), 8)
    seen = []

    def passes():
        for router_pass in recording.router_passes():
            seen.append(router_pass)
            yield router_pass

    policy = POLICIES["wlr"]()
    again = route_passes(passes(), policy, states, routed.metadata)
    assert len(seen) == 6
    assert_same_counts(again, routed)
    empty = route_passes([], policy, states, routed.metadata)
    assert len(empty.batch) == 0


def test_router_outputs_of_memory_that_is_read_only_are_taken():
    recording = run_recording()
    for name in ("expert_index", "weights", "probabilities"):
        getattr(recording, name).flags.writeable = False
    assert_same_counts(route(recording, "wlr"), route(run_recording(), "wlr"))


# -- the command -------------------------------------------------------------------------------------------------------
@pytest.fixture
def recording_file(tmp_path):
    path = tmp_path / "tiny.routing.safetensors"
    write_recording(path, random_recording(prompt_length=(9, 4, 7, 5) * 8, new=(3, 4, 0, 2) * 8, probabilities=False))
    return path


def test_route_tells_the_four_rows(wdmoe, recording_file):
    words = ("route", recording_file, "--policy", "wlr", "--batch-size", 4, "--parameters", '{"theta": 0.4}', "--json")
    answer = json.loads(wdmoe(*words).stdout)
    assert (answer["policy"], answer["policy_parameters"]["theta"]) == ("wlr", 0.4)
    recording = random_recording(prompt_length=(9, 4, 7, 5) * 8, new=(3, 4, 0, 2) * 8, probabilities=False)
    routed = route_recording(recording, "wlr", dict(theta=0.4), PROFILE, 4)
    assert answer["kept_share"] == routed.assignments.sum() / routed.assignments_before.sum() < 1
    assert (answer["passes"], answer["tokens"]) == (8 * 5, len(recording.sequence))
    assert [set(row) for row in answer["rows"]] == [{"row", "scope", "latency_s", "saving"}] * 4
    assert answer["rows"] == routed_rows(vanilla_trace(routed), routed, "layer")
    by_row = {row["row"]: row for row in answer["rows"]}
    assert list(by_row) == ["vanilla_even", "selection_only", "allocation_only", "both"]
    waits = replay(routed, PROFILE, "optimal", "layer").layer_latency_s
    assert by_row["both"]["latency_s"] == pytest.approx(waits.sum() / len(waits))
    for row in answer["rows"]:
        assert row["saving"] == pytest.approx(1 - row["latency_s"] / by_row["vanilla_even"]["latency_s"])
        assert row["scope"] == "layer"
    said = " ".join(answer["notes"])
    for words_said in ("open loop", "no accuracy", "know the top-k only"):
        assert words_said in said


def test_hindsight_splits_once_per_pass(wdmoe, recording_file):
    words = ("route", recording_file, "--policy", "wlr", "--json")
    layer, hindsight = (json.loads(wdmoe(*words, "--scope", scope).stdout)["rows"] for scope in ("layer", "pass"))
    assert layer[0]["latency_s"] == pytest.approx(hindsight[0]["latency_s"])
    assert layer[2]["latency_s"] < hindsight[2]["latency_s"]


def test_the_screen_says_what_the_numbers_cannot_know(wdmoe, recording_file):
    shown = wdmoe("route", recording_file, "--policy", "oea", "--top-k-mass", 0.6, "--scope", "pass").stdout
    for words in ("mean per forward pass", "open loop", "no accuracy", "weigh 0.6 together", "seed 0", "batch size 64"):
        assert words in shown
    assert shown.count("pass (hindsight)") == 4


def test_the_batch_size_is_told_and_is_in_the_trace(wdmoe, recording_file, tmp_path):
    out = tmp_path / "routed"
    words = ("route", recording_file, "--policy", "top_k", "--json")
    assert json.loads(wdmoe(*words).stdout)["batch_size"] == 64
    assert json.loads(wdmoe(*words, "--batch-size", 4, "--out", out).stdout)["batch_size"] == 4
    assert read_trace(out / "predictions" / "tiny-top_k" / "d.trace.safetensors").metadata.batch_size == 4
    table = json.loads((out / "summary" / "table_2_latency_layer_per_pass_all.json").read_text())
    assert table["provenance"]["models"][0]["batch_size"] == 4
    own = tmp_path / "own.routing.safetensors"
    write_recording(own, run_recording())
    assert json.loads(wdmoe("route", own, "--policy", "top_k", "--json").stdout)["batch_size"] is None
    assert "batches of the recorded run" in wdmoe("route", own, "--policy", "top_k").stdout


def test_a_bad_scope_is_said_before_anything_is_routed(wdmoe, tmp_path):
    done = wdmoe("route", tmp_path / "missing", "--policy", "wlr", "--scope", "al")
    assert (done.returncode, done.stdout) == (2, "")
    assert "scope 'al' is unknown" in done.stderr


# -- requests ----------------------------------------------------------------------------------------------------------
PER_SEQUENCE = "each candidate answer is a request of its own"


def ranked_recording():
    """-> a run's recording of 2 items ranked by perplexity, each with 2 candidate answers: 4 sequences."""
    whole = random_recording(prompt_length=(3, 4, 5, 6), new=(0, 0, 0, 0))
    arrays = {name: getattr(whole, name) for name in ("expert_index", "weights", "probabilities")}
    arrays |= {name: getattr(whole, name) for name in ("sequence", "position", "prompt_length")}
    numbers = dict(batch=[0, 0, 1, 1], first_pass=[0] * 4, first_item=[0, 0], items=[2, 2], passes=[1, 1])
    arrays |= {name: np.array(values, np.int32) for name, values in numbers.items()}
    return new_recording("ranked", recording_metadata(), arrays)


def test_candidate_answers_are_of_one_request_in_the_runs_own_batches_alone(tmp_path):
    own, cut = (route(ranked_recording(), "top_k", batch_size=size) for size in (None, 2))
    assert len(replay(own, PROFILE, "uniform", "layer").request_latency_s) == 2
    assert len(replay(cut, PROFILE, "uniform", "layer").request_latency_s) == 4
    for name, trace, is_said in (("own", own, False), ("cut", cut, True)):
        routed_folder.write_routed(tmp_path / name, trace)
        table = json.loads((tmp_path / name / "summary" / "requests.json").read_text())
        assert any(PER_SEQUENCE in note for note in table["notes"]) == is_said
        assert any(PER_SEQUENCE in note for note in table["provenance"]["notes"]) == is_said
    generated = own.metadata.model_copy(update=dict(routed_from="generator"))
    assert any(PER_SEQUENCE in note for note in generated.routed_notes())


@pytest.mark.parametrize("begins_after_prompts", [False, True])
def test_a_sequence_without_tokens_waits_for_no_pass(tmp_path, begins_after_prompts):
    arrays = import_arrays(prompt_length=(3, 2, 4), new=(2, 5, 1))
    chosen = arrays["sequence"] == 1
    if begins_after_prompts:
        chosen &= arrays["position"] >= 2
    for name in ("expert_index", "weights", "probabilities", "sequence", "position"):
        arrays[name] = arrays[name][chosen]
    np.savez(tmp_path / "x.npz", **arrays)
    routed = route(import_recording(tmp_path / "x.npz"), "top_k")
    write_trace(tmp_path / "x.trace.safetensors", routed)
    trace = read_trace(tmp_path / "x.trace.safetensors")
    assert trace.item_passes.tolist() == [0, len(trace.batch), 0]
    part = replay(trace, PROFILE, "uniform", "layer")
    assert part.request_latency_s == pytest.approx([part.waiting_latency_s.sum()])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--policy", "wrl"), "selection policy 'wrl' is unknown; did you mean 'wlr'"),
        (("--policy", "wlr", "--parameters", '{"tehta": 1}'), "takes no parameter tehta; did you mean theta"),
        (("--policy", "wlr", "--parameters", "theta=1"), "--parameters must be a JSON object of parameters"),
        (("--policy", "wlr", "--parameters", "[1]"), "--parameters must be a JSON object of parameters"),
        (("--policy", "wlr", "--profile", "nowhere"), "nowhere"),
        (("--policy", "wlr", "--scope", "all"), "all"),
        (("--policy", "sift_moe"), "sift_moe"),
        (("--policy", "wlr", "--top-k-mass", "2"), "--top-k-mass must be > 0 and <= 1, got 2.0"),
    ],
)
def test_bad_options_get_one_sentence(wdmoe, recording_file, words, sentence):
    done = wdmoe("route", recording_file, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_file_that_is_no_recording_gets_one_sentence(wdmoe, tmp_path):
    (tmp_path / "x").write_text("x")
    for path, sentence in ((tmp_path / "x", "not a recording of a router, or torn"), (tmp_path / "y", "No such file")):
        done = wdmoe("route", path, "--policy", "wlr")
        assert (done.returncode, sentence in done.stderr) == (2, True), done


@pytest.mark.slow
def test_the_folder_is_one_that_the_other_commands_work_on(wdmoe, recording_file, tmp_path):
    out = tmp_path / "routed"
    for policy in ("wlr", "fixed_k"):
        done = wdmoe("route", recording_file, "--policy", policy, "--batch-size", 4, "--out", out, "--json")
        assert done.returncode == 0, done.stderr
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.trace.safetensors"))
    assert names == [f"predictions/tiny-{name}/d.trace.safetensors" for name in ("fixed_k", "top_k", "wlr")]
    answer = json.loads(done.stdout)
    trace = read_trace(out / "predictions" / "tiny-fixed_k" / "d.trace.safetensors")
    assert trace.metadata.recording_sha256 == answer["recording_sha256"]

    report = wdmoe("report", out)
    assert report.returncode == 0, report.stderr
    for words in ("tiny-wlr", "tiny-fixed_k", "both", "open loop", "no accuracy", "know the top-k only"):
        assert words in report.stdout
    tables = json.loads(wdmoe("report", out, "--json").stdout)
    assert [row["d"] for row in tables["table_1_accuracy"]["rows"]] == ["-"] * 3
    assert any("no accuracy" in note for note in tables["table_1_accuracy"]["notes"])
    assert len(json.loads(wdmoe("figures", out, "--json").stdout)["written"]) == 8
    page = wdmoe("report", out, "--html")
    assert page.returncode == 0
    assert "open loop" in (out / "summary" / "report.html").read_text()
    replayed = json.loads(wdmoe("replay", *out.rglob("*.trace.safetensors"), "--scope", "layer", "--json").stdout)
    assert len(replayed["summary"]) == 3
    assert any("open loop" in note for note in replayed["notes"])
    rows = {row["row"]: row["latency_s"] for row in answer["rows"]}
    by_model = {row["model"]: row["mean_waiting_latency_s"] for row in replayed["summary"]}
    assert by_model["tiny-top_k"] == pytest.approx(rows["vanilla_even"])
    assert by_model["tiny-fixed_k"] == pytest.approx(rows["selection_only"])
    frontier = wdmoe("frontier", out, "--json")
    assert (frontier.returncode, frontier.stderr) == (0, "")
    points = {row["model"]: row for row in json.loads(frontier.stdout)["rows"]}
    assert set(points) == {"tiny-top_k", "tiny-wlr", "tiny-fixed_k"}
    weights = read_recording(recording_file).weights
    strongest = f"{100 * weights.max(axis=2).sum() / weights.sum():.1f}"
    assert points["tiny-top_k"]["router weight kept (%)"] == "100.0"
    assert points["tiny-fixed_k"]["router weight kept (%)"] == strongest
    assert points["tiny-fixed_k"]["latency, even split"].startswith(
        f"{rows['selection_only'] / rows['vanilla_even']:.3f} ["
    )
    assert not any("accuracy" in name for name in points["tiny-wlr"])
    shown = wdmoe("frontier", out).stdout
    assert "router weight kept is no accuracy: the traces were routed without a model" in shown
    assert "frontier.png" in shown
    compared = wdmoe("compare", out, out, "--format", "csv").stdout
    assert "open loop" in compared
    assert "accuracy (%)" not in compared


def test_a_folder_of_another_recording_or_of_other_parameters_is_refused(
    wdmoe,
    recording_file,
    tmp_path,
    monkeypatch,
):
    monkeypatch.setattr(routed_folder, "write_summary", lambda folder: None)  # tables and pictures take their time
    out = tmp_path / "routed"
    words = ("route", recording_file, "--policy", "wlr", "--out", out)
    assert wdmoe(*words).returncode == 0
    assert wdmoe(*words).returncode == 0  # the same again
    write_recording(tmp_path / "other", random_recording(seed=1, probabilities=False))
    for changed, sentence in (
        (("--parameters", '{"theta": 0.3}'), "with policy parameters"),
        (("--batch-size", 2), "with a batch size of 64, not 2"),
        (("--profile", "near_far_8_devices"), "under a profile with hash"),
        (("--top-k-mass", 0.5), "with a top-k mass of"),
    ):
        done = wdmoe(*words, *changed)
        assert (done.returncode, sentence in done.stderr) == (2, True), done.stderr
    done = wdmoe("route", tmp_path / "other", "--policy", "wlr", "--out", out)
    assert "of a recording with SHA-256" in done.stderr


def test_import_and_show(wdmoe, tmp_path):
    path, arrays = gpt_oss(tmp_path)
    out = tmp_path / "gpt.routing.safetensors"
    done = wdmoe("recording", "import", path, "--out", out, "--model", "gpt-oss-20b", "--dataset", "mmlu", "--json")
    assert json.loads(done.stdout)["tokens"] == 10463
    shown = json.loads(wdmoe("recording", "show", out, "--json").stdout)
    assert (shown["model"], shown["dataset"], shown["num_experts"]) == ("gpt-oss-20b", "mmlu", 32)
    routed = json.loads(wdmoe("route", out, "--policy", "top_k", "--json").stdout)
    assert (routed["tokens"], routed["kept_share"]) == (10463, 1.0)
    trace = route_recording(import_recording(path), "top_k", {}, PROFILE)
    device = np.array(PROFILE.device_of_expert(32))
    for layer in range(24):  # a token goes once to a device that holds several of its experts
        sent = [len(set(device[row])) for row in arrays["experts"][:, layer].astype(int)]
        assert trace.device_load[:, layer].sum() == sum(sent)
        computed = np.bincount(device[arrays["experts"][:, layer].ravel()], minlength=8)
        assert (trace.expert_evaluations[:, layer].sum(axis=0) == computed).all()
    done = wdmoe("recording", "import", path, "--out", tmp_path / "x.safetensors")
    assert "a recording's name must end in .routing.safetensors" in done.stderr
