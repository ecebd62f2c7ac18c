"""Mixtral-8x7B-Instruct in bfloat16, unchanged (vanilla) and with Algorithm 1: 94 GB of weights, two 80 GB GPUs.

`device_map` spreads the layers over all GPUs of the task; num_gpus says how many a task gets.
"""

from wdmoe_opencompass.harness.models import WdmoeHuggingFaceBaseModel

models = [
    dict(
        type=WdmoeHuggingFaceBaseModel,
        abbr=f"mixtral-8x7b-instruct-v0.1-{name}-hf",
        path="mistralai/Mixtral-8x7B-Instruct-v0.1",
        model_kwargs=dict(torch_dtype="torch.bfloat16", device_map="auto"),
        max_seq_len=4096,
        max_out_len=512,
        batch_size=64,  # sequences per forward pass, as fits Table II of the paper
        run_cfg=dict(num_gpus=2),
        wdmoe=dict(profile="paper_8_devices", policy=policy),
    )
    for name, policy in (("vanilla", "top_k"), ("wdmoe", "wlr"))
]
