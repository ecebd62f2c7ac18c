"""The paper's evaluation on a Slurm cluster: two GPUs per task, sixteen tasks at once.

opencompass eval_configs/eval_wdmoe_mixtral_8x7b_slurm.py -w outputs/wdmoe_mixtral_8x7b_slurm
"""

from mmengine.config import read_base

with read_base():
    from .datasets.wdmoe_paper_mixtral import paper_datasets as datasets
    from .models.wdmoe_mixtral_8x7b_instruct import models
    from .runners.wdmoe_slurm import eval, infer
    from .summarizers.wdmoe_paper import summarizer
