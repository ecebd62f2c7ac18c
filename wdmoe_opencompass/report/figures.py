"""Figures 5 to 8 of the paper from routing traces alone, as PNG and PDF."""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..channel.profile import changed_profile
from ..replay import Advance, ignore, replay
from ..routing.trace import RoutingTrace
from .tables import OPTIMISED, ROWS, ModelRun, profile_line, row_runs

BANDWIDTHS_HZ = np.linspace(20e6, 120e6, 11)  # Figure 5 of the paper
ROW_STYLE = {  # colour-blind safe (Okabe-Ito), one marker each
    "vanilla_even": ("#000000", "o"),
    "selection_only": ("#E69F00", "s"),
    "allocation_only": ("#0072B2", "^"),
    "both": ("#009E73", "D"),
}
NOTE_LETTERS_PER_INCH = 20  # what fits beneath a figure at 6 points
CAVEAT = "selection was made under the run's own profile"


def write_figures(
    runs: Sequence[ModelRun], datasets: Sequence[str], folder: Path, advance: Advance = ignore
) -> list[Path]:
    """Draw every figure that the traces allow into `folder`; -> the files written; `advance` is told each one's share.

    Rows are those of Table II, scope `pass`. Each figure names profile, seed and the caveat that selection was made
    under the run's own profile.
    """
    folder.mkdir(parents=True, exist_ok=True)
    present = [dataset for dataset in datasets if any(dataset in run.traces for run in runs)]
    if not present:
        return []
    note = f"{profile_line(runs)}; {CAVEAT}"
    written = []
    for name, draw in FIGURES.items():
        written += _save(draw(runs, present), folder / name, note)
        advance(1 / len(FIGURES))
    return written


def sweep_s(trace: RoutingTrace, method: str, scope: str) -> list[float]:
    """Mean waiting latency per batch at every bandwidth of BANDWIDTHS_HZ, the run's own draws."""
    profile = trace.metadata.profile
    profiles = [changed_profile(profile, "total_bandwidth_hz", float(hertz)) for hertz in BANDWIDTHS_HZ]
    means = [replay(trace, one, method, scope).mean_s("batch", "all") for one in profiles]
    return [float("nan") if mean is None else mean for mean in means]


def figure_5(runs: Sequence[ModelRun], datasets: Sequence[str]) -> Any:
    """Latency per batch against the total bandwidth, 20 to 120 MHz."""
    figure, panels = _panels(len(datasets))
    for panel, dataset in zip(panels, datasets):
        for row, label, run in _rows(runs, dataset, ("vanilla_even", "both")):
            trace = run.traces[dataset]
            colour, marker = ROW_STYLE[row]
            latency = np.array(sweep_s(trace, ROWS[row][1], "pass"))
            panel.plot(BANDWIDTHS_HZ / 1e6, 1e3 * latency, color=colour, marker=marker, label=label)
        panel.set(title=dataset, xlabel="total bandwidth (MHz)", ylabel="latency per batch (ms)", ylim=(0, None))
        panel.legend()
    return figure


def figure_6(runs: Sequence[ModelRun], datasets: Sequence[str]) -> Any:
    """Mean latency per batch of every benchmark, relative to vanilla of the same weights and profile.

    The latency itself stands on each bar; where there is no vanilla to compare with, there is no bar.
    """
    figure, (panel,) = _panels(1, width=max(5.0, 1.6 * len(datasets)))
    bars = {d: list(_bars(runs, d)) for d in datasets}
    labels = list(dict.fromkeys(label for found in bars.values() for _, label, _, _ in found))
    width = 0.8 / max(1, len(labels))
    for place, dataset in enumerate(datasets):
        for row, label, value_s, vanilla_s in bars[dataset]:
            x = place - 0.4 + (labels.index(label) + 0.5) * width
            panel.bar(x, value_s / vanilla_s, width, color=ROW_STYLE[row][0], edgecolor="white")
            panel.text(x, value_s / vanilla_s, f"{1e3 * value_s:.3g} ms", ha="center", va="bottom", fontsize=7)
    rows = {label: row for found in bars.values() for row, label, _, _ in found}
    panel.legend(handles=[_patch(ROW_STYLE[rows[label]][0], label) for label in labels], loc="lower right")
    panel.set_xticks(range(len(datasets)), datasets)
    panel.set(ylabel="mean latency per batch, vanilla = 1")
    panel.margins(y=0.15)
    return figure


