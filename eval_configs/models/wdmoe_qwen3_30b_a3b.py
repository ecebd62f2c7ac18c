"""Qwen3-30B-A3B (128 experts, 8 per token, 48 layers) in bfloat16: 61 GB, one 80 GB GPU.

Expert k is on device k modulo the profile's eight; a token goes once to a device that holds several of its experts.
"""

from wdmoe_opencompass.harness.models import WdmoeHuggingFaceBaseModel

models = [
    dict(
        type=WdmoeHuggingFaceBaseModel,
        abbr=f"qwen3-30b-a3b-{name}-hf",
        path="Qwen/Qwen3-30B-A3B",
        model_kwargs=dict(torch_dtype="torch.bfloat16", device_map="auto"),
        max_seq_len=4096,
        max_out_len=512,
        batch_size=8,
        run_cfg=dict(num_gpus=1),
        wdmoe=dict(profile="paper_8_devices", policy=policy),
    )
    for name, policy in (("vanilla", "top_k"), ("wdmoe", "wlr"))
]
