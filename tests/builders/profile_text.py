"""A channel profile that is right, as text to be spoiled."""

GOOD = dict(
    carrier_frequency_hz=3.5e9,
    total_bandwidth_hz=1e8,
    noise_psd_dbm_per_hz=-174.0,
    base_station=dict(transmit_power_w=10.0),
    fading=dict(model="none"),
    devices=[dict(name=f"d{k}", distance_m=10.0, transmit_power_w=0.2, compute_flops=1e12) for k in range(3)],
)
