"""Algorithm 1 with one parameter changed at a time, Mixtral-8x7B-Instruct in bfloat16, and vanilla."""

from wdmoe_opencompass.harness.models import WdmoeHuggingFaceBaseModel

variants = dict(
    vanilla=dict(policy="top_k"),
    wdmoe=dict(policy="wlr"),
    **{f"wdmoe-theta-{value}": dict(policy_parameters=dict(theta=value)) for value in (0.3, 0.4, 0.6, 0.7)},
    **{f"wdmoe-theta-step-{value}": dict(policy_parameters=dict(theta_step=value)) for value in (0.05, 0.2)},
    **{f"wdmoe-gain-{value}": dict(policy_parameters=dict(gain=value)) for value in (1.05, 1.2)},
    **{
        "wdmoe-extra-pass": dict(policy_parameters=dict(extra_pass=True)),
        "wdmoe-similarity-top-k": dict(policy_parameters=dict(similarity_weights="top_k")),
        "wdmoe-no-renormalise": dict(renormalise=False),
    },
)
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
        wdmoe={"profile": "paper_8_devices", "policy": "wlr", **changed},
    )
    for name, changed in variants.items()
]
