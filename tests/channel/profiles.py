"""Random channel profiles with true, false and partly true statements of origin."""

from typing import Any

from hypothesis import strategies as st

from wdmoe_opencompass.channel.origin import ORIGINS
from wdmoe_opencompass.channel.plausibility import RANGES
from wdmoe_opencompass.channel.profile import ChannelProfile


def some(draw: Any, key: str) -> st.SearchStrategy[float]:
    """-> a strategy of three usual values of a key: few, so that statements meet them."""
    lowest, highest = RANGES[key].usual
    return st.sampled_from([lowest, highest, draw(st.floats(lowest, highest))])


@st.composite
def st_contents(draw: Any) -> dict[str, Any]:
    """A profile without origins, as its file has it."""
    count = draw(st.integers(1, 20))
    rates = draw(st.sampled_from(["physical", "measured"]))
    extra = ["energy_j_per_flop"] if rates == "physical" else ["downlink_bit_per_s", "uplink_bit_per_s", "fixed_s"]
    extra = [key for key in extra if key.endswith("_s") or draw(st.booleans())]
    keys = ["distance_m", "transmit_power_w", "compute_flops", *extra]
    strategies = {key: some(draw, "devices." + key if key == "transmit_power_w" else key) for key in keys}
    devices = [dict(name=f"d{n}") | {key: draw(strategies[key]) for key in keys} for n in range(count)]
    model = "none" if rates == "measured" else draw(st.sampled_from(["none", "rayleigh"]))
    experts = draw(
        st.dictionaries(st.integers(0, 9), st.sampled_from([device["name"] for device in devices]), max_size=3)
    )
    return dict(
        carrier_frequency_hz=draw(some(draw, "carrier_frequency_hz")),
        total_bandwidth_hz=draw(some(draw, "total_bandwidth_hz")),
        noise_psd_dbm_per_hz=-174.0,
        payload_bits=draw(st.sampled_from([4, 8, 16])),
        rates=rates,
        base_station=dict(transmit_power_w=draw(some(draw, "base_station.transmit_power_w"))),
        devices=devices,
        fading=dict(model=model, seed=draw(st.sampled_from([0, 7, 2**53 + 1]))),
        placement=dict(experts=experts),
    )


@st.composite
def st_origins(draw: Any, content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Statements about a profile: each of its own value, or of another one."""
    devices = content["devices"]
    plain = ["carrier_frequency_hz", "total_bandwidth_hz", "noise_psd_dbm_per_hz", "payload_bits"]
    true = {key: content[key] for key in plain}
    true |= {"fading.model": content["fading"]["model"], "fading.seed": content["fading"]["seed"]}
    true |= {"placement.experts": content["placement"]["experts"], "duplex": "shared"}
    for key in devices[0]:
        if key != "name":
            true[f"devices[*].{key}"] = [device[key] for device in devices][: draw(st.integers(0, len(devices)))]
            true[f"devices[{len(devices) - 1}].{key}"] = devices[-1][key]
    other = true | {"payload_bits": 3, "devices[*].distance_m": 40.0, "total_bandwidth_hz": 41e6, "fading.seed": 1}
    other |= {"placement.experts": {0: "elsewhere"}, "devices[*].transmit_power_w": [0.04] * len(devices)}
    origin: dict[str, dict[str, Any]] = {}
    for word in draw(st.lists(st.sampled_from(list(ORIGINS)), unique=True)):
        chosen = draw(st.lists(st.sampled_from(list(true)), unique=True))
        origin[word] = {path: draw(st.sampled_from([true[path], other[path]])) for path in chosen}
    return origin


@st.composite
def st_profiles(draw: Any) -> ChannelProfile:
    """A profile with statements of origin, or without any."""
    content = draw(st_contents())
    origin = draw(st.none() | st_origins(content))
    return ChannelProfile.model_validate({"name": "random", **content, "origin": origin})
