"""The eight benchmarks with every answer generated through Mixtral's chat template; two 80 GB GPUs.

opencompass eval_configs/eval_wdmoe_mixtral_8x7b_instruct_chat.py -w outputs/wdmoe_mixtral_8x7b_instruct_chat
"""

from mmengine.config import read_base

with read_base():
    from .datasets.wdmoe_paper_chat_mixtral import paper_chat_datasets as datasets
    from .models.wdmoe_mixtral_8x7b_instruct_chat import models
    from .runners.wdmoe_local import eval, infer
    from .summarizers.wdmoe_paper import summarizer
