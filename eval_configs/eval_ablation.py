"""Parameters of Algorithm 1 one at a time (theta, step, gain, similarity, renormalise) on ARC-Challenge and GSM8K.

opencompass eval_configs/eval_ablation.py -w outputs/ablation
"""

from mmengine.config import read_base

with read_base():
    from .datasets.wdmoe_arc_gsm8k import arc_gsm8k_datasets as datasets
    from .models.wdmoe_mixtral_8x7b_ablation import models
    from .runners.wdmoe_local import eval, infer
    from .summarizers.wdmoe import summarizer
