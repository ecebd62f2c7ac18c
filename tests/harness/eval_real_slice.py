"""Stock configs of ARC-Challenge and GSM8K on both quickstart models; accuracy is chance, the model is small."""

from mmengine.config import read_base

with read_base():
    from opencompass.configs.datasets.ARC_c.ARC_c_ppl_a450bd import ARC_c_datasets
    from opencompass.configs.datasets.gsm8k.gsm8k_gen_1d7fe4 import gsm8k_datasets

    from ...eval_configs.models.wdmoe_quickstart import models
    from ...eval_configs.runners.wdmoe_local import eval, infer
    from ...eval_configs.summarizers.wdmoe import summarizer

datasets = ARC_c_datasets + gsm8k_datasets
for dataset in datasets:
    dataset["abbr"] += "_slice"
for dataset in gsm8k_datasets:
    dataset["infer_cfg"]["inferencer"]["max_out_len"] = 16
for model in models:
    model["batch_size"] = 8
