"""The page in a browser: its numbers, its controls, and that nothing it shows can act."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from pytest import approx
from typer.testing import CliRunner

from tests.builders.page import DIGITS, MODEL_OF, PROFILE, device, expected, near_interval, trace_of
from tests.report.html.synthetic import generated, ranked, write_run
from tests.testbed.synthetic import synthetic_profile
from wdmoe_opencompass.channel.profile import ChannelProfile, changed_profile, load_profile
from wdmoe_opencompass.cli import app
from wdmoe_opencompass.errors import WdmoeError
from wdmoe_opencompass.replay import replay
from wdmoe_opencompass.report.batches import batch_sums
from wdmoe_opencompass.report.html.page import make_page, write_page
from wdmoe_opencompass.report.records import ROWS
from wdmoe_opencompass.report.statistics import latency_interval, latency_ratio_interval
from wdmoe_opencompass.report.summary_files import SHOWN

HOSTILE = "</script><script>window.hacked = 1</script><!-- <img src=x onerror='window.hacked = 2'>"


def without_fading(profile):
    data = profile.model_dump(mode="json", exclude_none=True)
    return ChannelProfile.model_validate(data | dict(fading=dict(model="none")))


def test_the_first_numbers_are_those_of_the_tables(run, visit):
    records = json.loads((run / "summary" / "latency.json").read_text())
    shown = [record for record in records if SHOWN.items() <= record.items()]
    assert visit.cells() == {
        (record["row"], record["model"], record["dataset"]): record["latency_s"] for record in shown
    }
    table = json.loads((run / "summary" / "table_2_latency_layer_per_batch_all.json").read_text())
    text = visit.page.inner_text("#table-latency")
    ends = [
        (1e3 * record["latency_low_s"], 1e3 * record["latency_high_s"]) for record in shown if record["latency_low_s"]
    ]
    assert ends
    assert all(f"[{low:.3f}, {high:.3f}]" in text for low, high in ends)
    rows = {row["row"]: row for row in table["rows"]}
    for row in (rows[name] for name in ROWS):
        for dataset in ("choice", "writing"):
            latency, _, saving = row[dataset].partition(" ")
            assert latency in text
            assert saving.strip("()") in text
    assert "as in its tables" in visit.page.inner_text("#announce")


def test_savings_over_fading_draws_are_shown_as_recorded_and_follow_no_control(run, visit):
    records = json.loads((run / "summary" / "latency.json").read_text())
    where = SHOWN | dict(scope="layer")
    drawn = {
        (record["row"], record["model"], record["dataset"]): record
        for record in records
        if where.items() <= record.items()
    }
    drawn = {key: record for key, record in drawn.items() if record["draws"]}
    visit.click("[name=scope][value=layer]")
    cells = visit.page.locator("#table-latency [data-draws]")
    assert cells.count() == len(drawn) == 3 * 2
    for cell in cells.all():
        key = tuple(cell.get_attribute(f"data-{name}") for name in ("draws", "model", "benchmark"))
        low, median, high = (100 * drawn[key][f"saving_draws_{which}"] for which in ("low", "median", "high"))
        assert [f"{median:+.1f}", f"[{low:.1f},"] == cell.inner_text().replace("\u2212", "-").split()[:3:2]
        assert f"{high:.1f}]" in cell.inner_text()
    assert "does not follow the controls" not in visit.page.inner_text("#table-latency")
    visit.set("#total-number", 45)
    visit.settled()
    assert "allocation_only, 200 draws" in visit.page.inner_text("#table-latency")
    assert "does not follow the controls" in visit.page.inner_text("#table-latency")


def test_accuracies_and_their_differences_from_vanilla_are_those_of_table_1(run, visit):
    table = json.loads((run / "summary" / "table_1_accuracy.json").read_text())
    text = " ".join(visit.page.inner_text("#table-accuracy").replace("\N{MINUS SIGN}", "-").split())
    cells = [row[dataset] for row in table["rows"] for dataset in ("choice", "writing")]
    assert sum("(" in cell for cell in cells) == 2
    for cell in cells:
        assert cell in text


CONTROLS = {
    "total bandwidth": ([("#total-number", 37)], changed_profile(PROFILE, "total_bandwidth_hz", 37e6), {}),
    "slider": ([("#total-range", 150)], changed_profile(PROFILE, "total_bandwidth_hz", 150e6), {}),
    "payload": ([("#payload-number", 5)], changed_profile(PROFILE, "payload_bits", 5), {}),
    "distance": ([(device(3, "distance_m"), 333.5)], changed_profile(PROFILE, "devices[2].distance_m", 333.5), {}),
    "power": (
        [(device(8, "transmit_power_w"), 0.05)],
        changed_profile(PROFILE, "devices[7].transmit_power_w", 0.05),
        {},
    ),
    "fading": (["#fading"], without_fading(PROFILE), {}),
    "scope": (["[name=scope][value=pass]"], PROFILE, dict(scope="pass")),
    "per": (["[name=per][value=pass]"], PROFILE, dict(per="pass")),
    "prefill": (["[name=phase][value=prefill]"], PROFILE, dict(phase="prefill")),
    "decode": (["[name=phase][value=decode]"], PROFILE, dict(phase="decode")),
    "several": (
        [("#total-number", 60), "[name=scope][value=pass]", "[name=phase][value=decode]", "[name=per][value=pass]"],
        changed_profile(PROFILE, "total_bandwidth_hz", 60e6),
        dict(scope="pass", phase="decode", per="pass"),
    ),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_changes_the_numbers_to_what_replay_gives(run, visit, name):
    steps, profile, where = CONTROLS[name]
    for step in steps:
        visit.click(step) if isinstance(step, str) else visit.set(*step)
    assert visit.cells() == approx(expected(run, profile, **where), rel=DIGITS)
    is_what_if = profile != PROFILE
    assert ("What if" in visit.page.inner_text("#announce")) == is_what_if


def intervals_in(visit, row):
    """-> [(low, high), ...] of the row's cell of writing."""
    text = visit.page.inner_text(f"#table-latency [data-row={row}][data-benchmark=writing]").replace("\u2212", "-")
    return [(float(low), float(high)) for low, high in re.findall(r"\[(-?[\d.]+), (-?[\d.]+)\]", text)]


