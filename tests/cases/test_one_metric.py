"""Accuracies of different metrics share one column with a note, and no difference of them is shown."""

import json

import pytest

from tests.builders.frontier_runs import BENCHMARKS, runs
from tests.builders.table_runs import run_of
from wdmoe_opencompass.report.compare import comparison_table, item_records, notes_of
from wdmoe_opencompass.report.differences import difference_notes, difference_records
from wdmoe_opencompass.report.frontier import frontier_records
from wdmoe_opencompass.report.metrics import metric_notes
from wdmoe_opencompass.report.records import accuracy_records, latency_cells
from wdmoe_opencompass.report.runs import ModelRun
from wdmoe_opencompass.report.summary import write_report
from wdmoe_opencompass.report.tables import table_1

pytestmark = pytest.mark.usefixtures("no_picture")
NOTE = "not one metric on piqa: accuracy of vanilla, c; rouge1 of b: no difference between these is shown"


def of_two_metrics():
    """The runs of the frontier's tests, of which b is scored by another metric on one benchmark."""
    several = runs()
    several[1].accuracies["piqa"] = ("rouge1", 75.0)
    return several


def with_a_mixed_group(abbr="vanilla", policy="top_k", metric="f1"):
    run = run_of(abbr, policy)
    run.accuracies["m_2"] = (metric, 70.0)
    return run


def test_a_column_of_two_metrics_is_named():
    first = ModelRun("a", "dense", ("p", ""), {"d": ("score", 80.0), "e": ("score", 1.0)})
    second = ModelRun("b", "dense", ("p", ""), {"d": ("rouge1", 20.0), "e": ("score", 2.0)})
    third = ModelRun("c", "dense", ("p", ""), {"e": ("score", 3.0)})
    line = "not one metric on d: score of a; rouge1 of b: no difference between these is shown"
    assert metric_notes([first, second, third]) == [line]
    assert metric_notes([first, third]) == []
    assert metric_notes(runs()) == []


def test_a_group_of_two_metrics_is_named_and_its_record_names_both():
    run = with_a_mixed_group()
    (record,) = [r for r in accuracy_records([run]) if r["dataset"] == "mmlu" and r["value"] == 55]
    assert record["metric"] == "accuracy and f1"
    assert metric_notes([run]) == ["not one metric on mmlu: the mean of accuracy (m_1) and f1 (m_2) of vanilla"]
    lines = metric_notes([run, run_of("wdmoe", "wlr")])
    assert lines[0] == "not one metric on m_2: f1 of vanilla; accuracy of wdmoe: no difference between these is shown"
    assert lines[1].startswith("not one metric on mmlu: the mean of accuracy (m_1) and f1 (m_2) of vanilla; accuracy")
    many = [f"m_{number}" for number in range(9)]
    large = ModelRun("a", "dense", ("p", ""), dict.fromkeys(many, ("score", 1.0)) | {"m_8": ("f1", 2.0)})
    large.groups = {"mmlu": many}
    assert metric_notes([large]) == ["not one metric on mmlu: the mean of score (8 datasets) and f1 (m_8) of a"]


def test_no_difference_is_shown_between_two_metrics(tmp_path):
    several = of_two_metrics()
    records = difference_records(several, BENCHMARKS)
    assert [(record["model"], record["benchmark"]) for record in records] == [("b", "m_1")]
    assert "(" in table_1(runs(), BENCHMARKS, difference_records(runs(), BENCHMARKS))["piqa"][1]
    assert "(" not in table_1(several, BENCHMARKS, records)["piqa"][1]
    assert not any(note.startswith("b against") for note in difference_notes(several, BENCHMARKS))
    write_report(several, BENCHMARKS, tmp_path)
    for name in ("table_1_accuracy", "differences"):
        assert NOTE in json.loads((tmp_path / f"{name}.json").read_text())["notes"]


def test_a_frontier_is_of_one_metric(tmp_path):
    def models(several):
        return [record["model"] for record in frontier_records(several, BENCHMARKS, latency_cells(several))]

    assert models(runs()) == ["vanilla", "b"]
    assert models(of_two_metrics()) == ["vanilla"]
    several = of_two_metrics()
    third = runs()[1]
    third.abbr = "d"
    write_report([*several, third], BENCHMARKS, tmp_path)
    frontier = json.loads((tmp_path / "frontier.json").read_text())
    assert {row["model"] for row in frontier["rows"]} == {"vanilla", "d"}
    assert any(note.startswith("not one metric on piqa: ") for note in frontier["notes"])


def records_of(run):
    """What `wdmoe compare` reads of a run of one model."""
    origin = [dict(text="", profile_hash="p")]
    items = item_records([run])
    return dict(accuracy=accuracy_records([run]), latency=[], origin=origin, items=items, batches=[], groups=run.groups)


def test_compare_says_that_the_metrics_are_not_one():
    a, b = records_of(run_of()), records_of(with_a_mixed_group())
    table = comparison_table(a, b).set_index("benchmark")
    assert table["B"]["m_2"] == "70.00"
    for benchmark in ("m_2", "mmlu"):
        assert set(table.loc[benchmark][["B - A", "McNemar p", "Holm p", "significant"]]) == {"-"}
    assert table["B - A"]["piqa"] != "-"
    notes = notes_of(a, b)
    start = "not one metric, so no difference of accuracies is shown: vanilla on "
    assert f"{start}m_2: accuracy in A, f1 in B" in notes
    assert f"{start}mmlu: accuracy in A, accuracy and f1 in B" in notes
    assert not any("not one metric" in note for note in notes_of(b, b))
    assert comparison_table(b, b).set_index("benchmark")["B - A"]["mmlu"] != "-"


def test_a_group_named_after_its_first_dataset_s_metric_is_the_same_group():
    """As earlier versions named it."""
    new, old = records_of(with_a_mixed_group()), records_of(with_a_mixed_group())
    for record in old["accuracy"]:
        record["metric"] = record["metric"].removesuffix(" and f1")
    assert not any("not one metric" in note for note in notes_of(old, new))
