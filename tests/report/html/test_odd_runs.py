"""Pages of runs unlike the others: many models, odd names, several profiles, what does not fit; and print."""

import os
import re
import shutil
from importlib.resources import files

import pytest
from pytest import approx

from tests.builders.page import DIGITS, PROFILE, device, expected, trace_of
from tests.report.html.synthetic import write_run
from wdmoe_opencompass.channel.profile import ChannelProfile, changed_profile
from wdmoe_opencompass.replay import replay
from wdmoe_opencompass.report.html.page import PARTS, write_page
from wdmoe_opencompass.report.records import ROWS

pytestmark = pytest.mark.slow  # a browser opens a page for nearly every one of them

LONG = "an-organisation-s-very-long-prefix-of-a-mixture-of-experts-model-with-policy-{:02d}-hf"
MANY = {"vanilla": "top_k"} | {LONG.format(n): "wlr" for n in range(14)}
ALL_OF_THEM = [f"a_benchmark_{n}_with_a_name" for n in range(8)]
WIDTHS = "[...document.querySelectorAll('.js-plotly-plot')].map(n => [n._fullLayout.width, n.clientWidth])"
FIGURES = ("figure-accuracy", "figure-6", "figure-frontier", "figure-5", "figure-7", "figure-8", "figure-phases")


@pytest.fixture(scope="module")
def many_path(tmp_path_factory):
    sizes = dict.fromkeys(ALL_OF_THEM, (3, 2))
    return write_page(write_run(tmp_path_factory.mktemp("many") / "20260101_000000", MANY, sizes, layers=2))[0]


@pytest.fixture
def many(open_page, many_path):
    def opened(**options):
        visit = open_page(many_path, **options)
        visit.page.evaluate("document.querySelectorAll('#model-choice input:not(:checked)').forEach((n) => n.click())")
        visit.all_seen()
        return visit

    return opened


def test_no_two_models_look_alike(many):
    visit = many()
    data = {id_: visit.page.evaluate(f"document.getElementById('{id_}').data") for id_ in FIGURES}

    def looks(id_):
        for trace in data[id_]:
            if trace.get("mode") == "lines":
                continue
            pattern = (trace["marker"].get("pattern") or {}).get("shape")
            colour = (trace.get("line") or trace["marker"]).get("color")
            yield colour, trace["marker"].get("symbol"), pattern

    for id_, count in {"figure-accuracy": 15, "figure-frontier": 15, "figure-6": 30, "figure-7": 30}.items():
        found = list(looks(id_))
        assert len(found) == count, id_
        assert len(set(found)) == count, id_
    swatch = "#table-accuracy tbody .key, #table-latency tbody .key"
    swatches = visit.page.eval_on_selector_all(swatch, "nodes => nodes.map(n => n.getAttribute('style'))")
    assert len(swatches) == 15 + 30 + 29
    assert len(set(swatches[:15])) == 15  # a model each
    assert len(set(swatches[15:])) == 30  # a row of a model each; its savings over draws have the row's own


@pytest.mark.parametrize(("width", "least"), [(1280, 240), (390, 200)])
def test_a_long_legend_leaves_room_for_the_figure(many, width, least):
    visit = many(width=width, height=844)
    for id_ in FIGURES:
        size, height = visit.page.evaluate(
            "(id) => [document.getElementById(id)._fullLayout._size.h, document.getElementById(id).clientHeight]", id_
        )
        assert size >= least, id_
        drawn = visit.page.evaluate("(id) => document.querySelector(`#${id} svg`).clientHeight", id_)
        assert drawn <= height, id_
    shown = visit.page.locator("#figure-6 .legend .traces").count()
    assert shown == 30
    assert visit.page.locator("#figure-6 .legend .scrollbar").evaluate_all(
        "nodes => nodes.every(n => !+n.getAttribute('height'))"
    )


@pytest.mark.parametrize("width", [1280, 390, 320])
def test_every_benchmark_has_its_label(many, width):
    visit = many(width=width, height=844)
    for id_ in ("figure-accuracy", "figure-6"):
        labels = visit.page.evaluate(
            """(id) => {
              const whole = document.getElementById(id).getBoundingClientRect();
              return [...document.querySelectorAll(`#${id} .xtick text`)].map((text) => {
                const box = text.getBoundingClientRect(), style = getComputedStyle(text);
                const inside = box.left > whole.left - 1 && box.right < whole.right + 1;
                const below = box.bottom < whole.bottom + 1;
                return inside && below && style.opacity !== "0" && style.display !== "none";
              });
            }""",
            id_,
        )
        assert labels == [True] * 8, id_
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width