def test_intervals_of_a_changed_channel_are_those_of_python(run, visit):
    visit.set("#total-number", 45)
    visit.settled()
    profile = changed_profile(PROFILE, "total_bandwidth_hz", 45e6)
    vanilla, both = (
        batch_sums([replay(trace_of(run, model, "writing"), profile, method, "layer")], "all")
        for model, method in (("vanilla", "uniform"), ("wdmoe", "optimal"))
    )
    interval = latency_interval(both.latency_s, both.count("batch"))
    sums = (vanilla.latency_s, vanilla.count("batch"), both.latency_s, both.count("batch"))
    ratio = latency_ratio_interval(*sums)
    latency_ms, saving = intervals_in(visit, "both")
    assert latency_ms == near_interval(1e3 * np.array(interval))
    assert saving == near_interval((100 * (1 - ratio.high), 100 * (1 - ratio.low)))


def test_another_benchmark_does_not_stop_what_follows_a_change(run, visit):
    """Both at once, faster than any hand: the intervals of the change are still shown, and the sweep ends."""
    visit.page.evaluate(
        """() => {
          const of = (id) => document.getElementById(id);
          of("figure-5").scrollIntoView({ behavior: "instant" });
          of("total-number").value = 45;
          of("total-number").dispatchEvent(new Event("input"));
          of("benchmark").value = "writing";
          of("benchmark").dispatchEvent(new Event("change"));
        }"""
    )
    visit.settled()
    profile = changed_profile(PROFILE, "total_bandwidth_hz", 45e6)
    for row in ("vanilla_even", "both"):
        vanilla, method = ROWS[row]
        sums = batch_sums([replay(trace_of(run, MODEL_OF[vanilla], "writing"), profile, method, "layer")], "all")
        interval = latency_interval(sums.latency_s, sums.count("batch"))
        assert intervals_in(visit, row)[0] == near_interval(1e3 * np.array(interval))
    assert visit.page.input_value("#benchmark") == "writing"