def _bars(runs: Sequence[ModelRun], dataset: str) -> Iterator[tuple[str, str, float, float]]:
    """(row, label, latency per batch, that of vanilla) of the runs that have a vanilla beside them, in seconds."""
    vanilla: dict[tuple[str, str], float] = {}
    for row, label, run in _rows(runs, dataset, ("vanilla_even", "both")):
        trace = run.traces[dataset]
        value_s = replay(trace, trace.metadata.profile, ROWS[row][1], "pass").mean_s("batch", "all")
        if value_s is not None and row == "vanilla_even":
            vanilla[run.base] = value_s
        if value_s is not None and run.base in vanilla:
            yield row, label, value_s, vanilla[run.base]


def figure_7(runs: Sequence[ModelRun], datasets: Sequence[str]) -> Any:
    """Ablation: latency of each batch against its number of tokens, the four rows of Table II."""
    figure, panels = _panels(len(datasets))
    for panel, dataset in zip(panels, datasets):
        for row, label, run in _rows(runs, dataset, tuple(ROWS)):
            trace = run.traces[dataset]
            colour, marker = ROW_STYLE[row]
            waiting = replay(trace, trace.metadata.profile, ROWS[row][1], "pass").waiting_latency_s
            tokens, latency = (np.bincount(trace.batch, weights=values) for values in (trace.tokens, waiting))
            panel.scatter(tokens, 1e3 * latency, s=14, color=colour, marker=marker, label=label, alpha=0.8)
        panel.set(title=dataset, xlabel="tokens in the batch", ylabel="latency of the batch (ms)", ylim=(0, None))
        panel.legend()
    return figure


def figure_8(runs: Sequence[ModelRun], datasets: Sequence[str]) -> Any:
    """Largest share of a batch's tokens whose router chose the same pair of experts: first, middle and last layer."""
    figure, panels = _panels(len(datasets))
    for panel, dataset in zip(panels, datasets):
        run = next((run for run in runs if run.is_vanilla and dataset in run.traces), None)
        run = run or next(run for run in runs if dataset in run.traces)
        trace = run.traces[dataset]
        shares = largest_pair_share(trace)
        layers = trace.metadata.layers
        for layer, (colour, marker) in zip(dict.fromkeys((0, (layers - 1) // 2, layers - 1)), ROW_STYLE.values()):
            panel.plot(shares[:, layer], color=colour, marker=marker, markersize=4, label=f"layer {layer + 1}")
        panel.set(title=f"{dataset}, {run.abbr}", xlabel="batch", ylabel="largest share of tokens with one pair")
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
    """-> [batches, layers] co-selection count of the most chosen pair over the batch's tokens; 0 for an empty batch."""
    tokens = np.bincount(trace.batch, weights=trace.tokens, minlength=len(trace.items))
    most = trace.co_selection.max(axis=2, initial=0)
    return most / np.maximum(tokens, 1)[:, None]


def _rows(runs: Sequence[ModelRun], dataset: str, rows: tuple[str, ...]) -> list[tuple[str, str, ModelRun]]:
    """-> (row, label, run) of every run that has the dataset; labels tell runs of one row apart."""
    found = []
    for row in rows:
        holders = [run for run in row_runs(runs, row) if dataset in run.traces]
        several = len(row_runs(runs, row)) > 1
        found += [(row, f"{row}, {run.abbr}" if several else row, run) for run in holders]
    return found


def _patch(colour: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)


def _panels(count: int, width: float | None = None) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    columns = min(3, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width or 4.2 * columns, 3.2 * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for unused in axes[count:]:
        unused.remove()
    return figure, list(axes[:count])


def _save(figure: Any, path: Path, note: str) -> list[Path]:
    text = f"{note}; allocation uniform or {OPTIMISED}, scope pass"
    figure.supxlabel(textwrap.fill(text, int(NOTE_LETTERS_PER_INCH * figure.get_figwidth())), fontsize=6)
    files = [path.with_suffix(".png"), path.with_suffix(".pdf")]
    figure.savefig(files[0], dpi=150)
    figure.savefig(files[1], metadata={"CreationDate": None})
    return files