def test_models_of_long_names_have_a_bar_each(many):
    visit = many()
    figure = visit.page.evaluate("(({data, layout}) => ({data, layout}))(document.getElementById('figure-phases'))")
    axis = figure["layout"]["yaxis"]
    assert len(set(axis["ticktext"])) == len(axis["ticktext"]) == 30
    for trace in figure["data"]:
        assert sorted(trace["y"]) == axis["tickvals"] == list(range(30))
    names = visit.page.evaluate("document.getElementById('figure-accuracy').data.map((trace) => trace.name)")
    assert len(set(names)) == 15


NAMES = ("constructor", "toString", "__proto__")


def test_any_name_is_a_name(open_page, tmp_path):
    models = {"vanilla": "top_k", "constructor": "wlr", "__proto__": "wlr"}
    run = write_run(tmp_path / "run", models, dict.fromkeys(NAMES, (6, 2)))
    visit = open_page(write_page(run)[0])
    visit.set("#total-number", 60)
    visit.all_seen()
    profile = changed_profile(PROFILE, "total_bandwidth_hz", 60e6)
    cells = visit.cells()
    assert len(cells) == 18
    for (row, model, dataset), value in cells.items():
        mean_s = replay(trace_of(run, model, dataset), profile, ROWS[row][1], "layer").mean_s("batch", "all")
        assert value == approx(mean_s, rel=DIGITS)
    for model in models:
        visit.page.select_option("#model", model)
        for name in NAMES:
            visit.page.select_option("#benchmark", name)
            visit.settled()
            assert visit.page.locator("#heat-time td[data-value]").count() == 24
    assert not visit.complaints


def test_a_folder_whose_name_is_no_utf_8_opens(browser, run, tmp_path):
    folder = os.fsencode(tmp_path) + b"/r\xe4un"
    os.makedirs(folder)
    shutil.copy(write_page(run)[0], folder + b"/report.html")
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"file://{tmp_path}/r%E4un/report.html")
    page.wait_for_function("() => WdmoePage.isSettled()")
    assert page.locator("#table-latency [data-row]").count() == 8
    context.close()


@pytest.fixture
def cut(open_page, run, monkeypatch):
    """A page in which only the counts of `choice` fit."""
    monkeypatch.setattr("wdmoe_opencompass.report.html.page.MAX_COUNT_BYTES", 2500)
    path, page = write_page(run)
    assert [sentence for sentence in page.left_out if "writing" in sentence]
    return open_page(path)


def test_a_dataset_whose_counts_do_not_fit_keeps_its_numbers(cut, run):
    before = cut.cells()
    cut.set("#total-number", 60)
    cut.settled()
    cells = cut.cells()
    profile = changed_profile(PROFILE, "total_bandwidth_hz", 60e6)
    for (row, model, dataset), value in expected(run, profile).items():
        wanted = before[row, model, dataset] if dataset == "writing" else approx(value, rel=DIGITS)
        assert cells[row, model, dataset] == wanted
    for text in cut.page.locator("#table-latency [data-benchmark=writing]:not([data-draws])").all_inner_texts():
        assert "does not follow the controls" in text
    for text in cut.page.locator("#table-latency [data-benchmark=choice]").all_inner_texts():
        assert "does not follow" not in text
    assert "not measured" not in cut.page.inner_text("#table-latency")
    cut.page.select_option("#benchmark", "writing")
    cut.all_seen()
    for id_ in ("figure-5", "figure-7", "heat-time"):
        assert "MB of text" in cut.page.inner_text(f"#{id_}")
    assert "1 of 2 benchmarks" in cut.page.inner_text("#frontier-lead")
    assert "over 1 benchmark" in cut.page.inner_text("#cards")
    assert not cut.complaints


def test_print_leaves_the_page_as_it_was(open_page, run):
    visit = open_page(write_page(run)[0])
    visit.all_seen()
    visit.page.click("#notes-latency summary")
    open_before = visit.page.evaluate("[...document.querySelectorAll('details')].map(d => d.open)")
    widths = visit.page.evaluate(WIDTHS)
    visit.page.pdf()
    visit.settled()
    assert visit.page.evaluate(WIDTHS) == widths
    assert all(drawn == width for drawn, width in widths)
    assert visit.page.evaluate("[...document.querySelectorAll('details')].map(d => d.open)") == open_before
    visit.page.set_viewport_size(dict(width=700, height=900))
    visit.page.wait_for_function("(ids) => !ids.every(WdmoePage.isDrawn)", arg=list(FIGURES))  # soon after the resize
    visit.all_seen()
    assert all(drawn == width for drawn, width in visit.page.evaluate(WIDTHS))


