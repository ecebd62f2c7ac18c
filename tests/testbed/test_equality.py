"""Answers by way of the devices against the local model's, bit for bit in float32."""

import pytest
import torch

from tests.builders.testbed_models import logits, states_of
from tests.testbed.testbeds import GROUPS, make_testbed, servers
from tests.tiny import example_policy, prompts, tiny_mixtral
from wdmoe_opencompass.errors import ModelError
from wdmoe_opencompass.routing.attachment import Attachment
from wdmoe_opencompass.routing.discovery import find_moe_layers
from wdmoe_opencompass.testbed.client import BaseStation

ROUNDING = 1e-5  # float32: matrix products with other numbers of rows may round otherwise


@pytest.mark.parametrize("policy", ["top_k", "wlr", "expanded_drop", "random_drop"])
def test_logits_equal_the_local_models(processes, tiny, policy):
    model, layers = tiny
    unpatched = logits(model)
    testbed = make_testbed(processes, send_padding=True)
    with Attachment(model, example_policy(policy), states_of(model, testbed)):
        expected = logits(model)
    with (
        BaseStation(testbed, layers) as station,
        Attachment(model, example_policy(policy), states_of(model, testbed), sender=station),
    ):
        found = logits(model)
    assert torch.equal(found, expected)
    assert not station.events
    assert torch.equal(logits(model), unpatched)


@pytest.mark.parametrize("padded", [False, True])
def test_padding_is_not_sent_and_does_not_matter(processes, tiny, padded):
    model, layers = tiny
    testbed = make_testbed(processes)
    expected = logits(model, padded=padded)
    with (
        BaseStation(testbed, layers) as station,
        Attachment(model, example_policy("top_k"), states_of(model, testbed), sender=station),
    ):
        found = logits(model, padded=padded)
    assert torch.allclose(found, expected, rtol=0, atol=ROUNDING)
    assert padded or torch.equal(found, expected)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_packed_payload_answers_as_the_simulated_one_does(processes, tiny, bits):
    model, layers = tiny
    testbed = make_testbed(processes, payload_bits=bits, send_padding=True)
    with Attachment(model, example_policy("top_k"), states_of(model, testbed), payload_bits=bits):
        expected = logits(model)
    assert not torch.equal(expected, logits(model))
    with (
        BaseStation(testbed, layers) as station,
        Attachment(model, example_policy("top_k"), states_of(model, testbed), sender=station),
    ):
        assert torch.equal(logits(model), expected)


def test_generation_equals_the_local_models(processes, tiny):
    model, layers = tiny
    ids, mask = prompts(rows=3, side="left")
    arguments = dict(input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0)
    expected = model.generate(**arguments)
    testbed = make_testbed(processes)
    with (
        BaseStation(testbed, layers) as station,
        Attachment(model, example_policy("top_k"), states_of(model, testbed), sender=station),
    ):
        assert torch.equal(model.generate(**arguments), expected)


def test_each_device_gets_one_message_per_layer_with_its_load_and_all_times(processes, tiny):
    model, layers = tiny
    testbed = make_testbed(processes)
    with (
        BaseStation(testbed, layers) as station,
        Attachment(model, example_policy("top_k"), states_of(model, testbed), sender=station) as attached,
    ):
        logits(model)
        logits(model)
        block = attached.recorder.finish_batch(0, 8)
        times = station.take_times()
        assert not station.take_times()
    loads = {
        (pass_index, layer, device): count
        for pass_index, layers in enumerate(block["device_load"])
        for layer, row in enumerate(layers)
        for device, count in enumerate(row)
        if count
    }
    assert {(message.pass_index, message.layer, message.device): message.tokens for message in times} == loads
    assert len(times) == len(loads)
    for message in times:
        assert min(message.send_s, message.queue_s, message.compute_s, message.return_s) >= 0
        assert message.send_s + message.queue_s + message.compute_s + message.return_s == pytest.approx(message.total_s)
        assert message.total_s <= message.waiting_s + 1e-9


def test_tokens_beyond_the_message_limit_go_in_several_messages(processes, tiny):
    model, layers = tiny
    testbed = make_testbed(processes, message_bytes=1 << 16)
    station = BaseStation(testbed, layers)
    ids = torch.arange(3, 90).repeat(10)[None, :250].repeat(10, 1)
    expected = model(input_ids=ids).logits
    with station, Attachment(model, example_policy("top_k"), states_of(model, testbed), sender=station) as attached:
        found = model(input_ids=ids).logits
        block = attached.recorder.finish_batch(0, 1)
    assert torch.allclose(found, expected, rtol=0, atol=ROUNDING)
    per_device = [sum(message.tokens for message in station.times if message.device == device) for device in range(4)]
    assert per_device == block["device_load"].sum(axis=(0, 1)).tolist()
    assert len(station.times) > 4 * 3
    assert not station.events


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_types_agree_within_their_own_rounding(saved, dtype):
    model = tiny_mixtral().to(getattr(torch, dtype))
    layers = find_moe_layers(model)
    expected = logits(model)
    with servers(saved, GROUPS[:1], dtype) as devices:
        testbed = make_testbed(devices)
        with (
            BaseStation(testbed, layers) as station,
            Attachment(model, example_policy("top_k"), states_of(model, testbed), sender=station),
        ):
            found = logits(model)
    # Routing itself flips where two experts are close, so the bulk is compared.
    assert ((found - expected).abs() / expected.abs().max()).float().quantile(0.9) < 0.03


def test_rounding_twice_is_refused(processes, tiny):
    model, layers = tiny
    testbed = make_testbed(processes)
    with BaseStation(testbed, layers) as station, pytest.raises(ModelError, match="lab file"):
        Attachment(model, example_policy("top_k"), states_of(model, testbed), payload_bits=8, sender=station)
