"""Model runs with accuracies and traces, as tables take them."""

import numpy as np

from tests.builders.traces import trace_of
from wdmoe_opencompass.report.items import ItemResults
from wdmoe_opencompass.report.runs import ModelRun

MIXTRAL = "mistralai/Mixtral-8x7B-Instruct-v0.1"


GROUPS = {"mmlu": ["m_1", "m_2"]}


def items_of(percent, items=200):
    return ItemResults(np.arange(items) < items * percent / 100, f"{items} items")


def run_of(abbr="vanilla", policy="top_k", weights=MIXTRAL, groups=GROUPS):
    return ModelRun(
        abbr,
        policy,
        (weights, "p"),
        accuracies={"m_1": ("accuracy", 40.0), "m_2": ("accuracy", 70.0), "piqa": ("accuracy", 80.0)},
        traces={
            "m_1": [trace_of(seed=1, batches=2)],
            "m_2": [trace_of(seed=2, batches=3), trace_of(seed=3, batches=1)],  # split in two parts
            "piqa": [trace_of(seed=4, batches=8)],
        },
        groups=groups,
        group_size={"mmlu": 57},
        items={"m_1": items_of(40), "m_2": items_of(70), "piqa": items_of(80)},
    )
