"""Every selection policy on the quickstart's small Mixtral and all items; then `wdmoe frontier` on its folder.

opencompass eval_configs/eval_policies.py -w outputs/policies
"""

from mmengine.config import read_base

with read_base():
    from .datasets.quickstart import quickstart_datasets as datasets
    from .models.wdmoe_quickstart_policies import models
    from .runners.wdmoe_local_shared import eval, infer
    from .summarizers.wdmoe import summarizer
