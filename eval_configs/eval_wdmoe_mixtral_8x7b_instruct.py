"""The paper's evaluation: Mixtral-8x7B-Instruct, vanilla and WDMoE, on eight benchmarks; two 80 GB GPUs.

opencompass eval_configs/eval_wdmoe_mixtral_8x7b_instruct.py -w outputs/wdmoe_mixtral_8x7b_instruct
"""

from mmengine.config import read_base

with read_base():
    from .datasets.wdmoe_paper_mixtral import paper_datasets as datasets
    from .models.wdmoe_mixtral_8x7b_instruct import models
    from .runners.wdmoe_local import eval, infer
    from .summarizers.wdmoe_paper import summarizer
