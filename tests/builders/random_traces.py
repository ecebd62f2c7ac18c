"""Traces with random counts of chosen experts."""

import numpy as np

from tests.builders.planted_routing import count_pairs, routing
from tests.builders.trace_blocks import metadata
from wdmoe_opencompass.trace.format import RoutingTrace, empty_arrays


def trace_of(counts, passes_per_batch=1, **changes):
    """A trace that holds these co-selection counts; its loads are of no interest."""
    about = metadata(
        **dict(policy="top_k", layers=len(counts.pairs) // counts.batches, experts=counts.experts, top_k=counts.top_k)
        | changes
    )
    arrays = empty_arrays(about)
    passes = counts.batches * passes_per_batch
    for name, array in arrays.items():
        if name == "item_passes":  # of no item
            continue
        rows = counts.batches if name in ("first_item", "items", "co_selection") else passes
        arrays[name] = np.zeros((rows, *array.shape[1:]), array.dtype)
    arrays["batch"] = np.repeat(np.arange(counts.batches, dtype=np.int32), passes_per_batch)
    arrays["pass_index"] = np.tile(np.arange(passes_per_batch, dtype=np.int32), counts.batches)
    arrays["co_selection"] = counts.pairs.astype(np.int32).reshape(counts.batches, about.layers, -1)
    first_pass = arrays["pass_index"] == 0
    sums = counts.counts.sum(axis=1).reshape(counts.batches, -1)
    arrays["assignments_before"][first_pass] = sums.astype(np.int32)
    return RoutingTrace(about, arrays)


def random_trace(seed=0, top_k=2, batches=3, **changes):
    chosen = routing(rows=3 * batches, tokens=40, experts=8, top_k=top_k, seed=seed)
    return trace_of(count_pairs(chosen, 8, batches), **changes)
