"""Payload of fewer bits: what crosses the air is really rounded in the forward pass."""

from dataclasses import dataclass

import torch
from torch import Tensor

MIN_BITS = 2


def vector_scale(vectors: Tensor, bits: int) -> Tensor:
    """-> [..., 1] float32 what the whole numbers of each vector [..., values] are times."""
    levels = 2 ** (bits - 1) - 1
    return vectors.float().abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / levels


@dataclass(frozen=True)
class Payload:
    """How hidden states travel between base station and devices (our choice; Eq. (4) only counts the bits).

    Each vector is sent as whole numbers of `bits` bits, symmetric around 0, times its own scale, its largest
    magnitude, whose own bits are not counted: 16 are 0.05 % of a vector of 4096 values of 8 bits, 1.6 % of one of 128.
    A model that computes in no more bits than that sends its values as they are. A device that holds several experts of
    a token sends their weighted sum back once. Experts at the base station send nothing.

    device_of_expert: [experts] int64, -1 is the base station
    """

    bits: int
    device_of_expert: Tensor

    def rounded(self, vectors: Tensor) -> Tensor:
        """-> [..., values] what arrives."""
        if torch.finfo(vectors.dtype).bits <= self.bits:
            return vectors
        scale = vector_scale(vectors, self.bits)
        return (torch.round(vectors.float() / scale) * scale).to(vectors.dtype)

    def down(self, hidden_states: Tensor, expert_index: Tensor) -> Tensor:
        """-> [tokens, k, hidden] what each (token, expert) pair's expert reads."""
        sent = self.rounded(hidden_states)
        return torch.where(self._travels(expert_index)[..., None], sent[:, None], hidden_states[:, None])

    def up(self, answers: Tensor, expert_index: Tensor) -> Tensor:
        """-> [tokens, hidden] weighted answers [tokens, k, hidden] as summed at the base station, in float32."""
        answers = answers.float()
        device = self._device(expert_index)
        same = (device[:, :, None] == device[:, None, :]).to(answers.dtype)  # [tokens, k, k]
        first = same.argmax(dim=2) == torch.arange(device.shape[1], device=device.device)
        together = torch.einsum("tkj,tjh->tkh", same, answers) * first[..., None]  # a device's sum, in its first slot
        return torch.where(self._travels(expert_index)[..., None], self.rounded(together), answers).sum(dim=1)

    def _device(self, expert_index: Tensor) -> Tensor:
        """-> [tokens, k] device of each pair; of a dropped one, marked by index `experts`, the base station."""
        experts = len(self.device_of_expert)
        device = self.device_of_expert.to(expert_index.device)[expert_index.clamp(max=experts - 1)]
        return torch.where(expert_index < experts, device, -1)

    def _travels(self, expert_index: Tensor) -> Tensor:
        return self._device(expert_index) >= 0
