"""What the page's latency engine (engine/) reads: a run's counts, packed; nothing is sampled or rounded.

Arrays are base64 of little-endian numbers in the smallest type that holds them, in C order.
"""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...channel.profile import ChannelProfile
from ...channel.propagation import FadingSource, mean_amplitude
from ...replay import check_same_devices
from ...trace.format import RoutingTrace
from ..runs import ModelRun

FORMAT = 1
MAX_BYTES = 4_000_000  # of all packed arrays of a page, as text; its answers and tables take some too
LARGEST_EXACT = 2**53  # JavaScript holds larger whole numbers with gaps

Packed = dict[str, Any]


def counts(runs: Sequence[ModelRun], most_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Everything that the engine needs to compute the latencies of a run, as plain JSON.

    A dataset is packed for all models or for none. Where all together would take more than `most_bytes`, the smaller
    ones are kept, and `left_out` of every model says which are not and why; so it does of datasets without a trace.
    """
    sparse = [run for run in runs if run.all_traces]
    packed = {name: _of_models(sparse, name) for name in dict.fromkeys(name for run in sparse for name in run.traces)}
    kept = _within(packed, most_bytes)
    models = []
    for run in sparse:
        datasets = {name: packed[name].datasets[run.abbr] for name in kept if run.abbr in packed[name].datasets}
        left_out = dict(run.missing) | {
            name: packed[name].reason or _too_large(packed[name].size, most_bytes)
            for name in run.traces
            if name not in datasets
        }
        models.append(_model(run) | dict(datasets=datasets, left_out=left_out))
    return dict(format=FORMAT, most_bytes=most_bytes, models=models)


@dataclass(frozen=True)
class _Dataset:
    """A dataset's counts by model, their bytes as text, and why the page cannot have them, if it cannot."""

    datasets: dict[str, Packed]
    size: int
    reason: str | None


def _of_models(runs: Sequence[ModelRun], name: str) -> _Dataset:
    holders = [run for run in runs if run.traces.get(name)]
    for run in holders:
        for trace in run.traces[name]:
            if (trace.expert_evaluations[trace.device_load == 0] > 0).any():
                return _Dataset({}, 0, f"{run.abbr} counts tokens computed on a device that none was sent to")
    datasets = {run.abbr: packed_dataset(run.traces[name]) for run in holders}
    return _Dataset(datasets, sum(map(packed_bytes, datasets.values())), None)


def _within(packed: dict[str, _Dataset], most_bytes: int) -> list[str]:
    """-> names of the datasets that fit, smallest first considered, in their own order."""
    kept, total = set(), 0
    for name in sorted((name for name in packed if not packed[name].reason), key=lambda name: packed[name].size):
        total += packed[name].size
        if total > most_bytes:
            break
        kept.add(name)
    return [name for name in packed if name in kept]


def _too_large(size: int, most_bytes: int) -> str:
    return (
        f"its counts take {size / 1e6:.2f} MB of text; a page holds {most_bytes / 1e6:g} MB of counts in all, the "
        "smaller datasets first"
    )


def packed_bytes(packed: Any) -> int:
    """Characters of all packed arrays in a JSON-able value."""
    if isinstance(packed, dict):
        own = len(packed["data"]) if isinstance(packed.get("data"), str) else 0
        return own + sum(map(packed_bytes, packed.values()))
    return sum(map(packed_bytes, packed)) if isinstance(packed, list) else 0


def _model(run: ModelRun) -> dict[str, Any]:
    metadata = run.all_traces[0].metadata
    return dict(
        abbr=run.abbr,
        routing=run.policy,
        profile=_plain_profile(metadata.profile),
        profile_hash=metadata.profile_hash,
        hidden_size=metadata.hidden_size,
        ffn_size=metadata.ffn_size,
        layers=metadata.layers,
        devices=[device.name for device in metadata.profile.devices],
        groups=run.groups,
        run_draws=_packed_gains(metadata.profile, [("", 0, 0)], 1) if _is_one_draw(metadata.profile) else None,
    )


def _plain_profile(profile: ChannelProfile) -> dict[str, Any]:
    plain = profile.model_dump(mode="json", exclude_none=True)
    seed = plain["fading"]["seed"]
    plain["fading"]["seed"] = seed if seed <= LARGEST_EXACT else str(seed)
    for statements in plain.get("origin", {}).values():
        if statements.get("fading.seed", 0) > LARGEST_EXACT:
            statements["fading.seed"] = str(statements["fading.seed"])
    return plain


def packed_dataset(traces: Sequence[RoutingTrace]) -> Packed:
    """The traces of one dataset and model, several where OpenCompass split it, one after the other.

    rows: [rows, devices] distinct device loads of a layer of a pass (`load`) and what the evaluations exceed them by
    (`extra`, left out where that is nothing); index: [passes, layers] into them, left out where it is 0, 1, 2, ...
    draws: of `_packed_gains`, of the run's own fading where it changes from pass to pass; draw: [passes] into them.
    """
    for trace in traces[1:]:
        check_same_devices(traces[0], trace.metadata.profile)
    load = np.concatenate([trace.device_load for trace in traces])  # [passes, layers, devices]
    extra = np.concatenate([trace.expert_evaluations for trace in traces]) - load
    packed: Packed = dict(passes=len(load), batches=sum(len(trace.items) for trace in traces))
    packed |= _packed_rows(load, extra) | _packed_batches(traces)
    return packed | _packed_draws(traces)


def _packed_rows(load: NDArray, extra: NDArray) -> Packed:
    devices = load.shape[2]
    both = np.concatenate([load, extra], axis=2).reshape(-1, 2 * devices)
    distinct, index = np.unique(both, axis=0, return_inverse=True)
    whole, parted = (_row_arrays(rows, devices) for rows in (both, distinct))
    parted["index"] = _pack(index.ravel())
    return whole if packed_bytes(whole) <= packed_bytes(parted) else parted


def _row_arrays(rows: NDArray, devices: int) -> Packed:
    load, extra = rows[:, :devices], rows[:, devices:]
    packed: Packed = dict(rows=len(rows), load=_pack(load))
    return packed | dict(extra=_pack(extra)) if extra.any() else packed


def _packed_batches(traces: Sequence[RoutingTrace]) -> Packed:
    passes = [np.bincount(trace.batch, minlength=len(trace.items)) for trace in traces]  # batch numbers ascend
    return dict(
        parts=[dict(name=trace.metadata.dataset, batches=len(trace.items)) for trace in traces],
        passes_of_batch=_pack(np.concatenate(passes)),
        first_item=_pack(np.concatenate([trace.first_item for trace in traces])),
        items=_pack(np.concatenate([trace.items for trace in traces])),
        phase=_pack(np.concatenate([trace.phase for trace in traces])),
    )


def _packed_draws(traces: Sequence[RoutingTrace]) -> Packed:
    profile, layers = traces[0].metadata.profile, traces[0].metadata.layers
    if profile.fading.model == "none" or _is_one_draw(profile):
        return {}
    moments = [
        (trace.metadata.dataset, int(items_before), int(pass_index))
        for trace in traces
        for items_before, pass_index in zip(trace.items_before[trace.batch], trace.pass_index)
    ]
    number = {moment: n for n, moment in enumerate(dict.fromkeys(moments))}
    draws = _packed_gains(profile, number, layers if profile.fading.coherence == "layer" else 1)
    return dict(draws=draws, draw=_pack(np.array([number[moment] for moment in moments], dtype=np.int64)))


def _is_one_draw(profile: ChannelProfile) -> bool:
    return profile.fading.model != "none" and profile.fading.coherence == "run"


def _packed_gains(profile: ChannelProfile, moments: Iterable[tuple[str, int, int]], layers: int) -> Packed:
    """-> down, up: [moments * layers, devices] unit exponential draws, by which the engine multiplies mean power gains.

    They are FadingSource's first draw of each moment of the run; `up` is left out where it is `down`.
    """
    at_1_m = tuple(device.model_copy(update=dict(distance_m=1.0)) for device in profile.devices)
    near = profile.model_copy(update=dict(devices=at_1_m, carrier_frequency_hz=1e9))  # gains that keep all digits
    channels = [FadingSource(near, *moment, layer).draw(1) for moment in moments for layer in range(layers)]
    mean_gain = 4 * mean_amplitude(near) ** 2 / np.pi

    def packed(gains: list[NDArray[np.float64]]) -> Packed:
        return _pack(np.array(gains).reshape(-1, len(at_1_m)) / mean_gain)

    down = dict(down=packed([channel.downlink_gain for channel in channels]))
    if profile.duplex == "shared":
        return down
    return down | dict(up=packed([channel.uplink_gain for channel in channels]))


def _pack(array: NDArray) -> Packed:
    if array.dtype.kind != "f":
        negative = array.min(initial=0) < 0
        array = array.astype(np.int32 if negative else np.min_scalar_type(int(array.max(initial=0))))
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return dict(dtype=array.dtype.name, data=base64.b64encode(np.ascontiguousarray(little).tobytes()).decode())
