"""What a device refuses: peers without the right key, and messages that are not what they should be."""

import logging
import random
import subprocess
import sys
import threading
import zlib

import grpc
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders.testbed_models import logits
from tests.examples import FACTOR
from tests.testbed.faults import base_station
from tests.testbed.labs import GROUPS, lab_of, servers
from tests.waiting import PATIENCE_S
from wdmoe_opencompass.errors import LabError
from wdmoe_opencompass.routing.payload import Payload
from wdmoe_opencompass.testbed import wire
from wdmoe_opencompass.testbed.client import BaseStation
from wdmoe_opencompass.testbed.device import DeviceServer, used_bytes
from wdmoe_opencompass.testbed.experts import load_experts
from wdmoe_opencompass.testbed.keys import make_keys
from wdmoe_opencompass.testbed.lab import Lab
from wdmoe_opencompass.testbed.wire import COMPUTE, HELLO, PING, Nothing, Tokens, check_of_tokens, pack, raw, unpack

HIDDEN = 32
LIMIT = 1 << 16
FUZZED = 1000 * FACTOR
GROWTH_BYTES = 8 << 20  # the allocator's own ups and downs; 800 messages of 50 kB kept would be 40 MB


@pytest.fixture(scope="module")
def device(saved):
    with servers(saved, ((0, 2),), message_bytes=LIMIT) as (one,):
        yield one


def call(device, content, method=COMPUTE, timeout=PATIENCE_S):
    """-> status name, details or the reply."""
    with grpc.insecure_channel(f"127.0.0.1:{device.port}") as channel:
        try:
            return "OK", channel.unary_unary(method)(content, timeout=timeout)
        except grpc.RpcError as error:
            return error.code().name, error.details()


def tokens(**changes):
    """A good message of three tokens for experts 0 and 2, but for the changes."""
    hidden = torch.linspace(-1, 1, 3 * HIDDEN).view(3, HIDDEN)
    good = dict(
        number=1,
        layer=0,
        hidden=pack(hidden),
        pair_token=raw(torch.tensor([0, 1, 1, 2], dtype=torch.int32)),
        pair_expert=raw(torch.tensor([0, 0, 2, 2], dtype=torch.int32)),
        pair_weight=raw(torch.tensor([0.5, 0.25, 0.75, 1.0])),
        weight_dtype="float32",
    )
    message = Tokens(**good | changes)
    message.check = changes.get("check", check_of_tokens(message))
    return message.SerializeToString()


def numbers(*values):
    return raw(torch.tensor(values, dtype=torch.int32))


def vectors(**changes):
    message = pack(torch.ones(3, HIDDEN))
    for name, value in changes.items():
        setattr(message, name, value)
    message.crc32 = changes.get("crc32", zlib.crc32(message.scale, zlib.crc32(message.values)))
    return message


BAD = {
    "layer must be < 3, got 3": dict(layer=3),
    "dtype must be float32, got 'float16'": dict(hidden=pack(torch.ones(3, HIDDEN).half())),
    "dtype must be float32, got 'int8'": dict(hidden=vectors(dtype="int8")),
    "3 rows of 32 values need 384 bytes": dict(hidden=pack(torch.ones(3, HIDDEN + 1))),
    "2 rows of 32 values need 256 bytes": dict(hidden=vectors(rows=2)),
    "0 rows of 32 values": dict(hidden=vectors(rows=0, values=b"")),
    "4294967295 rows of 32 values need": dict(hidden=vectors(rows=(1 << 32) - 1)),
    "bits must be 0, 4, 8 or 16, got 5": dict(hidden=vectors(bits=5)),
    "the checksum is wrong": dict(hidden=vectors(crc32=5)),
    "values must be finite": dict(hidden=pack(torch.full((3, HIDDEN), float("inf")))),
    "a token must be one of the 3 sent": dict(pair_token=numbers(0, 1, 1, 3)),
    "expert 1 is not held here": dict(pair_expert=numbers(0, 0, 1, 2)),
    "3 tokens, 4 experts and 4 weights do not fit": dict(pair_token=numbers(0, 1, 1)),
    "0 tokens, 0 experts and 0 weights": dict(pair_token=b"", pair_expert=b"", pair_weight=b""),
    "15 bytes are no whole number of values": dict(pair_token=b"x" * 15),
    "weights must be finite": dict(pair_weight=raw(torch.tensor([0.5, float("nan"), 1.0, 1.0]))),
    "weight_dtype must be one of": dict(weight_dtype="pickle"),
    "the same expert twice": dict(pair_expert=numbers(0, 2, 2, 2)),
    "sums_bits must be": dict(sums_bits=3),
    "the checksum is wrong: bytes": dict(check=5),
}


