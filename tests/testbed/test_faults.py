"""Devices that die, stop, come back or send rubbish while the base station computes: every answer stays the same."""

import random
import signal
import time

import pytest
import torch

from tests.builders.testbed_models import logits
from tests.testbed.faults import (
    FAULT_KINDS,
    FAULTS,
    SPOILS,
    STOPPED,
    Rubbish,
    base_station,
    kinds,
    run_with_fault,
)
from tests.testbed.labs import GROUPS, device_processes, lab_of, servers
from tests.tiny import tiny_mixtral
from tests.waiting import PATIENCE_S, until
from wdmoe_opencompass.errors import LabError
from wdmoe_opencompass.testbed.client import BaseStation
from wdmoe_opencompass.testbed.device import DeviceServer
from wdmoe_opencompass.testbed.experts import load_experts


@pytest.mark.slow
def test_killed_device_is_replaced_at_once_and_rejoins_when_it_is_back(processes, tiny):
    expected = logits(tiny[0])
    with base_station(tiny, lab_of(processes, **FAULTS)) as (client, attached):
        assert torch.equal(logits(tiny[0]), expected)
        processes[2].stop()
        try:
            assert torch.equal(logits(tiny[0]), expected)
            assert kinds(client, "c")[0] == "unavailable"
            assert {one.device for one in client.times if one.pass_index == 1} == {0, 1, 3}
        finally:
            processes[2].start()
            processes[2].ready()
        until(lambda: "rejoined" in kinds(client, "c"))
        client.take_times()
        assert torch.equal(logits(tiny[0]), expected)
        assert {one.device for one in client.take_times()} == {0, 1, 2, 3}
        loads = attached.recorder.finish_batch(0, 4)["device_load"]
        assert (loads == loads[:1]).all()  # what the devices do changes nothing of what was chosen


def test_stopped_device_is_given_up_at_the_deadline_and_rejoins(processes, tiny):
    expected = logits(tiny[0])
    with base_station(tiny, lab_of(processes, **STOPPED | dict(health_s=60.0))) as (client, _):
        processes[1].process.send_signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert torch.equal(logits(tiny[0]), expected)
            took = time.monotonic() - began
        finally:
            processes[1].process.send_signal(signal.SIGCONT)
        assert 3.0 <= took < 9.0  # one deadline, not one per layer
        event = client.events[0]
        assert (event.device, event.kind, event.layer, event.by) == ("b", "timeout", 0, "base_station")
        assert event.tokens > 0
        until(lambda: "rejoined" in kinds(client, "b"))
        assert torch.equal(logits(tiny[0]), expected)


def test_health_check_finds_a_stopped_device_before_any_token_is_sent(processes, tiny):
    with base_station(tiny, lab_of(processes, **STOPPED)) as (client, _):
        processes[1].process.send_signal(signal.SIGSTOP)
        try:
            until(lambda: kinds(client, "b"))
            assert client.events[0].layer == -1
            began = time.monotonic()
            logits(tiny[0])
            assert time.monotonic() - began < 3.0  # nobody waits for it
        finally:
            processes[1].process.send_signal(signal.SIGCONT)
        until(lambda: "rejoined" in kinds(client, "b"))


def test_another_device_with_the_same_experts_takes_over_first(saved, tiny):
    groups = ((0, 1), (2,), (2, 0, 1), (3,))
    expected = logits(tiny[0])
    with servers(saved, groups) as devices, base_station(tiny, lab_of(devices, groups, **FAULTS)) as (client, _):
        assert torch.equal(logits(tiny[0]), expected)
        assert not any(one.taken_over for one in client.times)
        assert {one.device for one in client.times} == {0, 1, 3}
        devices[0].stop(0)
        client.take_times()
        assert torch.equal(logits(tiny[0]), expected)
        taken = [one for one in client.take_times() if one.taken_over]
        assert {one.device for one in taken} == {2}
        assert len(taken) == 3
        assert client.events[0].by in ("c", "")


@pytest.mark.parametrize("spoil", SPOILS)
def test_rubbish_is_noticed_and_replaced(saved, tiny, spoil):
    expected = logits(tiny[0])
    with servers(saved) as devices:
        rubbish = Rubbish(devices[1], SPOILS[spoil], after=1)
        lab = lab_of([devices[0], rubbish, *devices[2:]], **FAULTS)
        with base_station(tiny, lab) as (client, _):
            assert torch.equal(logits(tiny[0]), expected)
            assert rubbish.spoiled >= 1
            assert kinds(client, "b")[0] == "bad_reply"
        rubbish.stop()


