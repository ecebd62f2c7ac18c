import numpy as np
import pytest
from pytest import approx

from tests.builders import frontier_runs
from tests.builders.traces import trace_of
from wdmoe_opencompass.replay import replay
from wdmoe_opencompass.report.figures import BANDWIDTHS_HZ, FIGURES, largest_pair_share, sweep_s, write_figures
from wdmoe_opencompass.report.frontier import frontier_records, frontier_table
from wdmoe_opencompass.report.records import latency_cells
from wdmoe_opencompass.report.runs import ModelRun
from wdmoe_opencompass.report.summary import write_report


def runs():
    vanilla = ModelRun("vanilla", "top_k", ("w", "p"), traces={"d": [trace_of(seed=0)]})
    return [vanilla, ModelRun("wdmoe", "wlr", ("w", "p"), traces={"d": [trace_of(seed=9)]})]


def test_all_figures_are_written_as_png_and_pdf(tmp_path):
    written = write_figures(runs(), ["d", "not run"], tmp_path)
    assert {path.name for path in written} == {f"{name}.{kind}" for name in FIGURES for kind in ("png", "pdf")}
    assert all(path.stat().st_size > 5000 for path in written)


@pytest.mark.parametrize("name", list(FIGURES))
def test_every_figure_labels_its_axes_and_rows(name):
    figure = FIGURES[name](runs(), ["d"])
    (panel,) = figure.axes
    assert panel.get_ylabel()
    assert len(panel.get_legend().get_texts()) >= 2


def test_figure_5_plots_what_replay_says():
    trace = trace_of()
    figure = FIGURES["figure_5_bandwidth"]([ModelRun("v", "top_k", ("w", "p"), traces={"d": [trace]})], ["d"])
    (line,) = figure.axes[0].lines
    assert line.get_xdata() == approx(BANDWIDTHS_HZ / 1e6)
    at_100_mhz = replay(trace, trace.metadata.profile, "uniform", "layer").mean_s("pass", "all")
    assert line.get_ydata()[8] == approx(1e3 * at_100_mhz)
    assert figure.axes[0].get_ylabel() == "latency per forward pass (ms)"
    assert np.diff(sweep_s([trace], "optimal", "layer")).max() < 0


def run_of(abbr, policy, base, **traces):
    return ModelRun(abbr, policy, base, traces={name: [trace] for name, trace in traces.items()})


def heights(figure):
    return [bar.get_height() for bar in figure.axes[0].patches]


def pass_mean_s(trace, method):
    return replay(trace, trace.metadata.profile, method, "layer").mean_s("pass", "all")


def test_figure_6_divides_by_the_vanilla_of_the_same_weights_and_profile():
    first, second = trace_of(seed=1), trace_of(seed=2, largest=400)
    both = {base: run_of(f"wdmoe {base[1]}", "wlr", base, d=trace_of(seed=7)) for base in (("w", "p"), ("w", "q"))}
    vanilla = [run_of("v p", "top_k", ("w", "p"), d=first), run_of("v q", "top_k", ("w", "q"), d=second)]
    figure = FIGURES["figure_6_benchmarks"]([*vanilla, *both.values()], ["d"])
    optimised = pass_mean_s(trace_of(seed=7), "optimal")
    expected = [1, 1, *(optimised / pass_mean_s(trace, "uniform") for trace in (first, second))]
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts[:2] == [f"{1e3 * pass_mean_s(trace, 'uniform'):.3g} ms" for trace in (first, second)]
    assert "per forward pass" in figure.axes[0].get_ylabel()
    assert heights(figure) == approx(expected)
    assert len(figure.axes[0].get_legend().get_texts()) == 4
    low, high = figure.axes[0].get_ylim()
    assert low <= 0 < max(expected) < high


def test_figure_6_has_no_bar_without_a_vanilla_and_its_legend_knows_every_row():
    runs = [
        run_of("v", "top_k", ("w", "p"), d=trace_of(), e=trace_of()),
        run_of("wdmoe", "wlr", ("w", "p"), e=trace_of(seed=3)),
        run_of("other", "wlr", ("w2", "p"), e=trace_of(seed=4)),
    ]
    figure = FIGURES["figure_6_benchmarks"](runs, ["d", "e"])
    assert len(heights(figure)) == 3
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["vanilla_even", "both, wdmoe"]


