"""Payload of fewer bits: hidden states are rounded in the forward pass as they would be for the air."""

from dataclasses import dataclass

import torch
from torch import Tensor

MIN_BITS = 2


def vector_scale(vectors: Tensor, bits: int) -> Tensor:
    """Find the scale of each vector, by which its whole numbers are multiplied.

    vectors: [..., values] float. bits: per value. Returns: [..., 1] float32. Source: our choice.
    """
    levels = 2 ** (bits - 1) - 1
    return vectors.float().abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / levels


@dataclass(frozen=True)
class Payload:
    """How hidden states travel between base station and devices (our choice; Eq. (4) only counts the bits).

    Each vector is sent as whole numbers of `bits` bits, symmetric around 0, times a scale: its largest magnitude. The
    bits of the scale are not counted: 16 are 0.05 % of a vector of 4096 values of 8 bits, 1.6 % of 128 such values. A
    model that computes in no more bits sends its values unchanged. A device that holds several experts of a token
    returns their weighted sum once. Experts at the base station send nothing.

    device_of_expert: [experts] int64, -1 is the base station
    """

    bits: int
    device_of_expert: Tensor

    def round(self, vectors: Tensor) -> Tensor:
        """Round vectors as sending does.

        vectors: [..., values] float. Returns: [..., values] what arrives, of the same type.
        """
        if torch.finfo(vectors.dtype).bits <= self.bits:
            return vectors
        scale = vector_scale(vectors, self.bits)
        return (torch.round(vectors.float() / scale) * scale).to(vectors.dtype)

    def down(self, hidden_states: Tensor, expert_index: Tensor) -> Tensor:
        """Send tokens to their experts.

        hidden_states: [tokens, hidden]. expert_index: [tokens, k], `experts` for a dropped pair.
        Returns: [tokens, k, hidden] the input of each pair's expert.
        """
        sent = self.round(hidden_states)
        return torch.where(self._travels(expert_index)[..., None], sent[:, None], hidden_states[:, None])

    def up(self, answers: Tensor, expert_index: Tensor) -> Tensor:
        """Return the experts' outputs to the base station, which sums them.

        answers: [tokens, k, hidden] weighted. expert_index: [tokens, k], `experts` for a dropped pair.
        Returns: [tokens, hidden] float32.
        """
        answers = answers.float()
        device = self._device(expert_index)
        same = (device[:, :, None] == device[:, None, :]).to(answers.dtype)  # [tokens, k, k]
        first = same.argmax(dim=2) == torch.arange(device.shape[1], device=device.device)
        together = torch.einsum("tkj,tjh->tkh", same, answers) * first[..., None]  # a device's sum, in its first slot
        return torch.where(self._travels(expert_index)[..., None], self.round(together), answers).sum(dim=1)

    def _device(self, expert_index: Tensor) -> Tensor:
        """-> [tokens, k] device of each pair; the base station for a dropped pair, marked by index `experts`."""
        experts = len(self.device_of_expert)
        device = self.device_of_expert.to(expert_index.device)[expert_index.clamp(max=experts - 1)]
        return torch.where(expert_index < experts, device, -1)

    def _travels(self, expert_index: Tensor) -> Tensor:
        return self._device(expert_index) >= 0
