"""The quickstart's model on a few items of each task: local, and with its experts on the devices of a lab."""

from mmengine.config import read_base

with read_base():
    from ...eval_configs.datasets.quickstart import quickstart_datasets
    from ...eval_configs.models.wdmoe_quickstart import models as quickstart_models
    from ...eval_configs.runners.wdmoe_local import eval, infer
    from ...eval_configs.summarizers.wdmoe import summarizer

datasets = quickstart_datasets
for dataset in datasets:
    dataset["abbr"] += "_small"
    dataset["reader_cfg"]["test_range"] = "[0:24]"
models = []
for name, lab_file in (("local", None), ("live", "tmp/test_testbed/lab.yaml")):
    wdmoe = dict(profile="testbed_4_devices", policy="top_k", testbed=lab_file)
    models.append(dict(quickstart_models[0], abbr=f"quickstart-{name}-hf", batch_size=4, wdmoe=wdmoe))
infer["runner"]["max_num_workers"] = 1  # one base station at a time
