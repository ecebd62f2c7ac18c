"""Families that break the common contract, one small file each."""

from .dbrx import DbrxContract
from .llama4 import Llama4Contract

ADAPTERS = (DbrxContract(), Llama4Contract())
