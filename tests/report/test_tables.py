import json
from dataclasses import replace

import pytest
from pytest import approx

from tests.builders.table_runs import GROUPS, items_of, run_of
from tests.builders.traces import trace_of
from wdmoe_opencompass.replay import replay
from wdmoe_opencompass.report.compare import batch_records, comparison_table, item_records, notes_of
from wdmoe_opencompass.report.formats import format_table
from wdmoe_opencompass.report.paper import BENCHMARKS, NO_COMPARISON, TABLE_1, TABLE_2, paper_comparison
from wdmoe_opencompass.report.provenance import origin_records
from wdmoe_opencompass.report.records import accuracy_records, latency_cells, latency_records
from wdmoe_opencompass.report.runs import ModelRun, benchmarks_of
from wdmoe_opencompass.report.statistics import wilson_interval
from wdmoe_opencompass.report.summary import write_report
from wdmoe_opencompass.report.tables import table_1
from wdmoe_opencompass.selection import build_policy, policy_parameters

pytestmark = pytest.mark.usefixtures("no_picture")


def latency_of(records, **where):
    (value,) = [r["latency_s"] for r in records if all(r[key] == wanted for key, wanted in where.items())]
    return value


def test_a_group_stands_in_place_of_its_first_dataset():
    assert benchmarks_of(["x", "m_1", "y", "m_2"], GROUPS) == ["x", "mmlu", "y"]


def test_accuracy_of_a_group_is_the_plain_mean_of_its_datasets():
    records = [r for r in accuracy_records([run_of()]) if r["metric"] == "accuracy"]
    assert {r["dataset"]: r["value"] for r in records} == {"m_1": 40, "m_2": 70, "piqa": 80, "mmlu": 55}
    lacking = run_of()
    del lacking.accuracies["m_2"]
    assert lacking.accuracy_of("mmlu") is None
    assert table_1([lacking], ["mmlu", "piqa"])["mmlu"].tolist() == ["-"]


@pytest.mark.parametrize("per", ["pass", "batch"])
def test_latency_of_a_group_is_over_all_batches_of_all_parts(per):
    run = run_of()
    traces = [trace for name in ("m_1", "m_2") for trace in run.traces[name]]
    waiting = [replay(trace, trace.metadata.profile, "uniform", "pass").waiting_latency_s for trace in traces]
    count = sum(len(trace.items) for trace in traces) if per == "batch" else sum(map(len, waiting))
    found = latency_of(latency_records([run]), dataset="mmlu", row="vanilla_even", scope="pass", per=per, phase="all")
    assert found == approx(sum(trace.sum() for trace in waiting) / count)


def test_a_group_with_a_missing_trace_has_no_latency():
    run = run_of()
    del run.traces["m_2"]
    assert {r["dataset"] for r in latency_records([run])} == {"m_1", "piqa"}


def test_a_dense_model_is_in_table_i_alone():
    dense = ModelRun("llama-2-7b-hf", "dense", ("meta-llama/Llama-2-7b-hf", ""), {"piqa": ("accuracy", 78.0)})
    runs = [run_of(), dense]
    row = table_1(runs, ["mmlu", "piqa"]).iloc[1]
    assert (row["policy"], row["piqa"], row["mmlu"], row["active experts per token"]) == ("dense", "78.00", "-", "-")
    assert {r["model"] for r in latency_records(runs)} == {"vanilla"}


def test_the_paper_s_tables_are_whole():
    assert all(len(row) == len(BENCHMARKS) for row in (*TABLE_1.values(), *TABLE_2.values()))
    assert TABLE_1["Mixtral-8x7B-Instruct-v0.1", "wlr"][5] == 71.29
    assert TABLE_2["both"][0] == 172743.9


