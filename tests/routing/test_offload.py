"""Models whose weights are not all in memory, as `device_map='auto'` leaves them: on meta until a hook loads them."""

import accelerate
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.routing.families import attached, tiny_model
from tests.tiny import prompts
from wdmoe_opencompass.errors import ModelError
from wdmoe_opencompass.routing.attachment import find_moe_layers

FAMILIES = ["mixtral", "deepseek_v3", "hy_v3", "gpt_oss"]


def on_cpu(model, folder):
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def on_disk(model, folder):
    return accelerate.disk_offload(model, str(folder / "offload"), execution_device=torch.device("cpu"))


def from_device_map(model, folder):
    """The last layer of a saved model stays on the disk."""
    model.save_pretrained(folder / "model")
    names = {name.rsplit(".", 1)[0] for name, _ in model.named_parameters() if ".layers." not in name}
    blocks = {name for name, module in model.named_modules() if name.rsplit(".", 1)[-1].isdigit()}
    last = max(blocks)
    places = dict.fromkeys(names | blocks, "cpu") | {last: "disk"}
    return AutoModelForCausalLM.from_pretrained(folder / "model", device_map=places, offload_folder=folder / "offload")


def from_device_map_auto(model, folder):
    """Accelerate places what memory holds, and leaves the rest on the disk."""
    model.save_pretrained(folder / "model")
    memory = dict(cpu=sum(parameter.nbytes for parameter in model.parameters()) * 2 // 3)
    return AutoModelForCausalLM.from_pretrained(
        folder / "model", device_map="auto", max_memory=memory, offload_folder=folder / "offload"
    )


def run(model, policy):
    ids, mask = prompts(rows=3, side="left")
    with attached(model, policy) as attachment, torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
        tokens = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=3, do_sample=False, pad_token_id=0)
        return logits, tokens, attachment.recorder.finish_batch(0, 3)["device_load"].tolist()


@pytest.mark.parametrize("policy", [pytest.param("top_k", marks=pytest.mark.slow), "wlr"])
@pytest.mark.parametrize(
    ("family", "offload"),
    [(family, offload) for family in FAMILIES for offload in (on_cpu, on_disk, from_device_map, from_device_map_auto)]
    + [("llama4_text", from_device_map)],  # wholly offloaded, the unpatched Llama 4 does not run either, nor does DBRX
)
def test_offloaded_weights_give_the_same_loads_and_logits(family, offload, policy, tmp_path):
    logits, tokens, loads = run(tiny_model(family), policy)
    model = offload(tiny_model(family), tmp_path)
    assert any(parameter.device.type == "meta" for parameter in model.parameters())
    assert next(model.parameters()).dtype == torch.float32
    offloaded_logits, offloaded_tokens, offloaded_loads = run(model, policy)
    assert torch.equal(offloaded_logits, logits)
    assert torch.equal(offloaded_tokens, tokens)
    assert offloaded_loads == loads


def test_layers_are_found_without_weights_but_no_policy_is_attached():
    model = tiny_model("mixtral").to("meta")
    layers = find_moe_layers(model)
    assert [(layer.name, layer.num_experts, layer.top_k) for layer in layers] == [
        (f"model.layers.{number}.mlp", 8, 2) for number in range(3)
    ]
    with pytest.raises(ModelError, match=r"model.layers.0.mlp: the weights are not loaded"):
        attached(model, "top_k")
