"""Mixtral-8x7B-Instruct in bfloat16 under every selection policy; the calibration is made beforehand:

wdmoe calibrate mistralai/Mixtral-8x7B-Instruct-v0.1 --text TEXT --out mixtral-8x7b.calibration.safetensors
"""

from mmengine.config import read_base

from wdmoe_opencompass.harness.models import WdmoeHuggingFaceBaseModel

with read_base():
    from ..policies.variants import variants

PUBLISHED = dict(h="mixtral_8x7b")  # AdapMoE's own Fisher table
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
        wdmoe=dict(
            **{"profile": "paper_8_devices", "calibration": "mixtral-8x7b.calibration.safetensors", **variant},
            **({"policy_parameters": PUBLISHED} if variant["policy"] == "adapmoe" else {}),
        ),
    )
    for name, variant in variants.items()
]