def test_comparison_holds_every_measured_cell_and_marks_what_cannot_match():
    dense = ModelRun("llama-2-7b-hf", "dense", ("meta-llama/Llama-2-7b-hf", ""), {"piqa": ("accuracy", 78.0)})
    runs = [run_of(), run_of("wdmoe", "wlr"), dense]
    records = latency_records(runs)
    table = paper_comparison(runs, records)
    accuracy = table[table["table"] == "Table I"].set_index(["row", "benchmark"])
    assert accuracy.loc[("vanilla", "MMLU")][["ours", "paper"]].tolist() == ["55.00", "70.00"]
    assert accuracy.loc[("vanilla", "MMLU")]["difference"].startswith("-15.00 [-19.")
    low, high = wilson_interval(160, 200)
    interval = f"[{100 * low - 83.2:+.2f}, {100 * high - 83.2:+.2f}]"
    assert accuracy.loc[("vanilla", "PIQA")]["difference"] == f"-3.20 {interval}"
    assert accuracy.loc[("llama-2-7b-hf", "PIQA")]["difference"] == "-"  # which items it got right is not known
    assert len(accuracy) == 5
    waits = table[table["quantity"] == "latency (ms)"].set_index(["row", "benchmark"])
    for row, model in (("allocation_only", "vanilla"), ("both", "wdmoe")):
        where = dict(dataset="piqa", row=row, scope="layer", per="pass", phase="all")
        assert float(waits.loc[f"{row}, {model}", "PIQA"]["ours"]) == approx(
            1e3 * latency_of(records, **where), abs=0.06
        )
    assert len(waits) == 4 * 2
    assert waits["difference"].str.endswith("†").all()
    assert waits["difference"].str.contains(r"\[").tolist() == [benchmark == "PIQA" for _, benchmark in waits.index]
    savings = table[table["quantity"] == "saving (%)"].set_index(["row", "benchmark"])
    assert len(savings) == 3 * 2
    assert savings.loc[("both, wdmoe", "MMLU")]["paper"] == "42.2"  # 1 - 172743.9 / 298813.6


def test_other_weights_or_policies_are_not_compared_with_the_paper(tmp_path):
    for run in (run_of(weights="quickstart/model"), run_of(policy="random")):
        assert paper_comparison([run], latency_records([run])).empty
    printed = write_report([run_of(weights="quickstart/model")], ["mmlu", "piqa"], tmp_path)
    assert NO_COMPARISON in printed[-1]
    assert not list(tmp_path.glob("paper_comparison*"))


def test_the_report_names_how_much_of_a_group_ran(tmp_path):
    write_report([run_of(), run_of("wdmoe", "wlr")], ["mmlu", "piqa"], tmp_path)
    assert "mean of the accuracies of 2 of its 57 datasets" in (tmp_path / "table_1_accuracy.md").read_text()
    for form in ("md", "csv", "tex", "json"):
        assert "cannot match" in (tmp_path / f"paper_comparison.{form}").read_text()
    assert json.loads((tmp_path / "groups.json").read_text()) == GROUPS


def test_what_is_shown_first_is_scope_layer_and_pass_is_called_hindsight(tmp_path):
    printed = "".join(write_report([run_of(), run_of("wdmoe", "wlr")], ["mmlu", "piqa"], tmp_path))
    assert "bandwidth scope: layer, one bandwidth split per layer" in printed
    assert "hindsight" not in printed
    for name, where in (("frontier", "batch"), ("paper_comparison", "pass")):
        origin = json.loads((tmp_path / f"{name}.json").read_text())["provenance"]
        assert (origin["scope"], origin["per"], origin["phase"]) == ("layer", where, "all")
    notes = "".join(json.loads((tmp_path / "paper_comparison.json").read_text())["notes"])
    assert "mean per forward pass (scope layer, phase all)" in notes
    assert "one forward pass of about 64 sequences" in notes
    files = list(tmp_path.glob("table_2_latency_pass_*.md"))
    assert len(files) == 6
    for file in files:
        assert "bandwidth scope: pass (hindsight), one bandwidth split for all layers" in file.read_text()


def test_a_table_names_which_reading_of_algorithm_1_was_run(tmp_path):
    for extra_pass in (False, True):
        parameters = policy_parameters(build_policy("wlr", dict(extra_pass=True) if extra_pass else {}))
        run = run_of("wdmoe", "wlr")
        for traces in run.traces.values():
            changed = dict(policy="wlr", policy_parameters=parameters)
            traces[:] = [replace(trace, metadata=trace.metadata.model_copy(update=changed)) for trace in traces]
        write_report([run_of(), run], ["mmlu", "piqa"], tmp_path)
        for name in ("table_1_accuracy", "table_2_latency_layer_per_batch_all", "paper_comparison", "frontier"):
            assert f"extra_pass={extra_pass}" in (tmp_path / f"{name}.md").read_text()


