"""A short probe of a lab's devices: messages of several sizes, sent as the layers of a run send them."""

import itertools
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..routing.discovery import MoeLayer
from ..trace.times import LayerTimes
from .client import BaseStation
from .experts import load_experts, pair_answers
from .lab import Lab

MIXED = 2  # exchanges of random sizes for each exchange of one size with all devices
WARM_UP = 2  # rounds that are not counted: first connections, first products of a shape
Work = Callable[[int, Tensor], Any]


def probe(
    lab: Lab, layers: list[MoeLayer], sizes: Sequence[int], rounds: int, own_work: Work, seed: int = 0
) -> tuple[list[LayerTimes], int]:
    """-> what every message of the probe took, and the bits per value on the wire.

    Per round, messages of each size go to all devices at once and to each alone, and twice as often messages of random
    sizes to several (our choice: devices share radio, router and base station in a run, and the model's router sends
    each its own number of tokens), in random order; the layers take turns, and the base station computes meanwhile, as
    in a run.

    own_work: called with the layer's number and the hidden states of the longest message. Raises LabError where a
    device does not answer.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = random.Random(seed)
    everybody = range(len(lab.devices))
    times: list[LayerTimes] = []
    exchange = itertools.count()
    with BaseStation(lab, layers) as station:
        for number in range(WARM_UP + rounds):
            exchanges = [dict.fromkeys(devices, size) for size in sizes for devices in (everybody, *zip(everybody))]
            for _ in range(MIXED * len(sizes)):
                several = draw.sample(everybody, draw.randint(min(2, len(everybody)), len(everybody)))
                exchanges.append({device: draw.choice(sizes) for device in several})
            for tokens in draw.sample(exchanges, len(exchanges)):
                pass_index = next(exchange)
                layer = pass_index % len(layers)
                meanwhile = partial(own_work, layer)
                found = station.dispatcher.probe(layer, pass_index, tokens, generator, meanwhile)
                times += found if number >= WARM_UP else []
    own_bits = torch.finfo(layers[0].experts.down_proj.dtype).bits
    return times, lab.payload_bits or own_bits


def work_of_own_experts(path: str | Path, lab: Lab, experts: int, dtype: str, device: str) -> Work:
    """Load the experts that no device of the lab holds; -> computes a message's tokens with each of them."""
    own = tuple(expert for expert, number in enumerate(lab.device_of_expert(experts)) if number < 0)
    if not own:
        return lambda layer, hidden: None
    held = load_experts(path, own, dtype, device)

    def work(layer: int, hidden: Tensor) -> None:
        row = torch.arange(len(own), device=device).repeat_interleave(len(hidden))
        every = hidden.to(device).repeat(len(own), 1)
        pair_answers(held.layers[layer], every, row, torch.ones(len(row), device=device, dtype=hidden.dtype)).cpu()

    return work
