"""OLMoE-1B-7B-Instruct (64 experts, 8 per token, 16 layers) in bfloat16: 14 GB, one 24 GB GPU.

Expert k is on device k modulo the profile's eight; a token goes once to a device that holds several of its experts.
"""

from wdmoe_opencompass.harness.models import WdmoeHuggingFaceBaseModel

models = [
    dict(
        type=WdmoeHuggingFaceBaseModel,
        abbr=f"olmoe-1b-7b-0924-instruct-{name}-hf",
        path="allenai/OLMoE-1B-7B-0924-Instruct",
        model_kwargs=dict(torch_dtype="torch.bfloat16", device_map="auto"),
        max_seq_len=4096,
        max_out_len=512,
        batch_size=16,
        run_cfg=dict(num_gpus=1),
        wdmoe=dict(profile="paper_8_devices", policy=policy),
    )
    for name, policy in (("vanilla", "top_k"), ("wdmoe", "wlr"))
]