@pytest.mark.parametrize("sentence", BAD)
def test_message_that_does_not_fit_is_refused_with_a_logged_sentence(device, caplog, sentence):
    with caplog.at_level(logging.WARNING):
        status, details = call(device, tokens(**BAD[sentence]))
    assert status == "INVALID_ARGUMENT"
    assert sentence in details
    assert sentence in caplog.text
    assert call(device, tokens())[0] == "OK"


def test_oversized_truncated_and_endless_messages_are_refused(device, caplog):
    with caplog.at_level(logging.WARNING):
        status, _ = call(device, b"x" * (LIMIT + 1))
        assert status in ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT")
        assert "no whole message came" in caplog.text
        assert call(device, tokens()[:-20])[0] == "INVALID_ARGUMENT"
        assert call(device, tokens(), timeout=None) == (
            "INVALID_ARGUMENT",
            "a call needs a deadline of at most 600 s",
        )
        assert call(device, b"junk", PING)[0] == "INVALID_ARGUMENT"
        assert call(device, b"", "/wdmoe.testbed.Experts/Other")[0] == "UNIMPLEMENTED"
    assert call(device, tokens())[0] == "OK"


def test_full_queue_refuses_and_goes_on(saved):
    with servers(saved, ((0, 2),), workers=1, waiting=1) as (one,):
        one._computing.acquire()
        try:
            answers = []
            threads = [threading.Thread(target=lambda: answers.append(call(one, tokens())[0])) for _ in range(12)]
            for thread in threads:
                thread.start()
            while not answers.count("RESOURCE_EXHAUSTED"):
                assert any(thread.is_alive() for thread in threads)
        finally:
            one._computing.release()
        for thread in threads:
            thread.join()
        assert set(answers) == {"OK", "RESOURCE_EXHAUSTED"}
        assert call(one, tokens())[0] == "OK"


def fuzzed(chance, good):
    """One message that differs from a good one, or is none at all."""
    kind = chance.randrange(5)
    if kind == 0:
        return chance.randbytes(chance.randrange(400))
    if kind == 1:
        return good[: chance.randrange(len(good))]
    if kind == 2:
        return good + chance.randbytes(chance.randrange(1, 50))
    content = bytearray(good)
    for _ in range(1 if kind == 3 else chance.randrange(2, 30)):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(content)


def many_tokens():
    """A good message of some 50 kB."""
    count = 350
    return tokens(
        hidden=pack(torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(0))),
        pair_token=raw(torch.arange(count, dtype=torch.int32)),
        pair_expert=raw(torch.full((count,), 2, dtype=torch.int32)),
        pair_weight=raw(torch.ones(count)),
    )


def test_a_thousand_fuzzed_messages_crash_nothing_and_leave_nothing(device):
    chance, good = random.Random(0), many_tokens()
    expected = wire.Sums.FromString(call(device, good)[1]).sums.values
    answered, grown, statuses = 0, 0, set()
    with grpc.insecure_channel(f"127.0.0.1:{device.port}") as channel:
        for number in range(FUZZED):
            method = chance.choice((COMPUTE, COMPUTE, COMPUTE, PING, HELLO))
            try:
                reply = channel.unary_unary(method)(fuzzed(chance, good), timeout=PATIENCE_S)
                if method == COMPUTE:  # what was changed has no meaning: a field that nobody knows, say
                    assert wire.Sums.FromString(reply).sums.values == expected
                    answered += 1
            except grpc.RpcError as error:
                statuses.add(error.code().name)
            if number == FUZZED // 5:
                grown = -used_bytes("cpu")
        grown += used_bytes("cpu")
        assert wire.Sums.FromString(channel.unary_unary(COMPUTE)(good, timeout=PATIENCE_S)).sums.values == expected
    assert statuses == {"INVALID_ARGUMENT"}
    assert answered < FUZZED / 10
    assert grown < GROWTH_BYTES


