"""The eight benchmarks on OLMoE-1B-7B, vanilla and WDMoE; one 24 GB GPU.

opencompass eval_configs/eval_wdmoe_olmoe_1b_7b.py -w outputs/wdmoe_olmoe_1b_7b
"""

from mmengine.config import read_base

with read_base():
    from .datasets.wdmoe_paper import paper_datasets as datasets
    from .models.wdmoe_olmoe_1b_7b import models
    from .runners.wdmoe_local import eval, infer
    from .summarizers.wdmoe_paper import summarizer
