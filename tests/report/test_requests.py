"""What requests wait against an oracle that goes pass by pass, and the tables of it and of the measured speed."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import approx

from tests.builders.trace_blocks import PROFILE, block, metadata
from tests.report.html.synthetic import ITEMS, write_run
from wdmoe_opencompass.replay import replay
from wdmoe_opencompass.report.records import ROWS
from wdmoe_opencompass.report.requests import percentiles, request_records, request_table
from wdmoe_opencompass.report.runs import ModelRun, runs_from_traces
from wdmoe_opencompass.report.speed import speed_notes, speed_records, speed_table
from wdmoe_opencompass.report.summary import write_report
from wdmoe_opencompass.trace.format import join
from wdmoe_opencompass.trace.speed import BatchSpeed, append_speed


def waited_s(part):
    """Item by item, pass by pass: -> {item: seconds}."""
    trace, waits, found, row = part.trace, part.waiting_latency_s, {}, 0
    for batch, (first, items) in enumerate(zip(trace.first_item.tolist(), trace.items.tolist(), strict=True)):
        passes = [n for n in range(len(trace.batch)) if trace.batch[n] == batch]
        for item in range(first, first + items):
            found[item] = found.get(item, 0.0) + sum(waits[n] for n in passes[: trace.item_passes[row]])
            row += 1
    return found


def ranked(labels, sizes):
    """Perplexity: all items once per label."""
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    return [
        block(first, items, 1, seed=10 * label + first)
        for label in range(labels)
        for first, items in zip(starts, sizes, strict=True)
    ]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    passes=st.integers(1, 6),
    labels=st.integers(1, 3),
    method=st.sampled_from(["uniform", "optimal"]),
    scope=st.sampled_from(["pass", "layer"]),
)
def test_a_request_waits_for_the_passes_of_its_batches(sizes, passes, labels, method, scope):
    first, blocks = 0, ranked(labels, sizes) if labels > 1 else []
    for number, items in enumerate(sizes if labels == 1 else ()):
        blocks.append(block(first, items, 1 + (passes + number) % 6, seed=number))
        first += items
    part = replay(join(metadata(), blocks), PROFILE, method, scope)
    expected = waited_s(part)
    assert sorted(expected) == list(range(sum(sizes)))
    assert part.request_latency_s.tolist() == approx([expected[item] for item in range(sum(sizes))], rel=1e-12)


def test_requests_of_a_batch_that_end_earlier_wait_less():
    arrays = block(0, 3, 5) | dict(item_passes=np.array([5, 1, 3], np.int32))
    part = replay(join(metadata(), [arrays]), PROFILE, "uniform", "layer")
    waits = part.waiting_latency_s
    assert part.request_latency_s == approx([waits.sum(), waits[0], waits[:3].sum()])


def test_an_item_without_a_token_is_no_request():
    blocks = [block(0, 3, 5) | dict(item_passes=np.array([5, 0, 3], np.int32))]
    blocks.append(block(3, 2, 2) | dict(item_passes=np.array([0, 1], np.int32)))
    part = replay(join(metadata(), blocks), PROFILE, "uniform", "layer")
    waits = part.waiting_latency_s
    assert part.request_latency_s == approx([waits[:5].sum(), waits[:3].sum(), waits[5]])


def test_without_a_batch_nobody_waits():
    part = replay(join(metadata(), []), PROFILE, "uniform", "layer")
    assert part.request_latency_s.shape == (0,)


def test_items_far_from_zero_take_no_memory():
    part = replay(join(metadata(), [block(2**31 - 8)]), PROFILE, "uniform", "layer")
    assert part.request_latency_s.shape == (4,)


def test_percentiles_are_over_requests():
    assert percentiles(np.arange(101.0)) == dict(latency_p50_s=50, latency_p90_s=90, latency_p99_s=99)
    assert percentiles(np.array([3.0])) == dict(latency_p50_s=3, latency_p90_s=3, latency_p99_s=3)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("written") / "run")


@pytest.fixture
def run(written, tmp_path):
    return shutil.copytree(written, tmp_path / "run")


def records(folder, name):
    return json.loads((folder / "summary" / f"{name}.json").read_text())


def test_records_have_every_row_and_dataset_and_follow_from_the_traces(run):
    found = records(run, "request_records")
    assert len(found) == len(ROWS) * 2
    of = {(model.abbr, dataset): traces for model in runs_from_traces(run) for dataset, traces in model.traces.items()}
    for record in found:
        (trace,) = of[record["model"], record["dataset"]]
        waits = list(waited_s(replay(trace, trace.metadata.profile, record["allocation"], "layer")).values())
        assert record["requests"] == len(waits) == int(trace.items.sum())
        for percent in (50, 90, 99):
            assert record[f"latency_p{percent}_s"] == approx(np.percentile(waits, percent))
        assert record["scope"] == "layer"
    table = records(run, "requests")
    assert [row["row"] for row in table["rows"]] == [*ROWS, "batch size", "batch size", "requests"]
    first = next(record for record in found if (record["row"], record["dataset"]) == ("vanilla_even", "writing"))
    expected = " / ".join(f"{1e3 * first[f'latency_p{percent}_s']:.3f}" for percent in (50, 90, 99))
    assert table["rows"][0]["writing"] == expected
    assert table["rows"][-1] == dict(row="requests", model="-", choice="32", writing="28")
    assert [row for row in table["rows"] if row["row"] == "batch size"] == [
        dict(row="batch size", model=model, choice="4", writing="4") for model in ("vanilla", "wdmoe")
    ]
    assert "simulated" in table["notes"][0]
    assert any("the 99th percentile rests on the number of batches" in note for note in table["notes"])
    assert (table["provenance"]["scope"], table["provenance"]["per"]) == ("layer", "request")


def test_parts_and_groups_are_pooled_request_by_request():
    parts = {"d": [join(metadata(), [block(0), block(4, seed=1)]), join(metadata(), [block(0, seed=2)])]}
    parts["e"] = [join(metadata(), [block(0, seed=n) for n in range(2)])]  # two possible answers
    model = ModelRun("m", "top_k", ("w", PROFILE.content_hash), traces=parts, groups={"both": ["d", "e"]})
    found = {(r["row"], r["dataset"]): r for r in request_records([model])}
    assert {name: found["vanilla_even", name]["requests"] for name in ("d", "e", "both")} == dict(d=12, e=4, both=16)
    waits = [waited_s(replay(t, PROFILE, "uniform", "layer")).values() for of in parts.values() for t in of]
    pooled = [wait for of in waits for wait in of]
    assert found["vanilla_even", "both"]["latency_p90_s"] == approx(np.percentile(pooled, 90))
    del model.traces["e"]
    assert "both" not in {record["dataset"] for record in request_records([model])}
    assert request_table(request_records([model]), ["d", "both"])["both"].tolist() == ["-"] * 4


def test_batch_sizes_are_those_of_the_config_and_of_each_dataset():
    traces = {name: [join(metadata(), [block(0)])] for name in "def"}
    groups = {"both": ["d", "e"]}
    runs = [
        ModelRun(abbr, policy, ("w", "p"), traces=traces, groups=groups, batch_size=size, own_batch_sizes=own)
        for abbr, policy, size, own in (("v", "top_k", 64, {}), ("w", "wlr", 16, dict(e=8)), ("x", "wlr", None, {}))
    ]
    table = request_table(request_records(runs), ["both", "f"]).set_index(["row", "model"])
    sizes = {model: table.loc[("batch size", model)].tolist() for model in "vwx"}
    assert sizes == dict(v=["64", "64"], w=["8, 16", "16"], x=["4", "4"])  # of no config: the largest batch


def test_requests_of_one_perplexity_batch_wait_equally_long():
    part = replay(join(metadata(), ranked(labels=3, sizes=[4, 4, 4])), PROFILE, "uniform", "layer")
    assert len(set(part.request_latency_s.tolist())) == 3


# -- measured speed --------------------------------------------------------------------------------------------------
def measure(run, model, dataset, batches, **changes):
    for number in range(batches):
        line = dict(end=ITEMS * (number + 1), items=ITEMS, prefill_s=0.5, decode_s=2.0, batch_s=3.0, device="GPU X")
        append_speed(run / "predictions" / model / f"{dataset}.speed.jsonl", BatchSpeed(**line | changes))


def test_speed_is_tokens_of_the_measured_batches_over_their_seconds(run):
    measure(run, "vanilla", "writing", batches=7)
    measure(run, "wdmoe", "writing", batches=5)
    measure(run, "vanilla", "choice", batches=8, decode_s=0.0)
    runs = runs_from_traces(run)
    runs[0].batch_size = ITEMS
    found = {(r["model"], r["dataset"]): r for r in speed_records(runs, run / "predictions")}
    assert set(found) == {("vanilla", "writing"), ("wdmoe", "writing"), ("vanilla", "choice")}
    for (model, dataset), batches in (("vanilla", "writing"), 7), (("wdmoe", "writing"), 5), (("vanilla", "choice"), 8):
        trace = next(run for run in runs if run.abbr == model).traces[dataset][0]
        measured = trace.batch < batches
        record = found[model, dataset]
        prefill, decode = (int(trace.tokens[measured & (trace.phase == phase)].sum()) for phase in (0, 1))
        assert record["prefill_tokens_per_s"] == approx(prefill / (0.5 * batches))
        assert record["decode_tokens_per_s"] == (approx(decode / (2.0 * batches)) if decode else None)
        assert record["seconds_per_item"] == approx(3.0 / ITEMS)
        assert (record["prompts"], record["prompts_measured"]) == (trace.items.sum(), batches * ITEMS)
        assert (record["device"], record["dtype"]) == ("GPU X", "float32")
    assert speed_notes(list(found.values())) == ["wdmoe, writing: measured on 20 of its 28 prompts"]
    table = speed_table(list(found.values()), ["writing"])
    assert table["dataset"].tolist() == ["writing", "writing"]
    assert table["batch size"].tolist() == [str(ITEMS), "-"]


def test_an_item_takes_the_time_of_all_its_possible_answers(tmp_path):
    trace = join(metadata(dataset="d", model="m"), [block(0, passes=1, seed=n) for n in range(3)])
    model = ModelRun("m", "top_k", ("w", PROFILE.content_hash), traces={"d": [trace]})
    (tmp_path / "m").mkdir()
    for end in (4, 8, 12):
        speed = BatchSpeed(end=end, items=4, prefill_s=1.0, decode_s=0.0, batch_s=2.0, device="GPU X")
        append_speed(tmp_path / "m" / "d.speed.jsonl", speed)
    (record,) = speed_records([model], tmp_path)
    assert record["seconds_per_item"] == approx(3 * 2.0 / 4)


def test_two_machines_are_both_named_and_nothing_measured_leaves_no_table(run):
    assert not (run / "summary" / "speed.md").exists()
    assert records(run, "speed_records") == []
    measure(run, "vanilla", "choice", batches=1)
    measure(run, "vanilla", "choice", batches=2, device="GPU Y")  # gone on elsewhere; the first batch is known already
    printed = write_report(runs_from_traces(run), ["choice", "writing"], run / "summary")
    assert any("measured speed of the run (wall-clock, not simulated)" in text for text in printed)
    table = records(run, "speed")
    assert [row["device"] for row in table["rows"]] == ["GPU X; GPU Y"]
    assert table["notes"][0].startswith("measured wall-clock")


def test_speed_names_the_batch_size_that_each_dataset_ran_with(run):
    """A dataset's own inferencer goes before the model; a group has those of all its datasets."""
    measure(run, "vanilla", "writing", batches=7)
    measure(run, "vanilla", "choice", batches=8)
    (vanilla, _) = runs = runs_from_traces(run)
    vanilla.batch_size, vanilla.own_batch_sizes = 16, dict(writing=ITEMS)
    vanilla.groups = {"all": ["writing", "choice"]}
    found = speed_records(runs, run / "predictions")
    assert {r["dataset"]: r["batch_sizes"] for r in found} == dict(writing=[4], choice=[16], all=[4, 16])
    sizes = speed_table(found, ["writing", "choice", "all"]).set_index("dataset")["batch size"]
    assert sizes.to_dict() == dict(writing="4", choice="16", all="4, 16")
