"""Keep a fixed number of experts per token: the floor of every table."""

from dataclasses import dataclass
from typing import Any, ClassVar

from ..base import ChannelState, Routing, Selection, SelectionPolicy
from ..validation import check_number


@dataclass(frozen=True)
class FixedK(SelectionPolicy):
    """Every token keeps its `k` highest router weights, whatever they are; ours, as a floor: it reads nothing else.

    k: experts per token; all of them where the router chooses no more
    """

    neutral: ClassVar[dict[str, Any]] = dict(k=1024)
    couples_tokens = False

    k: int = 1

    def __post_init__(self) -> None:
        """Check the parameter's range."""
        check_number("fixed_k", "k", self.k, ">= 1", whole=True)

    def select(self, routing: Routing, channel: ChannelState) -> Selection:
        """Keep by rank."""
        return Selection(routing.top_k_index, routing.rank < self.k)
