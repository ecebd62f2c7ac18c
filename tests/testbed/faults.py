"""Devices that go wrong while a base station computes."""

import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
import torch

from tests.builders.testbed_models import states_of
from tests.testbed.labs import GROUPS, NAMES, lab_of
from tests.tiny import example_policy
from tests.waiting import until
from wdmoe_opencompass.routing.attachment import Attachment
from wdmoe_opencompass.testbed.client import BaseStation
from wdmoe_opencompass.testbed.wire import COMPUTE, SERVICE, Sums, check_of_sums, pack

# Sound devices answer before the deadline on a busy machine too; tests that wait for it have a shorter one.
FAULTS = dict(deadline_s=20.0, health_s=0.2, most_backoff_s=0.5, send_padding=True)
STOPPED = FAULTS | dict(deadline_s=3.0)


@contextmanager
def base_station(tiny, lab):
    model, layers = tiny
    with (
        BaseStation(lab, layers) as client,
        Attachment(model, example_policy("top_k"), states_of(model, lab), sender=client) as attached,
    ):
        yield client, attached


def kinds(client, name):
    return [event.kind for event in client.events if event.device == name]


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


def hidden_size(sums):
    return len(sums.sums.values) // 4 // sums.sums.rows


def not_a_number(reply):
    sums = Sums.FromString(reply)
    sums.sums.CopyFrom(pack(torch.full((sums.sums.rows, hidden_size(sums)), float("nan"))))
    return sealed(sums)


def fewer_tokens(reply):
    sums = Sums.FromString(reply)
    sums.sums.CopyFrom(pack(torch.zeros(sums.sums.rows + 1, hidden_size(sums))))
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


FAULT_KINDS = ("kill", "stop", "restart", "corrupt")


def run_with_fault(model_and_layers, devices, fault, chance, answer, groups=GROUPS, passes=20):
    """One run of so many answers in which a random device has a fault at a random moment; it is well again afterwards.

    -> the answers, and what happened to the device
    """
    victim = chance.randrange(len(devices))
    rubbish = Rubbish(devices[victim], chance.choice(list(SPOILS.values())), after=chance.randrange(40))
    shown = [rubbish if fault == "corrupt" and n == victim else one for n, one in enumerate(devices)]
    moment = chance.randrange(1, 3 * passes // 4)
    answers = []
    with base_station(model_and_layers, lab_of(shown, groups, **FAULTS | dict(deadline_s=2.0))) as (client, _):
        for number in range(passes):
            if number == moment:
                strike(devices[victim], fault)
            answers.append(answer())
        if fault == "restart":
            devices[victim].ready()
            until(lambda: "rejoined" in kinds(client, NAMES[victim]))
            answers.append(answer())
        events = kinds(client, NAMES[victim])
    rubbish.stop()
    if fault == "stop":
        devices[victim].process.send_signal(signal.SIGCONT)
    if fault == "kill":
        devices[victim].start()
        devices[victim].ready()
    return answers, events


def strike(device, fault):
    if fault in ("kill", "restart"):
        device.stop()
    if fault == "restart":
        device.start()
    if fault == "stop":
        device.process.send_signal(signal.SIGSTOP)
