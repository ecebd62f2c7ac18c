"""Keep the router's output for every token of a batch, as `record_routing=True` writes it (trace/recording.py)."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ModelError
from ..selection.base import Routing
from .discovery import MoeLayer


@dataclass
class _Pass:
    """One forward pass: `tokens` are the positions of the real tokens among all, padding and finished rows included."""

    tokens: Tensor
    sequence: NDArray[np.int64]
    position: NDArray[np.int64]
    layers: list[dict[str, Tensor]] = field(default_factory=list)
    kept: dict[str, NDArray] = field(default_factory=dict)


class RouterRecorder:
    """Gathers a batch: `begin_pass` per forward pass, `record` per MoE layer, `end_pass`, then `finish_batch`.

    A prefill pass begins a sequence per row; a decode pass adds a token to each that is not finished. Padding and
    tokens generated after a sequence has finished are not recorded. One copy to the host per pass.
    """

    def __init__(self, layers: list[MoeLayer]):
        top_k = {layer.top_k for layer in layers}
        if len(top_k) > 1:
            raise ModelError(f"wdmoe.record_routing needs the same top-k in every MoE layer, got {sorted(top_k)}")
        self.num_experts = max(layer.num_experts for layer in layers)
        self.is_softmax = all(layer.router_kind == "softmax" for layer in layers)
        self.normalises = all(layer.normalises for layer in layers)
        self._layers = len(layers)
        self.reset()

    def reset(self) -> None:
        """Discard an unfinished batch."""
        self._passes: list[_Pass] = []
        self._prompt_length: list[int] = []  # [sequences]
        self._first_pass: list[int] = []  # [sequences]
        self._length: NDArray[np.int64] = np.zeros(0, np.int64)  # [rows] tokens so far of the open sequences
        self._is_open = False

    def begin_pass(self, phase: str, is_real_token: Tensor) -> None:
        """Open a forward pass.

        phase: `prefill` or `decode`. is_real_token: [rows, length] bool, False for padding and finished rows.
        Raises ModelError if a decode pass does not add one token to each row of the prefill pass before it.
        """
        real = is_real_token.cpu().numpy()
        if phase == "prefill":
            self._prompt_length += real.sum(axis=1).tolist()
            self._first_pass += [len(self._passes)] * len(real)
            self._length = np.zeros(len(real), np.int64)
        elif real.shape != (len(self._length), 1):
            raise ModelError(
                "wdmoe.record_routing needs one new token in each of a batch's rows per forward pass, got "
                f"{list(real.shape)} for {len(self._length)} rows; turn it off for this way of generating"
            )
        first = len(self._prompt_length) - len(real)
        rows, _ = np.nonzero(real)
        position = (self._length[:, None] + np.cumsum(real, axis=1) - 1)[real]
        # A finished row advances too: a beam may take its slot in the next pass, with a token at that position.
        self._length = self._length + (real.sum(axis=1) if phase == "prefill" else 1)
        self._passes.append(_Pass(torch.from_numpy(np.flatnonzero(real)), first + rows, position))
        self._is_open = True

    def record(self, routing: Routing) -> None:
        """Keep one MoE layer of the open pass."""
        current = self._passes[-1]
        tokens = current.tokens.to(routing.top_k_index.device)
        layer = {
            "expert_index": routing.top_k_index[tokens].to(torch.int16),
            "weights": routing.top_k_weights.detach()[tokens].float(),
        }
        if self.is_softmax:
            missing = self.num_experts - routing.probabilities.shape[1]  # of a layer with fewer experts than another
            layer["probabilities"] = torch.nn.functional.pad(routing.probabilities.detach()[tokens], (0, missing))
        current.layers.append(layer)

    def end_pass(self, failed: bool) -> None:
        """Close the open pass; if an exception has cut it short, the batch is discarded."""
        if not self._is_open:
            return
        self._is_open = False
        current = self._passes[-1]
        if failed or len(current.layers) < self._layers:
            self.reset()
            return
        for name in current.layers[0]:
            parts = [layer[name] for layer in current.layers]
            device = parts[0].device
            current.kept[name] = torch.stack([part.to(device) for part in parts], dim=1).cpu().numpy()
        current.layers = []

    def finish_batch(self, first_item: int, items: int) -> dict[str, Any]:
        """-> the batch as one block of a recording (names and shapes: recording.RecordingMetadata.tables)."""
        if not self._passes:
            raise RuntimeError("a batch without any forward pass cannot be recorded")
        sequence = np.concatenate([each.sequence for each in self._passes])
        order = np.argsort(sequence, kind="stable")  # within a sequence the passes are in order already
        block: dict[str, Any] = {
            name: np.concatenate([each.kept[name] for each in self._passes])[order] for name in self._passes[0].kept
        }
        numbers = dict(
            sequence=sequence[order],
            position=np.concatenate([each.position for each in self._passes])[order],
            prompt_length=self._prompt_length,
            batch=np.zeros(len(self._prompt_length)),
            first_pass=self._first_pass,
            first_item=[first_item],
            items=[items],
            passes=[len(self._passes)],
        )
        block |= {name: np.asarray(values, dtype=np.int32) for name, values in numbers.items()}
        self.reset()
        return block
