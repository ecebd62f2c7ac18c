"""Every policy at its author's defaults, and quantised payloads, on a few items of two tasks."""

from mmengine.config import read_base

with read_base():
    from ...eval_configs.datasets.quickstart import quickstart_datasets
    from ...eval_configs.models.wdmoe_quickstart_policies import models as every_model
    from ...eval_configs.policies.variants import OWN_DEFAULTS, QUANTISED
    from ...eval_configs.runners.wdmoe_local_shared import eval, infer
    from ...eval_configs.summarizers.wdmoe import summarizer

datasets = [dataset for dataset in quickstart_datasets if dataset["abbr"] in ("qs_twoway", "qs_arith")]
for dataset in datasets:
    dataset["abbr"] += "_40"
    dataset["reader_cfg"]["test_range"] = "[:40]"
models = [model for model in every_model if model["abbr"][11:-3] in {**OWN_DEFAULTS, **QUANTISED}]
for model in models:
    model["batch_size"] = 5
