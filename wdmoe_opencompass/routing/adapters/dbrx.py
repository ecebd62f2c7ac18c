"""DBRX: its experts module is called as the contract says, but does not skip the index `num_experts`."""

from typing import Any

from torch import nn

from ...latency import ExpertShape
from ..experts_interface import Contract


class DbrxContract(Contract):
    """Dropped experts are computed with weight 0: the outputs are right, but no time is saved."""

    skips_dropped = False

    def experts_of(self, block: nn.Module) -> nn.Module | None:
        """By name: no structure tells these experts from others."""
        return next((child for child in block.children() if type(child).__name__ == "DbrxExperts"), None)

    def sizes(self, experts: Any) -> tuple[int, ExpertShape]:
        """From the module's attributes: its weights are two-dimensional."""
        return experts.num_experts, ExpertShape(experts.hidden_size, experts.ffn_hidden_size)