def test_what_somebody_set_is_shown_to_its_last_digit(visit, tmp_path):
    visit.set(device(3, "distance_m"), 1234.5678)
    visit.set("#total-number", 100.4321)
    visit.set(device(2, "transmit_power_w"), 0.123456)
    told = visit.page.inner_text("#announce")
    assert "total bandwidth 100.4321 MHz" in told
    assert "device_3 at 1234.5678 m" in told
    assert "device_2 with 0.123456 W" in told
    assert "1234.5678" in visit.page.inner_text("#table-devices")
    assert "100.4321 MHz" in visit.page.inner_text("#channel-lead")
    with visit.page.expect_download() as download:
        visit.page.click("#save")
    download.value.save_as(tmp_path / "saved.yaml")
    assert "100.4321 MHz, device_2 with 0.123456 W, device_3 at 1234.5678 m" in (tmp_path / "saved.yaml").read_text()
    visit.page.select_option("#theme", "dark")
    assert visit.page.input_value(device(3, "distance_m")) == "1234.5678"


@pytest.mark.parametrize(
    ("selector", "value", "words"),
    [
        ("#total-number", "0", ["total bandwidth", "must be > 0", "still using 50 MHz"]),
        ("#total-number", "1e12", ["must be between", "still using 50 MHz"]),
        ("#total-number", "", ["must be a number"]),
        ("#payload-number", "5.5", ["payload", "whole number", "still using 16 bit"]),
        (device(3, "distance_m"), "-4", ["device_3, distance", "must be > 0", "still using 37.3 m"]),
        (device(3, "transmit_power_w"), "1e30", ["device_3, transmit power", "between", "0.2 W"]),
    ],
)
def test_a_value_that_is_not_taken_is_told_in_words(visit, selector, value, words):
    visit.set("#total-number", 50)
    before = visit.cells()
    visit.set(selector, value)
    assert visit.cells() == before
    text = visit.page.inner_text(f"#{visit.page.get_attribute(selector, 'aria-describedby')}")
    assert all(word in text for word in words), text
    assert visit.page.input_value("#total-range") == "50"
    assert visit.page.locator("[role=alert]", has_text="still using").count() == 1
    visit.page.click("#reset")
    assert visit.page.locator("[aria-invalid]").count() == 0
    assert visit.page.locator("[role=alert]", has_text="still using").count() == 0


def test_a_better_value_takes_the_words_away(visit):
    visit.set("#total-number", "-1")
    visit.set("#total-number", "20")
    assert visit.page.get_attribute("#total-number", "aria-invalid") is None
    assert visit.page.inner_text("#total-wrong") == ""


def test_arrow_keys_take_useful_steps(visit):
    for selector, value in ((device(1, "transmit_power_w"), "0.25"), (device(1, "distance_m"), "15")):
        visit.page.focus(selector)
        visit.page.keyboard.press("ArrowUp")
        visit.computed()
        assert visit.page.input_value(selector) == value
    visit.set(device(1, "transmit_power_w"), 0.013)
    assert "0.013 W" in visit.page.inner_text("#announce")


UNPROVEN = "the optimal allocation is not proven"
FAILING = """(reason) => {
  const compute = WdmoeEngine.compute;
  WdmoeEngine.compute = (run, settings) => {
    const found = compute(run, settings);
    if (settings.allocation === "optimal") for (const model of found.models) model.datasets.writing.error = reason;
    return found;
  };
}"""


def test_an_error_of_the_engine_stands_in_place_of_the_number(open_page, run):
    visit = open_page(write_page(run)[0])
    visit.page.evaluate(FAILING, UNPROVEN)
    visit.page.select_option("#benchmark", "writing")
    visit.set("#total-number", 60)
    visit.settled()
    visit.all_seen()
    assert visit.page.locator("#table-latency [data-error=writing]").all_inner_texts() == [UNPROVEN] * 2
    assert {key for key in visit.cells() if key[2] == "writing"} == {
        ("vanilla_even", "vanilla", "writing"),
        ("selection_only", "wdmoe", "writing"),
    }
    assert visit.page.locator("#table-phases td.empty", has_text=UNPROVEN).count() == 4
    assert UNPROVEN in visit.page.inner_text("#heat-time")
    assert "1 of 2 benchmarks" in visit.page.inner_text("#frontier-lead")
    drawn = {id_: visit.page.evaluate(f"document.getElementById('{id_}').data") for id_ in ("figure-6", "figure-7")}
    assert [len(trace["x"]) for trace in drawn["figure-6"]] == [2, 2, 1, 1]
    assert [trace["name"] for trace in drawn["figure-7"]] == ["vanilla_even", "selection_only"]
    assert not visit.complaints


