import numpy as np
import pytest
from pytest import approx

from tests.builders.table_runs import run_of
from tests.builders.traces import PROFILE, trace_of, with_fading
from wdmoe_opencompass import ExpertShape
from wdmoe_opencompass.allocation import allocate
from wdmoe_opencompass.channel.propagation import FadingSource
from wdmoe_opencompass.latency import link_budget
from wdmoe_opencompass.report import fading
from wdmoe_opencompass.report.batches import OTHER_BATCHES
from wdmoe_opencompass.report.fading import DRAWS, add_draws, draw_notes
from wdmoe_opencompass.report.records import latency_cells
from wdmoe_opencompass.report.summary import write_report
from wdmoe_opencompass.report.tables import table_2

pytestmark = pytest.mark.usefixtures("no_picture")


def pair(profile=PROFILE, **changes):
    """Vanilla and a model that sends a third less, of other numbers of passes."""
    runs = [run_of(), run_of("wdmoe", "wlr")]
    runs[1].traces["piqa"] = [trace_of(seed=5, batches=8, passes=4, largest=27)]
    for run in runs:
        for traces in run.traces.values():
            for trace in traces:
                object.__setattr__(
                    trace, "metadata", trace.metadata.model_copy(update=dict(profile=profile, **changes))
                )
    return runs


def records_of(runs):
    records = [record for record, _ in latency_cells(runs)]
    add_draws(runs, records)
    return records


@pytest.fixture(scope="module")
def drawing():
    runs = pair()
    return runs, records_of(runs)


def one(records, **where):
    (found,) = [r for r in records if where.items() <= r.items()]
    return found


def waiting_s(run, name, method, number):
    """Summed over all passes of a benchmark under draw `number`, one allocation at a time."""
    gains = FadingSource(PROFILE, "", 0, 0, 0).draw(number + 1)
    channel = type(gains)(gains.downlink_gain[number], gains.uplink_gain[number])
    budget = link_budget(PROFILE, channel, ExpertShape(32, 48))
    total_s, passes = 0.0, 0
    for trace in run.traces_of(name):
        found = allocate(
            method, "layer", budget, trace.device_load, PROFILE.total_bandwidth_hz, trace.expert_evaluations
        )
        total_s += found.waiting_latency_s.sum()
        passes += len(trace.batch)
    return total_s / passes


@pytest.mark.parametrize("name", ["piqa", "mmlu"])
@pytest.mark.parametrize(
    ("row", "model", "method"),
    [("selection_only", "wdmoe", "uniform"), ("allocation_only", "vanilla", "optimal"), ("both", "wdmoe", "optimal")],
)
def test_savings_are_paired_draw_by_draw_over_all_passes(drawing, name, row, model, method):
    runs, records = drawing
    record = one(records, row=row, model=model, dataset=name, scope="layer", per="pass", phase="all")
    own = next(run for run in runs if run.abbr == model)
    savings = [
        1 - waiting_s(own, name, method, number) / waiting_s(runs[0], name, "uniform", number)
        for number in range(DRAWS)
    ]
    assert record["saving"] == approx(savings[0], rel=1e-9)  # the first draw is the run's own
    assert record["draws"] == DRAWS >= 200
    quantiles = [record[f"saving_draws_{which}"] for which in ("low", "median", "high")]
    assert quantiles == approx(np.quantile(savings, (0.05, 0.5, 0.95)).tolist(), rel=1e-9)


def test_a_saving_per_batch_counts_batches(drawing):
    _, records = drawing
    where = dict(row="both", model="wdmoe", dataset="piqa", scope="layer", phase="all")
    per_pass, per_batch = (one(records, **where, per=per)["saving_draws_median"] for per in ("pass", "batch"))
    assert 1 - per_batch == approx((1 - per_pass) * 4 / 3)  # 4 passes a batch, vanilla's have 3


def test_draws_are_in_scope_layer_over_all_phases_and_not_of_what_is_compared_with(drawing):
    for record in drawing[1]:
        is_drawn = (record["scope"], record["phase"]) == ("layer", "all") and record["row"] != "vanilla_even"
        assert (record["draws"] == DRAWS) == is_drawn
        assert record["no_draws"] is None


@pytest.mark.parametrize(
    ("profile", "why"),
    [(with_fading(model="none"), "no fading"), (with_fading(coherence="pass"), "more than 10 layers to split")],
)
def test_where_there_are_no_draws_the_table_says_why(profile, why, monkeypatch):
    monkeypatch.setattr(fading, "MAX_PROBLEMS", 10)
    monkeypatch.setattr(fading, "TOO_MANY", fading.TOO_MANY.replace("10,000,000", "10"))
    runs = pair(profile)
    records = [r for r in records_of(runs) if (r["scope"], r["per"], r["phase"]) == ("layer", "pass", "all")]
    assert all(record["draws"] is None for record in records)
    assert why in "\n".join(draw_notes(runs, records))
    assert "draws" not in "\n".join(table_2(records, ["piqa"], "layer", "pass", "all")["row"])


