"""An ordinary OpenCompass model with `wdmoe=dict(testbed=...)`."""

import json

import pytest
import torch

from tests.builders.stock_models import MODEL, PROMPTS, VANILLA
from tests.testbed.labs import servers
from wdmoe_opencompass.errors import LabError, ModelError
from wdmoe_opencompass.harness.models import WdmoeHuggingFaceBaseModel
from wdmoe_opencompass.harness.settings import parse_settings
from wdmoe_opencompass.harness.trace_session import forget_events
from wdmoe_opencompass.testbed.lab import Lab, write_lab
from wdmoe_opencompass.trace.format import read_trace
from wdmoe_opencompass.trace.times import check_belongs, read_times

GROUPS = ((0, 1), (2,), (3,), (4, 5))
PLACEMENT = [0, 0, 1, 2, 3, 3, -1, -1]
SETTINGS = dict(profile="testbed_4_devices", policy="top_k")


@pytest.fixture(scope="module")
def devices():
    with servers(MODEL["path"], GROUPS) as running:
        yield running


def written_lab(folder, devices, **settings):
    entries = [
        dict(name=f"d{number}", address=f"127.0.0.1:{device.port}", experts=list(experts))
        for number, (device, experts) in enumerate(zip(devices, GROUPS))
    ]
    write_lab(folder / "lab.yaml", Lab(devices=entries, **(dict(send_padding=True) | settings)))
    return str(folder / "lab.yaml")


def test_perplexities_answers_and_trace_are_those_of_the_local_run(devices, tmp_path):
    lab = written_lab(tmp_path, devices)
    local = WdmoeHuggingFaceBaseModel(**MODEL, wdmoe=SETTINGS)
    live = WdmoeHuggingFaceBaseModel(**MODEL, wdmoe=dict(SETTINGS, testbed=lab))
    (tmp_path / "x.json").touch()
    live.open_trace(tmp_path / "x.json", "live", "x", len(PROMPTS), 0)
    with torch.no_grad():
        assert (live.get_ppl(PROMPTS) == local.get_ppl(PROMPTS)).all()
        assert live.generate(PROMPTS, 12) == local.generate(PROMPTS, 12)
    live.close_trace(seal=True)
    trace = read_trace(tmp_path / "x.trace.safetensors")
    assert trace.metadata.profile.device_of_expert(8) == PLACEMENT
    assert not trace.metadata.quantise_payload
    times = read_times(tmp_path / "x.times.safetensors")
    check_belongs(times, trace)
    assert (times.tokens >= trace.device_load).all()  # padding is sent here
    assert (times.waiting_s > 0).all()
    live.testbed.close()


def test_bottleneck_reads_what_was_measured_and_drops_tokens_of_a_slow_device(tmp_path):
    with servers(MODEL["path"], GROUPS[:3]) as fast, servers(MODEL["path"], GROUPS[3:], rate_bit_per_s=2e6) as slow:
        lab = written_lab(tmp_path, [*fast, *slow], send_padding=False)
        live = WdmoeHuggingFaceBaseModel(**MODEL, wdmoe=dict(SETTINGS, policy="bottleneck", testbed=lab))
        live.open_trace(tmp_path / "x.json", "live", "x", 2 * len(PROMPTS), 0)
        with torch.no_grad():
            live.get_ppl(PROMPTS)
            live.get_ppl(PROMPTS)
        live.close_trace(seal=True)
        live.testbed.close()
    trace, times = read_trace(tmp_path / "x.trace.safetensors"), read_times(tmp_path / "x.times.safetensors")
    assert (times.tokens == trace.device_load).all()
    before, after = trace.device_load_before.sum(axis=(0, 1)), trace.device_load.sum(axis=(0, 1))
    assert after[3] < before[3]
    assert (after[:3] >= 0.8 * before[:3]).all()
    means = live._session.history.mean_token_s(1)
    assert means.argmax() == 3


def test_what_happened_to_devices_lies_beside_the_trace(tmp_path):
    with servers(MODEL["path"], GROUPS) as devices:
        lab = written_lab(tmp_path, devices, payload_bits=8)
        live = WdmoeHuggingFaceBaseModel(**MODEL, wdmoe=dict(SETTINGS, testbed=lab))
        live.open_trace(tmp_path / "x.json", "live", "x", len(PROMPTS), 0)
        devices[2].stop(0)
        with torch.no_grad():
            live.get_ppl(PROMPTS)
        live.close_trace(seal=True)
        live.testbed.close()
    first = json.loads((tmp_path / "x.testbed_events.jsonl").read_text().splitlines()[0])
    assert (first["device"], first["kind"], first["items_answered_before"]) == ("d2", "unavailable", 0)
    metadata = read_trace(tmp_path / "x.trace.safetensors").metadata
    assert metadata.routing == "top_k, 8-bit payload"


def test_what_happened_in_batches_that_are_redone_is_forgotten(tmp_path):
    path = tmp_path / "x.testbed_events.jsonl"
    lines = [json.dumps(dict(device="a", items_answered_before=number)) for number in (0, 4, 8)]
    path.write_text("\n".join([*lines, '{"device": "a", "items_answe']))
    forget_events(path, 8)
    assert path.read_text().splitlines() == lines[:2]
    forget_events(path, 0)
    forget_events(path, 0)
    assert not path.exists()


@pytest.mark.parametrize(
    ("wdmoe", "error", "sentence"),
    [
        (dict(SETTINGS, testbed="no.yaml"), LabError, "no.yaml: cannot be read"),
        (dict(SETTINGS, testbed="LAB", quantise_payload=True), ModelError, "the lab file's payload_bits decides"),
        (dict(VANILLA, testbed="LAB"), LabError, "devices must be as many as in channel profile paper_8_devices (8)"),
    ],
)
def test_lab_that_does_not_fit_is_an_error_before_anything_is_loaded(devices, tmp_path, wdmoe, error, sentence):
    lab = written_lab(tmp_path, devices)
    wdmoe = {key: lab if value == "LAB" else value for key, value in wdmoe.items()}
    with pytest.raises(error) as caught:
        parse_settings(wdmoe)
    assert sentence in str(caught.value)
