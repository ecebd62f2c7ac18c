"""The accuracy-latency frontier: every policy of a run as one point, with intervals, and which points are on the front.

Traces routed without a model have no accuracy; they are judged by the router weight that a policy keeps.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..allocation import PRIMARY_SCOPE
from ..trace.format import RoutingTrace
from .batches import BatchSums
from .differences import METHOD, difference_text, p_cells, paired_records, significant_words
from .formats import brackets
from .metrics import share_metrics
from .records import latency_ratio
from .runs import DENSE, ModelRun, what_differs
from .statistics import MIN_GROUPS, SIGNIFICANCE, Interval, accuracy_interval, holm, mcnemar_p
from .tables import BATCH_METHOD

ACCURACY, WEIGHT_KEPT, ASSIGNMENTS_KEPT = "accuracy", "router weight kept", "assignments kept"
QUALITY_TEXT = {
    ACCURACY: "accuracy in %, plain mean over {benchmarks}",
    WEIGHT_KEPT: "router weight kept in %: the router weight of the assignments kept over that of the router's top-k, "
    "summed over all layers and real tokens of {benchmarks}; weights of the full softmax where it was recorded, else "
    "as the model uses them",
    ASSIGNMENTS_KEPT: "assignments kept in % of the router's, over all layers and real tokens of {benchmarks}, because "
    "the traces do not hold the router weight of every assignment",
}
NO_ACCURACY = "no accuracy: routed without a model"
FULL_PAYLOAD_BITS = 16  # the paper's; taken to leave answers as they are
TEXT = (
    "one row per model that routes through a policy; {quality}; attention waiting "
    "latency relative to vanilla with an even split, geometric mean over the benchmarks of the ratios per batch, scope "
    f"{PRIMARY_SCOPE}, phase all, under the optimal and the even split; kept: assignments kept of the router's (%), "
    "measured over all layers and real tokens; matched: the share that the policy's parameter was set to "
    "keep on the calibration sample. Selection was made under the run's own profile."
)
FRONT = (
    "on front: no other model that is the same in all but the policy has at least its accuracy and at most its "
    "latency (under the optimal split), one of them strictly; judged by the estimates, not by their intervals",
    "payloads of fewer bits than 16 are rounded in the forward pass; the scale that each vector travels with is not "
    "counted: 16 more bits would be 1.6 % of a vector of 128 values of 8 bits, 0.05 % of one of 4096",
    "left out: models with batches of other items than their vanilla's, and models with other accuracy metrics than "
    "the first model shown here",
    "significant: the loss is more than chance, corrected for the number of models compared; no does not mean no loss",
)
ROUTED_FRONT = (
    "on front: no other model of the same weights, profile and payload has at least its share ({quality}) and at most "
    "its latency (under the optimal split), one of them strictly; judged by the estimates",
    "{quality} is no accuracy: the traces were routed without a model, so there are no answers, and nothing here says "
    "how answers depend on it (our choice in place of accuracy)",
    f"a latency is - where a benchmark has fewer than {MIN_GROUPS} batches, too few for an interval; the figure "
    "shows the estimate",
)

Cells = Sequence[tuple[dict[str, Any], BatchSums]]
Sums = dict[tuple[str, str, str], tuple[float, BatchSums]]  # model, allocation, benchmark -> mean per batch, its sums


def scored_benchmarks(runs: Sequence[ModelRun], benchmarks: Sequence[str]) -> list[str]:
    """The benchmarks that a frontier's points are the mean of: all on which some model has an accuracy.

    Where all traces were routed without a model, no benchmark has an accuracy, and none is left out.
    """
    if _quality_name(runs) != ACCURACY:
        return list(benchmarks)
    return [name for name in benchmarks if any(run.accuracy_of(name) is not None for run in runs)]


def frontier_records(runs: Sequence[ModelRun], benchmarks: Sequence[str], cells: Cells) -> list[dict[str, Any]]:
    """One record per model that has a vanilla next to it and everything measured on all benchmarks.

    Next to it: the first that is the same in all but policy and payload_bits, so that a payload of fewer bits
    shows what it saves; without quantise_payload such a model's answers do not know of it, and it is left out. So is a
    model with batches of other items than that vanilla's, and one with other accuracy metrics than the first record's.

    cells: what `tables.latency_cells` gives. accuracy, accuracy_low and accuracy_high in percent; difference (and
    difference_low, difference_high) to vanilla in points with McNemar's p over all items, Holm's over the models of
    one vanilla; latency_ratio (and _low, _high) to vanilla under even split, latency_ratio_even that of the even split;
    waiting_latency_s: plain mean over the benchmarks of the mean per batch, optimal split, scope layer.
    quality and quality_percent: name and value of what is compared with latency: the accuracy, or, where all traces
    were routed without a model, the share of the router's weight kept (of its assignments, where the traces lack
    weights). accuracy is then None, and a smaller payload leaves no model out, for there are no answers. benchmarks:
    those given, which all of this is over.
    """
    records: list[dict[str, Any]] = []
    if not benchmarks:
        return records
    quality = _quality_name(runs)
    families = _families([run for run in runs if run.policy != DENSE and run.all_traces], benchmarks)
    vanillas = {
        families[run.abbr]: run for run in reversed(runs) if run.abbr in families and _is_reference(run, quality)
    }
    sums = _sums(cells)
    first: ModelRun | None = None
    for run in runs:
        vanilla = vanillas.get(families.get(run.abbr, ("", "")))
        if vanilla is None:
            continue
        record = _record(run, vanilla, benchmarks, sums, quality, families[run.abbr])
        if record is not None and (first is None or _share_metrics(run, first, benchmarks)):
            first = first or run
            records.append(record)
    _correct(records)
    _mark_front(records)
    return records


def _quality_name(runs: Sequence[ModelRun]) -> str:
    """The quality that all points of a frontier are judged by, so that no axis holds two measures."""
    traces = [trace for run in runs for trace in run.all_traces]
    if any(trace.metadata.routed_from == "model" for trace in traces):
        return ACCURACY
    return WEIGHT_KEPT if all(_has_every_weight(trace) for trace in traces) else ASSIGNMENTS_KEPT


def _has_every_weight(trace: RoutingTrace) -> bool:
    """Not where expert ids alone were recorded, nor of experts at the base station: a trace sums weights per device."""
    at_devices = trace.expert_evaluations_before.sum(dtype=np.int64)
    return bool(trace.weight_sum_before.any() and at_devices == trace.assignments_before.sum(dtype=np.int64))


def _quality(run: ModelRun, benchmarks: Sequence[str], name: str) -> float | None:
    """-> percent; None where a benchmark has no accuracy."""
    if name != ACCURACY:
        return 100 * _kept_share(run, benchmarks, "weight_sum" if name == WEIGHT_KEPT else "assignments")
    accuracies = [accuracy for benchmark in benchmarks if (accuracy := run.accuracy_of(benchmark)) is not None]
    return sum(percent for _, percent in accuracies) / len(accuracies) if len(accuracies) == len(benchmarks) else None


def _kept_share(run: ModelRun, benchmarks: Sequence[str], quantity: str) -> float:
    before, after = (
        sum(float(getattr(trace, name).sum(dtype=np.float64)) for b in benchmarks for trace in run.traces_of(b))
        for name in (f"{quantity}_before", quantity)
    )
    return after / before


def _is_reference(run: ModelRun, quality: str) -> bool:
    is_full = run.all_traces[0].metadata.profile.payload_bits >= FULL_PAYLOAD_BITS
    return run.is_vanilla and (is_full or quality != ACCURACY)


Family = tuple[str, str]


def _families(runs: Sequence[ModelRun], benchmarks: Sequence[str]) -> dict[str, Family]:
    """-> model -> its frontier: the first model that is the same but for policy and payload, under the same profile."""
    families: dict[str, Family] = {}
    for run in runs:
        profile = run.all_traces[0].metadata.profile.model_copy(update={"payload_bits": FULL_PAYLOAD_BITS}).content_hash
        alike = (
            other.abbr
            for other in runs
            if families.get(other.abbr) == (other.abbr, profile)
            and not any(what_differs(run, other, benchmark) for benchmark in benchmarks)
        )
        families[run.abbr] = (next(alike, run.abbr), profile)
    return families


def _record(
    run: ModelRun, vanilla: ModelRun, benchmarks: Sequence[str], sums: Sums, quality: str, family: Family
) -> dict[str, Any] | None:
    baseline = _sums_of(vanilla, "uniform", benchmarks, sums)
    splits = {method: _sums_of(run, method, benchmarks, sums) for method in ("optimal", "uniform")}
    if any(part is None for part in (baseline, *splits.values())):
        return None
    pairs = zip(baseline, splits["optimal"], strict=True)  # type: ignore[arg-type]
    if any(first.items != second.items for (_, first), (_, second) in pairs):
        return None
    metadata = run.all_traces[0].metadata
    is_small = metadata.profile.payload_bits < FULL_PAYLOAD_BITS
    if quality == ACCURACY and is_small and not metadata.quantise_payload:
        return None
    percent = _quality(run, benchmarks, quality)
    if percent is None:
        return None
    record: dict[str, Any] = dict(
        model=run.abbr,
        policy=run.policy,
        parameters=metadata.policy_parameters,
        matched_share=metadata.kept_share,
        payload_bits=metadata.profile.payload_bits,
        family=family,
        scope=PRIMARY_SCOPE,
        benchmarks=list(benchmarks),
        kept_share=_kept_share(run, benchmarks, "assignments"),
        quality=quality,
        quality_percent=percent,
        accuracy=percent if quality == ACCURACY else None,
        waiting_latency_s=float(np.mean([mean for mean, _ in splits["optimal"]])),  # type: ignore[union-attr]
    )
    record |= _accuracy_interval(run, benchmarks) | _difference(run, vanilla, benchmarks)
    for method, own in splits.items():
        record |= _ratio(baseline, own, "" if method == "optimal" else "_even")  # type: ignore[arg-type]
    return record


def _sums(cells: Cells) -> Sums:
    return {
        (record["model"], record["allocation"], record["dataset"]): (record["latency_s"], sums)
        for record, sums in cells
        if (record["scope"], record["per"], record["phase"]) == (PRIMARY_SCOPE, "batch", "all")
    }


def _sums_of(run: ModelRun, method: str, benchmarks: Sequence[str], sums: Sums) -> list[tuple[float, BatchSums]] | None:
    """-> per benchmark the mean latency per batch in seconds and its sums; None where a benchmark has none."""
    found = [sums.get((run.abbr, method, name)) for name in benchmarks]
    return None if None in found else found  # type: ignore[return-value]


def _accuracy_interval(run: ModelRun, benchmarks: Sequence[str]) -> dict[str, float | None]:
    strata = [
        (items.right, 1 / len(benchmarks) / len(run.items_of(b))) for b in benchmarks for items in run.items_of(b)
    ]
    known = all(run.items_of(name) for name in benchmarks)
    interval = accuracy_interval([s for s, _ in strata], [w for _, w in strata]) if known else None
    return _ends("accuracy", interval, 100)


def _share_metrics(run: ModelRun, other: ModelRun, benchmarks: Sequence[str]) -> bool:
    return all(share_metrics(run, other, benchmark) for benchmark in benchmarks)


def _difference(run: ModelRun, vanilla: ModelRun, benchmarks: Sequence[str]) -> dict[str, Any]:
    first, second = ({name: model.items_of(name) for name in benchmarks} for model in (vanilla, run))
    paired = paired_records(first, second)
    is_compared = run is not vanilla and _share_metrics(run, vanilla, benchmarks)
    if not is_compared or len([record for record in paired if record["mcnemar_p"] is not None]) < len(benchmarks):
        return dict(difference=None, mcnemar_p=None) | _ends("difference", None)
    mean = paired[-1]
    rights = [np.concatenate([items.right for name in benchmarks for items in side[name]]) for side in (first, second)]
    interval = None if mean["low"] is None else Interval(mean["low"], mean["high"])
    return dict(difference=mean["difference"], mcnemar_p=mcnemar_p(*rights)) | _ends("difference", interval)


def _ratio(baseline: list[tuple[float, BatchSums]], own: list[tuple[float, BatchSums]], ending: str) -> dict[str, Any]:
    """Geometric mean of the ratios; its interval by that of each benchmark's logarithm, independent of the others."""
    pairs = list(zip(baseline, own, strict=True))
    ratio = float(np.exp(np.mean([np.log(second / first) for (first, _), (second, _) in pairs])))
    intervals = [latency_ratio(a, b, "batch")[0] for (_, a), (_, b) in pairs]
    interval = None
    if None not in intervals:
        logs = np.log(np.array(intervals))  # [benchmarks, low and high]
        estimates = np.log([second / first for (first, _), (second, _) in pairs])
        below, above = (np.sqrt(np.square(logs[:, side] - estimates).sum()) / len(pairs) for side in (0, 1))
        interval = Interval(ratio * float(np.exp(-below)), ratio * float(np.exp(above)))
    return {f"latency_ratio{ending}": ratio} | _ends(f"latency_ratio{ending}", interval)


