"""Drop experts by chance: the control that tells whether choosing is better than luck."""

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ..base import ChannelState, Routing, Selection, SelectionPolicy, TunedParameter
from ..validation import check_number

Bits = TypeVar("Bits", Tensor, int)
MASK = 0xFFFFFFFF  # of 32-bit arithmetic in 64-bit integers, which never overflow here


@dataclass(frozen=True)
class RandomDrop(SelectionPolicy):
    """Every expert of a token but its top one is dropped with probability `rate`, independently; ours, as a control.

    rate: probability; 1 - rate (k - 1) / k of the assignments are kept on average
    seed: of the draws, a whole number from 0

    A draw is a hash of seed, layer, expert and the bits of the token's router probabilities, so there is no state: the
    same run drops the same again, whatever the order of its batches and its padding, and a higher rate drops what a
    lower one drops and more. Two tokens with equal probabilities share their draws. Where batches of another size
    change the probabilities' last bits, the draws change with them.
    """

    tuned = TunedParameter("rate", 0.0, 1.0)
    neutral: ClassVar[dict[str, Any]] = dict(rate=0.0)
    couples_tokens = False

    rate: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the parameters' ranges."""
        check_number("random_drop", "rate", self.rate, ">= 0 and <= 1")
        check_number("random_drop", "seed", self.seed, f">= 0 and <= {MASK}", whole=True)

    def select(self, routing: Routing, channel: ChannelState) -> Selection:
        """Compare a uniform number per (token, expert) pair with the rate."""
        keep = (uniform(routing, self.seed) >= self.rate) | (routing.rank == 0)
        return Selection(routing.top_k_index, keep)


def uniform(routing: Routing, seed: int) -> Tensor:
    """Draw a number per (token, expert) pair of `routing`, a hash of its bits and `seed`.

    Returns: [tokens, k] float32 in [0, 1).
    """
    bits = routing.probabilities.contiguous().view(torch.int32).long() & MASK
    experts = torch.arange(bits.shape[1], device=bits.device)
    token = _hash(bits ^ _hash(experts + 1)).sum(dim=1, keepdim=True) & MASK
    stream = _hash(seed ^ _hash(routing.layer + 1))
    pair = _hash(_hash(token ^ stream) ^ _hash(routing.top_k_index + 1))
    return (pair >> 8).float() / (1 << 24)


def _hash(bits: Bits) -> Bits:
    """A 32-bit integer hash (two rounds of multiply and xor-shift); multipliers below 2^31 keep products in 63 bits."""
    for _ in range(2):
        bits = ((bits ^ (bits >> 16)) * 0x45D9F3B) & MASK
    return bits ^ (bits >> 16)
