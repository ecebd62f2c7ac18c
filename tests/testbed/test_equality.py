"""Answers by way of the devices against the local model's, bit for bit in float32."""

import pytest
import torch

from tests.builders.testbed_models import logits, states_of
from tests.testbed.labs import GROUPS, lab_of, servers
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
    lab = lab_of(processes, send_padding=True)
    with Attachment(model, example_policy(policy), states_of(model, lab)):
        expected = logits(model)
    with (
        BaseStation(lab, layers) as client,
        Attachment(model, example_policy(policy), states_of(model, lab), sender=client),
    ):
        found = logits(model)
    assert torch.equal(found, expected)
    assert not client.events
    assert torch.equal(logits(model), unpatched)


@pytest.mark.parametrize("padded", [False, True])
def test_padding_is_not_sent_and_does_not_matter(processes, tiny, padded):
    model, layers = tiny
    lab = lab_of(processes)
    expected = logits(model, padded=padded)
    with (
        BaseStation(lab, layers) as client,
        Attachment(model, example_policy("top_k"), states_of(model, lab), sender=client),
    ):
        found = logits(model, padded=padded)
    assert torch.allclose(found, expected, rtol=0, atol=ROUNDING)
    assert padded or torch.equal(found, expected)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_packed_payload_answers_as_the_simulated_one_does(processes, tiny, bits):
    model, layers = tiny
    lab = lab_of(processes, payload_bits=bits, send_padding=True)
    with Attachment(model, example_policy("top_k"), states_of(model, lab), payload_bits=bits):
        expected = logits(model)
    assert not torch.equal(expected, logits(model))
    with (
        BaseStation(lab, layers) as client,
        Attachment(model, example_policy("top_k"), states_of(model, lab), sender=client),
    ):
        assert torch.equal(logits(model), expected)


def test_generation_equals_the_local_models(processes, tiny):
    model, layers = tiny
    ids, mask = prompts(rows=3, side="left")
    arguments = dict(input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0)
    expected = model.generate(**arguments)
    lab = lab_of(processes)
    with (
        BaseStation(lab, layers) as client,
        Attachment(model, example_policy("top_k"), states_of(model, lab), sender=client),
    ):
        assert torch.equal(model.generate(**arguments), expected)


def test_each_device_gets_one_message_per_layer_with_its_load_and_all_times(processes, tiny):
    model, layers = tiny
    lab = lab_of(processes)
    with (
        BaseStation(lab, layers) as client,
        Attachment(model, example_policy("top_k"), states_of(model, lab), sender=client) as attached,
    ):
        logits(model)
        logits(model)
        block = attached.recorder.finish_batch(0, 8)
        times = client.take_times()
        assert not client.take_times()
    loads = {
        (pass_index, layer, device): count
        for pass_index, one in enumerate(block["device_load"])
        for layer, row in enumerate(one)
        for device, count in enumerate(row)
        if count
    }
    assert {(one.pass_index, one.layer, one.device): one.tokens for one in times} == loads
    assert len(times) == len(loads)
    for one in times:
        assert min(one.send_s, one.queue_s, one.compute_s, one.return_s) >= 0
        assert one.send_s + one.queue_s + one.compute_s + one.return_s == pytest.approx(one.total_s)
        assert one.total_s <= one.waiting_s + 1e-9


def test_tokens_beyond_the_message_limit_go_in_several_messages(processes, tiny):
    model, layers = tiny
    lab = lab_of(processes, message_bytes=1 << 16)
    client = BaseStation(lab, layers)
    ids = torch.arange(3, 90).repeat(10)[None, :250].repeat(10, 1)
    expected = model(input_ids=ids).logits
    with client, Attachment(model, example_policy("top_k"), states_of(model, lab), sender=client) as attached:
        found = model(input_ids=ids).logits
        block = attached.recorder.finish_batch(0, 1)
    assert torch.allclose(found, expected, rtol=0, atol=ROUNDING)
    per_device = [sum(one.tokens for one in client.times if one.device == device) for device in range(4)]
    assert per_device == block["device_load"].sum(axis=(0, 1)).tolist()
    assert len(client.times) > 4 * 3
    assert not client.events


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_types_agree_within_their_own_rounding(saved, dtype):
    model = tiny_mixtral().to(getattr(torch, dtype))
    layers = find_moe_layers(model)
    expected = logits(model)
    with servers(saved, GROUPS[:1], dtype) as devices:
        lab = lab_of(devices)
        with (
            BaseStation(lab, layers) as client,
            Attachment(model, example_policy("top_k"), states_of(model, lab), sender=client),
        ):
            found = logits(model)
    # Routing itself flips where two experts are close, so the bulk is compared.
    assert ((found - expected).abs() / expected.abs().max()).float().quantile(0.9) < 0.03


def test_rounding_twice_is_refused(processes, tiny):
    model, layers = tiny
    lab = lab_of(processes)
    with BaseStation(lab, layers) as client, pytest.raises(ModelError, match="lab file"):
        Attachment(model, example_policy("top_k"), states_of(model, lab), payload_bits=8, sender=client)
