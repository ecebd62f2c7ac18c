import json
import re
from dataclasses import replace

import numpy as np
import pytest

from tests.builders.table_runs import run_of
from tests.builders.traces import PROFILE, trace_of, with_fading
from wdmoe_opencompass.channel.profile import changed_profile
from wdmoe_opencompass.report.provenance import batches_are_uneven, origin_notes, provenance
from wdmoe_opencompass.report.summary import write_report

pytestmark = pytest.mark.usefixtures("no_picture")


def part(first_items, items):
    trace = trace_of(batches=len(first_items))
    arrays = dict(first_item=np.array(first_items, np.int32), items=np.array(items, np.int32))
    return replace(trace, arrays=trace.arrays | arrays)


@pytest.mark.parametrize(
    ("parts", "batch_size", "uneven"),
    [
        ([([0, 4, 8], [4, 4, 2])], 4, False),
        ([([0, 4, 8, 0, 4, 8], [4, 4, 2] * 2)], 4, False),  # a perplexity's second label
        ([([0, 4, 7], [4, 3, 3])], 4, True),  # resumed with another batch size
        ([([0, 3, 7], [3, 4, 4])], None, True),
        ([([0], [10])], 25, False),  # fewer items than a batch holds
        ([([0, 4], [4, 4]), ([0, 4], [4, 1])], 4, False),
        ([([0, 4], [4, 2]), ([0, 4], [4, 1])], 4, True),
        ([([0], [10]), ([0], [10])], 25, True),
        ([([], [])], 4, False),
    ],
)
def test_batches_off_the_multiples_of_their_size_are_seen(parts, batch_size, uneven):
    assert batches_are_uneven([part(*block) for block in parts], batch_size) == uneven


def test_only_a_policy_that_couples_tokens_gets_a_note(tmp_path):
    run = run_of("wdmoe", "wlr")
    run.batch_size = 5  # its traces have batches of 4
    assert provenance([run])["notes"] == []
    run.couples_tokens = True
    (note,) = provenance([run])["notes"]
    assert "wdmoe: its policy weighs the tokens of a forward pass together, and m_1, m_2, piqa was split" in note
    write_report([run], ["mmlu", "piqa"], tmp_path)
    for form in ("md", "csv", "tex"):
        assert note in (tmp_path / f"table_1_accuracy.{form}").read_text()
    assert note in json.loads((tmp_path / "table_1_accuracy.json").read_text())["provenance"]["notes"]


def test_exact_scores_of_a_policy_that_couples_tokens_get_a_note(tmp_path):
    run = run_of("wdmoe", "wlr")
    run.perplexity, run.batch_size = "exact", 4
    assert provenance([run])["notes"] == []
    run.couples_tokens = True
    (note,) = provenance([run])["notes"]
    assert "wdmoe: its policy weighs the tokens of a forward pass together: perplexity exact does not undo" in note
    assert note in origin_notes([run])
    run.perplexity = "stock"
    assert provenance([run])["notes"] == []


@pytest.mark.parametrize("routed_from", ["model", "recording", "generator"])
def test_no_table_says_how_texts_were_scored_where_none_was(routed_from):
    run = run_of()
    for traces in run.traces.values():
        changes = dict(routed_from=routed_from)
        traces[:] = [replace(trace, metadata=trace.metadata.model_copy(update=changes)) for trace in traces]
    of_model = routed_from == "model"
    assert any("perplexity stock" in line for line in origin_notes([run])) == of_model
    assert ("perplexity" in provenance([run])["models"][0]) == of_model


def test_a_dataset_may_have_a_batch_size_of_its_own():
    run = run_of("wdmoe", "wlr")
    run.couples_tokens, run.batch_size = True, 64
    run.traces = {"passages": [part([0, 16, 32], [16, 16, 5])], "others": [part([0, 64], [64, 3])]}
    assert "passages was split" in provenance([run])["notes"][0]
    run.own_batch_sizes = dict(passages=16)
    assert provenance([run])["notes"] == []


def test_no_table_calls_a_users_value_the_papers(tmp_path):
    run = run_of()
    mine = changed_profile(changed_profile(PROFILE, "total_bandwidth_hz", 37e6), "devices[1].distance_m", 7.0)
    mine = mine.model_copy(update=dict(name="mine"))
    for traces in run.traces.values():
        changes = dict(profile=mine, profile_hash=mine.content_hash)
        traces[:] = [replace(trace, metadata=trace.metadata.model_copy(update=changes)) for trace in traces]
    write_report([run], ["mmlu", "piqa"], tmp_path)
    own = "own: total_bandwidth_hz, devices[1].distance_m"
    for path in tmp_path.glob("*.md"):
        assert own in path.read_text(), path
        assert not re.search(r"from the paper:[^;]*(total_bandwidth_hz|distance_m)", path.read_text())
    (profile,) = json.loads((tmp_path / "provenance.json").read_text())["profiles"]
    assert profile["origin"]["own"] == ["total_bandwidth_hz", "devices[1].distance_m"]
    assert "devices[0,2-7].distance_m" in profile["origin"]["fitted"]


def test_equal_values_of_two_origins_are_two_profiles():
    runs = [run_of(), run_of("copy")]
    bare = PROFILE.model_copy(update=dict(origin=None, name="typed_by_hand"))
    for traces in runs[1].traces.values():
        traces[:] = [replace(trace, metadata=trace.metadata.model_copy(update=dict(profile=bare))) for trace in traces]
    first, second = provenance(runs)["profiles"]
    assert first["profile_hash"] == second["profile_hash"]
    assert (second["name"], second["origin"]) == ("typed_by_hand", {"own": list(second["origin"]["own"])})
    assert any(line.endswith("typed_by_hand: own: every value") for line in origin_notes(runs))


def test_parts_of_a_dataset_that_met_other_draws_than_the_whole_get_a_note():
    run = run_of()
    profile = with_fading(coherence="pass")
    for traces in run.traces.values():
        named = ["m_2_0", "m_2_1"] if len(traces) > 1 else [next(n for n, them in run.traces.items() if them is traces)]
        changes = [dict(profile=profile, dataset=name) for name in named]
        traces[:] = [
            replace(trace, metadata=trace.metadata.model_copy(update=how)) for trace, how in zip(traces, changes)
        ]
    (note,) = provenance([run])["notes"]
    assert "its fading changes within a run, and m_2 was split: each part has other draws" in note


def test_tables_of_equal_runs_are_equal_byte_for_byte(tmp_path):
    for name in ("a", "b"):
        write_report([run_of()], ["mmlu", "piqa"], tmp_path / name)
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir() if path.name != "main_tables.md"}
    assert len(files) > 50
    assert files == {name: (tmp_path / "b" / name).read_bytes() for name in files}


def test_infinite_parameters_and_several_versions_stand_in_plain_json():
    run = run_of("lexi", "lexi")
    trace = run.traces["piqa"][0]
    odd = dict(policy_parameters=dict(budget=float("inf"), h=(1.0, 2.0)), versions={"numpy": "1.0"})
    run.traces = {
        "piqa": [replace(trace, metadata=trace.metadata.model_copy(update=odd | dict(versions={"numpy": number})))
                 for number in ("1.0", "2.0")],
    }  # fmt: skip
    block = json.loads(json.dumps(provenance([run], scope="pass"), allow_nan=False))
    assert block["models"][0]["parameters"] == {"budget": "inf", "h": [1.0, 2.0]}
    assert block["packages"] == {"numpy": ["1.0", "2.0"]}
    assert block["scope"] == "pass"
