"""The page's figures, heat maps and map show the numbers that Python computes."""

import json

import numpy as np
import pytest
from pytest import approx

from tests.builders.page import DIGITS, MODEL_OF, PROFILE, device, expected, near_interval, trace_of
from wdmoe_opencompass.allocation import allocate
from wdmoe_opencompass.channel.profile import changed_profile
from wdmoe_opencompass.channel.propagation import draw_channel
from wdmoe_opencompass.latency import ExpertShape, device_latency_s, link_budget
from wdmoe_opencompass.replay import replay
from wdmoe_opencompass.report.batches import batch_sums
from wdmoe_opencompass.report.figures import BANDWIDTHS_HZ, largest_pair_share
from wdmoe_opencompass.report.records import ROWS
from wdmoe_opencompass.report.statistics import latency_ratio_interval

BENCHMARKS = ("choice", "writing")
CHANGED = changed_profile(changed_profile(PROFILE, "devices[2].distance_m", 333.5), "payload_bits", 8)
SETTINGS = {
    "the run's own": ([], PROFILE),
    "changed": ([(device(3, "distance_m"), 333.5), ("#payload-number", 8)], CHANGED),
}
TABLE_DIGITS = 1e-9  # relative: both from the same table
LAYER_DIGITS = 1e-3  # single layers of a pass, of which only the sum is the optimum
WAIT_SHARE = 0.05  # of the passes, where a layer's last two devices differ by less than the optimum's gap


@pytest.fixture(scope="module", params=SETTINGS)
def drawing(request, shared):
    """-> (visit, profile): everything drawn, the benchmark `writing` and the model `wdmoe` in view."""
    steps, profile = SETTINGS[request.param]
    shared.restored()
    shared.page.select_option("#benchmark", "writing")
    shared.page.select_option("#model", "wdmoe")
    for selector, value in steps:
        shared.set(selector, value)
    shared.all_seen()
    yield shared, profile
    shared.restored()


def traces(visit, figure):
    """What plotly.js was given and has drawn: -> name -> trace."""
    visit.seen(figure)
    found = visit.page.evaluate("(id) => document.getElementById(id).data", figure)
    return {trace["name"]: trace for trace in found}


def ends(trace, axis):
    error, middle = trace[f"error_{axis}"], np.array(trace[axis])
    return middle - np.array(error["arrayminus"]), middle + np.array(error["array"])


def test_the_accuracy_figure_is_table_1(run, drawing):
    records = json.loads((run / "summary" / "accuracy.json").read_text())
    found = traces(drawing[0], "figure-accuracy")
    assert set(found) == set(MODEL_OF.values())
    for model, trace in found.items():
        of = {
            record["dataset"]: record
            for record in records
            if record["model"] == model and record["metric"] == "accuracy"
        }
        wanted = [of[name] for name in BENCHMARKS]
        assert trace["y"] == approx([record["value"] for record in wanted])
        low, high = ends(trace, "y")
        assert low.tolist() == approx([record["low"] for record in wanted])
        assert high.tolist() == approx([record["high"] for record in wanted])
        assert np.round(trace["x"]).tolist() == [0, 1]


def test_figure_6_is_the_latency_over_vanilla_s(run, drawing):
    visit, profile = drawing
    wanted = expected(run, profile)
    found = traces(visit, "figure-6")
    assert set(found) == set(ROWS)
    for row, (vanilla, _) in ROWS.items():
        own = [wanted[row, MODEL_OF[vanilla], name] for name in BENCHMARKS]
        ratios = [mean / wanted["vanilla_even", "vanilla", name] for mean, name in zip(own, BENCHMARKS)]
        assert found[row]["y"] == approx(ratios, rel=DIGITS)
        assert np.floor(np.array(found[row]["x"]) + 0.5).tolist() == [0, 1]
        assert [float(text) for text in found[row]["text"]] == approx([1e3 * mean for mean in own], rel=5e-3)


