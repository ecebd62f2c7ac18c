"""The main job on the quickstart's small Mixtral: vanilla and WDMoE. Run from the repository's root.

opencompass eval_configs/eval_quickstart.py -w outputs/quickstart
"""

from mmengine.config import read_base

with read_base():
    from .datasets.quickstart import quickstart_datasets as datasets
    from .models.wdmoe_quickstart import models
    from .runners.wdmoe_local import eval, infer
    from .summarizers.wdmoe import summarizer
