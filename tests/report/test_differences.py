import json
import re

import numpy as np
import pytest
from pytest import approx

from tests.builders.paired_runs import BENCHMARKS, draw, run_of, worse
from tests.builders.traces import trace_of
from wdmoe_opencompass.replay import replay
from wdmoe_opencompass.report.batches import FEW_GROUPS, OTHER_BATCHES, batch_sums, why_no_interval
from wdmoe_opencompass.report.differences import (
    cell_notes,
    difference_notes,
    difference_records,
    difference_table,
    paired_records,
)
from wdmoe_opencompass.report.records import latency_records
from wdmoe_opencompass.report.runs import ModelRun
from wdmoe_opencompass.report.statistics import accuracy_difference_interval, holm, mcnemar_p
from wdmoe_opencompass.report.summary import write_report
from wdmoe_opencompass.report.tables import table_1, table_2

pytestmark = pytest.mark.usefixtures("no_picture")


def test_a_model_is_compared_with_the_vanilla_of_its_own_weights_and_profile():
    runs = [run_of(f"{kind} {base}", policy, (base, "p"), lost)
            for base in "ab" for kind, policy, lost in (("vanilla", "top_k", 0), ("wdmoe", "wlr", 0.2))]  # fmt: skip
    runs.append(run_of("alone", "wlr", ("c", "p")))
    found = {(record["model"], record["vanilla"]) for record in difference_records(runs, BENCHMARKS)}
    assert found == {("wdmoe a", "vanilla a"), ("wdmoe b", "vanilla b")}


def test_a_model_is_compared_with_the_vanilla_whose_texts_were_scored_alike():
    runs = [
        run_of(f"{kind} {way}", policy) for way in ("stock", "exact") for kind, policy in (("v", "top_k"), ("w", "wlr"))
    ]
    for run in runs:
        run.perplexity = run.abbr.split()[1]
    found = {(record["model"], record["vanilla"]) for record in difference_records(runs, BENCHMARKS)}
    assert found == {("w stock", "v stock"), ("w exact", "v exact")}
    assert difference_records(runs[1:3], BENCHMARKS) == []


def test_table_1_names_the_vanilla_of_each_model():
    assert cell_notes([]) == []
    kinds = {"vanilla": "top_k", "wdmoe": "wlr", "other": "bottleneck"}
    runs = [run_of(f"{kind} {base}", policy, (base, "p")) for base in "ab" for kind, policy in kinds.items()]
    assert cell_notes(difference_records(runs, BENCHMARKS))[1:] == [
        "difference from vanilla a: wdmoe a, other a",
        "difference from vanilla b: wdmoe b, other b",
    ]


def test_records_are_the_statistics_of_the_items():
    vanilla, wdmoe = run_of("vanilla", "top_k"), run_of("wdmoe", "wlr", lost=0.2)
    records = {r["benchmark"]: r for r in difference_records([vanilla, wdmoe], BENCHMARKS)}
    assert list(records) == ["mmlu", "piqa", "mean of 2 benchmarks"]
    first, second = vanilla.items["piqa"].right, wdmoe.items["piqa"].right
    piqa = records["piqa"]
    assert piqa["difference"] == approx(100 * (second.mean() - first.mean()))
    assert (piqa["low"], piqa["high"]) == approx(100 * np.array(accuracy_difference_interval([first], [second])))
    assert (piqa["only_first"], piqa["only_second"]) == ((first & ~second).sum(), 0)
    assert piqa["mcnemar_p"] == mcnemar_p(first, second)
    assert [records[b]["holm_p"] for b in BENCHMARKS] == holm([records[b]["mcnemar_p"] for b in BENCHMARKS])
    assert piqa["significant"]
    group = np.mean([wdmoe.items[n].right.mean() - vanilla.items[n].right.mean() for n in ("m_1", "m_2")])
    assert records["mmlu"]["difference"] == approx(100 * group)
    mean = records["mean of 2 benchmarks"]
    assert mean["difference"] == approx(50 * group + piqa["difference"] / 2)
    assert mean["low"] < mean["difference"] < mean["high"]


def test_other_items_are_not_paired_and_said_to_be_so():
    vanilla, wdmoe = run_of("vanilla", "top_k"), run_of("wdmoe", "wlr")
    wdmoe.items["piqa"] = draw(7, 0.9)
    del wdmoe.items["m_2"]
    assert difference_records([vanilla, wdmoe], BENCHMARKS) == []
    notes = "\n".join(difference_notes([vanilla, wdmoe], BENCHMARKS))
    assert "wdmoe against vanilla, piqa: not the same items in both" in notes
    assert "wdmoe against vanilla, mmlu: which items are right is not known for both" in notes


def test_datasets_beside_their_group_are_not_corrected_for():
    first = {"g": [draw(1, 0.5)], "d": [draw(1, 0.5)], "e": [draw(2, 0.5)]}
    second = {name: [worse(answers, 0.05) for answers in results] for name, results in first.items()}
    records = {r["benchmark"]: r for r in paired_records(first, second, ["d"])}
    assert records["d"]["holm_p"] is None
    assert records["g"]["holm_p"] == holm([records["g"]["mcnemar_p"], records["e"]["mcnemar_p"]])[0]
    assert "mean of 2 benchmarks" in records