# -- what travels ----------------------------------------------------------------------------------------------------
@given(
    rows=st.integers(1, 6),
    values=st.integers(1, 9),
    bits=st.sampled_from([None, 4, 8, 16]),
    dtype=st.sampled_from(list(wire.DTYPES.values())),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_packed_vectors_arrive_as_the_payload_rounds_them(rows, values, bits, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    sent = torch.randn(rows, values, generator=generator).to(dtype) * 10 ** (seed % 7 - 3)
    sent[seed % rows] *= seed % 2  # a row of zeros now and then
    message = pack(sent, bits)
    expected = sent if bits is None else Payload(bits, torch.empty(0)).rounded(sent)
    assert torch.equal(unpack(message, values, dtype), expected)
    if bits is not None and torch.finfo(dtype).bits > bits:
        assert len(message.values) == rows * ((values * bits + 7) // 8)


# -- peers -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    make_keys(folder / "good", ["a", "b"])
    make_keys(folder / "other", ["a", "b"])
    return folder


def secured(saved, keys, name="a"):
    one = DeviceServer(load_experts(saved, GROUPS[0], "float32"), "127.0.0.1:0", keys, name)
    one.start()
    return one


def secured_lab(device, keys, **settings):
    entry = dict(name="a", address=f"127.0.0.1:{device.port}", experts=list(GROUPS[0]))
    return Lab(devices=[entry], keys=str(keys), **(dict(connect_s=1.5) | settings))


def test_right_keys_let_both_sides_in(saved, tiny, keys):
    expected = logits(tiny[0])
    device = secured(saved, keys / "good")
    lab = secured_lab(device, keys / "good", send_padding=True, connect_s=10.0)
    with base_station(tiny, lab) as (client, _):
        assert torch.equal(logits(tiny[0]), expected)
        assert len(client.times) == 3
    device.stop(0)


def refused(device, lab, layers):
    with pytest.raises(LabError, match="no device of the lab answers"):
        BaseStation(lab, layers)
    device.stop(0)


def test_keys_of_another_authority_are_refused(saved, tiny, keys):
    device = secured(saved, keys / "good")
    refused(device, secured_lab(device, keys / "other"), tiny[1])


def test_without_a_key_nobody_gets_in(saved, tiny, keys):
    device = secured(saved, keys / "good")
    lab = lab_of([device], GROUPS[:1], connect_s=1.5)
    refused(device, lab, tiny[1])


def test_device_without_keys_is_not_trusted(saved, tiny, keys):
    device = DeviceServer(load_experts(saved, GROUPS[0], "float32"), "127.0.0.1:0")
    device.start()
    refused(device, secured_lab(device, keys / "good"), tiny[1])


def test_device_cannot_pass_for_another(saved, tiny, keys):
    device = secured(saved, keys / "good", name="b")
    refused(device, secured_lab(device, keys / "good"), tiny[1])


def test_device_key_does_not_let_one_call_another_device(saved, keys):
    device = secured(saved, keys / "good")
    folder = keys / "good"
    credentials = grpc.ssl_channel_credentials(
        (folder / "ca.pem").read_bytes(), (folder / "b.key").read_bytes(), (folder / "b.pem").read_bytes()
    )
    options = [("grpc.ssl_target_name_override", "a")]
    with grpc.secure_channel(f"127.0.0.1:{device.port}", credentials, options) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(HELLO)(Nothing().SerializeToString(), timeout=PATIENCE_S)
        assert caught.value.code().name in ("UNAVAILABLE", "PERMISSION_DENIED")
    device.stop(0)


def test_expired_keys_are_refused_by_either_side(saved, tiny, keys, tmp_path):
    import shutil

    shutil.copytree(keys / "good", tmp_path / "expired")
    make_keys(tmp_path / "expired", ["a"], days=-1)  # by the same authority
    with pytest.raises(LabError, match="valid from"):
        secured(saved, tmp_path / "expired")
    device = secured(saved, keys / "good")
    folder = tmp_path / "expired"
    credentials = grpc.ssl_channel_credentials(
        (folder / "ca.pem").read_bytes(),
        (folder / "base_station.key").read_bytes(),
        (folder / "base_station.pem").read_bytes(),
    )
    with grpc.secure_channel(
        f"127.0.0.1:{device.port}", credentials, [("grpc.ssl_target_name_override", "a")]
    ) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(HELLO)(Nothing().SerializeToString(), timeout=PATIENCE_S)
        assert caught.value.code().name == "UNAVAILABLE"
    device.stop(0)


def test_without_keys_only_loopback(saved):
    with pytest.raises(LabError, match="without keys only loopback"):
        DeviceServer(load_experts(saved, GROUPS[0], "float32"), "0.0.0.0:0")


def test_keys_command_writes_private_files(tmp_path):
    folder = tmp_path / "keys"
    command = [sys.executable, "-m", "wdmoe_opencompass.cli.testbed", "keys", str(folder), "--devices", "a,b"]
    subprocess.run(command, check=True, capture_output=True)
    assert {path.name for path in folder.iterdir()} == {
        f"{name}.{kind}" for name in ("ca", "base_station", "a", "b") for kind in ("pem", "key")
    }
    assert all(path.stat().st_mode & 0o77 == 0 for path in folder.glob("*.key"))
    authority = (folder / "ca.pem").read_bytes()
    make_keys(folder, ["c"])
    assert (folder / "ca.pem").read_bytes() == authority
