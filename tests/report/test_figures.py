import numpy as np
import pytest
from pytest import approx

from tests.test_replay import trace_of
from wdmoe_opencompass.replay import replay
from wdmoe_opencompass.report.figures import BANDWIDTHS_HZ, FIGURES, largest_pair_share, sweep_s, write_figures
from wdmoe_opencompass.report.tables import ModelRun


def runs():
    vanilla = ModelRun("vanilla", "top_k", ("w", "p"), traces={"d": trace_of(seed=0)})
    return [vanilla, ModelRun("wdmoe", "wlr", ("w", "p"), traces={"d": trace_of(seed=9)})]


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
    figure = FIGURES["figure_5_bandwidth"]([ModelRun("v", "top_k", ("w", "p"), traces={"d": trace})], ["d"])
    (line,) = figure.axes[0].lines
    assert line.get_xdata() == approx(BANDWIDTHS_HZ / 1e6)
    at_100_mhz = replay(trace, trace.metadata.profile, "uniform", "pass").mean_s("batch", "all")
    assert line.get_ydata()[8] == approx(1e3 * at_100_mhz)
    assert np.diff(sweep_s(trace, "optimal", "pass")).max() < 0


def test_figure_8_counts_the_most_chosen_pair_of_each_batch():
    trace = trace_of(batches=1)
    trace.arrays["co_selection"][:] = 0
    trace.arrays["co_selection"][0, 1, 5] = 7
    trace.arrays["tokens"][:] = [10, 2, 2]
    assert largest_pair_share(trace).tolist() == [[0, 0.5, 0]]


def test_no_trace_no_figure(tmp_path):
    assert write_figures([], ["d"], tmp_path) == []