def test_figure_5_is_the_latency_at_every_bandwidth(run, drawing):
    visit, profile = drawing
    found = traces(visit, "figure-5")
    assert set(found) == {"vanilla_even", "both"}
    for row, trace in found.items():
        vanilla, method = ROWS[row]
        assert trace["x"] == approx((BANDWIDTHS_HZ / 1e6).tolist())
        recorded = trace_of(run, MODEL_OF[vanilla], "writing")
        wanted = [
            1e3
            * replay(recorded, changed_profile(profile, "total_bandwidth_hz", hertz), method, "layer").mean_s(
                "batch", "all"
            )
            for hertz in BANDWIDTHS_HZ.tolist()
        ]
        assert trace["y"] == approx(wanted, rel=DIGITS)


def test_figure_7_is_the_latency_of_every_batch(run, drawing):
    visit, profile = drawing
    found = traces(visit, "figure-7")
    assert set(found) == set(ROWS)
    for row, (vanilla, method) in ROWS.items():
        recorded = trace_of(run, MODEL_OF[vanilla], "writing")
        seconds = np.bincount(recorded.batch, weights=replay(recorded, profile, method, "layer").waiting_latency_s)
        assert found[row]["x"] == np.bincount(recorded.batch, weights=recorded.tokens).tolist()
        assert found[row]["y"] == approx((1e3 * seconds).tolist(), rel=DIGITS)


def test_figure_8_is_the_largest_share_of_a_pair(run, drawing):
    found = traces(drawing[0], "figure-8")
    shares = largest_pair_share(trace_of(run, "vanilla", "writing"))
    assert list(found) == ["layer 1", "layer 2", "layer 3"]
    for layer, trace in enumerate(found.values()):
        assert trace["y"] == approx(shares[:, layer].tolist(), abs=1e-6)
        assert trace["x"] == list(range(1, len(shares) + 1))


@pytest.mark.parametrize("allocation", ["optimal", "uniform"])
def test_the_frontier_is_accuracy_against_latency_over_vanilla_s(run, drawing, allocation):
    visit, profile = drawing
    visit.click(f"[name=allocation][value={allocation}]")
    visit.all_seen()
    records = {
        record["model"]: record for record in json.loads((run / "summary" / "frontier_records.json").read_text())
    }
    found = {name: trace for name, trace in traces(visit, "figure-frontier").items() if trace["mode"] == "markers"}
    ending = "" if allocation == "optimal" else "_even"
    wanted = expected(run, profile)
    assert set(found) == set(records)
    for model, trace in found.items():
        row = next(row for row, (vanilla, method) in ROWS.items() if (MODEL_OF[vanilla], method) == (model, allocation))
        ratios = [wanted[row, model, name] / wanted["vanilla_even", "vanilla", name] for name in BENCHMARKS]
        assert trace["x"] == approx([float(np.exp(np.mean(np.log(ratios))))], rel=DIGITS)
        assert trace["y"] == approx([records[model]["accuracy"]])
        if profile is PROFILE:
            low, high = ends(trace, "x")
            assert low.tolist() == approx([records[model][f"latency_ratio{ending}_low"]], rel=TABLE_DIGITS)
            assert high.tolist() == approx([records[model][f"latency_ratio{ending}_high"]], rel=TABLE_DIGITS)
        else:
            assert trace.get("error_x") is None
    visit.click("[name=allocation][value=optimal]")


def test_prefill_and_decode_are_drawn_as_replay_has_them(run, drawing):
    visit, profile = drawing
    found = traces(visit, "figure-phases")
    ticks = visit.page.evaluate("document.getElementById('figure-phases').layout.yaxis")
    assert ticks["ticktext"] == list(ROWS)
    for phase in ("prefill", "decode"):
        wanted = [
            1e3 * replay(trace_of(run, MODEL_OF[vanilla], "writing"), profile, method, "layer").mean_s("batch", phase)
            for vanilla, method in ROWS.values()
        ]
        assert found[phase]["x"] == approx(wanted, rel=DIGITS)
        assert found[phase]["y"] == ticks["tickvals"]


