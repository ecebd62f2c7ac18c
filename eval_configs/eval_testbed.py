"""A live testbed: the quickstart's small Mixtral with four of its experts on devices. Run from the repository's root.

wdmoe testbed up --model quickstart/model --dtype float32 --devices 4 --rate 200,200,100,20 -- \
    opencompass eval_configs/eval_testbed.py -w outputs/testbed
"""

from mmengine.config import read_base

with read_base():
    from .datasets.quickstart import quickstart_datasets as datasets
    from .models.wdmoe_quickstart_testbed import models
    from .runners.wdmoe_local import eval, infer
    from .summarizers.wdmoe import summarizer

infer["runner"]["max_num_workers"] = 1  # two base stations at once would measure each other