@pytest.mark.parametrize("changed", ["batches", "scoring"])
def test_figure_6_has_no_bar_against_a_vanilla_of_other_batches_or_scoring(changed):
    other = run_of("wdmoe", "wlr", ("w", "p"), d=trace_of(seed=3))
    runs = [run_of("v", "top_k", ("w", "p"), d=trace_of()), other]
    assert len(heights(FIGURES["figure_6_benchmarks"](runs, ["d"]))) == 2
    if changed == "batches":
        (trace,) = other.traces["d"]
        trace.arrays["items"] = trace.items + 1
    else:
        other.perplexity = "exact"
    assert heights(FIGURES["figure_6_benchmarks"](runs, ["d"])) == [1]


def test_figure_7_plots_the_latency_of_each_forward_pass_in_ms():
    trace = trace_of(batches=3)
    figure = FIGURES["figure_7_ablation"]([run_of("v", "top_k", ("w", "p"), d=trace)], ["d"])
    waiting = replay(trace, trace.metadata.profile, "uniform", "layer").waiting_latency_s
    assert len(trace.tokens) > 3
    assert figure.axes[0].collections[0].get_offsets().tolist() == approx(np.array([trace.tokens, 1e3 * waiting]).T)
    assert "forward pass" in figure.axes[0].get_xlabel()


def test_figure_7_draws_many_points_as_pixels(monkeypatch):
    def is_pixels():
        figure = FIGURES["figure_7_ablation"]([run_of("v", "top_k", ("w", "p"), d=trace_of())], ["d"])
        return figure.axes[0].collections[0].get_rasterized()

    assert not is_pixels()
    monkeypatch.setattr("wdmoe_opencompass.report.figures.MAX_VECTOR_POINTS", 2)
    assert is_pixels()


def test_every_figure_states_profile_seed_and_caveat_within_its_width(tmp_path, monkeypatch):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    seen = {}
    save = Figure.savefig

    def saved(figure, file, **options):
        save(figure, file, **options)
        note, renderer = figure._supxlabel, FigureCanvasAgg(figure).get_renderer()
        seen[len(seen)] = (note.get_text(), note.get_window_extent(renderer), figure.bbox)

    monkeypatch.setattr(Figure, "savefig", saved)
    write_figures(runs(), ["d"], tmp_path)
    assert len(seen) == 2 * len(FIGURES)
    for text, extent, figure in seen.values():
        assert "selection was made under the run's own profile" in " ".join(text.split())
        assert "paper_8_devices (hash" in " ".join(text.split())
        assert "seed 0" in " ".join(text.split())
        assert "scope layer" in " ".join(text.split())
        assert extent.x0 >= 0
        assert extent.x1 <= figure.x1


def test_a_trace_without_passes_is_not_drawn_as_zero():
    from tests.builders.trace_blocks import metadata
    from wdmoe_opencompass.trace.format import join

    empty = run_of("v", "top_k", ("w", "p"), d=join(metadata(), []))
    assert heights(FIGURES["figure_6_benchmarks"]([empty], ["d"])) == []
    assert np.isnan(FIGURES["figure_5_bandwidth"]([empty], ["d"]).axes[0].lines[0].get_ydata()).all()


def test_figure_8_counts_the_most_chosen_pair_of_each_batch():
    trace = trace_of(batches=1)
    trace.arrays["co_selection"][:] = 0
    trace.arrays["co_selection"][0, 1, 5] = 7
    trace.arrays["tokens"][:] = [10, 2, 2]
    assert largest_pair_share(trace).tolist() == [[0, 0.5, 0]]
    figure = FIGURES["figure_8_expert_pairs"]([run_of("v", "top_k", ("w", "p"), d=trace)], ["d"])
    assert [line.get_label() for line in figure.axes[0].lines] == ["layer 1", "layer 2", "layer 3"]
    assert [line.get_ydata().tolist() for line in figure.axes[0].lines] == [[0], [0.5], [0]]


def test_no_trace_no_figure(tmp_path):
    assert write_figures([], ["d"], tmp_path) == []


def test_the_frontier_is_written_as_table_figure_and_records(tmp_path):
    models = frontier_runs.runs()
    write_report(models, frontier_runs.BENCHMARKS, tmp_path)
    for ending in ("md", "csv", "tex", "json", "png", "pdf"):
        assert (tmp_path / f"frontier.{ending}").stat().st_size > 100
    text = (tmp_path / "frontier.md").read_text()
    assert "on front: no other model" in text
    assert "fading rayleigh" in text
    table = frontier_table(frontier_records(models, frontier_runs.BENCHMARKS, latency_cells(models)))
    assert table["difference (points)"].iloc[1].startswith("-2.50 [") or table["difference (points)"].iloc[
        0
    ].startswith("-")
