"""Channel profiles, propagation and link rates: NumPy only, no model and no OpenCompass."""

from .profile import ChannelProfile, list_profiles, load_profile
from .propagation import Channel, draw_channel
from .rates import rate_bit_per_s

__all__ = ["Channel", "ChannelProfile", "draw_channel", "list_profiles", "load_profile", "rate_bit_per_s"]
