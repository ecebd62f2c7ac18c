"""The page of traces routed without a model: no part of its frontier is called accuracy."""

import json

import pytest
from pytest import approx

from tests.routing.recordings import random_recording
from wdmoe_opencompass import load_profile
from wdmoe_opencompass.report import routed as routed_folder
from wdmoe_opencompass.routing.route import route_recording, vanilla_trace


@pytest.fixture(scope="module")
def routed(tmp_path_factory):
    """-> the folder of two policies on one recording; its figures as files are tested elsewhere."""
    folder = tmp_path_factory.mktemp("page") / "routed"
    recording = random_recording(prompt_length=(9, 4, 7, 5) * 8, new=(3, 4, 0, 2) * 8)
    policies = (("fixed_k", dict(k=1)), ("wlr", {}))
    traces = [route_recording(recording, *policy, load_profile("paper_8_devices"), 4) for policy in policies]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routed_folder, "write_figures", lambda *arguments: None)
        routed_folder.write_routed(folder, vanilla_trace(traces[0], "tiny-top_k"), *traces)
    return folder


def test_the_frontier_shows_the_router_weight_kept(open_page, routed):
    visit = open_page(routed / "summary" / "report.html")
    visit.all_seen()
    records = {
        record["model"]: record for record in json.loads((routed / "summary" / "frontier_records.json").read_text())
    }
    data = visit.page.evaluate("document.getElementById('figure-frontier').data")
    points = {trace["name"]: trace for trace in data if trace["mode"] == "markers"}
    assert set(points) == set(records) == {"tiny-top_k", "tiny-fixed_k", "tiny-wlr"}
    for model, point in points.items():
        assert (point["x"], point["y"]) == (
            approx([records[model]["latency_ratio"]]),
            approx([records[model]["quality_percent"]]),
        )
        assert point.get("error_y") is None
    title = visit.page.evaluate("document.getElementById('figure-frontier').layout.yaxis.title.text")
    assert title == "router weight kept (%), no accuracy: routed without a model"
    assert visit.page.inner_text("#h-frontier") == "Router weight kept against latency"
    lead = visit.page.inner_text("#frontier-lead")
    assert "no accuracy: routed without a model" in lead
    assert "mean accuracy" not in lead
    assert not visit.complaints


def test_another_channel_moves_the_latency_alone(open_page, routed):
    visit = open_page(routed / "summary" / "report.html")
    read = "document.getElementById('figure-frontier').data.filter((trace) => trace.mode === 'markers')"
    visit.all_seen()
    before = visit.page.evaluate(read)
    visit.click("[name=allocation][value=uniform]")
    visit.all_seen()
    after = visit.page.evaluate(read)
    assert [trace["y"] for trace in after] == [trace["y"] for trace in before]
    assert all(even["x"][0] > optimal["x"][0] for even, optimal in zip(after, before, strict=True))
