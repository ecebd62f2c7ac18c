"""Selection policies: which of the router's experts a token keeps. A new one is one file, an import and a line here."""

import inspect
from difflib import get_close_matches
from typing import Any

from ..errors import PolicyError, unknown_name
from .base import ChannelState, Routing, Selection, SelectionPolicy
from .policies.adapmoe import AdapMoe
from .policies.bottleneck import Bottleneck
from .policies.caee import Caee
from .policies.capacity import CapacityDrop
from .policies.des import Des, DesTopK
from .policies.dual_price import DualPrice
from .policies.expanded_drop import ExpandedDrop
from .policies.fixed_k import FixedK
from .policies.jesa import Jesa
from .policies.lexi import Lexi
from .policies.naee import Naee
from .policies.oea import Oea
from .policies.one_threshold import OneThreshold
from .policies.random_drop import RandomDrop
from .policies.sift_moe import SiftMoe
from .policies.top_k import TopK
from .policies.top_p import TopP
from .policies.wlr import WeightToLatencyRatio

POLICIES: dict[str, type[SelectionPolicy]] = {
    "top_k": TopK,
    "wlr": WeightToLatencyRatio,
    "bottleneck": Bottleneck,
    "dual_price": DualPrice,
    "fixed_k": FixedK,
    "random_drop": RandomDrop,
    "naee": Naee,
    "one_t": OneThreshold,
    "adapmoe": AdapMoe,
    "top_p": TopP,
    "capacity": CapacityDrop,
    "expanded_drop": ExpandedDrop,
    "des": Des,
    "des_top_k": DesTopK,
    "jesa": Jesa,
    "caee": Caee,
    "sift_moe": SiftMoe,
    "lexi": Lexi,
    "oea": Oea,
}

__all__ = ["POLICIES", "ChannelState", "Routing", "Selection", "SelectionPolicy", "build_policy", "policy_parameters"]


def build_policy(name: str, parameters: dict[str, Any] | None = None) -> SelectionPolicy:
    """Build a policy by name; PolicyError for an unknown name, an unknown parameter or a value out of range."""
    if name not in POLICIES:
        raise PolicyError(unknown_name("selection policy", str(name), POLICIES))
    known = list(inspect.signature(POLICIES[name]).parameters)
    for key in parameters or {}:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; it takes: {', '.join(known) or 'no parameters'}"
            raise PolicyError(f"selection policy {name!r} takes no parameter {key}{hint}")
    return POLICIES[name](**(parameters or {}))


def policy_parameters(policy: SelectionPolicy) -> dict[str, Any]:
    """Every parameter of a policy, those left at their defaults included."""
    return {name: getattr(policy, name) for name in inspect.signature(type(policy)).parameters}
