"""Figures 5 to 8 of the paper from routing traces alone, as PNG and PDF."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..channel.profile import changed_profile
from ..replay import replay
from ..routing.trace import RoutingTrace
from .tables import OPTIMISED, ROWS, ModelRun, profile_line, row_runs

BANDWIDTHS_HZ = np.linspace(20e6, 120e6, 11)  # Figure 5 of the paper
ROW_STYLE = {  # colour-blind safe (Okabe-Ito), one marker each
    "vanilla_even": ("#000000", "o"),
    "selection_only": ("#E69F00", "s"),
    "allocation_only": ("#0072B2", "^"),
    "both": ("#009E73", "D"),
}
CAVEAT = "selection was made under the run's own profile"


def write_figures(runs: Sequence[ModelRun], datasets: Sequence[str], folder: Path) -> list[Path]:
    """Draw every figure that the traces allow into `folder`; -> the files written.

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
    return written


def sweep_s(trace: RoutingTrace, method: str, scope: str) -> list[float]:
    """Mean waiting latency per batch at every bandwidth of BANDWIDTHS_HZ, the run's own draws."""
    profile = trace.metadata.profile
    profiles = [changed_profile(profile, "total_bandwidth_hz", float(hertz)) for hertz in BANDWIDTHS_HZ]
    return [replay(trace, one, method, scope).mean_s("batch", "all") or 0.0 for one in profiles]


def figure_5(runs: Sequence[ModelRun], datasets: Sequence[str]) -> Any:
    """Latency per batch against the total bandwidth, 20 to 120 MHz."""
    figure, panels = _panels(len(datasets))
    for panel, dataset in zip(panels, datasets):
        for row, label, trace in _rows(runs, dataset, ("vanilla_even", "both")):
            colour, marker = ROW_STYLE[row]
            latency = np.array(sweep_s(trace, ROWS[row][1], "pass"))
            panel.plot(BANDWIDTHS_HZ / 1e6, 1e3 * latency, color=colour, marker=marker, label=label)
        panel.set(title=dataset, xlabel="total bandwidth (MHz)", ylabel="latency per batch (ms)", ylim=(0, None))
        panel.legend()
    return figure


def figure_6(runs: Sequence[ModelRun], datasets: Sequence[str]) -> Any:
    """Mean latency per batch of every benchmark, side by side; relative to vanilla, whose value stands on its bar."""
    figure, (panel,) = _panels(1, width=max(5.0, 1.6 * len(datasets)))
    labels = list(dict.fromkeys(label for d in datasets for _, label, _ in _rows(runs, d, ("vanilla_even", "both"))))
    for place, dataset in enumerate(datasets):
        bars = [
            (row, label, _batch_mean_s(trace, row))
            for row, label, trace in _rows(runs, dataset, ("vanilla_even", "both"))
        ]
        base = next((value for row, _, value in bars if row == "vanilla_even"), None)
        for row, label, value in bars:
            width = 0.8 / len(labels)
            x = place - 0.4 + (labels.index(label) + 0.5) * width
            height = value / base if base else 0.0
            panel.bar(x, height, width, color=ROW_STYLE[row][0], label=label if place == 0 else None)
            panel.text(x, height, f"{1e3 * value:.3g} ms", ha="center", va="bottom", fontsize=7)
    panel.set_xticks(range(len(datasets)), datasets)
    panel.set(ylabel="mean latency per batch, vanilla = 1", ylim=(0, 1.15))
    panel.legend(loc="lower right")
    return figure


def figure_7(runs: Sequence[ModelRun], datasets: Sequence[str]) -> Any:
    """Ablation: latency of each batch against its number of tokens, the four rows of Table II."""
    figure, panels = _panels(len(datasets))
    for panel, dataset in zip(panels, datasets):
        for row, label, trace in _rows(runs, dataset, tuple(ROWS)):
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


def _rows(runs: Sequence[ModelRun], dataset: str, rows: tuple[str, ...]) -> list[tuple[str, str, RoutingTrace]]:
    """-> (row, label, trace) of every run that has the dataset."""
    several = len([run for run in runs if not run.is_vanilla]) > 1
    found = []
    for row in rows:
        for run in row_runs(runs, row):
            if dataset in run.traces:
                found.append((row, f"{row}, {run.abbr}" if several else row, run.traces[dataset]))
    return found


def _batch_mean_s(trace: RoutingTrace, row: str) -> float:
    return replay(trace, trace.metadata.profile, ROWS[row][1], "pass").mean_s("batch", "all") or 0.0


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
    figure.supxlabel(f"{note}; allocation uniform or {OPTIMISED}, scope pass", fontsize=6)
    files = [path.with_suffix(".png"), path.with_suffix(".pdf")]
    figure.savefig(files[0], dpi=150)
    figure.savefig(files[1], metadata={"CreationDate": None})
    return files
