"""Devices that die, stop, come back or send rubbish while the base station computes: every answer stays the same."""

import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
import torch

from tests.testbed.labs import GROUPS, NAMES, device_processes, lab_of, servers
from tests.testbed.test_equality import logits, states_of
from tests.tiny import example_policy, tiny_mixtral
from wdmoe_opencompass.errors import LabError
from wdmoe_opencompass.routing.patch import Attachment
from wdmoe_opencompass.testbed.client import LabClient
from wdmoe_opencompass.testbed.device import DeviceServer
from wdmoe_opencompass.testbed.experts import load_experts
from wdmoe_opencompass.testbed.wire import COMPUTE, SERVICE, Sums, check_of_sums, pack

FAULTS = dict(deadline_s=1.0, health_s=0.2, most_backoff_s=0.5, send_padding=True)


@contextmanager
def base_station(tiny, lab):
    model, layers = tiny
    with (
        LabClient(lab, layers) as client,
        Attachment(model, example_policy("top_k"), states_of(model, lab), sender=client) as attached,
    ):
        yield client, attached


def until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def kinds(client, name):
    return [event.kind for event in client.events if event.device == name]


def test_killed_device_is_replaced_at_once_and_rejoins_when_it_is_back(processes, tiny):
    expected = logits(tiny[0])
    with base_station(tiny, lab_of(processes, **FAULTS)) as (client, attached):
        assert torch.equal(logits(tiny[0]), expected)
        processes[2].stop()
        try:
            began = time.monotonic()
            assert torch.equal(logits(tiny[0]), expected)
            assert time.monotonic() - began < 5
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
    with base_station(tiny, lab_of(processes, **FAULTS | dict(health_s=60.0))) as (client, _):
        processes[1].process.send_signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert torch.equal(logits(tiny[0]), expected)
            took = time.monotonic() - began
        finally:
            processes[1].process.send_signal(signal.SIGCONT)
        assert 1.0 <= took < 3.0  # one deadline, not one per layer
        event = client.events[0]
        assert (event.device, event.kind, event.layer, event.by) == ("b", "timeout", 0, "base_station")
        assert event.tokens > 0
        until(lambda: "rejoined" in kinds(client, "b"))
        assert torch.equal(logits(tiny[0]), expected)


def test_health_check_finds_a_stopped_device_before_any_token_is_sent(processes, tiny):
    with base_station(tiny, lab_of(processes, **FAULTS)) as (client, _):
        processes[1].process.send_signal(signal.SIGSTOP)
        try:
            until(lambda: kinds(client, "b"))
            assert client.events[0].layer == -1
            began = time.monotonic()
            logits(tiny[0])
            assert time.monotonic() - began < 0.9  # nobody waits for it
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


class Rubbish:
    """Serves a device's address and spoils what the real device answers."""

    def __init__(self, real, spoil, after=0):
        self.spoil, self.left, self.spoiled = spoil, after, 0
        self.channel = grpc.insecure_channel(f"127.0.0.1:{real.port}")
        self.server = grpc.server(ThreadPoolExecutor(4))
        methods = {name: self._handler(f"/{SERVICE}/{name}") for name in ("Compute", "Ping", "Hello")}
        self.server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, methods)])
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def _handler(self, method):
        def answer(request, context):
            reply = self.channel.unary_unary(method)(request, timeout=context.time_remaining())
            if method != COMPUTE:
                return reply
            self.left -= 1
            if self.left >= 0:
                return reply
            self.spoiled += 1
            return self.spoil(reply)

        return grpc.unary_unary_rpc_method_handler(answer)

    def stop(self):
        self.server.stop(0)
        self.channel.close()


def sealed(sums):
    """With a checksum that fits, as a device would send it that is wrong, not the network."""
    sums.check = check_of_sums(sums)
    return sums.SerializeToString()


def changed(**fields):
    def spoil(reply):
        sums = Sums.FromString(reply)
        for name, value in fields.items():
            setattr(sums, name, value)
        return sealed(sums)

    return spoil


def flipped_bit(reply):
    sums = Sums.FromString(reply)
    values = bytearray(sums.sums.values)
    values[len(values) // 2] ^= 64
    sums.sums.values = bytes(values)
    return sums.SerializeToString()


def not_a_number(reply):
    sums = Sums.FromString(reply)
    values = torch.full((sums.sums.rows, 32), float("nan"))
    sums.sums.CopyFrom(pack(values))
    return sealed(sums)


def fewer_tokens(reply):
    sums = Sums.FromString(reply)
    sums.sums.CopyFrom(pack(torch.zeros(sums.sums.rows + 1, 32)))
    return sealed(sums)


SPOILS = {
    "torn": lambda reply: reply[: len(reply) // 2],
    "noise": lambda reply: np.random.default_rng(0).bytes(len(reply)),
    "empty": lambda reply: b"",
    "flipped bit": flipped_bit,
    "not a number": not_a_number,
    "other tokens": fewer_tokens,
    "answer to another message": changed(number=1 << 40),
    "answer of another process": changed(session=7),
    "impossible times": changed(compute_s=1e6),
    "times that are no numbers": changed(received_at=float("nan")),
}


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
            while time.monotonic() < end:
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
            LabClient(lab, tiny[1])


@pytest.mark.parametrize(
    "groups, dtype, sentence",
    [(((0, 2), (2,)), "float32", "holds experts"), (GROUPS[:2], "float16", "start it with --dtype float32")],
)
def test_wrong_device_at_the_start_is_an_error(saved, tiny, groups, dtype, sentence):
    with servers(saved, groups, dtype) as devices, pytest.raises(LabError, match=sentence):
        LabClient(lab_of(devices, GROUPS[:2]), tiny[1])


def test_other_weights_are_an_error(tiny, tmp_path):
    tiny_mixtral(seed=1).save_pretrained(tmp_path)
    with servers(tmp_path) as devices, pytest.raises(LabError, match="other weights"):
        LabClient(lab_of(devices), tiny[1])


@pytest.mark.slow
def test_twenty_random_faults_cost_no_answer(saved, tiny):
    """Kills, stops, restarts and corrupted replies at random moments of a run: the same logits in every pass."""
    chance = random.Random(0)
    expected = logits(tiny[0])
    settings = FAULTS | dict(deadline_s=2.0)
    with device_processes(saved) as devices:
        for trial in range(20):
            victim = chance.randrange(4)
            fault = ("kill", "stop", "restart", "corrupt")[trial % 4]
            rubbish = Rubbish(devices[victim], chance.choice(list(SPOILS.values())), after=chance.randrange(40))
            lab = lab_of([rubbish if n == victim else one for n, one in enumerate(devices)], **settings)
            if fault != "corrupt":
                lab = lab_of(devices, **settings)
            with base_station(tiny, lab) as (client, _):
                moment = chance.randrange(1, 15)
                for number in range(20):
                    if number == moment and fault in ("kill", "restart"):
                        devices[victim].stop()
                        if fault == "restart":
                            devices[victim].start()
                    if number == moment and fault == "stop":
                        devices[victim].process.send_signal(signal.SIGSTOP)
                    assert torch.equal(logits(tiny[0]), expected), (trial, fault, number)
                if fault == "restart":
                    devices[victim].ready()
                    until(lambda client=client, victim=victim: "rejoined" in kinds(client, NAMES[victim]), 60)
                    assert torch.equal(logits(tiny[0]), expected)
                assert kinds(client, NAMES[victim]), (trial, fault)
            rubbish.stop()
            if fault == "stop":
                devices[victim].process.send_signal(signal.SIGCONT)
            if fault == "kill":
                devices[victim].start()
                devices[victim].ready()