def test_device_that_fails_every_time_it_is_back_is_asked_less_and_less(saved, tiny):
    expected = logits(tiny[0])
    with servers(saved, GROUPS[:2]) as devices:
        rubbish = Rubbish(devices[1], SPOILS["torn"])
        lab = lab_of([devices[0], rubbish], GROUPS[:2], **FAULTS | dict(most_backoff_s=30.0))
        with base_station(tiny, lab) as (client, _):
            end = time.monotonic() + 3
            while time.monotonic() < end or (rubbish.spoiled < 2 and time.monotonic() < end + PATIENCE_S):
                assert torch.equal(logits(tiny[0]), expected)
            assert 2 <= rubbish.spoiled <= 4  # after 0, 0.5, 1.5 and 3.5 s
            assert kinds(client, "b")[:3] == ["bad_reply", "rejoined", "bad_reply"]
        rubbish.stop()


def test_refused_message_is_computed_elsewhere_and_the_device_stays(saved, tiny):
    expected = logits(tiny[0])
    with servers(saved) as devices, base_station(tiny, lab_of(devices, **FAULTS)) as (client, _):
        devices[1]._row_of.pop(2)  # from now on it does not know its expert
        assert torch.equal(logits(tiny[0]), expected)
        assert kinds(client, "b") == ["refused"] * 3
        assert "not held here" in client.events[0].reason


def test_device_that_comes_back_with_other_experts_is_not_let_in(saved, tiny):
    expected = logits(tiny[0])
    with servers(saved) as devices, base_station(tiny, lab_of(devices, **FAULTS)) as (client, _):
        devices[1].stop(0)
        other = DeviceServer(load_experts(saved, (7,), "float32"), f"127.0.0.1:{devices[1].port}")
        other.start()
        until(lambda: any("holds experts [7]" in event.reason for event in client.events))
        assert torch.equal(logits(tiny[0]), expected)
        other.stop(0)
        assert "rejoined" not in kinds(client, "b")


def test_missing_device_is_waited_for_but_not_all_of_them(saved, tiny):
    groups = GROUPS[:2]
    expected = logits(tiny[0])
    with servers(saved, groups) as devices:
        lab = lab_of(devices, groups, **FAULTS | dict(connect_s=0.5))
        port = devices[1].port
        devices[1].stop(0)
        with base_station(tiny, lab) as (client, _):
            assert torch.equal(logits(tiny[0]), expected)
            late = DeviceServer(load_experts(saved, (2,), "float32"), f"127.0.0.1:{port}")
            late.start()
            until(lambda: "rejoined" in kinds(client, "b"))
            assert torch.equal(logits(tiny[0]), expected)
            assert 1 in {one.device for one in client.times}
            late.stop(0)
        devices[0].stop(0)
        with pytest.raises(LabError, match="no device of the lab answers"):
            BaseStation(lab, tiny[1])


@pytest.mark.parametrize(
    "groups, dtype, sentence",
    [(((0, 2), (2,)), "float32", "holds experts"), (GROUPS[:2], "float16", "start it with --dtype float32")],
)
def test_wrong_device_at_the_start_is_an_error(saved, tiny, groups, dtype, sentence):
    with servers(saved, groups, dtype) as devices, pytest.raises(LabError, match=sentence):
        BaseStation(lab_of(devices, GROUPS[:2]), tiny[1])


def test_other_weights_are_an_error(tiny, tmp_path):
    tiny_mixtral(seed=1).save_pretrained(tmp_path)
    with servers(tmp_path) as devices, pytest.raises(LabError, match="other weights"):
        BaseStation(lab_of(devices), tiny[1])


@pytest.mark.slow
def test_twenty_random_faults_cost_no_answer(saved, tiny):
    """Kills, stops, restarts and corrupted replies at random moments of a run: the same logits in every pass."""
    chance = random.Random(0)
    expected = logits(tiny[0])
    with device_processes(saved) as devices:
        for trial in range(20):
            fault = FAULT_KINDS[trial % len(FAULT_KINDS)]
            answers, events = run_with_fault(tiny, devices, fault, chance, lambda: logits(tiny[0]))
            assert all(torch.equal(one, expected) for one in answers), (trial, fault)
            assert events, (trial, fault)
