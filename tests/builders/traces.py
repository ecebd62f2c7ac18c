"""A small random routing trace, and the paper's profile with other fading."""

import numpy as np

from tests.builders.trace_blocks import block, metadata
from wdmoe_opencompass import load_profile
from wdmoe_opencompass.trace.format import join

PROFILE = load_profile("paper_8_devices")


def with_fading(**changes):
    return PROFILE.model_copy(update=dict(fading=PROFILE.fading.model_copy(update=changes)))


def trace_of(passes=3, batches=3, largest=40, seed=0):
    blocks = []
    for number in range(batches):
        batch = block(4 * number, passes=passes, seed=seed + number)
        rng = np.random.default_rng(seed + number)
        batch["device_load"] = rng.integers(0, largest, batch["device_load"].shape).astype(np.int32)
        batch["expert_evaluations"] = (batch["device_load"] * rng.integers(1, 4, batch["device_load"].shape)).astype(
            np.int32
        )
        batch["pass_index"] = np.arange(passes, dtype=np.int32)
        blocks.append(batch)
    return join(metadata(), blocks)
