"""Figures 5 to 8 of the paper from routing traces alone, as PNG and PDF.

Latencies are per forward pass, which is what we take a batch of the paper's figures to be.
"""

import io
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._util.atomic_write import write_whole
from ..allocation import PRIMARY_SCOPE
from ..channel.profile import ChannelProfile, changed_profile
from ..replay import Advance, ignore, pooled_mean, replay
from ..trace.format import RoutingTrace
from .batches import batch_key
from .cells import figure_text
from .provenance import profile_line
from .records import OPTIMISED, ROWS, row_runs
from .runs import ModelRun, vanilla_of

BANDWIDTHS_HZ = np.linspace(20e6, 120e6, 11)  # Figure 5 of the paper
ROW_STYLE = {  # colour-blind safe (Okabe-Ito), one marker each
    "vanilla_even": ("#000000", "o"),
    "selection_only": ("#E69F00", "s"),
    "allocation_only": ("#0072B2", "^"),
    "both": ("#009E73", "D"),
}
NOTE_LETTERS_PER_INCH = 20  # what fits beneath a figure at 6 points
MAX_VECTOR_POINTS = 5_000  # of a panel's row; more are drawn as pixels, so that the PDF stays small
MAX_MODELS, PAPERS_POLICIES = 8, ("top_k", "wlr")
ALLOCATIONS = f"allocation uniform or {OPTIMISED}, scope {PRIMARY_SCOPE}"
CAVEAT = "selection was made under the run's own profile"


def write_figures(
    runs: Sequence[ModelRun], benchmarks: Sequence[str], folder: Path, advance: Advance = ignore
) -> list[Path]:
    """Draw every figure that the traces allow into `folder`; -> the files written; `advance` is told each one's share.

    Rows are those of Table II, scope `layer`. Each figure names profile, seed and the caveat that selection was made
    under the run's own profile.
    """
    folder.mkdir(parents=True, exist_ok=True)
    runs = _few(runs)
    present = [benchmark for benchmark in benchmarks if any(run.traces_of(benchmark) for run in runs)]
    if not present:
        return []
    note = f"{profile_line(runs)}; {CAVEAT}"
    written = []
    for name, draw in FIGURES.items():
        written += save_figure(draw(runs, present), folder / name, note)
        advance(1 / len(FIGURES))
    return written


def _few(runs: Sequence[ModelRun]) -> Sequence[ModelRun]:
    """Of many policies, vanilla's and the paper's alone, which the figures are of: the frontier shows them all."""
    papers = [run for run in runs if run.policy in PAPERS_POLICIES]
    return runs if len(runs) <= MAX_MODELS or not papers else papers[:MAX_MODELS]


def sweep_s(traces: Sequence[RoutingTrace], method: str, scope: str) -> list[float]:
    """Mean waiting latency per forward pass at every bandwidth of BANDWIDTHS_HZ, own draws; NaN without passes."""
    means = []
    for hertz in BANDWIDTHS_HZ:
        profile = changed_profile(traces[0].metadata.profile, "total_bandwidth_hz", float(hertz))
        mean_s = _pass_mean_s(traces, profile, method, scope)
        means.append(float("nan") if mean_s is None else mean_s)
    return means


def _pass_mean_s(traces: Sequence[RoutingTrace], profile: ChannelProfile, method: str, scope: str) -> float | None:
    parts = [replay(trace, profile, method, scope) for trace in traces]
    return pooled_mean(parts, lambda part: part.waiting_latency_s, "pass", "all")


