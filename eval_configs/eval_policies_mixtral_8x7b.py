"""Every selection policy on Mixtral-8x7B-Instruct, ARC-Challenge and GSM8K; make the calibration first.

wdmoe calibrate mistralai/Mixtral-8x7B-Instruct-v0.1 --text TEXT --out mixtral-8x7b.calibration.safetensors
opencompass eval_configs/eval_policies_mixtral_8x7b.py -w outputs/policies-mixtral
"""

from mmengine.config import read_base

with read_base():
    from .datasets.wdmoe_arc_gsm8k import arc_gsm8k_datasets as datasets
    from .models.wdmoe_mixtral_8x7b_policies import models
    from .runners.wdmoe_local import eval, infer
    from .summarizers.wdmoe import summarizer
