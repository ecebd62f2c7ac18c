"""Placement of experts on devices, Section V-D: experts often chosen together on one device save sending a token twice.

Placements: the default (`modulo`), CAP's greedy rival, a local search, and exact solvers for pairs and few experts.
"""

from .cap import cap_greedy
from .co_selection import CoSelection, co_selection_of
from .compare import OBJECTIVES, Comparison, Judged, compare_placements, placed_profile, profile_text
from .exact import ExactPlacement, can_be_exact, exact
from .local_search import local_search
from .problem import Objective, PlacementProblem, latency, modulo, transfers

__all__ = [
    "OBJECTIVES",
    "CoSelection",
    "Comparison",
    "ExactPlacement",
    "Judged",
    "Objective",
    "PlacementProblem",
    "can_be_exact",
    "cap_greedy",
    "co_selection_of",
    "compare_placements",
    "exact",
    "latency",
    "local_search",
    "modulo",
    "placed_profile",
    "profile_text",
    "transfers",
]
