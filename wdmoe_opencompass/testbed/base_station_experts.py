"""The base station's own weights: for experts that no device holds, and to take over from devices that fail."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import TestbedError
from ..routing.discovery import MoeLayer
from .experts import HeldExperts, fingerprint, load_experts, pair_answers
from .wire import dtype_name


class BaseStationExperts:
    """Computes experts at the base station; not thread-safe.

    It uses the model's weights. `free` releases the memory of some experts; if one of them is needed later, a copy for
    all layers is read from the model's files and kept until `forget`.
    """

    def __init__(self, layers: list[MoeLayer]):
        self.layers = layers
        self._rows: list[dict[int, int]] | None = None
        self._folder: Path | None = None
        self._copies: dict[int, HeldExperts] = {}
        weights = [layer.experts.down_proj for layer in layers]
        self.fingerprints = (
            None
            if any(weight.is_meta for weight in weights)
            else [[fingerprint(layer.experts, expert) for expert in range(layer.num_experts)] for layer in layers]
        )

    def free(self, experts: Iterable[int], path: str | Path) -> None:
        """Release the weights of these experts.

        path: the model's folder, from which they are read again if needed. Raises TestbedError if the weights are not
        in memory, or the folder's layout cannot be read expert by expert.
        """
        freed = set(experts)
        if self.fingerprints is None:
            raise TestbedError("experts_in_memory: own needs the model's weights in memory, not offloaded")
        if freed:
            load_experts(path, (min(freed),), self._dtype)  # fail now, not when a device has failed
        self._folder = Path(path)
        self._rows = []
        for layer in self.layers:
            kept = [expert for expert in range(layer.num_experts) if expert not in freed]
            self._rows.append({expert: row for row, expert in enumerate(kept)})
            _keep_rows(layer.experts, kept)

    def forget(self, experts: Iterable[int]) -> None:
        """Release the copies of these experts: a device that holds them is up."""
        for expert in experts:
            self._copies.pop(expert, None)

    def answers(self, layer: int, hidden_states: Tensor, expert_index: Tensor, weights: Tensor) -> Tensor:
        """Compute (token, expert) pairs of a layer.

        layer: its number. hidden_states: [pairs, hidden] of each pair's token. expert_index, weights: [pairs].
        Returns: [pairs, hidden] float32 weighted outputs.
        """
        experts = self.layers[layer].experts
        if self._rows is None:
            return pair_answers(experts, hidden_states, expert_index, weights)
        answers = torch.zeros(hidden_states.shape, device=hidden_states.device)
        rows = self._rows[layer]
        row = torch.tensor([rows.get(expert, -1) for expert in expert_index.tolist()], device=hidden_states.device)
        kept = row >= 0
        if bool(kept.any()):
            answers[kept] = pair_answers(experts, hidden_states[kept], row[kept], weights[kept])
        for expert in torch.unique(expert_index[~kept]).tolist():
            pairs = expert_index == expert
            copy = self._copy(expert).layers[layer]
            first_row = torch.zeros_like(expert_index[pairs])
            answers[pairs] = pair_answers(copy, hidden_states[pairs], first_row, weights[pairs])
        return answers

    def _copy(self, expert: int) -> HeldExperts:
        assert self._folder is not None
        if expert not in self._copies:
            held = load_experts(self._folder, (expert,), self._dtype)
            for layer, own in zip(self.layers, held.layers, strict=True):
                own.to(layer.experts.down_proj.device)
            self._copies[expert] = held
        return self._copies[expert]

    @property
    def _dtype(self) -> str:
        return dtype_name(self.layers[0].experts.down_proj.dtype)


def _keep_rows(experts: Any, kept: list[int]) -> None:
    count = experts.num_experts
    for parameter in experts.parameters():
        if parameter.ndim > 1 and len(parameter) == count:
            parameter.data = parameter.data[kept]
    experts.num_experts = len(kept)
