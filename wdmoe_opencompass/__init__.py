"""WDMoE for OpenCompass: accuracy and attention waiting latency of wirelessly distributed experts.

`selection` and `simulation` need torch, `routing` transformers too, `testbed` gRPC; `harness` is what OpenCompass
loads. All else needs none of these (docs/architecture.md). Importing this package loads nothing: each name below comes
with its first use, so that `wdmoe --help` and completion answer at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .allocation import allocate
    from .channel import ChannelProfile, draw_channel, list_profiles, load_profile
    from .errors import WdmoeError
    from .latency import ExpertShape, link_budget, token_latency_s, waiting_latency_s

__version__ = "0.1.0"
__all__ = [
    "ChannelProfile",
    "ExpertShape",
    "WdmoeError",
    "allocate",
    "draw_channel",
    "link_budget",
    "list_profiles",
    "load_profile",
    "token_latency_s",
    "waiting_latency_s",
]
_NAMES_OF_MODULES = {
    "allocation": ("allocate",),
    "channel": ("ChannelProfile", "draw_channel", "list_profiles", "load_profile"),
    "errors": ("WdmoeError",),
    "latency": ("ExpertShape", "link_budget", "token_latency_s", "waiting_latency_s"),
}


def __getattr__(name: str) -> Any:
    if name in _NAMES_OF_MODULES:
        return import_module(f"{__name__}.{name}")
    for module, names in _NAMES_OF_MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_NAMES_OF_MODULES})
