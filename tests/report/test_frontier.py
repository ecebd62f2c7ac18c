"""The frontier's points, intervals and Pareto front."""

import numpy as np
import pytest
from pytest import approx

from tests.report.test_tables import items_of, run_of
from tests.test_replay import trace_of
from wdmoe_opencompass.report.frontier import _mark_front, frontier_records, frontier_table
from wdmoe_opencompass.report.summary import write_report
from wdmoe_opencompass.report.tables import latency_cells
from wdmoe_opencompass.routing.trace import RoutingTrace

BENCHMARKS = ["m_1", "piqa"]


def runs():
    """Vanilla; a policy with other loads and worse answers; one of another profile, without a vanilla."""
    vanilla, other, alone = (
        run_of(abbr, policy, groups={}) for abbr, policy in (("vanilla", "top_k"), ("b", "wlr"), ("c", "wlr"))
    )
    for run, seed in ((vanilla, 1), (other, 7), (alone, 9)):
        run.traces = {name: [trace_of(seed=seed + n, batches=8)] for n, name in enumerate(BENCHMARKS)}
    other.accuracies["piqa"] = ("accuracy", 75.0)
    other.items["piqa"] = items_of(75)
    alone.base = ("other weights", alone.base[1])
    return [vanilla, other, alone]


def test_a_point_is_what_the_tables_hold():
    records = frontier_records(runs(), BENCHMARKS, latency_cells(runs()))
    assert [one["model"] for one in records] == ["vanilla", "b"]
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
    assert [one["model"] for one in records] == ["vanilla"]


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
        assert [one["model"] for one in frontier_records(several, BENCHMARKS, latency_cells(several))] == ["vanilla"]
        return
    full, quartered = (frontier_records(one, BENCHMARKS, latency_cells(one))[1] for one in (runs()[:2], several))
    assert (full["payload_bits"], quartered["payload_bits"]) == (16, 4)
    assert quartered["latency_ratio_even"] < 0.6 * full["latency_ratio_even"]
    assert quartered["difference"] == full["difference"]


def test_holm_counts_the_models_of_one_vanilla():
    several = [*runs(), *runs()[1:2]]
    several[-1].abbr = "d"
    records = frontier_records(several, BENCHMARKS, latency_cells(several))
    assert [one["holm_p"] for one in records[1:]] == [approx(2 * records[1]["mcnemar_p"])] * 2


def test_the_front_is_what_nothing_beats():
    points = [(0.9, 80), (0.8, 80), (0.7, 70), (0.75, 65), (0.6, 60), (0.6, 60), (0.5, 90)]
    records = [dict(latency_ratio=x, accuracy=y, family="one", payload_bits=16) for x, y in points[:-1]]
    records.append(dict(latency_ratio=0.1, accuracy=99, family="one", payload_bits=8))
    records.append(dict(latency_ratio=0.5, accuracy=90, family="another", payload_bits=16))
    _mark_front(records)
    assert [one["on_front"] for one in records] == [False, True, True, False, True, True, True, True]


def test_table_figure_and_records_are_written(tmp_path):
    write_report(runs(), BENCHMARKS, tmp_path)
    for ending in ("md", "csv", "tex", "json", "png", "pdf"):
        assert (tmp_path / f"frontier.{ending}").stat().st_size > 100
    text = (tmp_path / "frontier.md").read_text()
    assert "on front: no other model" in text
    assert "fading rayleigh" in text
    table = frontier_table(frontier_records(runs(), BENCHMARKS, latency_cells(runs())))
    assert table["difference (points)"].iloc[1].startswith("-2.50 [") or table["difference (points)"].iloc[
        0
    ].startswith("-")


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
