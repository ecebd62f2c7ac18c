"""The quickstart's config on a few items of each task, for the tests."""

from mmengine.config import read_base

with read_base():
    from ...eval_configs.datasets.quickstart import quickstart_datasets
    from ...eval_configs.models.wdmoe_quickstart import models
    from ...eval_configs.runners.wdmoe_local import eval, infer
    from ...eval_configs.summarizers.wdmoe import summarizer

datasets = quickstart_datasets
for dataset in datasets:
    dataset["abbr"] += "_small"
    dataset["reader_cfg"]["test_range"] = "[0:12]"
for model in models:
    model["batch_size"] = 4
    model["wdmoe"]["record_routing"] = True
