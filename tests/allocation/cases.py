"""Random and extreme problems that every allocator test shares."""

import numpy as np

from wdmoe_opencompass.latency import LinkBudget

TOTAL_HZ = 1e8


def random_case(seed, devices=None, layers=None, passes=3, decades=1.0):
    """-> (budget, load [passes, layers, devices]); SNRs over 2 * `decades`, idle devices included."""
    rng = np.random.default_rng(seed)
    devices = devices or int(rng.integers(1, 10))
    layers = layers or int(rng.integers(1, 6))
    down, up = (TOTAL_HZ * 10 ** rng.uniform(-decades, decades, devices) for _ in range(2))
    computation = 1e-3 * 10 ** rng.uniform(-decades, decades, devices) * rng.integers(0, 2, devices)
    duplex = str(rng.choice(["shared", "frequency_division"]))
    load = rng.integers(0, int(rng.choice([3, 60, 5000])), (passes, layers, devices)).astype(float)
    load *= rng.random(load.shape) < 0.8
    return LinkBudget(65536.0, down, up, computation, duplex), load
