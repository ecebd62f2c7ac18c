"""The base station's own weights: of the experts that no device holds, and to take over from devices that fail."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import LabError
from ..routing.discovery import MoeLayer
from .experts import HeldExperts, fingerprint, load_experts, pair_answers
from .wire import dtype_name


class OwnExperts:
    """Computes experts at the base station.

    Without `free` it uses the model's weights, all of them. `free` gives the memory of some experts back; what is asked
    of them later is computed by a copy that is read from the model's files then, one expert of all layers at a time,
    and kept until `forget`. To be used by one thread.
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
        """Keep no weights of these experts in memory; path: the model's folder, to read them from when they are needed.

        Raises LabError where the weights are not in memory, or the folder's layout cannot be read expert by expert.
        """
        freed = set(experts)
        if self.fingerprints is None:
            raise LabError("experts_in_memory: own needs the model's weights in memory, not offloaded")
        if freed:
            load_experts(path, (min(freed),), self._dtype)  # now rather than when a device has failed
        self._folder = Path(path)
        self._rows = []
        for layer in self.layers:
            kept = [expert for expert in range(layer.num_experts) if expert not in freed]
            self._rows.append({expert: row for row, expert in enumerate(kept)})
            _keep_rows(layer.experts, kept)

    def forget(self, experts: Iterable[int]) -> None:
        """Give the memory of copies back: a device that holds these experts is there."""
        for expert in experts:
            self._copies.pop(expert, None)

    def answers(self, number: int, hidden: Tensor, expert: Tensor, weights: Tensor) -> Tensor:
        """-> [pairs, hidden] float32 weighted answers of layer `number`; hidden, expert, weights: one row per pair."""
        experts = self.layers[number].experts
        if self._rows is None:
            return pair_answers(experts, hidden, expert, weights)
        answers = torch.zeros(hidden.shape, device=hidden.device)
        rows = self._rows[number]
        row = torch.tensor([rows.get(number, -1) for number in expert.tolist()], device=hidden.device)
        own = row >= 0
        if bool(own.any()):
            answers[own] = pair_answers(experts, hidden[own], row[own], weights[own])
        for other in torch.unique(expert[~own]).tolist():
            mine = expert == other
            copy = self._copy(other).layers[number]
            answers[mine] = pair_answers(copy, hidden[mine], torch.zeros_like(expert[mine]), weights[mine])
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
