"""The paper's eight benchmarks: Mixtral at 64 sequences per forward pass, MMLU's longest subjects at 16.

Prompts are padded to the longest of their batch. The subjects below quote passages; with five examples their
prompts reach thousands of tokens. On two 80 GB GPUs cache and activations of 64 such sequences do not fit next to
Mixtral; those of 16 do up to `max_seq_len`. `wdmoe plan` says what the longest prompts need.
"""

from mmengine.config import read_base

with read_base():
    from .wdmoe_paper import paper_datasets

SUBJECTS_WITH_PASSAGES = (
    "lukaemon_mmlu_college_medicine",
    "lukaemon_mmlu_high_school_european_history",
    "lukaemon_mmlu_high_school_us_history",
    "lukaemon_mmlu_high_school_world_history",
    "lukaemon_mmlu_professional_law",
    "lukaemon_mmlu_professional_medicine",
    "lukaemon_mmlu_security_studies",
)
for dataset_cfg in paper_datasets:
    if dataset_cfg["abbr"] in SUBJECTS_WITH_PASSAGES:
        dataset_cfg["infer_cfg"]["inferencer"]["batch_size"] = 16
del dataset_cfg