def test_sums_over_batches_of_an_earlier_summary_are_not_taken_for_those_of_scope_layer():
    a, b = records_of(run_of()), records_of(run_of())
    for record in b["batches"]:  # as earlier versions wrote them, of scope pass
        del record["scope"]
    table = comparison_table(a, b)
    latency = table[table["quantity"] == "latency per batch (ms)"]
    assert len(latency)
    assert (latency[["B - A", "B / A"]] == "-").all(axis=None)
    assert "B: its batches.json holds latencies of scope pass (hindsight)" in "\n".join(notes_of(a, b))
    assert "batches.json holds" not in "\n".join(notes_of(a, a))


def records_of(run):
    cells = latency_cells([run])
    return dict(
        accuracy=accuracy_records([run]),
        latency=[record for record, _ in cells],
        origin=origin_records([run]),
        groups=run.groups,
        items=item_records([run]),
        batches=json.loads(json.dumps(batch_records(cells))),
    )


def test_two_runs_differ_by_what_both_measured():
    a, b = run_of(), run_of()
    b.accuracies["piqa"], b.items["piqa"] = ("accuracy", 83.5), items_of(83.5)
    del b.accuracies["m_1"], b.accuracies["m_2"]
    b.traces["piqa"] = [trace_of(seed=9, batches=8)]
    b.groups = {}
    table = comparison_table(records_of(a), records_of(b)).set_index(["quantity", "row", "benchmark"])
    row = table.loc[("accuracy (%)", "-", "piqa")]
    assert row["B - A"].startswith("+3.50 [+")
    assert row[["McNemar p", "Holm p", "significant"]].tolist() == ["0.016", "0.016", "yes"]  # 7 items, 2 / 2^7
    ms = [1e3 * latency_of(r["latency"], dataset="piqa", row="vanilla_even", scope="layer", per="batch", phase="all")
          for r in (records_of(a), records_of(b))]  # fmt: skip
    row = table.loc[("latency per batch (ms)", "vanilla_even", "piqa")]
    for cell, expected in ((row["B - A"], ms[1] - ms[0]), (row["B / A"], ms[1] / ms[0])):
        value, low, high = (float(number.strip("[],")) for number in cell.split())
        assert value == approx(expected, abs=2e-3)
        assert low < value < high
    assert "mmlu" not in table.index.get_level_values("benchmark")
    notes = "\n".join(notes_of(records_of(a), records_of(b)))
    assert "only A has the accuracy of: vanilla on m_1, vanilla on m_2, vanilla on mmlu" in notes
    assert "different channel profiles" not in notes


def test_a_run_without_items_or_batches_is_compared_without_differences():
    a, b = records_of(run_of()), records_of(run_of()) | dict(items=[], batches=[])
    table = comparison_table(a, b)
    assert len(table)
    assert (table[["B - A", "B / A", "McNemar p"]] == "-").all(axis=None)
    assert "B: which items were answered right is not in its summary" in "\n".join(notes_of(a, b))


def test_runs_of_other_profiles_are_said_to_be_of_other_systems():
    a, b = records_of(run_of()), records_of(run_of())
    b["origin"][0]["profile_hash"] = "other"
    assert "different channel profiles" in "\n".join(notes_of(a, b))


def test_runs_that_scored_texts_in_other_ways_are_said_to():
    a, b = records_of(run_of()), records_of(run_of())
    b["origin"][0]["perplexity"] = "exact"
    assert "perplexity of A: stock; of B: exact" in "\n".join(notes_of(a, b))
    del a["origin"][0]["perplexity"], b["origin"][0]["perplexity"]  # a summary of an older version
    assert "perplexity" not in "\n".join(notes_of(a, b))


def test_a_table_reads_the_same_in_every_format():
    table = table_1([run_of()], ["mmlu", "piqa"])
    assert json.loads(format_table(table, ["n"], "json"))["rows"] == table.to_dict("records")
    assert format_table(table, ["n"], "csv").startswith("# n\nmodel,policy,mmlu,piqa")
    low, high = (100 * end for end in wilson_interval(160, 200))
    cells = (table["mmlu"][0], f"80.00 [{low:.1f}, {high:.1f}]")
    assert "| vanilla | top_k | {} | {} |".format(*cells) in format_table(table, ["n"], "md")
    assert r"vanilla & top\_k & {} & {}".format(*cells) in format_table(table, ["n"], "tex")
    assert cells[0].startswith("55.00 [")
