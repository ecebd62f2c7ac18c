"""The quickstart's small Mixtral: unchanged (vanilla), and with Algorithm 1 of the paper."""

from wdmoe_opencompass.harness.models import WdmoeHuggingFaceBaseModel

models = [
    dict(
        type=WdmoeHuggingFaceBaseModel,
        abbr=f"quickstart-{name}-hf",
        path="quickstart/model",
        model_kwargs=dict(torch_dtype="torch.float32", device_map="cpu"),
        max_out_len=64,
        batch_size=25,
        run_cfg=dict(num_gpus=0),
        wdmoe=dict(profile="paper_8_devices", policy=policy),
    )
    for name, policy in (("vanilla", "top_k"), ("wdmoe", "wlr"))
]
