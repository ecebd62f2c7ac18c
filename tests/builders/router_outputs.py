"""Recorded router outputs as NumPy files."""

import numpy as np
import pytest

from tests.conftest import ROOT

SHARED = ROOT.parent / "shared" / "routing"


def npz(tmp_path, arrays, name="x.npz"):
    np.savez(tmp_path / name, **arrays)
    return tmp_path / name


def gpt_oss(tmp_path):
    """-> (a recorded gpt-oss-20b as an NPZ file of ours, the source's arrays)."""
    source = SHARED / "gpt_oss_20b_mmlu_decode.npz"
    if not source.exists():
        pytest.skip(f"{source} is not on this machine")
    with np.load(source, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in ("experts", "weights", "item", "token")}
    first = np.array([arrays["token"][arrays["item"] == item].min() for item in range(57)])
    path = npz(
        tmp_path,
        dict(
            expert_index=arrays["experts"],
            weights=arrays["weights"],
            sequence=arrays["item"],
            position=arrays["token"],
            prompt_length=first,  # their prompts were not recorded
            num_experts=np.array(32),
            hidden_size=np.array(2880),
            ffn_size=np.array(2880),
        ),
        "gpt_oss.npz",
    )
    return path, arrays
