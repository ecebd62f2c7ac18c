"""A testbed on one machine: rates, namespaces, and that nothing is left of it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.testbed.faults import base_station
from tests.testbed.testbeds import GROUPS, make_testbed, servers
from tests.waiting import PATIENCE_S, until
from wdmoe_opencompass.errors import TestbedError
from wdmoe_opencompass.testbed.lab_file import load_testbed
from wdmoe_opencompass.testbed.local_testbed import namespaces_problem, spread

PROBLEM = namespaces_problem()
SLOW, FAST = 2.0, 200.0  # Mbit/s
# Of the seconds that the bits of hidden states take at the given rate: 1.6 kB of 16 kB may go at once (tbf's burst);
# pairs, headers, TLS and acknowledgements go too.
LEAST, MOST = 0.7, 2.0


def up(saved, lab_file, *options):
    command = [sys.executable, "-m", "wdmoe_opencompass.cli.testbed", "up", "--model", str(saved), "--lab"]
    command += [str(lab_file), "--dtype", "float32", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def seconds_per_bit(tiny, testbed):
    """-> least seconds under way per bit of hidden states there and back, for each device; the logits are right.

    Whatever else the machine does only adds to them.
    """
    model = tiny[0]
    ids = torch.randint(3, 97, (4, 250), generator=torch.Generator().manual_seed(0))
    expected = model(input_ids=ids).logits
    with base_station(tiny, testbed) as (station, _):
        for _ in range(3):
            assert torch.equal(model(input_ids=ids).logits, expected)
        assert not station.events
        times = station.take_times()
    bits = 2 * 8 * 4 * model.config.hidden_size
    return [
        min(
            (message.send_s + message.return_s) / (bits * message.tokens)
            for message in times
            if message.device == number
        )
        for number in range(len(testbed.devices))
    ]


def test_device_itself_can_limit_its_rate(saved, tiny):
    with servers(saved, GROUPS[:1], rate_bit_per_s=SLOW * 1e6) as devices:
        testbed = make_testbed(devices, GROUPS[:1], send_padding=True)
        (slow,) = seconds_per_bit(tiny, testbed)
    assert 1 <= slow * SLOW * 1e6 < MOST


@pytest.mark.slow
@pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))
def test_lab_in_namespaces_has_its_rates_and_leaves_nothing(saved, tiny, tmp_path):
    lab_file = tmp_path / "lab.yaml"
    process = up(saved, lab_file, "--devices", "2", "--rate", f"{FAST},{SLOW}", "--send-padding")
    try:
        until(lab_file.exists)
        assert f"{process.pid}-1" in subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout
        testbed = load_testbed(lab_file)
        assert [device.address.split(".")[0] for device in testbed.devices] == ["10", "10"]
        fast, slow = seconds_per_bit(tiny, testbed)
        assert LEAST <= slow * SLOW * 1e6 < MOST
        assert slow > 4 * fast
    finally:
        process.send_signal(signal.SIGTERM)
        output = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == 0, output
    assert "tc tbf" in output
    assert not lab_file.exists()
    until(lambda: f"-{process.pid}-" not in subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout)


@pytest.mark.slow
def test_lab_without_root_limits_rates_in_the_devices_and_ends_with_its_command(saved, tmp_path):
    lab_file = tmp_path / "lab.yaml"
    process = up(saved, lab_file, "--devices", "2", "--rate", "100", "--no-namespaces", "--", "cat", str(lab_file))
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    assert "rates limited in the devices" in output
    assert "address: 127.0.0.1:" in output
    assert not lab_file.exists()


@pytest.mark.slow
def test_devices_die_with_a_killed_testbed(saved, tmp_path):
    lab_file = tmp_path / "lab.yaml"
    process = up(saved, lab_file, "--devices", "1", "--no-namespaces")
    until(lab_file.exists)
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    pids = [int(pid) for pid in children.stdout.split()]
    assert pids
    process.kill()
    process.communicate()
    until(lambda: not any(runs(pid) for pid in pids))


def runs(pid):
    """Whether a process is there, and not only waiting to be forgotten."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_devices_are_spread():
    devices = spread(3, [100.0], "0,1;2;3")
    assert [(device.name, device.experts, device.rate) for device in devices] == [
        ("device_0", (0, 1), 100.0),
        ("device_1", (2,), 100.0),
        ("device_2", (3,), 100.0),
    ]
    assert [device.rate for device in spread(2, [])] == [None, None]
    with pytest.raises(TestbedError, match="one number for all devices, or 3"):
        spread(3, [1.0, 2.0])
    with pytest.raises(TestbedError, match="--experts names 1 devices"):
        spread(2, [], "0,1")
