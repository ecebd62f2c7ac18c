"""Bandwidth allocation, P3 (Eq. 19-21): hertz per device, one split per layer or, in hindsight, one per forward pass.

A new allocator is one file with one function and one line in ALLOCATORS of allocate.py.
"""

from .allocate import ALLOCATORS, allocate
from .base import PRIMARY_SCOPE, SCOPE_LABELS, SCOPE_MEANING, Allocation, Scope

__all__ = ["ALLOCATORS", "PRIMARY_SCOPE", "SCOPE_LABELS", "SCOPE_MEANING", "Allocation", "Scope", "allocate"]
