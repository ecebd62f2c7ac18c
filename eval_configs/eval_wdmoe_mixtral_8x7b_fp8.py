"""The paper's evaluation on one 80 GB GPU: transformers' fine-grained FP8.

opencompass eval_configs/eval_wdmoe_mixtral_8x7b_fp8.py -w outputs/wdmoe_mixtral_8x7b_fp8
"""

from mmengine.config import read_base

with read_base():
    from .datasets.wdmoe_paper_mixtral import paper_datasets as datasets
    from .models.wdmoe_mixtral_8x7b_instruct_fp8 import models
    from .runners.wdmoe_local import eval, infer
    from .summarizers.wdmoe_paper import summarizer