def figure_5(runs: Sequence[ModelRun], benchmarks: Sequence[str]) -> Any:
    """Latency per forward pass against the total bandwidth, 20 to 120 MHz."""
    figure, panels = panel_grid(len(benchmarks))
    for panel, benchmark in zip(panels, benchmarks):
        for row, label, run in _rows(runs, benchmark, ("vanilla_even", "both")):
            colour, marker = ROW_STYLE[row]
            latency = np.array(sweep_s(run.traces_of(benchmark), ROWS[row][1], PRIMARY_SCOPE))
            panel.plot(BANDWIDTHS_HZ / 1e6, 1e3 * latency, color=colour, marker=marker, label=figure_text(label))
        panel.set(
            title=figure_text(benchmark),
            xlabel="total bandwidth (MHz)",
            ylabel="latency per forward pass (ms)",
            ylim=(0, None),
        )
        panel.legend()
    return figure


def figure_6(runs: Sequence[ModelRun], benchmarks: Sequence[str]) -> Any:
    """Mean latency per forward pass by benchmark, over that of vanilla of the same weights, profile, scoring, batches.

    Each bar is labelled with the latency itself. Without a vanilla to compare with there is no bar.
    """
    figure, (panel,) = panel_grid(1, width=max(5.0, 1.6 * len(benchmarks)))
    bars = {d: list(_bars(runs, d)) for d in benchmarks}
    labels = list(dict.fromkeys(label for found in bars.values() for _, label, _, _ in found))
    width = 0.8 / max(1, len(labels))
    for position, benchmark in enumerate(benchmarks):
        for row, label, value_s, vanilla_s in bars[benchmark]:
            x = position - 0.4 + (labels.index(label) + 0.5) * width
            panel.bar(x, value_s / vanilla_s, width, color=ROW_STYLE[row][0], edgecolor="white")
            panel.text(x, value_s / vanilla_s, f"{1e3 * value_s:.3g} ms", ha="center", va="bottom", fontsize=7)
    rows = {label: row for found in bars.values() for row, label, _, _ in found}
    panel.legend(handles=[_patch(ROW_STYLE[rows[label]][0], figure_text(label)) for label in labels], loc="lower right")
    panel.set_xticks(range(len(benchmarks)), map(figure_text, benchmarks))
    panel.set(ylabel="mean latency per forward pass, vanilla = 1")
    panel.margins(y=0.15)
    return figure


def _bars(runs: Sequence[ModelRun], benchmark: str) -> Iterator[tuple[str, str, float, float]]:
    """(row, label, latency per pass, that of vanilla) of the runs with a vanilla of the same batches, in seconds."""
    vanilla: dict[str, tuple[float, list[tuple]]] = {}
    for row, label, run in _rows(runs, benchmark, ("vanilla_even", "both")):
        traces = run.traces_of(benchmark)
        value_s = _pass_mean_s(traces, traces[0].metadata.profile, ROWS[row][1], PRIMARY_SCOPE)
        batches = [batch_key(trace) for trace in traces]
        if value_s is not None and row == "vanilla_even":
            vanilla[run.abbr] = value_s, batches
        baseline = vanilla_of(run, runs, benchmark)
        vanilla_s, of_vanilla = vanilla.get(baseline.abbr, (0.0, [])) if baseline else (0.0, [])
        if value_s is not None and batches == of_vanilla:
            yield row, label, value_s, vanilla_s


def figure_7(runs: Sequence[ModelRun], benchmarks: Sequence[str]) -> Any:
    """Ablation: latency of each forward pass against its tokens, the four rows of Table II."""
    figure, panels = panel_grid(len(benchmarks))
    for panel, benchmark in zip(panels, benchmarks):
        for row, label, run in _rows(runs, benchmark, tuple(ROWS)):
            colour, marker = ROW_STYLE[row]
            points = [_pass_points(trace, ROWS[row][1]) for trace in run.traces_of(benchmark)]
            tokens, latency = np.concatenate(points, axis=1)
            style = dict(color=colour, marker=marker, label=figure_text(label), alpha=0.8)
            panel.scatter(tokens, 1e3 * latency, s=14, rasterized=len(tokens) > MAX_VECTOR_POINTS, **style)
        panel.set(title=figure_text(benchmark), xlabel="tokens in the forward pass", ylabel="latency of the pass (ms)")
        panel.set_ylim(0, None)
        panel.legend()
    return figure


