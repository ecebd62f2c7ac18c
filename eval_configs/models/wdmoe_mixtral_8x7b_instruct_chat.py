"""Mixtral-8x7B-Instruct through its chat template in bfloat16, vanilla and with Algorithm 1; two 80 GB GPUs."""

from wdmoe_opencompass.harness.models import WdmoeHuggingFacewithChatTemplate

models = [
    dict(
        type=WdmoeHuggingFacewithChatTemplate,
        abbr=f"mixtral-8x7b-instruct-v0.1-chat-{name}-hf",
        path="mistralai/Mixtral-8x7B-Instruct-v0.1",
        model_kwargs=dict(torch_dtype="torch.bfloat16", device_map="auto"),
        max_seq_len=4096,
        max_out_len=1024,
        batch_size=64,  # sequences per forward pass, as fits Table II of the paper
        run_cfg=dict(num_gpus=2),
        wdmoe=dict(profile="paper_8_devices", policy=policy),
    )
    for name, policy in (("vanilla", "top_k"), ("wdmoe", "wlr"))
]