def moments_s(run, profile, method):
    """[draws] mean over the passes of piqa, each under its moment's draws, one pass at a time."""
    (trace,) = run.traces["piqa"]
    total_s = np.zeros(DRAWS)
    for number, batch in enumerate(trace.batch):
        source = FadingSource(profile, "d", int(trace.items_before[batch]), int(trace.pass_index[number]), 0)
        drawing = source.draw(DRAWS)
        channel = type(drawing)(drawing.downlink_gain[:, None], drawing.uplink_gain[:, None])
        loads = (
            np.broadcast_to(array[number], (DRAWS, *array[number].shape))
            for array in (trace.device_load, trace.expert_evaluations)
        )
        load, evaluations = loads
        budget = link_budget(profile, channel, ExpertShape(32, 48))
        found = allocate(method, "layer", budget, load, profile.total_bandwidth_hz, evaluations)
        total_s += found.waiting_latency_s
    return total_s / len(trace.batch)


def test_fading_that_changes_within_the_run_is_paired_moment_by_moment():
    profile = with_fading(coherence="pass")
    runs = pair(profile)
    where = dict(row="both", dataset="piqa", scope="layer", per="pass", phase="all")
    record = one(records_of(runs), **where)
    savings = 1 - moments_s(runs[1], profile, "optimal") / moments_s(runs[0], profile, "uniform")
    assert record["saving"] == approx(savings[0], rel=1e-9)
    quantiles = [record[f"saving_draws_{which}"] for which in ("low", "median", "high")]
    assert quantiles == approx(np.quantile(savings, (0.05, 0.5, 0.95)).tolist(), rel=1e-9)


def test_the_table_gives_own_draw_then_all_draws_and_every_model_s_batches(drawing, tmp_path):
    runs, records = drawing
    write_report(runs, ["mmlu", "piqa"], tmp_path)
    rows = table_2(records, ["mmlu", "piqa"], "layer", "pass", "all")
    assert rows["row"].tolist() == [
        "vanilla_even",
        *(name for row in ("selection_only", "allocation_only", "both") for name in (row, f"{row}, 200 draws")),
        *("tokens per batch", "tokens per batch", "passes per batch", "passes per batch"),
    ]
    record = one(records, row="both", dataset="piqa", scope="layer", per="pass", phase="all")
    low, median, high = (100 * record[f"saving_draws_{which}"] for which in ("low", "median", "high"))
    cell = f"{median:+.1f} % [{low:.1f}, {high:.1f}]"
    assert rows.set_index("row").loc["both, 200 draws", "piqa"] == cell
    passes = rows[rows["row"] == "passes per batch"].set_index("model")["piqa"]
    assert passes.to_dict() == {"vanilla": "3.0", "wdmoe": "4.0"}
    for form in ("md", "csv", "tex", "json"):
        text = (tmp_path / f"table_2_latency_layer_per_pass_all.{form}").read_text()
        assert "and never saw the others" in text
        assert cell.replace("%", r"\%") in text if form == "tex" else cell in text
    assert "200 draws" not in (tmp_path / "table_2_latency_layer_per_pass_decode.md").read_text()


def test_a_large_trace_says_that_its_layers_were_sampled(monkeypatch):
    monkeypatch.setattr(fading, "MAX_LAYERS", 20)
    runs = pair()
    records = [r for r in records_of(runs) if (r["scope"], r["per"], r["phase"]) == ("layer", "pass", "all")]
    assert any("at points spread evenly over the tokens represent all" in note for note in draw_notes(runs, records))
    monkeypatch.setattr(fading, "MAX_LAYERS", 1000)
    assert not any(
        "at points spread evenly over the tokens represent all" in note for note in draw_notes(runs, records)
    )


def shown_records(runs):
    return [r for r in records_of(runs) if (r["scope"], r["per"], r["phase"]) == ("layer", "pass", "all")]


def test_no_draws_where_the_saving_itself_is_refused():
    runs = [run_of(), run_of("wdmoe", "wlr"), run_of("vanilla of 2", "top_k")]
    for run in runs[1:]:
        trace = trace_of(seed=5, batches=4)
        trace.arrays["items"] = 2 * trace.items
        run.traces["piqa"] = [trace]
    records = shown_records(runs)
    for record in records:
        is_other = record["dataset"] == "piqa" and record["model"] != "vanilla"
        is_drawn = not is_other and record["row"] != "vanilla_even"
        assert (record["draws"], record["saving_draws_median"] is None) == (DRAWS if is_drawn else None, not is_drawn)
        if is_other:
            assert record["saving"] is None
            assert record["no_draws"] == (None if record["row"] == "vanilla_even" else OTHER_BATCHES)
    of_piqa = [record for record in records if record["dataset"] == "piqa"]
    rows = table_2(of_piqa, ["piqa"], "layer", "pass", "all")
    assert [row for row in rows["row"] if "draws" in row] == ["allocation_only, 200 draws"]
    assert f"no range over draws on piqa: {OTHER_BATCHES}" in draw_notes(runs, records)


def test_a_second_vanilla_has_no_row_of_draws():
    records = shown_records([run_of(), run_of("again")])
    rows = table_2(records, ["piqa"], "layer", "pass", "all")
    assert [row for row in rows["row"] if "draws" in row] == ["allocation_only, 200 draws"] * 2


def test_texts_scored_in_another_way_are_not_compared():
    runs = [run_of(), run_of("exact", "wlr")]
    runs[1].perplexity = "exact"
    own = [record for record in shown_records(runs) if record["model"] == "exact"]
    assert own
    assert all((record["saving"], record["draws"]) == (None, None) for record in own)


def test_the_note_says_when_draws_are_shared():
    assert "if fading changes within a run: in passes of the same moment" in fading.TEXT
