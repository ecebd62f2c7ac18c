"""Vanilla and WDMoE under three channel profiles, on ARC-Challenge and GSM8K.

opencompass eval_configs/eval_channels.py -w outputs/channels
"""

from mmengine.config import read_base

with read_base():
    from .datasets.wdmoe_arc_gsm8k import arc_gsm8k_datasets as datasets
    from .models.wdmoe_mixtral_8x7b_channels import models
    from .runners.wdmoe_local import eval, infer
    from .summarizers.wdmoe import summarizer
