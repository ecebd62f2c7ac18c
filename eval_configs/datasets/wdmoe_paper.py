"""The paper's eight benchmarks by OpenCompass's own hashed configs: perplexity where one exists, else generation.

The paper names OpenCompass but no configs. Our choice: its Table II shows seconds per batch where answers can be ranked
by perplexity and milliseconds where they are generated, and its Llama 2 row equals OpenCompass's perplexity results.
"""

from mmengine.config import read_base

with read_base():
    from opencompass.configs.datasets.ARC_c.ARC_c_ppl_a450bd import ARC_c_datasets
    from opencompass.configs.datasets.ARC_e.ARC_e_ppl_a450bd import ARC_e_datasets
    from opencompass.configs.datasets.gsm8k.gsm8k_gen_1d7fe4 import gsm8k_datasets
    from opencompass.configs.datasets.humaneval.humaneval_gen_8e312c import humaneval_datasets
    from opencompass.configs.datasets.mbpp.mbpp_gen_830460 import mbpp_datasets
    from opencompass.configs.datasets.mmlu.mmlu_ppl_ac766d import mmlu_datasets
    from opencompass.configs.datasets.piqa.piqa_ppl_1cf9f0 import piqa_datasets
    from opencompass.configs.datasets.SuperGLUE_BoolQ.SuperGLUE_BoolQ_ppl_314b96 import BoolQ_datasets

paper_datasets = (
    mmlu_datasets
    + piqa_datasets
    + ARC_e_datasets
    + ARC_c_datasets
    + humaneval_datasets
    + gsm8k_datasets
    + BoolQ_datasets
    + mbpp_datasets
)
