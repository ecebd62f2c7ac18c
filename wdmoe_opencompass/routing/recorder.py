"""Count what is routed, on the model's own device; one copy to the host per batch."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..selection.base import ChannelState, Routing
from .trace import PHASES


class Recorder:
    """Gathers a batch: `begin_pass` per forward pass, `record` per MoE layer, `finish_batch` at the end."""

    def __init__(self, layers: int, experts: int):
        self.layers = layers
        self.experts = experts
        self.reset()

    def reset(self) -> None:
        """Forget an unfinished batch (after an exception inside a forward pass, say)."""
        self._passes: list[dict[str, Any]] = []
        self._co_selection: list[Tensor | None] = [None] * self.layers

    @property
    def passes(self) -> int:
        """Forward passes since the batch began."""
        return len(self._passes)

    def begin_pass(self, phase: str) -> int:
        """Open a forward pass; -> its index within the batch."""
        self._passes.append(dict(phase=PHASES.index(phase), counts=[None] * self.layers))
        return len(self._passes) - 1

    def record(self, routing: Routing, channel: ChannelState, expert_index: Tensor, keep: Tensor) -> None:
        """Count one MoE layer of the open pass.

        expert_index, keep: [tokens, k] the policy's answer, before dropped entries are marked.
        """
        before = _counts(routing, channel, routing.top_k_index, torch.ones_like(keep))
        after = _counts(routing, channel, expert_index, keep)
        tokens = routing.is_load.sum(dtype=torch.float64)[None]
        self._passes[-1]["counts"][routing.layer] = torch.cat([before, after, tokens])
        pairs = self._pairs(routing)
        held = self._co_selection[routing.layer]
        self._co_selection[routing.layer] = pairs if held is None else held + pairs

    def _pairs(self, routing: Routing) -> Tensor:
        """-> [experts, experts] tokens whose router chose both experts."""
        chosen = torch.zeros_like(routing.probabilities).scatter(1, routing.top_k_index, 1.0)
        chosen = chosen * routing.is_load[:, None]
        return chosen.T @ chosen  # exact in float32 up to 2^24 tokens per pass

    def finish_batch(self, first_item: int, items: int) -> dict[str, NDArray]:
        """-> the batch as one block of a trace (names and shapes: trace.PER_PASS, trace.PER_BATCH)."""
        if not self._passes:
            raise RuntimeError("a batch without any forward pass cannot be recorded")
        first_device = self._passes[0]["counts"][0].device
        rows = [torch.stack([count.to(first_device) for count in one["counts"]]) for one in self._passes]
        counts = torch.stack(rows).cpu().numpy()  # [passes, layers, 2 * (3 * devices + 1) + 1]
        pairs = np.stack([pair.cpu().numpy() for pair in self._co_selection if pair is not None])
        block = self._split(counts)
        upper = np.triu_indices(self.experts, 1)
        block |= {
            "batch": np.zeros(len(counts), dtype=np.int32),
            "pass_index": np.arange(len(counts), dtype=np.int32),
            "phase": np.array([one["phase"] for one in self._passes], dtype=np.uint8),
            "first_item": np.array([first_item], dtype=np.int32),
            "items": np.array([items], dtype=np.int32),
            "co_selection": np.rint(pairs[:, upper[0], upper[1]])[None].astype(np.int32),
        }
        self.reset()
        return block

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


def _counts(routing: Routing, channel: ChannelState, index: Tensor, keep: Tensor) -> Tensor:
    """-> [3 * devices + 1] loads, evaluations and weight sums per device, then all assignments (float64: exact)."""
    devices = len(channel.communication_s)
    kept = keep & routing.is_load[:, None]  # [tokens, k]
    device = channel.device_of_expert[index]  # [tokens, k], -1: base station
    at_device = torch.zeros(len(index), devices + 1, dtype=torch.float64, device=index.device)
    column = torch.where(device >= 0, device, devices)
    evaluations = at_device.scatter_add(1, column, kept.double())  # [tokens, devices + 1]
    weights = routing.probabilities.gather(1, index).double() * kept
    weight_sum = at_device.scatter_add(1, column, weights)
    # A token goes once to a device that holds several of its experts.
    loads = (evaluations > 0).double()
    per_device = [part[:, :devices].sum(dim=0) for part in (loads, evaluations, weight_sum)]
    return torch.cat([*per_device, kept.sum(dtype=torch.float64)[None]])
