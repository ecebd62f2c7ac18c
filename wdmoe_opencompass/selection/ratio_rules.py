"""Drop the experts whose weight is small next to the token's others: NAEE, 1T-Drop, AdapMoE and top-p.

With two experts per token all four drop the second expert where ``r = w_(2) / w_(1)`` is small, and differ only in how
the threshold varies: NAEE ``r < beta_l``; 1T-Drop ``r / (1 + r) < T``; AdapMoE ``r / (1 + r) < sqrt(T / h_l)``; top-p
``1 / (1 + r) > p``. With more experts each class says how we go on. `p_j` are a token's top-k weights scaled to sum 1.
"""

from torch import Tensor

from .base import Routing, Selection


def drop_below(routing: Routing, measure: Tensor, threshold: Tensor | float, spare_top: bool = True) -> Selection:
    """The core of the family: drop every expert whose measure [tokens, k] is below the threshold, the top one spared.

    threshold: a number, or [tokens, k]
    """
    keep = ~(measure < threshold)
    return Selection(routing.top_k_index, keep | (routing.rank == 0) if spare_top else keep)
