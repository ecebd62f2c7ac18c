import time
from itertools import count

import pytest
import torch

from tests.routing.families import attached, tiny_model
from tests.tiny import prompts
from wdmoe_opencompass.routing.clock import PhaseClock, device_names


@pytest.fixture
def ticks(monkeypatch):
    """Every look at the clock is a second later; -> the devices that were waited for."""
    seconds, waited = count(), []
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(seconds)))
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device=None: waited.append(device))
    return waited


def test_it_waits_once_at_the_end_of_each_phase(ticks):
    clock = PhaseClock()
    clock.devices |= {torch.device("cpu"), torch.device("cuda:0")}
    for _ in range(2):
        clock.begin_pass("prefill")
        clock.end_pass()
        for _ in range(20):
            clock.begin_pass("decode")
            clock.end_pass()
        clock.stop()
        clock.stop()  # nothing is running
    assert clock.seconds == dict(prefill=2.0, decode=2.0)
    assert ticks == [torch.device("cuda:0")] * 4


def test_a_phase_that_follows_another_ends_it(ticks):
    clock = PhaseClock()
    for phase in ("decode", "decode", "prefill", "prefill", "decode"):
        clock.begin_pass(phase)
    clock.stop()
    assert clock.seconds == dict(decode=2.0, prefill=1.0)
    clock.begin_pass("decode")
    clock.reset()
    clock.stop()
    assert clock.seconds == dict(decode=0.0, prefill=0.0)


@pytest.mark.parametrize("beams", [1, 2])
def test_a_generation_is_measured_from_its_prefill_to_its_end(beams):
    model = tiny_model("mixtral")
    ids, mask = prompts(rows=3, side="left")
    with attached(model, "top_k") as attachment:
        began_s = time.perf_counter()
        model.generate(input_ids=ids, attention_mask=mask, num_beams=beams, max_new_tokens=6)
        took_s = time.perf_counter() - began_s
        seconds = dict(attachment.clock.seconds)
        attachment.clock.stop()
        assert attachment.clock.seconds == seconds  # nothing runs on after the generation
        assert attachment.clock.devices == {torch.device("cpu")}
    assert min(seconds.values()) > 0
    assert sum(seconds.values()) < took_s


def test_prompts_alone_are_a_prefill_and_an_interrupted_batch_is_forgotten():
    model = tiny_model("mixtral")
    ids, mask = prompts(rows=3, side="left")
    with attached(model, "top_k") as attachment:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=mask)
        assert attachment.clock.seconds["prefill"] > 0 == attachment.clock.seconds["decode"]
        with pytest.raises(ValueError):
            model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=-1)
        assert attachment.clock.seconds == dict(prefill=0.0, decode=0.0)


def test_devices_are_named_once_with_their_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU X")
    assert device_names({torch.device("cuda", n) for n in range(2)}) == "2 x GPU X"
    assert device_names([torch.device("mps")]) == "mps"
    threads = torch.get_num_threads()
    assert device_names([torch.device("cpu")]).endswith(f", {threads} thread{'s' if threads > 1 else ''}")
    assert device_names([]) == ""
