"""How far accuracies depend on the batch: the quickstart's tasks that are ranked by perplexity, scored in both ways.

opencompass eval_configs/eval_perplexity.py -w outputs/perplexity
"""

from mmengine.config import read_base

with read_base():
    from .datasets.quickstart import quickstart_datasets
    from .models.wdmoe_quickstart_perplexity import models
    from .runners.wdmoe_local_shared import eval, infer
    from .summarizers.wdmoe import summarizer

datasets = [dataset for dataset in quickstart_datasets if dataset["abbr"] in ("qs_choice", "qs_twoway", "qs_yesno")]
