"""A short probe of a testbed's devices: messages of several sizes, sent as in a run."""

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
from .lab_file import Testbed

MIXED = 2  # exchanges of random sizes for each exchange of one size with all devices
WARM_UP = 2  # rounds not counted: first connections, first products of a shape
Work = Callable[[int, Tensor], Any]


def probe(
    testbed: Testbed, layers: list[MoeLayer], sizes: Sequence[int], rounds: int, own_work: Work, seed: int = 0
) -> tuple[list[LayerTimes], int]:
    """-> the times of every message of the probe, and the bits per value on the wire.

    In each round, messages of each size go to all devices at once and to each alone, and twice as many messages of
    random sizes to several, in random order (our choice: in a run, devices share radio, router and base station, and
    get different numbers of tokens). The layers take turns, and the base station computes meanwhile, as in a run.

    sizes: tokens per message. rounds: how often. own_work: called with the layer's number and the hidden states of the
    longest message. Raises TestbedError if a device does not answer.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = random.Random(seed)
    everybody = range(len(testbed.devices))
    times: list[LayerTimes] = []
    exchange = itertools.count()
    with BaseStation(testbed, layers) as station:
        for number in range(WARM_UP + rounds):
            exchanges = [dict.fromkeys(devices, size) for size in sizes for devices in (everybody, *zip(everybody))]
            for _ in range(MIXED * len(sizes)):
                several = draw.sample(everybody, draw.randint(min(2, len(everybody)), len(everybody)))
                exchanges.append({device: draw.choice(sizes) for device in several})
            for tokens in draw.sample(exchanges, len(exchanges)):
                pass_index = next(exchange)
                layer = pass_index % len(layers)
                meanwhile = partial(own_work, layer)
                measured = station.dispatcher.probe(layer, pass_index, tokens, generator, meanwhile)
                times += measured if number >= WARM_UP else []
    return times, station.payload_bits


def work_of_own_experts(path: str | Path, testbed: Testbed, experts: int, dtype: str, device: str) -> Work:
    """Load the experts that no device holds; -> a function that computes a message's tokens with each of them."""
    own = tuple(expert for expert, number in enumerate(testbed.device_of_expert(experts)) if number < 0)
    if not own:
        return lambda layer, hidden_states: None
    held = load_experts(path, own, dtype, device)

    def work(layer: int, hidden_states: Tensor) -> None:
        row = torch.arange(len(own), device=device).repeat_interleave(len(hidden_states))
        pairs = hidden_states.to(device).repeat(len(own), 1)
        pair_answers(held.layers[layer], pairs, row, torch.ones(len(row), device=device, dtype=pairs.dtype)).cpu()

    return work
