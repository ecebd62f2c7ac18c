"""A base station that keeps only its own experts in memory, and reads the others when a device fails."""

import pytest
import torch

from tests.builders.testbed_models import logits, states_of
from tests.testbed.faults import FAULTS, kinds
from tests.testbed.labs import GROUPS, lab_of, servers
from tests.tiny import example_policy, tiny_mixtral
from tests.waiting import until
from wdmoe_opencompass.errors import LabError
from wdmoe_opencompass.routing.attachment import Attachment
from wdmoe_opencompass.routing.discovery import find_moe_layers
from wdmoe_opencompass.testbed.client import BaseStation
from wdmoe_opencompass.testbed.device import DeviceServer
from wdmoe_opencompass.testbed.experts import load_experts
from wdmoe_opencompass.testbed.lab import Lab


def test_lacking_experts_are_read_when_a_device_fails_and_forgotten_when_it_is_back(saved, tiny):
    expected = logits(tiny[0])
    model = tiny_mixtral().float()
    layers = find_moe_layers(model)
    before = sum(one.numel() for layer in layers for one in layer.experts.parameters())
    with servers(saved) as devices:
        lab = lab_of(devices, **FAULTS, experts_in_memory="own")
        with (
            BaseStation(lab, layers) as client,
            Attachment(model, example_policy("top_k"), states_of(model, lab), sender=client),
        ):
            client.keep_own_experts(saved)
            kept = sum(one.numel() for layer in layers for one in layer.experts.parameters())
            assert kept == before / 4  # experts 6 and 7 of eight
            assert torch.equal(logits(model), expected)
            assert not client._own._copies
            port = devices[1].port
            devices[1].stop(0)
            assert torch.equal(logits(model), expected)
            assert kinds(client, "b")[0] == "unavailable"
            assert client._own._copies.keys() == {2}
            devices[1] = DeviceServer(load_experts(saved, (2,), "float32"), f"127.0.0.1:{port}")
            devices[1].start()
            until(lambda: "rejoined" in kinds(client, "b"))
            assert torch.equal(logits(model), expected)
            assert not client._own._copies


@pytest.mark.parametrize("policy", ["expanded_drop", "wlr"])
def test_dropped_pairs_go_nowhere_with_few_experts_in_memory(saved, policy):
    model = tiny_mixtral().float()
    with servers(saved) as devices:
        lab = lab_of(devices, experts_in_memory="own", send_padding=True)
        with Attachment(model, example_policy(policy), states_of(model, lab)):
            expected = logits(model)
        with (
            BaseStation(lab, find_moe_layers(model)) as client,
            Attachment(model, example_policy(policy), states_of(model, lab), sender=client) as attached,
        ):
            client.keep_own_experts(saved)
            assert torch.equal(logits(model), expected)
            assert not client.events
            loads = attached.recorder.finish_batch(0, 4)["device_load"]
            sent = sum(one.tokens for one in client.take_times())
            assert loads.sum() <= sent < loads.sum() * 2  # the padding too


def test_a_base_station_without_the_experts_cannot_compute_padding():
    devices = [dict(name="a", address="127.0.0.1:1", experts=[0])]
    with pytest.raises(ValueError, match="own needs send_padding: true"):
        Lab(devices=devices, experts_in_memory="own")


def test_files_that_cannot_be_read_expert_by_expert_are_an_error_at_the_start(saved, tmp_path):
    layers = find_moe_layers(tiny_mixtral().float())
    with servers(saved, GROUPS[:1]) as devices:
        lab = lab_of(devices, GROUPS[:1], experts_in_memory="own", send_padding=True)
        with BaseStation(lab, layers) as client, pytest.raises(LabError, match="no such folder with a config"):
            client.keep_own_experts(tmp_path)
