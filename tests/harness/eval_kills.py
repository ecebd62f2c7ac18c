"""Three of the quickstart's tasks on a few items, for runs that are killed."""

from mmengine.config import read_base

with read_base():
    from ...eval_configs.datasets.quickstart import quickstart_datasets
    from ...eval_configs.models.wdmoe_quickstart import models
    from ...eval_configs.runners.wdmoe_local import eval, infer
    from ...eval_configs.summarizers.wdmoe import summarizer

datasets = [dataset for dataset in quickstart_datasets if dataset["abbr"] in ("qs_yesno", "qs_arith", "qs_program")]
for dataset in datasets:
    dataset["abbr"] += "_small"
    dataset["reader_cfg"]["test_range"] = "[0:24]"
for model in models:
    model["batch_size"] = 4
    model["wdmoe"]["record_routing"] = True
