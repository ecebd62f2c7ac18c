"""The frontier's points, intervals and Pareto front."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from pytest import approx

from tests.builders.frontier_runs import BENCHMARKS, runs
from tests.builders.traces import trace_of
from tests.routing.recordings import random_recording
from wdmoe_opencompass import load_profile
from wdmoe_opencompass.channel.profile import Placement
from wdmoe_opencompass.report.frontier import _mark_front, draw_frontier, frontier_records, frontier_table
from wdmoe_opencompass.report.records import latency_cells
from wdmoe_opencompass.report.runs import ModelRun
from wdmoe_opencompass.report.summary import write_report
from wdmoe_opencompass.routing.route import route_recording
from wdmoe_opencompass.trace.format import RoutingTrace

pytestmark = pytest.mark.usefixtures("no_picture")


def test_a_point_is_what_the_tables_hold():
    records = frontier_records(runs(), BENCHMARKS, latency_cells(runs()))
    assert [record["model"] for record in records] == ["vanilla", "b"]
    vanilla, other = records
    cells = {
        (r["model"], r["dataset"], r["allocation"]): r["latency_s"]
        for r, _ in latency_cells(runs())
        if (r["scope"], r["per"], r["phase"]) == ("layer", "batch", "all")
    }
    for split, name in (("optimal", "latency_ratio"), ("uniform", "latency_ratio_even")):
        ratios = [cells["b", d, split] / cells["vanilla", d, "uniform"] for d in BENCHMARKS]
        assert other[name] == approx(np.sqrt(np.prod(ratios)))
        assert other[f"{name}_low"] < other[name] < other[f"{name}_high"]
    assert vanilla["latency_ratio_even"] == approx(1)
    assert other["waiting_latency_s"] == approx(np.mean([cells["b", d, "optimal"] for d in BENCHMARKS]))
    assert (vanilla["accuracy"], other["accuracy"]) == (approx(60), approx(57.5))
    assert other["difference"] == approx(-2.5)
    assert other["difference_low"] < -2.5 < other["difference_high"]
    assert other["mcnemar_p"] == approx(2 * 0.5**10)  # ten items that vanilla alone got right
    assert other["holm_p"] == other["mcnemar_p"]
    assert vanilla["difference"] is None


def test_a_benchmark_that_is_not_measured_leaves_the_model_out():
    incomplete = runs()
    del incomplete[1].traces["piqa"]
    records = frontier_records(incomplete, BENCHMARKS, latency_cells(incomplete))
    assert [record["model"] for record in records] == ["vanilla"]


@pytest.mark.parametrize("quantised", [True, False])
def test_a_smaller_payload_is_measured_against_the_full_one(quantised):
    """And left out where the answers do not know of it."""
    several = runs()[:2]
    small = several[1]
    for traces in small.traces.values():
        metadata = traces[0].metadata
        profile = metadata.profile.model_copy(update=dict(payload_bits=4))
        traces[0] = RoutingTrace(
            metadata.model_copy(update=dict(profile=profile, quantise_payload=quantised)), traces[0].arrays
        )
    small.base = (small.base[0], "another profile")
    if not quantised:
        assert [record["model"] for record in frontier_records(several, BENCHMARKS, latency_cells(several))] == [
            "vanilla"
        ]
        return
    full, quartered = (
        frontier_records(models, BENCHMARKS, latency_cells(models))[1] for models in (runs()[:2], several)
    )
    assert (full["payload_bits"], quartered["payload_bits"]) == (16, 4)
    assert quartered["latency_ratio_even"] < 0.6 * full["latency_ratio_even"]
    assert quartered["difference"] == full["difference"]


def test_holm_counts_the_models_of_one_vanilla():
    several = [*runs(), *runs()[1:2]]
    several[-1].abbr = "d"
    records = frontier_records(several, BENCHMARKS, latency_cells(several))
    assert [record["holm_p"] for record in records[1:]] == [approx(2 * records[1]["mcnemar_p"])] * 2


def test_the_front_is_what_nothing_beats():
    points = [(0.9, 80), (0.8, 80), (0.7, 70), (0.75, 65), (0.6, 60), (0.6, 60), (0.5, 90)]
    records = [dict(latency_ratio=x, quality_percent=y, family="one", payload_bits=16) for x, y in points[:-1]]
    records.append(dict(latency_ratio=0.1, quality_percent=99, family="one", payload_bits=8))
    records.append(dict(latency_ratio=0.5, quality_percent=90, family="another", payload_bits=16))
    _mark_front(records)
    assert [record["on_front"] for record in records] == [False, True, True, False, True, True, True, True]


def test_without_two_models_there_is_no_frontier(tmp_path):
    write_report(runs()[:1], BENCHMARKS, tmp_path)
    assert not (tmp_path / "frontier.md").exists()


def test_a_ratio_without_an_interval_is_not_shown():
    few = runs()[:2]
    for run, seed in zip(few, (1, 7)):
        run.traces = {name: [trace_of(seed=seed + n, batches=3)] for n, name in enumerate(BENCHMARKS)}
    table = frontier_table(frontier_records(few, BENCHMARKS, latency_cells(few)))
    assert (table["latency, optimal split"] == "-").all()
    assert sorted(table["latency, even split"]) == ["-", "1.000"]  # vanilla's own


@pytest.mark.parametrize("lacking", ["vanilla", "b"])
def test_unknown_items_leave_the_difference_out(lacking):
    both = runs()[:2]
    next(run for run in both if run.abbr == lacking).items.pop("piqa")
    other = frontier_records(both, BENCHMARKS, latency_cells(both))[1]
    assert (other["difference"], other["mcnemar_p"], other["significant"]) == (None, None, None)
    assert frontier_table([other])["difference (points)"].iloc[0] == "-"


def test_texts_scored_in_another_way_are_on_no_common_frontier():
    several = runs()[:2]
    several[1].perplexity = "exact"
    assert [record["model"] for record in frontier_records(several, BENCHMARKS, latency_cells(several))] == ["vanilla"]
    exact = [*several, runs()[0]]
    exact[2].abbr, exact[2].perplexity = "exact vanilla", "exact"
    records = {record["model"]: record for record in frontier_records(exact, BENCHMARKS, latency_cells(exact))}
    assert set(records) == {"vanilla", "b", "exact vanilla"}
    assert records["b"]["family"] == records["exact vanilla"]["family"] != records["vanilla"]["family"]


def test_a_model_of_other_batches_is_left_out():
    several = runs()[:2]
    (trace,) = several[1].traces["piqa"]
    trace.arrays["items"] = 2 * trace.items
    assert [record["model"] for record in frontier_records(several, BENCHMARKS, latency_cells(several))] == ["vanilla"]


# -- routed without a model --------------------------------------------------------------------------------------------
PROFILE = load_profile("paper_8_devices")
POLICIES = (("top_k", {}), ("fixed_k", dict(k=1)), ("wlr", {}))
LENGTHS = dict(prompt_length=(9, 4, 7, 5) * 8, new=(3, 4, 0, 2) * 8)


def routed_runs(recording, policies=POLICIES, profile=PROFILE):
    """Policies on a recording of a router, as the tables take them."""
    traces = [route_recording(recording, name, parameters, profile, 4) for name, parameters in policies]
    return [
        ModelRun(f"{n}-{own.policy}", own.routing, (own.weights, own.profile_hash), traces={own.dataset: [trace]})
        for n, (trace, own) in enumerate((trace, trace.metadata) for trace in traces)
    ]


def routed_records(runs):
    return frontier_records(runs, ["d"], latency_cells(runs))


@pytest.mark.parametrize("probabilities", [True, False])
def test_routed_without_a_model_the_router_weight_kept_is_held_against_latency(probabilities):
    recording = random_recording(**LENGTHS, probabilities=probabilities)
    vanilla, fixed, wlr = routed_records(routed_runs(recording))
    if probabilities:
        weights = np.take_along_axis(recording.probabilities, recording.expert_index.astype(int), axis=2)
    else:
        weights = recording.weights
    assert vanilla["quality_percent"] == 100
    assert fixed["quality_percent"] == approx(100 * weights.max(axis=2).sum() / weights.sum(), rel=1e-5)
    assert fixed["kept_share"] == 0.5 < fixed["quality_percent"] / 100 < wlr["quality_percent"] / 100 < 1
    for record in (vanilla, fixed, wlr):
        assert record["quality"] == "router weight kept"
        assert [record[key] for key in ("accuracy", "accuracy_low", "difference", "mcnemar_p", "holm_p")] == [None] * 5
        better = [r for r in (vanilla, fixed, wlr) if r["latency_ratio"] < record["latency_ratio"]]
        assert record["on_front"] == all(r["quality_percent"] < record["quality_percent"] for r in better)
    assert fixed["latency_ratio"] < vanilla["latency_ratio"] < 1


def test_what_is_written_of_routed_traces_calls_nothing_accuracy(tmp_path):
    runs = routed_runs(random_recording(**LENGTHS))
    printed = write_report(runs, ["d"], tmp_path)
    table = json.loads((tmp_path / "frontier.json").read_text())
    records = json.loads((tmp_path / "frontier_records.json").read_text())
    shown = {row["model"]: row["router weight kept (%)"] for row in table["rows"]}
    assert shown == {record["model"]: f"{record['quality_percent']:.1f}" for record in records}
    assert not [name for name in table["rows"][0] if "accuracy" in name or "difference" in name or "p" in name.split()]
    assert table["notes"][0].startswith("one row per model that routes through a policy; router weight kept in %: ")
    assert any(note.startswith("router weight kept is no accuracy: ") for note in table["notes"])
    assert not any("McNemar" in note or "accuracy in %" in note for note in table["notes"])
    assert any(line.startswith("router weight kept against latency") for line in printed)
    figure = draw_frontier(routed_records(runs), ["d"])
    assert figure.axes[0].get_ylabel() == "router weight kept (%), no accuracy: routed without a model"
    plt.close(figure)


def test_expert_ids_alone_give_the_assignments_kept():
    records = routed_records(routed_runs(random_recording(**LENGTHS, weights=False, probabilities=False), POLICIES[:1]))
    assert [(r["quality"], r["quality_percent"], r["accuracy"]) for r in records] == [("assignments kept", 100, None)]


def test_experts_at_the_base_station_have_no_weight_in_a_trace():
    """So the assignments are counted, which the trace holds of all experts."""
    placement = Placement(others="base_station", experts={0: "device_1", 1: "device_2", 2: "device_3"})
    profile = PROFILE.model_copy(update=dict(placement=placement))
    vanilla, fixed, _ = routed_records(routed_runs(random_recording(**LENGTHS), profile=profile))
    assert (vanilla["quality"], vanilla["quality_percent"]) == ("assignments kept", 100)
    assert (fixed["quality_percent"], fixed["kept_share"]) == (50, 0.5)


def test_routed_models_have_no_point_among_models_that_answered():
    answered, routed = runs()[:2], routed_runs(random_recording(**LENGTHS))
    for run in routed:
        run.traces = dict.fromkeys(BENCHMARKS, run.traces["d"])
    both = [*answered, *routed]
    records = frontier_records(both, BENCHMARKS, latency_cells(both))
    assert [(r["model"], r["quality"]) for r in records] == [("vanilla", "accuracy"), ("b", "accuracy")]
    assert all(r["quality_percent"] == r["accuracy"] for r in records)


def test_a_smaller_payload_of_routed_traces_is_measured_against_its_own_vanilla():
    """There are no answers that had to know of it."""
    records = routed_records(routed_runs(random_recording(**LENGTHS), profile=load_profile("paper_8_devices_8_bit")))
    assert [r["payload_bits"] for r in records] == [8] * 3
    assert records[0]["latency_ratio_even"] == approx(1)
