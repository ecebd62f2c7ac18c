"""Predicted next to measured waiting latency, layer by layer of a testbed's passes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..channel.profile import ChannelProfile, changed_profile
from ..errors import WdmoeError
from ..latency import Array
from ..replay import replay
from ..trace.format import RoutingTrace
from ..trace.times import MeasuredTimes, check_belongs
from .formats import write_json, write_table
from .provenance import origin_notes, provenance
from .runs import MeasuredRun
from .summary_files import LAYER_PASSES, PREDICTION

PREDICTION_TEXT = (
    "waiting latency of each MoE layer of each forward pass with a token on a device: predicted from the recorded "
    "loads and the profile (load x bits / rate both ways + evaluations x FLOPs / device FLOP/s; for measured "
    "rates minus the burst of a link, plus the fixed seconds of a message and of each further message of the "
    "layer; slowest device, Eq. (4) to (11), bandwidth split evenly), next to what was measured from the first message "
    "to the last answer; relative error |predicted / measured - 1|"
)


@dataclass(frozen=True)
class Prediction:
    """Predicted and measured waiting latency (s) of the layer passes with a token on a device: [layer passes] each."""

    batch: NDArray
    pass_index: NDArray
    layer: NDArray
    tokens: NDArray
    predicted_s: Array
    measured_s: Array

    @property
    def relative_error(self) -> Array:
        """[layer passes] ``|predicted / measured - 1|``."""
        return np.abs(self.predicted_s / self.measured_s - 1)


def predicted_and_measured(
    trace: RoutingTrace, times: MeasuredTimes, profile: ChannelProfile | None = None
) -> Prediction:
    """Predict the latency of every layer of every pass from its recorded loads.

    trace:   with its device loads, [passes, layers, devices]
    times:   measured waiting latency of the same passes, [passes, layers] (s)
    profile: with the run's devices and placement, its payload replaced by that of the wire; None: the run's own
    Returns: [layer passes] predicted and measured latency (s). Raises TraceError if trace, times and profile do not
    belong together.  Source: Eq. (4) to (11) with evenly split bandwidth.
    """
    check_belongs(times, trace)
    own = changed_profile(profile or trace.metadata.profile, "payload_bits", times.metadata.payload_bits)
    predicted = replay(trace, own, "uniform", "layer").layer_latency_s
    measured = times.waiting_s.astype(np.float64)
    passes, layers = np.nonzero((trace.device_load.sum(axis=2) > 0) & (measured > 0))
    return Prediction(
        batch=times.batch[passes],
        pass_index=times.pass_index[passes],
        layer=layers,
        tokens=times.pass_tokens[passes],
        predicted_s=predicted[passes, layers],
        measured_s=measured[passes, layers],
    )


def _predictions(
    measured: Sequence[MeasuredRun], profile: ChannelProfile | None
) -> Iterator[tuple[str, str, Prediction]]:
    for measured_run in measured:
        for dataset, pairs in measured_run.measured.items():
            for trace, times in pairs:
                yield measured_run.run.abbr, dataset, predicted_and_measured(trace, times, profile)


def prediction_records(
    measured: Sequence[MeasuredRun], profile: ChannelProfile | None = None
) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """-> one record per model and dataset, and one over all; every layer of every pass as a row.

    A record: layer_passes, predicted_s and measured_s (means), median_relative_error, quantile_90_relative_error.
    """
    rows: list[pd.DataFrame] = []
    for model, dataset, found in _predictions(measured, profile):
        columns = {"model": model, "dataset": dataset} | {name: getattr(found, name) for name in found.__annotations__}
        rows.append(pd.DataFrame(columns | {"relative_error": found.relative_error}))
    table = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()
    if table.empty:
        return [], table
    parts = [(model, dataset, part) for (model, dataset), part in table.groupby(["model", "dataset"], sort=False)]
    everything = [("all", "all", table)] if len(parts) > 1 else []
    records = [
        dict(
            model=model,
            dataset=dataset,
            layer_passes=len(part),
            predicted_s=float(part["predicted_s"].mean()),
            measured_s=float(part["measured_s"].mean()),
            median_relative_error=float(part["relative_error"].median()),
            quantile_90_relative_error=float(part["relative_error"].quantile(0.9)),
        )
        for model, dataset, part in [*parts, *everything]
    ]
    return records, table


def prediction_table(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """`predicted | measured` as cells."""
    return pd.DataFrame(
        {
            "model": record["model"],
            "dataset": record["dataset"],
            "layer passes": str(record["layer_passes"]),
            "predicted (ms)": f"{1e3 * record['predicted_s']:.3f}",
            "measured (ms)": f"{1e3 * record['measured_s']:.3f}",
            "median relative error (%)": f"{100 * record['median_relative_error']:.1f}",
            "90 % are below (%)": f"{100 * record['quantile_90_relative_error']:.1f}",
        }
        for record in records
    )


def write_predictions(measured: Sequence[MeasuredRun], folder: Path, profile: ChannelProfile | None) -> list[str]:
    """Write the table and every layer pass into `folder`; -> lines for the screen, none without a layer pass."""
    try:
        records, rows = prediction_records(measured, profile)
    except WdmoeError as error:
        return [f"no prediction for the measured latency: {error}\n"]
    if not records:
        return []
    rows.to_csv(folder / LAYER_PASSES, index=False)
    write_json(folder / f"{PREDICTION}_records.json", records)
    own_runs = [measured_run.run for measured_run in measured]
    notes = prediction_notes(measured, profile) + origin_notes(own_runs)
    table = write_table(folder / PREDICTION, prediction_table(records), notes, provenance(own_runs))
    return [*assumption_notes(measured, profile), table, f"every layer pass: {folder / LAYER_PASSES}\n"]


def prediction_notes(measured: Sequence[MeasuredRun], profile: ChannelProfile | None) -> list[str]:
    """Lines under the table: what was predicted and from which profiles."""
    used = {own.content_hash: own for own in _profiles(measured, profile)}
    named = ", ".join(f"{own.name} (hash {key[:12]}, {own.rates} rates)" for key, own in used.items())
    lines = [
        *assumption_notes(measured, profile),
        PREDICTION_TEXT,
        f"predicted from profile {named}; payload as on the wire",
    ]
    return [*lines, f"profile {profile.name}: {profile.origin_sentence}"] if profile else lines


def assumption_notes(measured: Sequence[MeasuredRun], profile: ChannelProfile | None) -> list[str]:
    """A warning if a prediction is made from physical rates."""
    if all(own.rates == "measured" for own in _profiles(measured, profile)):
        return []
    return [
        "PREDICTED FROM AN ASSUMED PROFILE: a profile of physical rates is an assumption about the testbed, no "
        "measurement of it; make one by `wdmoe testbed measure`, then `wdmoe predict RUN --profile measured.yaml`"
    ]


def _profiles(measured: Sequence[MeasuredRun], profile: ChannelProfile | None) -> list[ChannelProfile]:
    traces = (trace for run in measured for pairs in run.measured.values() for trace, _ in pairs)
    return [profile] if profile else [trace.metadata.profile for trace in traces]
