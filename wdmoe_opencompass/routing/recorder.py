"""Count what is routed, on the model's own device; one copy to the host per batch."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..selection.base import ChannelState, Routing
from ..selection.calibration import second_to_first
from ..selection.loads import device_loads
from ..trace.format import PHASES, RATIO_BINS

MAX_PENDING = 1 << 18  # probabilities that wait to be counted: a few MB; less often counted means fewer GPU kernels


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """No autocast, which counts in short floats; no inference mode, whose tensors cannot be kept for other passes."""
    with_gradients = torch.is_grad_enabled()  # leaving inference mode would turn them on
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(with_gradients),
        torch.autocast(device.type, enabled=False),
    ):
        yield


class _Routed(NamedTuple):
    """One MoE layer of one forward pass that waits to be counted."""

    pass_index: int
    routing: Routing
    placement: Tensor
    expert_index: Tensor
    keep: Tensor


class Recorder:
    """Gathers a batch: `begin_pass` per forward pass, `record` per MoE layer, `end_pass`; at last `finish_batch`.

    Layers are counted many at a time: on a GPU a count is some fifty small kernels, whatever its size.
    """

    def __init__(self, layers: int, experts: int):
        self.layers = layers
        self.experts = experts
        self.reset()

    def reset(self) -> None:
        """Forget an unfinished batch (after an exception inside a forward pass, say)."""
        self._phases: list[int] = []
        self._finished: list[Tensor | None] = []  # [rows] of each pass
        self._pending: list[_Routed] = []
        self._pending_size = 0
        self._counted: list[tuple[list[int], list[int], Tensor]] = []  # passes, layers, counts [rows, columns]
        self._pairs: dict[torch.device, Tensor] = {}  # [layers, experts, experts] each
        self._ratios: dict[torch.device, Tensor] = {}  # [layers, bins] each

    @property
    def passes(self) -> int:
        """Forward passes since the batch began."""
        return len(self._phases)

    def begin_pass(self, phase: str, finished: Tensor | None = None) -> int:
        """Open a forward pass; -> its index within the batch.

        finished: [rows] which rows have had their last token, and are forwarded for the others' sake; None: none has
        """
        self._phases.append(PHASES.index(phase))
        self._finished.append(finished)
        self._recorded = 0
        return len(self._phases) - 1

    def end_pass(self, failed: bool) -> None:
        """Close the open pass; where an exception has cut it short, the batch is lost and forgotten."""
        if failed or self._recorded < self.layers:
            self.reset()

    def record(self, routing: Routing, channel: ChannelState, expert_index: Tensor, keep: Tensor) -> None:
        """Count one MoE layer of the open pass.

        expert_index, keep: [tokens, k] the policy's answer, before dropped entries are marked.
        """
        self._recorded += 1
        self._devices = len(channel.communication_s)
        routing = replace(
            routing, probabilities=routing.probabilities.detach(), top_k_weights=routing.top_k_weights.detach()
        )
        self._pending.append(_Routed(self.passes - 1, routing, channel.device_of_expert, expert_index, keep))
        self._pending_size += routing.probabilities.numel()
        if self._pending_size > MAX_PENDING:
            self._count_pending()

    def _count_pending(self) -> None:
        alike: dict[tuple, list[_Routed]] = defaultdict(list)
        for row in self._pending:
            probabilities = row.routing.probabilities
            alike[probabilities.device, probabilities.shape, row.keep.shape].append(row)
        for (device, _, _), group in alike.items():
            with exact(device):
                self._count(device, group)
        self._pending, self._pending_size = [], 0

    def _count(self, device: torch.device, group: list[_Routed]) -> None:
        probabilities = torch.stack([row.routing.probabilities for row in group])  # [rows, tokens, experts]
        is_real_token = torch.stack([row.routing.is_real_token for row in group])  # [rows, tokens]
        before = torch.stack([row.routing.top_k_index for row in group])  # [rows, tokens, k]
        after, keep = torch.stack([row.expert_index for row in group]), torch.stack([row.keep for row in group])
        placement = group[0].placement
        counts = [
            _counts(probabilities, index, kept & is_real_token[..., None], placement, self._devices)
            for index, kept in ((before, torch.ones_like(keep)), (after, keep))
        ]
        columns = torch.cat([*counts, is_real_token.sum(dim=1, dtype=torch.float64)[:, None]], dim=1)
        layers = [row.routing.layer for row in group]
        self._counted.append(([row.pass_index for row in group], layers, columns))

        chosen = torch.zeros_like(probabilities).scatter(2, before, 1.0) * is_real_token[..., None]
        pairs = chosen.transpose(1, 2) @ chosen  # exact in float32 up to 2^24 tokens
        if device not in self._pairs:
            shape = (self.layers, self.experts, self.experts)
            self._pairs[device] = torch.zeros(shape, dtype=torch.float64, device=device)
            self._ratios[device] = torch.zeros(self.layers, RATIO_BINS, dtype=torch.float64, device=device)
        missing = self.experts - pairs.shape[-1]  # of a layer with fewer experts than another
        pairs = torch.nn.functional.pad(pairs, (0, missing, 0, missing))
        layer_index = torch.tensor(layers, device=device)
        self._pairs[device].index_add_(0, layer_index, pairs.double())
        if before.shape[2] > 1:
            ratio = second_to_first(torch.stack([row.routing.top_k_weights for row in group]))
            column = (ratio * RATIO_BINS).long().clamp(0, RATIO_BINS - 1)
            counted = torch.zeros(len(group), RATIO_BINS, dtype=torch.float64, device=device)
            self._ratios[device].index_add_(0, layer_index, counted.scatter_add_(1, column, is_real_token.double()))

    def finish_batch(self, first_item: int, items: int) -> dict[str, NDArray]:
        """-> the batch as one block of a trace (names and shapes: RoutingTrace)."""
        if not self._phases:
            raise RuntimeError("a batch without any forward pass cannot be recorded")
        self._count_pending()
        counts = np.zeros((self.passes, self.layers, self._counted[0][2].shape[1]))
        for passes, layers, columns in self._counted:
            counts[passes, layers] = columns.cpu().numpy()
        pairs, ratios = (
            np.sum([part.cpu().numpy() for part in parts.values()], axis=0) for parts in (self._pairs, self._ratios)
        )
        block = self._split(counts)
        upper = np.triu_indices(self.experts, 1)
        block |= {
            "batch": np.zeros(len(counts), dtype=np.int32),
            "pass_index": np.arange(len(counts), dtype=np.int32),
            "phase": np.array(self._phases, dtype=np.uint8),
            "first_item": np.array([first_item], dtype=np.int32),
            "items": np.array([items], dtype=np.int32),
            "co_selection": np.rint(pairs[:, upper[0], upper[1]])[None].astype(np.int32),
            "ratio_counts": np.rint(ratios)[None].astype(np.int32),
            "item_passes": self._item_passes(items),
        }
        self.reset()
        return block

    def _item_passes(self, items: int) -> NDArray[np.int32]:
        """-> [items] how many passes of the batch each item waits for: up to the last in which one of its rows runs.

        0 where none of its rows runs in any pass: the recording holds no token of it.

        The rows of an item follow each other, as transformers repeats prompts for beams and for several answers. Where
        rows are no multiple of the items, nothing says whose they are: the items wait for all passes.
        """
        waits = np.ones((self.passes, items), dtype=bool)
        known = {
            n: rows for n, rows in enumerate(self._finished) if rows is not None and items and not len(rows) % items
        }
        if known:
            ends = np.cumsum([len(rows) for rows in known.values()])
            finished = np.split(torch.cat(list(known.values())).cpu().numpy(), ends[:-1])  # one copy to the host
            for number, rows in zip(known, finished, strict=True):
                waits[number] = ~rows.reshape(items, -1).all(axis=1)
        last = self.passes - np.argmax(waits[::-1], axis=0)
        return np.where(waits.any(axis=0), last, 0).astype(np.int32)

    @staticmethod
    def _split(counts: NDArray) -> dict[str, NDArray]:
        devices = (counts.shape[-1] - 3) // 6
        block: dict[str, NDArray] = {"tokens": np.rint(counts[:, 0, -1]).astype(np.int32)}
        for offset, ending in ((0, "_before"), (3 * devices + 1, "")):
            part = counts[:, :, offset : offset + 3 * devices + 1]
            for position, name in enumerate(("device_load", "expert_evaluations")):
                columns = part[..., position * devices : (position + 1) * devices]
                block[name + ending] = np.rint(columns).astype(np.int32)
            block["weight_sum" + ending] = part[..., 2 * devices : 3 * devices].astype(np.float32)
            block["assignments" + ending] = np.rint(part[..., -1]).astype(np.int32)
        return block


def _counts(probabilities: Tensor, index: Tensor, kept: Tensor, placement: Tensor, devices: int) -> Tensor:
    """-> [rows, 3 * devices + 1] loads, evaluations and weight sums per device, then all assignments.

    probabilities: [rows, tokens, experts]; index, kept: [rows, tokens, k]; placement: [experts], -1: base station
    """
    device = placement[index]
    loads = device_loads(device, kept, devices)
    weight_sum = probabilities.new_zeros(*index.shape[:2], devices + 1)
    weight_sum = weight_sum.scatter_add(2, device % (devices + 1), probabilities.gather(2, index) * kept)
    weight_sum = weight_sum[..., :devices].sum(dim=1, dtype=torch.float64)
    return torch.cat([*loads, weight_sum, kept.sum(dim=(1, 2), dtype=torch.float64)[:, None]], dim=1)