def test_heat_maps_and_phases_follow_the_controls(run, visit):
    visit.page.select_option("#model", "wdmoe")
    visit.page.select_option("#benchmark", "writing")
    visit.set(device(1, "distance_m"), 700)
    profile = changed_profile(PROFILE, "devices[0].distance_m", 700.0)
    trace = trace_of(run, "wdmoe", "writing")
    loads = visit.page.eval_on_selector_all("#heat-load td[data-value]", "nodes => nodes.map(n => +n.dataset.value)")
    assert loads == approx(trace.device_load.mean(axis=0).ravel().tolist(), rel=DIGITS)
    answer = replay(trace, profile, "optimal", "layer")
    phases = visit.page.eval_on_selector_all(
        "#table-phases td[data-row=both]", "nodes => nodes.map(n => +n.dataset.value)"
    )
    assert phases == approx([answer.mean_s("batch", "prefill"), answer.mean_s("batch", "decode")], rel=DIGITS)
    assert "700" in visit.page.inner_text("#table-devices")


def test_the_saved_profile_gives_the_page_s_numbers(run, visit, tmp_path):
    visit.set("#payload-number", 8)
    visit.set(device(2, "distance_m"), 10)
    with visit.page.expect_download() as download:
        visit.page.click("#save")
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    assert path.name == "paper_8_devices_what_if.yaml"
    assert visit.cells() == approx(expected(run, load_profile(path)), rel=DIGITS)
    assert CliRunner().invoke(app, ["profile", "validate", str(path)]).exit_code == 0
    own = {key for key, word in load_profile(path).value_origins().items() if word == "own"}
    assert own == {"payload_bits", "devices[1].distance_m"}
    assert {PROFILE.value_origins()[key] for key in own} == {"paper", "fitted"}


def test_the_page_calls_no_changed_value_the_papers(visit):
    told = "#channel-origin"
    before = visit.page.inner_text(told)
    assert PROFILE.origin_sentence in before
    assert "own:" not in before
    assert visit.page.inner_text("#origin-note") == ""
    visit.set("#total-number", 45)
    visit.settled()
    profile = changed_profile(PROFILE, "total_bandwidth_hz", 45e6)
    assert f"as changed: {profile.origin_sentence}" in visit.page.inner_text(told)
    assert f"as changed: {profile.origin_sentence}" in visit.page.inner_text("#origin-note")


def test_scope_layer_is_offered_first_and_pass_is_called_hindsight(visit):
    choices = "nodes => nodes.map(node => [node.value, node.parentElement.textContent])"
    offered = visit.page.eval_on_selector_all("#choose-scope input", choices)
    assert offered == [["layer", "layer"], ["pass", "pass (hindsight)"]]
    visit.click("[name=scope][value=pass]")
    assert "in hindsight" in visit.page.inner_text("#table-latency caption")


def test_reset_brings_the_run_s_own_numbers_back(visit):
    before = visit.cells()
    visit.set("#total-number", 20)
    visit.click("[name=per][value=pass]")
    assert visit.cells() != before
    visit.page.click("#reset")
    assert visit.cells() == before
    assert visit.page.input_value("#total-number") == "100"


@pytest.mark.parametrize("value", ["0", "-3", ""])
def test_a_value_that_no_profile_may_have_changes_nothing(visit, value):
    before = visit.cells()
    visit.set("#total-number", value)
    assert visit.cells() == before
    assert visit.page.get_attribute("#total-number", "aria-invalid") == "true"


def test_nothing_leaves_the_page_and_nothing_complains(visit):
    visit.all_seen()
    visit.set("#total-number", 60)
    visit.settled()
    outside = [url for url in visit.requests if not url.startswith(("file:", "data:", "blob:"))]
    assert not outside
    assert sum(url.startswith("file:") for url in visit.requests) == 1
    assert not visit.complaints
    assert visit.page.locator(".js-plotly-plot").count() == 7


def test_every_control_is_reached_with_the_keyboard_alone(visit):
    page = visit.page
    wanted = {"theme", "print", "reset", "save", "total-range", "payload-number", "fading", "benchmark", "item-search"}
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    reached = set()
    for _ in range(120):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.name"))
    assert wanted | {"per", "scope"} <= reached
    before = visit.cells()
    page.focus("#total-range")
    page.keyboard.press("ArrowLeft")
    visit.computed()
    assert page.input_value("#total-number") == "99"
    assert visit.cells() != before


def test_axe_finds_nothing_serious_in_light_and_dark(open_page, run):
    from axe_playwright_python.sync_playwright import Axe

    visit = open_page(write_page(run)[0])
    visit.all_seen()
    visit.set("#total-number", 60)
    visit.settled()
    visit.open_item()
    for summary in visit.page.locator("details.notes > summary, details.more > summary").all():
        summary.click()
    for theme in ("light", "dark"):
        visit.page.select_option("#theme", theme)
        violations = Axe().run(visit.page).response["violations"]
        grave = [(v["id"], v["nodes"][0]["html"][:200]) for v in violations if v["impact"] in ("serious", "critical")]
        assert not grave, theme


