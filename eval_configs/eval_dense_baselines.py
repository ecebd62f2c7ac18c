"""The dense rows of Table I: Llama 2 and Mistral 7B on the eight benchmarks, accuracy only.

opencompass eval_configs/eval_dense_baselines.py -w outputs/dense_baselines
"""

from mmengine.config import read_base

with read_base():
    from .datasets.wdmoe_paper import paper_datasets as datasets
    from .models.dense_baselines import models
    from .runners.wdmoe_local import eval, infer
    from .summarizers.wdmoe_paper import summarizer
