"""The paper's eight benchmarks on both quickstart models, all items; accuracy is chance, the model is small."""

from mmengine.config import read_base

with read_base():
    from ...eval_configs.datasets.wdmoe_paper import paper_datasets
    from ...eval_configs.models.wdmoe_quickstart import models
    from ...eval_configs.runners.wdmoe_local import eval, infer
    from ...eval_configs.summarizers.wdmoe_paper import summarizer

subjects = ("abstract_algebra", "anatomy", "astronomy", "business_ethics")
datasets = [d for d in paper_datasets if "mmlu" not in d["abbr"] or d["name"] in subjects]
for dataset in datasets:
    if dataset["abbr"] == "openai_humaneval":
        dataset["eval_cfg"]["evaluator"] = dict(type="tests.harness.slice_evaluator.HumanEvalSliceEvaluator")
    if "max_out_len" in dataset["infer_cfg"]["inferencer"]:
        dataset["infer_cfg"]["inferencer"]["max_out_len"] = 16
for model in models:
    model["batch_size"] = 8
