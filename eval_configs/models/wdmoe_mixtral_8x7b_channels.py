"""Mixtral-8x7B-Instruct in bfloat16 under several channel profiles, vanilla and WDMoE under each.

Vanilla answers alike under all of them; it runs under each because a table compares only runs of one profile.
"""

from wdmoe_opencompass.harness.models import WdmoeHuggingFaceBaseModel

models = [
    dict(
        type=WdmoeHuggingFaceBaseModel,
        abbr=f"mixtral-8x7b-instruct-v0.1-{profile}-{name}-hf",
        path="mistralai/Mixtral-8x7B-Instruct-v0.1",
        model_kwargs=dict(torch_dtype="torch.bfloat16", device_map="auto"),
        max_seq_len=4096,
        max_out_len=512,
        batch_size=64,  # sequences per forward pass, as fits Table II of the paper
        run_cfg=dict(num_gpus=2),
        wdmoe=dict(profile=profile, policy=policy),
    )
    for profile in ("paper_8_devices", "near_far_8_devices", "heterogeneous_compute_8_devices")
    for name, policy in (("vanilla", "top_k"), ("wdmoe", "wlr"))
]
