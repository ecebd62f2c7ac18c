"""The dense baselines of Table I by OpenCompass's own configs: Llama 2 7B, 13B, 70B and Mistral 7B."""

from mmengine.config import read_base

with read_base():
    from opencompass.configs.models.hf_llama.hf_llama2_7b import models as llama2_7b
    from opencompass.configs.models.hf_llama.hf_llama2_13b import models as llama2_13b
    from opencompass.configs.models.hf_llama.hf_llama2_70b import models as llama2_70b
    from opencompass.configs.models.mistral.hf_mistral_7b_v0_1 import models as mistral_7b

models = llama2_7b + llama2_13b + llama2_70b + mistral_7b
for model in models:  # OpenCompass would run code that comes with the weights
    model["model_kwargs"] = dict(trust_remote_code=False)
    model["tokenizer_kwargs"] = dict(trust_remote_code=False)
    model["max_seq_len"] = 32768 if "Mistral" in model["path"] else 4096  # else it reads their configs, and runs code
