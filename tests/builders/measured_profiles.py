"""Channel profiles of measured rates, and traces recorded under a profile."""

import numpy as np

from tests.builders.trace_blocks import metadata
from wdmoe_opencompass.channel.profile import ChannelProfile
from wdmoe_opencompass.trace.format import RoutingTrace, empty_arrays

LAYERS = 3


def measured(message_s=None, alike=False, burst_bit=None, shared_bit_per_s=None):
    speeds = [0 if alike else k for k in range(4)]
    rates = [dict(downlink_bit_per_s=1e6 * (k + 1), uplink_bit_per_s=3e6 / (k + 1)) for k in speeds]
    devices = [
        dict(name=f"d{n}", distance_m=1.0, transmit_power_w=1.0, compute_flops=1e9 * (k + 1), fixed_s=0.002 * k) | rate
        for n, (k, rate) in enumerate(zip(speeds, rates))
    ]
    for k, device in enumerate(devices):
        device |= {} if burst_bit is None else dict(burst_bit=burst_bit * k)
    station = dict(transmit_power_w=1.0, message_s=message_s, shared_bit_per_s=shared_bit_per_s)
    return ChannelProfile.model_validate(
        dict(
            name="measured",
            carrier_frequency_hz=1e9,
            total_bandwidth_hz=1e6,
            noise_psd_dbm_per_hz=-174.0,
            rates="measured",
            base_station=station,
            devices=devices,
            fading=dict(model="none"),
        )
    )


def trace_of(profile, dataset="d", seed=0, batches=4, passes=3, largest=40, layers=LAYERS, shape=(32, 48)):
    """Prefill and decode passes, batches of the same items, equal decode passes, idle devices, layers and passes."""
    trace_metadata = metadata(
        profile=profile,
        profile_hash=profile.content_hash,
        dataset=dataset,
        layers=layers,
        hidden_size=shape[0],
        ffn_size=shape[1],
    )
    rng = np.random.default_rng(seed)
    count = batches * passes
    load = rng.integers(0, largest, (count, layers, len(profile.devices)))
    load *= rng.random(load.shape) < 0.8
    pass_index = np.tile(np.arange(passes), batches)
    if passes > 2 and batches:
        load[pass_index == 2] = load[1]
    if count > 3:
        load[-1] = 0
        load[0, 0] = 0
        load[0, -1, 1:] = 0  # at most one loaded device
    arrays = empty_arrays(trace_metadata) | dict(
        batch=np.repeat(np.arange(batches), passes),
        pass_index=pass_index,
        phase=(pass_index > 0).astype(np.uint8),
        tokens=load.sum(axis=(1, 2)),
        device_load=load.astype(np.int32),
        expert_evaluations=(load * rng.integers(1, 4, load.shape)).astype(np.int32),
        first_item=np.arange(batches) // 2 * 5,
        items=np.full(batches, 5),
    )
    return RoutingTrace(trace_metadata, arrays)
