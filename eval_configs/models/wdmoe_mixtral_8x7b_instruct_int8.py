"""Mixtral-8x7B-Instruct with 8-bit weights on one 80 GB GPU: 47 GB; needs the extra `quantised`.

torchao is told by name to convert the experts too: transformers 5 keeps a layer's experts in one 3-D parameter, which
converters of `nn.Linear` (bitsandbytes) leave in 16 bits. Its tensors run in the eager experts only.
"""

from wdmoe_opencompass.harness.models import WdmoeHuggingFaceBaseModel

int8_weight_only = dict(_type="Int8WeightOnlyConfig", _version=2, _data=dict())
weights = {r"re:.*\.experts\.(gate_up_proj|down_proj)": int8_weight_only, "_default": int8_weight_only}
quantization_config = dict(
    quant_method="torchao",
    quant_type=dict(
        default=dict(_type="FqnToConfig", _version=1, _data=dict(fqn_to_config=weights, module_fqn_to_config=weights))
    ),
)

models = [
    dict(
        type=WdmoeHuggingFaceBaseModel,
        abbr=f"mixtral-8x7b-instruct-v0.1-int8-{name}-hf",
        path="mistralai/Mixtral-8x7B-Instruct-v0.1",
        model_kwargs=dict(
            torch_dtype="torch.bfloat16",
            device_map="auto",
            quantization_config=quantization_config,
            experts_implementation="eager",
        ),
        max_seq_len=4096,
        max_out_len=512,
        batch_size=48,  # Table II of the paper fits 64; next to these weights the longest GSM8K prompts allow about 60
        run_cfg=dict(num_gpus=1),
        wdmoe=dict(profile="paper_8_devices", policy=policy),
    )
    for name, policy in (("vanilla", "top_k"), ("wdmoe", "wlr"))
]
