"""`wdmoe testbed measure` on live devices."""

import pytest

from tests.conftest import ROOT
from tests.testbed.faults import SPOILS, Rubbish
from tests.testbed.testbeds import make_testbed, servers
from wdmoe_opencompass import load_profile
from wdmoe_opencompass.cli.testbed import main
from wdmoe_opencompass.testbed.lab_file import write_testbed

QUICKSTART = ROOT / "quickstart" / "model"  # large enough that computing grows with the tokens
LIMIT = 20e6  # bit/s of each direction, slow enough that other processes on the cores matter little


@pytest.fixture
def lab_file(saved, tmp_path):
    with servers(saved, rate_bit_per_s=LIMIT) as devices:
        write_testbed(tmp_path / "lab.yaml", make_testbed(devices))
        yield tmp_path / "lab.yaml"


def measure(lab_file, saved, *options):
    words = ["measure", str(lab_file), "--model", str(saved), "--dtype", "float32"]
    words += ["--out", str(lab_file.with_name("measured.yaml")), *options]
    try:
        main(words)
    except SystemExit as ended:
        return ended.code
    return 0


@pytest.mark.slow
def test_probe_of_live_devices_is_a_profile_of_their_rates(tmp_path, capsys):
    lab_file = tmp_path / "lab.yaml"
    with servers(QUICKSTART, rate_bit_per_s=LIMIT) as devices:
        write_testbed(lab_file, make_testbed(devices))
        assert measure(lab_file, QUICKSTART, "--tokens", "8,64,512", "--rounds", "3") == 0
    profile = load_profile(lab_file.with_name("measured.yaml"))
    assert (profile.rates, profile.payload_bits) == ("measured", 32)
    assert profile.device_of_expert(8) == [0, 0, 1, 2, 2, 3, -1, -1]  # as in the lab file; 6 and 7 at the base station
    for device in profile.devices:
        assert 0.5 * LIMIT < device.downlink_bit_per_s < 1.5 * LIMIT
        assert 0.5 * LIMIT < device.uplink_bit_per_s < 1.5 * LIMIT
        assert device.compute_flops > 0
    assert "for each further message" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--tokens", "8,none"), "--tokens must be whole numbers >= 1 like 1,16,256, got '8,none'"),
        (("--tokens", "8,0"), "--tokens must be whole numbers >= 1"),
        (("--tokens", "8,9000000"), "a message of 9000000 tokens is longer than message_bytes allows"),
        (("--tokens", "8", "--rounds", "1"), "messages of at least 2 sizes are needed"),
        (("--profile", "paper_8_devices"), "devices must be as many as in channel profile paper_8_devices (8), got 4"),
    ],
)
def test_bad_options_are_one_sentence(lab_file, saved, capsys, options, sentence):
    assert measure(lab_file, saved, *options) == 2
    assert sentence in capsys.readouterr().err
    assert not lab_file.with_name("measured.yaml").exists()


def test_device_that_does_not_answer_is_named(saved, tmp_path, capsys):
    with servers(saved) as devices:
        rubbish = Rubbish(devices[1], SPOILS["torn"])
        write_testbed(tmp_path / "lab.yaml", make_testbed([devices[0], rubbish, *devices[2:]]))
        assert measure(tmp_path / "lab.yaml", saved) == 2
        rubbish.stop()
    assert "error: b does not answer: the reply cannot be read" in capsys.readouterr().err
