"""Two of the quickstart's models on a few items of four tasks, on this machine."""

from mmengine.config import read_base

from tests.slurm.stalling import StallingModel

with read_base():
    from ...eval_configs.datasets.quickstart import quickstart_datasets
    from ...eval_configs.models.wdmoe_quickstart import models
    from ...eval_configs.runners.wdmoe_local import eval, infer
    from ...eval_configs.summarizers.wdmoe import summarizer

datasets = [dataset for dataset in quickstart_datasets if dataset["abbr"] != "qs_program"]
for dataset in datasets:
    dataset["reader_cfg"]["test_range"] = "[0:12]"
for model in models:
    model["batch_size"] = 4
models[1]["type"] = StallingModel
