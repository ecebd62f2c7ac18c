"""One generation task of the small config."""

from mmengine.config import read_base

with read_base():
    from .eval_small import datasets as small_datasets
    from .eval_small import eval, infer, models, summarizer

datasets = [dataset for dataset in small_datasets if dataset["abbr"] == "qs_arith_small"]
