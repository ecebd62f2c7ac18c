"""The eight benchmarks on Qwen3-30B-A3B, vanilla and WDMoE; one 80 GB GPU.

opencompass eval_configs/eval_wdmoe_qwen3_30b_a3b.py -w outputs/wdmoe_qwen3_30b_a3b
"""

from mmengine.config import read_base

with read_base():
    from .datasets.wdmoe_paper import paper_datasets as datasets
    from .models.wdmoe_qwen3_30b_a3b import models
    from .runners.wdmoe_local import eval, infer
    from .summarizers.wdmoe_paper import summarizer
