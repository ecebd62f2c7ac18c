"""Measured times that were never measured: planted devices, and passes of random loads through them."""

import numpy as np

from tests.builders.trace_blocks import metadata as trace_metadata
from wdmoe_opencompass.channel.profile import ChannelProfile, load_profile
from wdmoe_opencompass.trace.format import PER_BATCH, PER_PASS, join
from wdmoe_opencompass.trace.times import LayerTimes, TimesMetadata, TimesRecorder, join_times

DEVICES = 4
HIDDEN, FFN = 128, 256
PAYLOAD_BITS = 16
FLOP = 4 * HIDDEN * FFN + 2 * FFN * HIDDEN + 4 * FFN + FFN
RATE_DOWN = np.array([200e6, 200e6, 100e6, 20e6])  # bit/s
RATE_UP = np.array([180e6, 190e6, 90e6, 18e6])
FLOP_PER_S = np.array([5e9, 4e9, 1e9, 8e9])
FIXED_S = np.array([0.4e-3, 0.5e-3, 0.3e-3, 0.6e-3])  # of a message: there; half as much each for computing and back
MESSAGE_S = 0.2e-3  # by which each further message of a layer delays its last answer
BITS = PAYLOAD_BITS * HIDDEN


def layer_times(layer, loads, noise=None, pass_index=0, message_s=0.0, burst_bit=0.0):
    """-> LayerTimes of one layer, [devices] tokens each; each further message delays the last answer."""
    limited = np.maximum(loads * BITS - burst_bit, 0)
    factor = np.ones((DEVICES, 3)) if noise is None else np.exp(noise.normal(scale=0.03, size=(DEVICES, 3)))
    parts = [
        (FIXED_S + limited / RATE_DOWN) * factor[:, 0],
        (FIXED_S / 2 + loads * FLOP / FLOP_PER_S) * factor[:, 1],
        (FIXED_S / 2 + limited / RATE_UP) * factor[:, 2],
    ]
    total = np.sum(parts, axis=0)
    waiting = total[loads > 0].max(initial=0.0) + message_s * (np.count_nonzero(loads) - 1)
    return [
        LayerTimes(layer, k, int(loads[k]), parts[0][k], 0.0, parts[1][k], parts[2][k], total[k], waiting, pass_index)
        for k in range(DEVICES)
        if loads[k]
    ]


def probe(sizes=(1, 4, 16, 64, 256), repeats=5, seed=0, **physics):
    """Like `wdmoe testbed measure`: each size to all at once, to some, and to each alone; physics: of layer_times."""
    physics = dict(message_s=MESSAGE_S) | physics
    noise = None if seed is None else np.random.default_rng(seed)
    who = [np.ones(DEVICES, int), np.array([1, 0, 1, 1]), np.array([0, 1, 1, 0]), *np.eye(DEVICES, dtype=int)]
    exchanges = [size * loads for size in sizes for _ in range(repeats) for loads in who]
    return [
        message for number, loads in enumerate(exchanges) for message in layer_times(0, loads, noise, number, **physics)
    ]


def synthetic_profile(**changes):
    data = load_profile("testbed_4_devices").model_dump(mode="json", exclude_none=True)
    return ChannelProfile.model_validate(data | dict(payload_bits=PAYLOAD_BITS) | changes)


def times_metadata(**changes):
    names = tuple(device.name for device in synthetic_profile().devices)
    of = dict(model="tiny", dataset="d", policy="top_k", layers=3, devices=names)
    return TimesMetadata(**(of | dict(hidden_size=HIDDEN, ffn_size=FFN, payload_bits=PAYLOAD_BITS) | changes))


def times_block(first_item, loads, items=4, noise=None):
    """loads: [passes, layers, devices] -> one batch as a block."""
    recorder = TimesRecorder(loads.shape[1], DEVICES)
    for of_pass in loads:
        recorder.begin_pass(int(of_pass[0].sum()))
        for layer, of_layer in enumerate(of_pass):
            recorder.add(layer_times(layer, of_layer, noise))
    return recorder.finish_batch(first_item, items)


def random_loads(seed, passes=2, layers=3, most=60):
    return np.random.default_rng(seed).integers(0, most, (passes, layers, DEVICES))


def measured_times(batches=8, seed=0, slower=1.0, most=60, **changes):
    """A whole dataset; `slower` stretches every second."""
    noise = np.random.default_rng(seed)
    blocks = [times_block(4 * n, random_loads(100 + n, most=most), noise=noise) for n in range(batches)]
    times = join_times(times_metadata(**changes), blocks)
    for name, array in times.arrays.items():
        if name.endswith("_s"):
            array *= slower
    return times


def trace_beside(times, profile=None, **changes):
    """The routing trace of the same passes."""
    profile = profile or synthetic_profile()
    own = times.metadata
    metadata = trace_metadata(
        model=own.model,
        dataset=own.dataset,
        policy=own.policy,
        profile=profile,
        profile_hash=profile.content_hash,
        hidden_size=HIDDEN,
        ffn_size=FFN,
        **changes,
    )
    sizes, rows = metadata.sizes(), {"p": len(times.batch), "b": len(times.items)}
    block = {
        name: np.zeros((rows["p" if name in PER_PASS else "b"], *(sizes[axis] for axis in axes)), dtype)
        for name, (dtype, axes) in (PER_PASS | PER_BATCH).items()
    }
    loads = times.tokens
    for name in ("device_load", "device_load_before", "expert_evaluations", "expert_evaluations_before"):
        block[name] = loads.astype(np.int32)
    block["assignments"] = block["assignments_before"] = loads.sum(axis=2).astype(np.int32)
    block |= {name: times.arrays[name] for name in ("batch", "pass_index", "first_item", "items")}
    block["tokens"] = times.pass_tokens
    block["item_passes"] = np.repeat(np.bincount(times.batch), times.items).astype(np.int32)
    return join(metadata, [block])
