"""Bandwidth allocation, P3 (Eq. 19-21): hertz per device, one split per forward pass or one per layer.

A new allocator is one file with one function and one line in ALLOCATORS.
"""

from .base import Allocation, allocate
from .optimal import optimal
from .slsqp import slsqp
from .uniform import uniform

ALLOCATORS = {"uniform": uniform, "slsqp": slsqp, "optimal": optimal}

__all__ = ["ALLOCATORS", "Allocation", "allocate"]
