import pytest
import yaml

from tests.builders.lab_text import GOOD
from wdmoe_opencompass.errors import TestbedError
from wdmoe_opencompass.testbed.lab_file import Testbed, load_testbed, write_testbed


def changed(device=None, **others):
    data = yaml.safe_load(yaml.safe_dump(GOOD)) | others
    data["devices"][1] |= device or {}
    return data


BAD = {
    "devices[1].address must be HOST:PORT, got 'nowhere'": changed(dict(address="nowhere")),
    "devices[1].address must be HOST:PORT, got '127.0.0.1:99999'": changed(dict(address="127.0.0.1:99999")),
    "devices[1].address: 192.168.1.2:5000: without keys only loopback": changed(dict(address="192.168.1.2:5000")),
    "unknown key devices[1].expert; did you mean devices[1].experts?": changed(dict(expert=[1])),
    "unknown key deadline; did you mean deadline_s?": changed(deadline=3),
    "devices: the name 'a' is used twice": changed(dict(name="a")),
    "devices: the name 'base_station' is reserved": changed(dict(name="base_station")),
    "devices[1].experts must hold at least one entry": changed(dict(experts=[])),
    "devices[1].experts: expert 3 is listed twice": changed(dict(experts=[3, 3])),
    "devices[1].experts[0] must be >= 0, got -1": changed(dict(experts=[-1])),
    "deadline_s must be > 0, got 0": changed(deadline_s=0.0),
    "payload_bits must be one of 4, 8 or 16, got 5": changed(payload_bits=5),
    "message_bytes must be >= 65536, got 10": changed(message_bytes=10),
    "keys: no such folder": changed(keys="nothing"),
    "key devices is missing": {},
}


@pytest.mark.parametrize("sentence", BAD)
def test_bad_lab_file_is_one_sentence(tmp_path, sentence):
    path = tmp_path / "lab.yaml"
    path.write_text(yaml.safe_dump(BAD[sentence]))
    with pytest.raises(TestbedError) as caught:
        load_testbed(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert sentence in str(caught.value)


def test_lab_is_read_back_as_written(tmp_path):
    testbed = Testbed(**GOOD, payload_bits=8)
    write_testbed(tmp_path / "lab.yaml", testbed)
    assert load_testbed(tmp_path / "lab.yaml") == testbed


def test_an_expert_belongs_to_the_first_device_that_holds_it():
    assert Testbed(**GOOD).device_of_expert(5) == [0, 0, -1, 1, -1]
    with pytest.raises(TestbedError, match=r"devices\[1\].experts must be < 3"):
        Testbed(**GOOD).device_of_expert(3)
