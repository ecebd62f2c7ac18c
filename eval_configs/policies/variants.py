"""Every selection policy as `wdmoe=dict(...)`: at its defaults, and matched to shares of kept assignments.

Defaults are their authors' where these give any (thresholds on Mixtral's scale among them). lexi moves in whole layers.

Payloads of 8 and 4 bits are really quantised. Policies that add experts (may_add) need a softmax router; those with
measured constants need a calibration.
"""

OWN_DEFAULTS = {
    "vanilla": dict(policy="top_k"),
    "wdmoe": dict(policy="wlr"),
    "bottleneck": dict(policy="bottleneck"),
    "top-1": dict(policy="fixed_k"),
    "random": dict(policy="random_drop"),
    "naee": dict(policy="naee"),
    "1t": dict(policy="one_t"),
    "1t-load-aware": dict(policy="one_t", policy_parameters=dict(load_aware="time", max_threshold=0.3)),
    "adapmoe": dict(policy="adapmoe"),
    "top-p": dict(policy="top_p"),
    "capacity-tokens": dict(policy="capacity"),
    "capacity-time": dict(policy="capacity", policy_parameters=dict(by="time")),
    "capacity-time-top": dict(policy="capacity", policy_parameters=dict(by="time", may_lose_all=False)),
    "expanded-drop": dict(policy="expanded_drop"),
    "des": dict(policy="des"),
    "des-top-k": dict(policy="des_top_k"),
    "jesa": dict(policy="jesa"),
    "caee": dict(policy="caee"),
    "sift-moe": dict(policy="sift_moe"),
    "lexi": dict(policy="lexi"),
    "oea": dict(policy="oea"),
    "dual-price": dict(policy="dual_price"),
    "dual-price-even": dict(policy="dual_price", policy_parameters=dict(split="even")),
}
MATCHED = {  # share of kept assignments -> policies turned to it: ours, rivals of its kind, the control
    0.8: ("random", "naee", "capacity-time", "capacity-time-top", "des", "caee", "dual-price", "dual-price-even"),
    0.65: ("random", "des", "dual-price"),
}
QUANTISED = {
    f"{name}-{bits}-bit": dict(profile=f"paper_8_devices_{bits}_bit", **changed)
    for bits in (8, 4)
    for name, changed in (
        ("vanilla-quantised", dict(policy="top_k", quantise_payload=True)),
        ("dual-price-quantised", dict(policy="dual_price", quantise_payload=True)),
    )
}
variants = (
    OWN_DEFAULTS
    | {
        f"{name}-kept-{100 * share:.0f}": OWN_DEFAULTS[name] | dict(kept_share=share)
        for share, names in MATCHED.items()
        for name in names
    }
    | QUANTISED
)
