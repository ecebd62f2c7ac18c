"""WDMoE for OpenCompass: accuracy and attention waiting latency of wirelessly distributed experts.

`channel`, `latency` and `allocation` need NumPy and SciPy only; `selection` and `routing` need torch and transformers;
`harness` is what OpenCompass loads. Importing this package loads neither torch nor OpenCompass.
"""

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
