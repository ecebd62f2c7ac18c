"""The quickstart's unchanged model at several batch sizes, its texts scored as OpenCompass does and exactly."""

from wdmoe_opencompass.harness.models import WdmoeHuggingFaceBaseModel

models = [
    dict(
        type=WdmoeHuggingFaceBaseModel,
        abbr=f"quickstart-vanilla-{perplexity}-batch-{batch_size}-hf",
        path="quickstart/model",
        model_kwargs=dict(torch_dtype="torch.float32", device_map="cpu"),
        max_out_len=64,
        batch_size=batch_size,
        run_cfg=dict(num_gpus=0),
        wdmoe=dict(profile="paper_8_devices", policy="top_k", perplexity=perplexity),
    )
    for perplexity in ("stock", "exact")
    for batch_size in (1, 10, 25, 64)
]
