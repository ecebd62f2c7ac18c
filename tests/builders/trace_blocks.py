"""Blocks, metadata and journals of a small routing trace."""

import numpy as np

from wdmoe_opencompass import load_profile
from wdmoe_opencompass.trace.format import (
    FORMAT_VERSION,
    PER_BATCH,
    PER_PASS,
    Journal,
    TraceMetadata,
)

PROFILE = load_profile("paper_8_devices")


def metadata(**changes):
    values = dict(
        format_version=FORMAT_VERSION,
        model="tiny",
        weights="models/tiny",
        dataset="d",
        policy="wlr",
        policy_parameters=dict(theta=0.5),
        renormalise="model",
        profile=PROFILE,
        profile_hash=PROFILE.content_hash,
        seed=0,
        layers=3,
        experts=8,
        top_k=2,
        hidden_size=32,
        ffn_size=48,
        dtype="float32",
        versions=dict(torch="2"),
    )
    return TraceMetadata(**(values | changes))


def block(first_item, items=4, passes=2, seed=0):
    rng = np.random.default_rng(seed)
    sizes = metadata().sizes()
    arrays = {
        name: rng.integers(0, 2, ((passes if name in PER_PASS else 1), *(sizes[a] for a in axes))).astype(dtype)
        for name, (dtype, axes) in (PER_PASS | PER_BATCH).items()
    }
    arrays["batch"] = np.zeros(passes, dtype=np.int32)
    arrays["expert_evaluations"] *= arrays["device_load"]  # what is computed was sent
    arrays["item_passes"] = rng.integers(1, passes + 1, items).astype(np.int32)
    return arrays | {"first_item": np.array([first_item], np.int32), "items": np.array([items], np.int32)}


def journal(tmp_path, **changes):
    return Journal(tmp_path / "d.trace.part", metadata(**changes))