def device_times(recorded, profile, method):
    """-> [passes, layers, devices] seconds until each device has answered, one split per layer."""
    metadata = recorded.metadata
    budget = link_budget(profile, draw_channel(profile), ExpertShape(metadata.hidden_size, metadata.ffn_size))
    load, evaluations = (np.asarray(array, float) for array in (recorded.device_load, recorded.expert_evaluations))
    hertz = profile.total_bandwidth_hz / len(profile.devices)
    if method == "optimal":
        hertz = allocate(method, "layer", budget, load, profile.total_bandwidth_hz, evaluations).bandwidth_hz
        hertz = hertz.reshape(len(load), -1, len(profile.devices))
    return device_latency_s(budget, hertz, load, evaluations)


def numbers(visit, selector, key="value"):
    return visit.page.eval_on_selector_all(selector, f"nodes => nodes.map(n => +n.dataset.{key})")


@pytest.mark.parametrize(("method", "near"), [("uniform", DIGITS), ("optimal", LAYER_DIGITS)])
@pytest.mark.parametrize("phase", ["all", "decode"])
def test_heat_maps_and_map_are_a_plain_count(run, drawing, method, near, phase):
    visit, profile = drawing
    visit.click(f"[name=allocation][value={method}]")
    visit.click(f"[name=phase][value={phase}]")
    recorded = trace_of(run, "wdmoe", "writing")
    chosen = recorded.is_phase(phase)
    times = device_times(recorded, profile, method)[chosen]  # [passes, layers, devices]
    assert numbers(visit, "#heat-load td[data-value]") == approx(
        recorded.device_load[chosen].mean(axis=0).ravel().tolist(), rel=DIGITS
    )
    assert numbers(visit, "#heat-time td[data-value]") == approx(times.mean(axis=0).ravel().tolist(), rel=near)
    last = times >= times.max(axis=2, keepdims=True) * (1 - 1e-6)
    waits = (last / last.sum(axis=2, keepdims=True)).mean(axis=0)  # [layers, devices]
    framed = visit.page.eval_on_selector_all(
        "#heat-time td[data-value]", "nodes => nodes.map(n => n.classList.contains('waits'))"
    )
    if method == "uniform":  # under the optimal split all loaded devices of a layer are the last
        assert framed == (waits > waits.max(axis=1, keepdims=True) - 1e-9).ravel().tolist()
        assert 0 < sum(framed) < len(framed)
        assert framed != [k == 0 for _ in waits for k in range(waits.shape[1])]
        near = {"abs": 1e-9}
    else:
        near = {"abs": WAIT_SHARE}
    share = waits.mean(axis=0).tolist()
    assert numbers(visit, "#table-devices td[data-value]") == approx(share, **near)
    assert numbers(visit, "#map circle[data-waited]", "waited") == approx(share, **near)
    visit.click("[name=phase][value=all]")
    visit.click("[name=allocation][value=optimal]")


def test_the_two_splits_have_other_heat_maps_and_maps(drawing):
    visit, _ = drawing
    seen = []
    for method in ("optimal", "uniform"):
        visit.click(f"[name=allocation][value={method}]")
        seen.append([numbers(visit, "#heat-time td[data-value]"), numbers(visit, "#map circle", "waited")])
    visit.click("[name=allocation][value=optimal]")
    assert seen[0][0] != approx(seen[1][0], rel=1e-3)
    assert seen[0][1] != approx(seen[1][1], rel=1e-3)


def test_intervals_of_figure_6_are_those_of_the_ratio(run, drawing):
    visit, profile = drawing
    found = traces(visit, "figure-6")["both"]
    for position, name in enumerate(BENCHMARKS):
        vanilla, both = (
            batch_sums([replay(trace_of(run, model, name), profile, method, "layer")], "all")
            for model, method in (("vanilla", "uniform"), ("wdmoe", "optimal"))
        )
        ratio = latency_ratio_interval(vanilla.latency_s, vanilla.count("batch"), both.latency_s, both.count("batch"))
        low, high = ends(found, "y")
        assert (low[position], high[position]) == near_interval(ratio)
