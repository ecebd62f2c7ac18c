"""Experts read from safetensors files of several layouts, against those of the loaded model."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.routing.families import tiny_model
from tests.testbed.testbeds import DeviceProcess
from tests.tiny import tiny_mixtral
from wdmoe_opencompass.errors import TestbedError
from wdmoe_opencompass.routing.discovery import find_moe_layers
from wdmoe_opencompass.testbed.device import MEMORY_CONSTANT_BYTES
from wdmoe_opencompass.testbed.experts import load_experts, pair_answers

WANTED = (5, 1)
FAMILIES = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v3", "gpt_oss", "granitemoe", "phimoe")


def check(folder, model):
    layers = find_moe_layers(model)
    held = load_experts(folder, WANTED, "float32")
    rows = sorted(WANTED)
    assert held.experts == tuple(rows)
    assert len(held.layers) == len(layers)
    hidden_states = torch.randn(6, layers[0].shape.hidden_size, generator=torch.Generator().manual_seed(0))
    row, weights = torch.tensor([0, 1, 1, 0, 1, 0]), torch.rand(6)
    for layer, mine in zip(layers, held.layers):
        for name, parameter in layer.experts.named_parameters():
            part = parameter[rows] if len(parameter) == layer.num_experts else parameter
            assert torch.equal(mine.get_parameter(name), part)
        expert = torch.tensor(rows)[row]
        assert torch.equal(
            pair_answers(mine, hidden_states, row, weights), pair_answers(layer.experts, hidden_states, expert, weights)
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_of_every_family_are_the_models_own(family, tmp_path):
    model = tiny_model(family).float()
    model.save_pretrained(tmp_path)  # in the layout of the family's own checkpoints
    check(tmp_path, AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval())


def test_weights_may_lie_in_several_files(tmp_path):
    model = tiny_mixtral().float()
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    check(tmp_path, model)


def test_weights_may_be_fused(tmp_path):
    model = tiny_mixtral().float()
    model.save_pretrained(tmp_path)
    fused = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    assert any(name.endswith("experts.gate_up_proj") for name in fused)
    save_file(fused, tmp_path / "model.safetensors", metadata={"format": "pt"})
    check(tmp_path, model)


def broken(folder, change):
    tiny_mixtral().save_pretrained(folder)
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "change, sentence",
    [
        (
            lambda old: {k.replace("experts", "specialists"): v for k, v in old.items()},
            "no weight of its files becomes",
        ),
        (lambda old: {k: v for k, v in old.items() if "experts.5." not in k}, "the files give"),
    ],
)
def test_files_that_lack_the_experts_are_one_sentence(tmp_path, change, sentence):
    with pytest.raises(TestbedError, match=sentence):
        load_experts(broken(tmp_path, change), WANTED)


def test_bad_arguments_are_one_sentence(saved, tmp_path):
    for arguments, sentence in (
        ((saved, (8,)), "experts must be < 8, the model's number of experts, got 8"),
        ((saved, (1,), "int8"), "dtype must be one of"),
        ((tmp_path, (1,)), "no such folder with a config.json"),
    ):
        with pytest.raises(TestbedError, match=sentence):
            load_experts(*arguments)


@pytest.mark.slow
def test_memory_of_a_device_is_that_of_its_experts(tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=97, hidden_size=512, intermediate_size=1792, num_hidden_layers=2, num_local_experts=8
    )
    MixtralForCausalLM(config).half().save_pretrained(tmp_path)
    device = DeviceProcess(tmp_path, (0, 3)).ready()
    try:
        weights, grown = map(int, re.search(r"weights (\d+) bytes, memory grew by (-?\d+)", device.text).groups())
    finally:
        device.stop()
    assert weights == 2 * 2 * 3 * 512 * 1792 * 4
    assert 0.9 * weights < grown < 1.1 * weights + MEMORY_CONSTANT_BYTES
