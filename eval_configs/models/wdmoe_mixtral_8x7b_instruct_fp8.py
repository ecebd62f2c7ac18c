"""Mixtral-8x7B-Instruct in transformers' fine-grained FP8 on one 80 GB GPU: 47 GB, needs `pip install kernels`.

Needs compute capability 8.9 or newer (RTX 4090, H100); on an older GPU transformers goes back to bfloat16, and the
comparison of loaded with expected bytes then stops the run.
"""

from wdmoe_opencompass.harness.models import WdmoeHuggingFaceBaseModel

models = [
    dict(
        type=WdmoeHuggingFaceBaseModel,
        abbr=f"mixtral-8x7b-instruct-v0.1-fp8-{name}-hf",
        path="mistralai/Mixtral-8x7B-Instruct-v0.1",
        model_kwargs=dict(
            torch_dtype="torch.bfloat16", device_map="auto", quantization_config=dict(quant_method="fp8")
        ),
        max_seq_len=4096,
        max_out_len=512,
        batch_size=48,  # Table II of the paper fits 64; next to these weights the longest GSM8K prompts allow about 60
        run_cfg=dict(num_gpus=1),
        wdmoe=dict(profile="paper_8_devices", policy=policy),
    )
    for name, policy in (("vanilla", "top_k"), ("wdmoe", "wlr"))
]
