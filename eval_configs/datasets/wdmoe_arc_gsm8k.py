"""ARC-Challenge, the benchmark of the paper's ablation, and GSM8K, where decoding dominates."""

from mmengine.config import read_base

with read_base():
    from opencompass.configs.datasets.ARC_c.ARC_c_ppl_a450bd import ARC_c_datasets
    from opencompass.configs.datasets.gsm8k.gsm8k_gen_1d7fe4 import gsm8k_datasets

arc_gsm8k_datasets = ARC_c_datasets + gsm8k_datasets