def _ends(name: str, interval: Interval | None, scale: float = 1) -> dict[str, float | None]:
    low, high = (None, None) if interval is None else (scale * interval.low, scale * interval.high)
    return {f"{name}_low": low, f"{name}_high": high}


def _correct(records: list[dict[str, Any]]) -> None:
    """Holm over the models that are compared with one vanilla."""
    for base in {record["family"] for record in records}:
        family = [record for record in records if record["family"] == base and record["mcnemar_p"] is not None]
        for record, p in zip(family, holm([record["mcnemar_p"] for record in family]), strict=True):
            record |= dict(holm_p=p, significant=p < SIGNIFICANCE)
    for record in records:
        record.setdefault("holm_p", None)
        record.setdefault("significant", None)


def _mark_front(records: list[dict[str, Any]]) -> None:
    for record in records:
        alike = (other for other in records if _front_of(other) == _front_of(record))
        record["on_front"] = not any(_beats(other, record) for other in alike)


def _front_of(record: dict[str, Any]) -> tuple:
    """What the models of one front have in common; an equal payload too, for few policies run with a smaller one."""
    return record["family"], record["payload_bits"]


def _beats(record: dict[str, Any], other: dict[str, Any]) -> bool:
    better = (record["quality_percent"] - other["quality_percent"], other["latency_ratio"] - record["latency_ratio"])
    return min(better) >= 0 and max(better) > 0