@pytest.mark.parametrize("value", [1e15, 1e160])
def test_a_distance_that_no_device_has_is_refused(visit, value):
    before = visit.cells()
    visit.set(device(1, "distance_m"), value)
    assert visit.cells() == before
    assert not re.search(r"\b(Infinity|NaN)\b", visit.page.inner_text("body"))


def test_the_frontier_says_what_its_latencies_are_the_mean_of(visit):
    visit.click("[name=phase][value=decode]")  # `choice` has none
    visit.all_seen()
    assert "decode on 1 of 2 benchmarks" in visit.page.inner_text("#frontier-lead")
    title = visit.page.evaluate("document.getElementById('figure-frontier').layout.xaxis.title.text")
    assert "decode on 1 of 2 benchmarks" in title
    visit.page.click("#reset")
    assert "for the run's own settings alone" not in visit.page.inner_text("#frontier-lead")
    visit.click("[name=scope][value=pass]")
    assert "for the run's own settings alone" in visit.page.inner_text("#frontier-lead")


TIES = [1127.25, 1127.75, 0.5, 1.5, 2.5, 0.125, 0.375, -0.125, 2.675, 1e-9, 123456.0, 0.05, 99.95, 0.0625]


def test_numbers_are_written_as_python_writes_them(javascript_of_helpers):
    values = TIES + [n / 64 for n in range(-200, 200)]
    for digits in (0, 1, 2, 3):
        assert javascript_of_helpers(values, digits) == [f"{value:.{digits}f}" for value in values]


@pytest.fixture
def javascript_of_helpers(browser):
    source = (files("wdmoe_opencompass.report.html") / "page" / "helpers.js").read_text()
    page = browser.new_page()
    page.evaluate(f"globalThis.written = (() => {{ {source}\n return fixed; }})(); 0")
    yield lambda values, digits: page.evaluate("([x, n]) => x.map((one) => written(one, n))", [values, digits])
    page.close()


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Two vanilla models and two selecting ones, of two profiles."""
    data = changed_profile(PROFILE, "total_bandwidth_hz", 40e6).model_dump(mode="json", exclude_none=True)
    far = ChannelProfile.model_validate(data | dict(name="far_cell", fading=dict(model="none")))
    models = {"van-a": ("top_k", PROFILE), "wd-a": ("wlr", PROFILE), "van-b": ("top_k", far), "wd-b": ("wlr", far)}
    folder = tmp_path_factory.mktemp("several") / "20260101_000000"
    return write_page(
        write_run(folder, {m: p for m, (p, _) in models.items()}, profiles={m: p for m, (_, p) in models.items()})
    )[0]


def test_a_run_of_several_profiles_says_whose_values_count(open_page, several, visit):
    assert visit.page.is_hidden("#profiles-note")
    visit = open_page(several)
    note = visit.page.inner_text("#profiles-note")
    assert "each model keeps its own until a control is moved" in note
    assert "Save writes paper_8_devices, the profile of wd-a" in note
    visit.page.select_option("#model", "wd-b")
    assert "Save writes far_cell, the profile of wd-b" in visit.page.inner_text("#profiles-note")
    with visit.page.expect_download() as download:
        visit.page.click("#save")
    assert download.value.suggested_filename == "far_cell.yaml"
    visit.all_seen()
    for id_ in ("figure-6", "figure-7", "figure-5"):
        data = visit.page.evaluate(f"document.getElementById('{id_}').data")
        looks = [
            (
                t.get("line", t["marker"])["color"],
                t["marker"].get("symbol"),
                (t["marker"].get("pattern") or {}).get("shape"),
            )
            for t in data
        ]
        assert len(set(looks)) == len(looks), id_


def test_without_scripts_the_page_says_where_the_numbers_are(browser, run):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(write_page(run)[0].as_uri())
    assert "scripts are switched off" in page.inner_text("main")
    context.close()


@pytest.mark.parametrize("name", PARTS)
def test_a_script_is_all_of_its_parts(name):
    folder = files("wdmoe_opencompass.report.html") / name
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{part}.js" for part in PARTS[name])


def test_figure_7_says_that_no_phase_is_chosen_in_it(visit):
    before = visit.page.evaluate("document.getElementById('figure-7').data")
    visit.click("[name=phase][value=prefill]")
    visit.all_seen()
    assert visit.page.evaluate("document.getElementById('figure-7').data") == before or before is None
    assert "whatever mean and phase are chosen" in visit.page.inner_text("#detail")
