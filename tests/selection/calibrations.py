"""Calibration files with random constants, for policies that need some."""

import functools
import tempfile
from pathlib import Path

import torch

from wdmoe_opencompass.selection.calibration import Calibration


@functools.cache
def calibration_file(layers, experts, top_k, seed=0):
    """-> path of a calibration that fits, with random constants: distances of random points, losses that fall."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(layers, experts, 5, generator=generator)
    distance = torch.cat([torch.cdist(points, points), points.norm(dim=2, keepdim=True)], dim=2)
    losses = torch.rand(layers, max(top_k - 1, 1), generator=generator).sort(dim=1, descending=True).values
    path = Path(tempfile.mkdtemp()) / "random.calibration.safetensors"
    Calibration(output_difference=distance, fewer_experts_difference=losses[:, : top_k - 1]).write(path)
    return str(path)