def test_a_phone_scrolls_down_alone(open_page, run):
    visit = open_page(write_page(run)[0], width=390, height=844)
    visit.all_seen()
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_items_are_filtered_searched_and_compared(visit):
    page = visit.page
    page.evaluate("document.getElementById('items').scrollIntoView()")
    page.wait_for_selector("#item-list details")
    assert page.inner_text("#item-count") == "60 of 60 items"
    page.check("#item-changed")
    assert page.inner_text("#item-count") == "13 of 60 items"
    page.select_option("#item-dataset", "choice")
    page.fill("#item-search", "beast 10 ")
    assert page.inner_text("#item-count") == "1 of 60 items"
    body = visit.open_item()
    assert "A: owls" in body
    assert "B: bears" in body
    assert re.search(r"wdmoe\s+B: bears\s+\w+, changed", body)


def test_what_others_wrote_stays_text(open_page, tmp_path):
    name = "<img src=x onerror='window.hacked=3'>"

    def written(dataset, model, items):
        if dataset == name:
            return [ranked(HOSTILE, {HOSTILE[:9]: HOSTILE, "__proto__": "b"}, "__proto__", "A") for _ in range(items)]
        return [generated(HOSTILE + str(n), f"{model} {HOSTILE}", HOSTILE) for n in range(items)]

    models = {"vanilla": "top_k", "<b onclick=alert(1)>wdmoe": "<i>wlr"}
    run = write_run(tmp_path / "run", models, {name: (7, 1), "plain": (7, 2)}, written=written)
    path, page = write_page(run)
    assert page.html.count("</script>") == page.html.count("<script")
    visit = open_page(path)
    visit.all_seen()
    body = visit.open_item()
    assert visit.page.evaluate("window.hacked") is None
    assert visit.page.locator("img, main script, main b, main i").count() == 0
    assert HOSTILE in body
    assert name in visit.page.inner_text("#table-latency")
    assert not visit.complaints


def test_controls_that_do_nothing_are_disabled_and_say_why(open_page, tmp_path):
    devices = [
        device.model_dump(exclude_none=True) | dict(downlink_bit_per_s=1e8, uplink_bit_per_s=1e7)
        for device in synthetic_profile().devices
    ]
    measured = synthetic_profile(rates="measured", devices=devices, fading=dict(model="none"))
    visit = open_page(write_page(write_run(tmp_path / "run", profile=measured))[0])
    for selector in ("#total-range", "#total-number", "#fading", "#device-controls input >> nth=0"):
        assert visit.page.is_disabled(selector)
    assert visit.page.is_enabled("#payload-number")
    assert "measured" in visit.page.inner_text("#devices-why")
    visit.all_seen()
    assert "measured" in visit.page.inner_text("#figure-5")
    before = visit.cells()
    visit.set("#payload-number", 8)
    assert visit.cells() != before


def test_a_profile_without_fading_has_no_draw_to_switch_off(open_page, tmp_path):
    visit = open_page(write_page(write_run(tmp_path / "run", profile=without_fading(PROFILE)))[0])
    assert visit.page.is_disabled("#fading")
    assert "no fading" in visit.page.inner_text("#fading-why")


def test_what_was_not_measured_stays_empty_with_its_reason(open_page, run, tmp_path):
    folder = copied(run, tmp_path)
    accuracy = json.loads((folder / "summary" / "accuracy.json").read_text())
    latency = json.loads((folder / "summary" / "latency.json").read_text())
    gone = ("wdmoe", "choice")
    for name, records in (("accuracy", accuracy), ("latency", latency)):
        kept = [record for record in records if (record["model"], record["dataset"]) != gone]
        (folder / "summary" / f"{name}.json").write_text(json.dumps(kept))
    (folder / "summary" / "missing.json").write_text(json.dumps(["wdmoe, choice: the disk was full"]))
    trace = folder / "predictions" / "wdmoe" / "choice.trace.safetensors"
    trace.unlink()
    page = make_page(folder)
    assert any("choice" in sentence for sentence in page.left_out)
    visit = open_page(write_page(folder)[0])
    assert visit.page.locator("#table-latency td.empty", has_text="the disk was full").count() == 2
    assert visit.page.locator("#table-accuracy td.empty", has_text="the disk was full").count() == 1
    assert "the disk was full" in visit.page.inner_text("#missing")
    visit.set("#total-number", 50)
    assert ("both", "wdmoe", "choice") not in visit.cells()
    assert ("both", "wdmoe", "writing") in visit.cells()


