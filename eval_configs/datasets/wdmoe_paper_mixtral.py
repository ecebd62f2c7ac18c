"""The paper's eight benchmarks: Mixtral at 64 sequences per forward pass, MMLU's longest subjects at 16.

Prompts are padded to the longest of their batch. With five examples those of the subjects below, whose questions quote
passages, reach thousands of tokens: cache and activations of 64 such sequences do not fit beside Mixtral on two 80 GB
GPUs, those of 16 do up to `max_seq_len`. `wdmoe plan` says what the longest prompts need.
"""

from mmengine.config import read_base

with read_base():
    from .wdmoe_paper import paper_datasets

SUBJECTS_WITH_PASSAGES = (
    "college_medicine",
    "high_school_european_history",
    "high_school_us_history",
    "high_school_world_history",
    "professional_law",
    "professional_medicine",
    "security_studies",
)
for dataset_cfg in paper_datasets:
    if dataset_cfg.get("name") in SUBJECTS_WITH_PASSAGES:
        dataset_cfg["infer_cfg"]["inferencer"]["batch_size"] = 16
del dataset_cfg
