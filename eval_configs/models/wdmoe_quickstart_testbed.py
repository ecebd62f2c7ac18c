"""The quickstart's small Mixtral with experts on the devices of a lab: every expert (vanilla), and Algorithm 2."""

from wdmoe_opencompass.harness.models import WdmoeHuggingFaceBaseModel

models = [
    dict(
        type=WdmoeHuggingFaceBaseModel,
        abbr=f"quickstart-{name}-testbed-hf",
        path="quickstart/model",
        model_kwargs=dict(torch_dtype="torch.float32", device_map="cpu"),
        max_out_len=64,
        batch_size=25,
        run_cfg=dict(num_gpus=0),
        wdmoe=dict(profile="testbed_4_devices", policy=policy, testbed="lab.yaml"),
    )
    for name, policy in (("vanilla", "top_k"), ("wdmoe", "bottleneck"))
]
