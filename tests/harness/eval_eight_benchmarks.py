"""The paper's eight benchmarks, 8 items each, on both quickstart models."""

from mmengine.config import read_base

with read_base():
    from .eval_whole_slices import datasets, eval, infer, models, summarizer

for dataset in datasets:
    dataset["reader_cfg"]["test_range"] = "[0:8]"