def _pass_points(trace: RoutingTrace, method: str) -> np.ndarray:
    """-> [2, passes] tokens and latency in seconds of every forward pass."""
    waiting_s = replay(trace, trace.metadata.profile, method, PRIMARY_SCOPE).waiting_latency_s
    return np.array([trace.tokens, waiting_s])


def figure_8(runs: Sequence[ModelRun], benchmarks: Sequence[str]) -> Any:
    """Largest share of a batch's tokens routed to the same pair of experts: first, middle and last layer."""
    figure, panels = panel_grid(len(benchmarks))
    for panel, benchmark in zip(panels, benchmarks):
        run = next((run for run in runs if run.is_vanilla and run.traces_of(benchmark)), None)
        run = run or next(run for run in runs if run.traces_of(benchmark))
        shares = np.concatenate([largest_pair_share(trace) for trace in run.traces_of(benchmark)])
        layers = run.traces_of(benchmark)[0].metadata.layers
        for layer, (colour, marker) in zip(dict.fromkeys((0, (layers - 1) // 2, layers - 1)), ROW_STYLE.values()):
            panel.plot(shares[:, layer], color=colour, marker=marker, markersize=4, label=f"layer {layer + 1}")
        title = ", ".join(map(figure_text, (benchmark, run.abbr)))
        panel.set(title=title, xlabel="batch", ylabel="largest share of tokens with one pair")
        panel.set_ylim(0, None)
        panel.legend()
    return figure


FIGURES: dict[str, Callable[[Sequence[ModelRun], Sequence[str]], Any]] = {
    "figure_5_bandwidth": figure_5,
    "figure_6_benchmarks": figure_6,
    "figure_7_ablation": figure_7,
    "figure_8_expert_pairs": figure_8,
}


def largest_pair_share(trace: RoutingTrace) -> np.ndarray:
    """Largest share of a batch's tokens routed to the same pair of experts (Figure 8).

    trace:   with its co-selection counts, [batches, layers, pairs]
    Returns: [batches, layers] share; 0 for an empty batch.
    """
    tokens = np.bincount(trace.batch, weights=trace.tokens, minlength=len(trace.items))
    most = trace.co_selection.max(axis=2, initial=0)
    return most / np.maximum(tokens, 1)[:, None]


def _rows(runs: Sequence[ModelRun], benchmark: str, rows: tuple[str, ...]) -> list[tuple[str, str, ModelRun]]:
    """-> (row, label, run) of every run that has the benchmark; labels tell runs of one row apart."""
    found = []
    for row in rows:
        holders = [run for run in row_runs(runs, row) if run.traces_of(benchmark)]
        several = len(row_runs(runs, row)) > 1
        found += [(row, f"{row}, {run.abbr}" if several else row, run) for run in holders]
    return found


def _patch(colour: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)


def panel_grid(count: int, width: float | None = None) -> tuple[Any, list[Any]]:
    """-> a figure and its `count` panels in rows of three."""
    from matplotlib.figure import Figure

    columns = min(3, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width or 4.2 * columns, 3.2 * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for unused in axes[count:]:
        unused.remove()
    return figure, list(axes[:count])


def save_figure(figure: Any, path: Path, note: str, method: str = ALLOCATIONS) -> list[Path]:
    """Write a figure as PNG and PDF with a note beneath; -> the files."""
    text = figure_text(f"{note}; {method}", max_letters=None)
    figure.supxlabel(textwrap.fill(text, int(NOTE_LETTERS_PER_INCH * figure.get_figwidth())), fontsize=6)
    files = []
    for form in ("png", "pdf"):
        file = path.parent / f"{path.name}.{form}"
        picture = io.BytesIO()
        figure.savefig(picture, format=form, dpi=150, metadata={"CreationDate": None} if form == "pdf" else None)
        write_whole(file, picture.getvalue())
        files.append(file)
    return files
