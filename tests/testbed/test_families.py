"""Other families of models on the devices of a lab."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.routing.families import attached, logits, tiny_model
from tests.testbed.labs import GROUPS, lab_of, servers
from wdmoe_opencompass.errors import LabError
from wdmoe_opencompass.routing.attachment import Attachment
from wdmoe_opencompass.routing.discovery import find_moe_layers
from wdmoe_opencompass.selection import build_policy
from wdmoe_opencompass.testbed.client import BaseStation

SUM_ORDER = 1e-5  # of the largest logit: a device sums its own experts first


@pytest.mark.parametrize("top_k", [2, 4])
@pytest.mark.parametrize("family", ["olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v3", "gpt_oss", "granitemoe"])
def test_logits_of_a_family_equal_the_local_models(tmp_path, family, top_k):
    tiny_model(family, top_k=top_k).float().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    layers = find_moe_layers(model)
    expected = logits(model)
    with attached(model, "top_k") as local:
        states = local.channel_of_layer
    with servers(tmp_path) as devices:
        lab = lab_of(devices, send_padding=True)
        with BaseStation(lab, layers) as client, Attachment(model, build_policy("top_k"), states, sender=client):
            found = logits(model)
            assert not client.events
            assert len(client.times) > len(layers)
    if top_k == 2:
        assert torch.equal(found, expected)
    assert (found - expected).abs().max() <= SUM_ORDER * expected.abs().max()


def test_family_with_another_contract_is_refused_in_one_sentence(saved):
    with servers(saved, GROUPS[:1]) as devices, pytest.raises(LabError, match="does not follow the contract"):
        BaseStation(lab_of(devices, GROUPS[:1]), find_moe_layers(tiny_model("llama4_text")))