def frontier_table(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Rows from the highest latency to the lowest, as cells."""
    return pd.DataFrame(_cells(record) for record in sorted(records, key=lambda record: -record["latency_ratio"]))


def _cells(record: dict[str, Any]) -> dict[str, str]:
    def with_interval(name: str, number: str, scale: float = 1) -> str:
        low, high = (record[f"{name}_{end}"] for end in ("low", "high"))
        if low is None:  # a comparison without its interval is not shown; an accuracy is
            return number.format(scale * record[name]) if name == "accuracy" or record[name] == 1 else "-"
        return " ".join([number.format(scale * record[name]), *brackets(Interval(scale * low, scale * high), number)])

    if record["quality"] == ACCURACY:
        difference = dict(difference=record["difference"], low=record["difference_low"], high=record["difference_high"])
        quality = {
            "accuracy (%)": with_interval("accuracy", "{:.1f}"),
            "difference (points)": "-" if record["difference"] is None else difference_text(difference),
        } | p_cells(record)
    else:
        quality = {f"{record['quality']} (%)": f"{record['quality_percent']:.1f}"}
    return (
        {
            "model": record["model"],
            "policy": record["policy"],
            "payload (bit)": str(record["payload_bits"]),
            "matched (%)": "-" if record["matched_share"] is None else f"{100 * record['matched_share']:.0f}",
            "kept (%)": f"{100 * record['kept_share']:.1f}",
        }
        | quality
        | {
            "latency, optimal split": with_interval("latency_ratio", "{:.3f}"),
            "latency, even split": with_interval("latency_ratio_even", "{:.3f}"),
            "on front": "yes" if record["on_front"] else "no",
        }
    )


def frontier_notes(quality: str) -> list[str]:
    """Lines under the table: the methods, and what the words mean."""
    latency = (
        f"latency: {BATCH_METHOD}; over several benchmarks the intervals of the logarithms are added as independent"
    )
    if quality != ACCURACY:
        return [latency, *(line.format(quality=quality) for line in ROUTED_FRONT)]
    return [METHOD, significant_words("over the models; here over all items of all benchmarks"), latency, *FRONT]


def left_out_notes(benchmarks: Sequence[str], scored: Sequence[str]) -> list[str]:
    """A line that names the benchmarks that `scored_benchmarks` leaves out, if there are any."""
    names = ", ".join(name for name in benchmarks if name not in scored)
    return [f"left out, because no model has an accuracy on it: {names}"] if names else []


def draw_frontier(records: Sequence[dict[str, Any]], benchmarks: Sequence[str]) -> Any:
    """Quality against latency, with intervals; one colour and marker per policy, the front joined."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    panel = figure.subplots()
    policies = list(dict.fromkeys(record["policy"] for record in records))
    colours = [colormaps["tab20"](number) for number in range(20)]
    markers = "osD^v<>Pp*Xhd8"
    for number, policy in enumerate(policies):
        own = [record for record in records if record["policy"] == policy]
        panel.errorbar(
            [record["latency_ratio"] for record in own],
            [record["quality_percent"] for record in own],
            xerr=_bars(own, "latency_ratio"),
            yerr=_bars(own, "accuracy"),
            fmt=markers[number % len(markers)],
            color=colours[number % len(colours)],
            markersize=9 if policy == "dual_price" else 6,
            elinewidth=0.5,
            label=policy,
        )
    for number, alike in enumerate(dict.fromkeys(_front_of(record) for record in records)):
        front = sorted(
            (record["latency_ratio"], record["quality_percent"])
            for record in records
            if record["on_front"] and _front_of(record) == alike
        )
        label = None if number else "Pareto front, one per payload and weights"
        panel.plot(*zip(*front), color="black", linewidth=1, drawstyle="steps-post", label=label, zorder=0)
    quality = records[0]["quality"]
    panel.set(
        xlabel="attention waiting latency, optimal split, vanilla with even split = 1",
        ylabel=f"{quality} (%), {f'mean of {len(benchmarks)} benchmarks' if quality == ACCURACY else NO_ACCURACY}",
    )
    panel.legend(fontsize=7, ncols=2, loc="lower right")
    return figure


def _bars(records: Sequence[dict[str, Any]], name: str) -> np.ndarray | None:
    if any(record[f"{name}_low"] is None for record in records):
        return None
    ends = [
        [record[name] - record[f"{name}_low"] for record in records],
        [record[f"{name}_high"] - record[name] for record in records],
    ]
    return np.maximum(ends, 0)


def frontier_text(benchmarks: Sequence[str], quality: str) -> str:
    """The first line under the table."""
    names = " and ".join(filter(None, [", ".join(benchmarks[:-1]), *benchmarks[-1:]]))
    return TEXT.format(quality=QUALITY_TEXT[quality].format(benchmarks=names))
