"""The quickstart's small Mixtral under every selection policy."""

from mmengine.config import read_base

from wdmoe_opencompass.harness.models import WdmoeHuggingFaceBaseModel

with read_base():
    from ..policies.variants import variants

models = [
    dict(
        type=WdmoeHuggingFaceBaseModel,
        abbr=f"quickstart-{name}-hf",
        path="quickstart/model",
        model_kwargs=dict(torch_dtype="torch.float32", device_map="cpu"),
        max_out_len=64,
        batch_size=25,
        run_cfg=dict(num_gpus=0),
        wdmoe=dict(
            **{"profile": "paper_8_devices", "calibration": "quickstart/quickstart.calibration.safetensors", **variant}
        ),
    )
    for name, variant in variants.items()
]