def test_a_testbed_s_tables_are_shown_where_there_are_any(open_page, shared, run, tmp_path):
    assert shared.page.is_hidden("#testbed")
    folder = copied(run, tmp_path)
    table = dict(rows=[{"row": "wdmoe", "choice": "3.141 (+9.5 %)"}], notes=["as measured"])
    (folder / "summary" / "table_4_testbed_latency.json").write_text(json.dumps(table))
    (folder / "summary" / "figure_10_testbed_latency.png").touch()
    visit = open_page(write_page(folder)[0])
    assert "3.141 (+9.5 %)" in visit.page.inner_text("#testbed")
    assert visit.page.get_attribute("#testbed a", "href") == "figure_10_testbed_latency.png"


def copied(run, tmp_path):

    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_a_trace_that_is_not_the_tables_is_not_read(run, tmp_path):
    folder = copied(run, tmp_path)
    own, other = (folder / "predictions" / model / "choice.trace.safetensors" for model in ("wdmoe", "vanilla"))
    own.write_bytes(other.read_bytes())
    assert any("not the trace that the tables were made from" in sentence for sentence in make_page(folder).left_out)


def test_equal_runs_give_equal_pages(run, tmp_path):
    assert make_page(run).html == make_page(copied(run, tmp_path)).html


def test_items_that_do_not_fit_are_told(monkeypatch, run):
    monkeypatch.setattr("wdmoe_opencompass.report.html.page.MAX_DATA_BYTES", 0)
    monkeypatch.setattr("wdmoe_opencompass.report.html.page.MIN_ITEM_BYTES", 3000)
    page = make_page(run)
    assert [re.sub(r"\d+ of", "n of", sentence) for sentence in page.left_out] == [
        "choice: n of 32 items are shown",
        "writing: n of 28 items are shown",
    ]
    items = json.loads(re.search(r'id="item-data">(.*?)</script>', page.html)[1])
    shown = [item for dataset in items["datasets"] for item in dataset["items"]]
    assert sum(item[-1] for item in shown) == 13  # all that selection changed
    assert len(shown) < 60


def test_the_command_writes_the_page_and_lists_it(run, tmp_path):
    folder = copied(run, tmp_path)
    done = CliRunner().invoke(app, ["report", str(folder), "--html", "--json"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.output)
    page = folder / "summary" / "report.html"
    assert answer["page"] == str(page)
    assert answer["bytes"] == page.stat().st_size
    listed = json.loads((folder / "summary" / "manifest.json").read_text())
    assert listed["summary/report.html"] == hashlib.sha256(page.read_bytes()).hexdigest()
    plain = CliRunner().invoke(app, ["report", str(folder), "--html"])
    assert plain.output == f"{page}\n"


def test_a_folder_without_tables_is_answered(tmp_path):
    with pytest.raises(WdmoeError, match="no summary folder in it; give the time-stamped folder"):
        make_page(tmp_path)
    assert isinstance(CliRunner().invoke(app, ["report", str(tmp_path), "--html"]).exception, WdmoeError)


@pytest.mark.slow
def test_the_page_of_a_real_run_shows_its_tables_and_follows_its_controls(open_page, small_run):
    visit = open_page(small_run / "summary" / "report.html")
    records = json.loads((small_run / "summary" / "latency.json").read_text())
    shown = [record for record in records if SHOWN.items() <= record.items()]
    assert visit.cells() == {(r["row"], r["model"], r["dataset"]): r["latency_s"] for r in shown}
    visit.all_seen()
    visit.set("#total-number", 31)
    visit.settled()
    for row, model, dataset in visit.cells():
        trace = trace_of(small_run, model, dataset)
        profile = changed_profile(trace.metadata.profile, "total_bandwidth_hz", 31e6)
        mean_s = replay(trace, profile, ROWS[row][1], SHOWN["scope"]).mean_s("batch", "all")
        assert visit.cells()[row, model, dataset] == approx(mean_s, rel=DIGITS)
    assert not visit.complaints
    assert all(url.startswith(("file:", "data:", "blob:")) for url in visit.requests)