def test_cells_hold_a_difference_only_with_its_interval():
    runs = [run_of("vanilla", "top_k"), run_of("wdmoe", "wlr", lost=0.2)]
    runs[1].no_items["piqa"] = "each item was answered 2 times"
    del runs[1].items["piqa"]
    table = difference_table(difference_records(runs, BENCHMARKS))
    assert table["difference (points)"].str.fullmatch(r"[+-]\d+\.\d\d \[[+-]\d+\.\d\d, [+-]\d+\.\d\d\]").all()
    accuracy = table_1(runs, BENCHMARKS)
    assert accuracy["piqa"].str.contains(r"\[").tolist() == [True, False]
    assert accuracy["mmlu"].str.fullmatch(r"\d+\.\d\d \[\d+\.\d, \d+\.\d\]").all()


def test_table_1_holds_each_difference_from_vanilla_with_its_interval_and_mark():
    runs = [run_of("vanilla", "top_k"), run_of("wdmoe", "wlr", lost=0.2), run_of("same", "bottleneck")]
    records = difference_records(runs, BENCHMARKS)
    table = table_1(runs, BENCHMARKS, records).set_index("model")
    assert not table.loc["vanilla", BENCHMARKS].str.contains(r"\(").any()
    for name in BENCHMARKS:
        record = next(r for r in records if (r["model"], r["benchmark"]) == ("wdmoe", name))
        found = re.fullmatch(r"\d+\.\d\d \[\S+ \S+\] \((\S+) \[(\S+), (\S+)\]( \*)?\)", table.loc["wdmoe", name])
        assert [float(found[n]) for n in (1, 2, 3)] == approx(
            [record[k] for k in ("difference", "low", "high")], abs=0.051
        )
        assert record["significant"] == (found[4] == " *")
        assert "(+0.00 [" in table.loc["same", name]
        assert "*" not in table.loc["same", name]


@pytest.mark.parametrize(("batches", "shown"), [(8, True), (5, False)])
def test_a_saving_is_shown_only_with_its_interval(batches, shown):
    runs = [ModelRun(abbr, policy, ("w", "p"), traces={"d": [trace_of(seed=seed, batches=batches)]})
            for abbr, policy, seed in (("vanilla", "top_k", 1), ("wdmoe", "wlr", 2))]  # fmt: skip
    records = latency_records(runs)
    table = table_2(records, ["d"], "pass", "batch", "all").set_index("row")["d"]
    for row in ("selection_only", "allocation_only", "both"):
        assert ("%" in table[row]) == ("[" in table[row]) == shown
    for record in records:
        if record["row"] != "vanilla_even" and record["phase"] == "all":
            assert record["no_interval"] == (None if shown else FEW_GROUPS)
            assert not shown or record["saving_low"] <= record["saving"] <= record["saving_high"]


def test_batches_of_the_same_items_are_one_unit():
    trace = trace_of(batches=6)
    trace.arrays["first_item"] = np.array([0, 4, 8, 0, 4, 8], dtype=np.int32)  # two answers to rank, three groups
    part = replay(trace, trace.metadata.profile, "uniform", "pass")
    sums = batch_sums([part], "all")
    per_batch = np.bincount(trace.batch, part.waiting_latency_s)
    assert sums.latency_s == approx(per_batch[:3] + per_batch[3:])
    assert sums.batches.tolist() == [2, 2, 2]
    for per in ("pass", "batch"):
        assert sums.latency_s.sum() / sums.count(per).sum() == approx(part.mean_s(per, "all"))


def test_runs_of_other_batches_have_no_interval():
    first, second = trace_of(batches=8), trace_of(batches=8)
    second.arrays["items"] = second.items + 1
    sums = [batch_sums([replay(t, t.metadata.profile, "uniform", "pass")], "all") for t in (first, second)]
    assert why_no_interval(*sums) == OTHER_BATCHES
    assert why_no_interval(sums[0], sums[0]) is None


def test_the_report_defines_significant_and_says_what_lacks_an_interval(tmp_path):
    runs = [run_of("vanilla", "top_k"), run_of("wdmoe", "wlr", lost=0.2)]
    runs[1].no_items["piqa"] = "each item was answered 2 times"
    del runs[1].items["piqa"]
    write_report(runs, BENCHMARKS, tmp_path)
    for form in ("md", "csv", "tex", "json"):
        text = (tmp_path / f"differences.{form}").read_text()
        assert "significant: McNemar" in text
        assert "Wilson" in (tmp_path / f"table_1_accuracy.{form}").read_text()
        assert "in round brackets: difference from vanilla" in (tmp_path / f"table_1_accuracy.{form}").read_text()
        assert "models are not corrected for each other" in (tmp_path / f"table_1_accuracy.{form}").read_text()
    assert "wdmoe on piqa: each item was answered 2 times" in (tmp_path / "table_1_accuracy.md").read_text()
    records = {(r["model"], r["dataset"]): r for r in json.loads((tmp_path / "accuracy.json").read_text())
               if r["metric"] == "accuracy"}  # fmt: skip
    assert records["wdmoe", "piqa"]["low"] is None
    vanilla = records["vanilla", "piqa"]
    assert vanilla["low"] < vanilla["value"] < vanilla["high"]
    assert vanilla["items"] == 200
    assert json.loads((tmp_path / "accuracy_differences.json").read_text())[0]["benchmark"] == "mmlu"
