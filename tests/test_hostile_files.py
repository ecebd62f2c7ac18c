"""Profiles, labs, recordings and calibrations as a stranger might send them: one sentence each, and no harm."""

import json
import os
import time
import tracemalloc

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save
from safetensors.torch import save_file

from tests import fuzz
from tests.builders.lab_text import GOOD as LAB
from tests.builders.profile_text import GOOD
from tests.builders.trace_blocks import block, metadata
from tests.routing.recordings import run_recording
from tests.testbed.synthetic import measured_times
from wdmoe_opencompass import load_profile
from wdmoe_opencompass._util import safe_yaml
from wdmoe_opencompass._util.bounded_read import read_regular
from wdmoe_opencompass.channel.profile import changed_profile
from wdmoe_opencompass.errors import (
    OtherVersionError,
    PolicyError,
    ProfileError,
    TestbedError,
    TraceError,
    WdmoeError,
    show,
    unknown_name,
)
from wdmoe_opencompass.selection.calibration import Calibration, read_calibration
from wdmoe_opencompass.testbed.lab_file import load_testbed
from wdmoe_opencompass.trace import format as traces
from wdmoe_opencompass.trace.format import METADATA_KEY, Journal, join, read_trace, write_trace
from wdmoe_opencompass.trace.recording import METADATA_KEY as RECORDING_KEY
from wdmoe_opencompass.trace.recording import read_recording, write_recording
from wdmoe_opencompass.trace.times import METADATA_KEY as TIMES_KEY
from wdmoe_opencompass.trace.times import read_times, write_times

TEXT = yaml.safe_dump(GOOD)
READERS = {"profile": (load_profile, ProfileError), "lab": (load_testbed, TestbedError)}
OTHERS = {
    "trace": read_trace,
    "times": read_times,
    "recording": read_recording,
    "calibration": lambda path: read_calibration(str(path)),
}
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def refused(path, content, read=load_profile, kind=ProfileError):
    """-> the sentence that a file of this content gets."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(kind) as caught:
        read(path)
    sentence = str(caught.value)
    assert type(caught.value) in (kind, OtherVersionError)
    assert sentence.startswith((f"{path}", f"calibration {path}"))
    assert "\n" not in sentence
    assert len(sentence) < 1500
    return sentence


# What YAML can do and we do not take

NO_YAML = {
    "must be a mapping of keys to values, got nothing": ["", "\n\n# nothing\n", "---\n", "~"],
    "must be a mapping of keys to values, got list": ["- 1\n- 2\n"],
    "must be a mapping of keys to values, got str": ["just words"],
    "line 1: anchors and aliases (& and *) are not read, got 'a'; write the value again": ["x: &a 1\ny: *a\n", "x: *a"],
    "line 2: anchors and aliases": ["a: 1\nc: *b\n", "a:\n  - *b\n"],
    "line 2: '<<' is a sign of YAML, not a value; put it in quotes if it is meant": ["a: 1\n<<: {b: 1}\n"],
    "line 1: '=' is a sign of YAML, not a value": ["a: =\n"],
    "line 1: tags (!) are not read, got '!x'": ["x: !x 1\n"],
    "line 1: tags (!) are not read, got 'tag:yaml.org,2002:python/object/apply:os.system'": [
        "x: !!python/object/apply:os.system ['touch owned']\n"
    ],
    "line 1: tags (!) are not read": ["x: !!binary aGk=\n", "!!map {}\n", "x: ! y\n", "x: !!str 5\n"],
    "directives (lines that begin with %) are not read": ["%YAML 1.1\n---\na: 1\n", "%TAG !a! b\n---\na: 1\n"],
    "line 2: a second document begins; only one is read": ["a: 1\n--- \nb: 2\n"],
    "line 1: must be nested at most 20 deep": ["a: " + "[" * 22 + "]" * 22, "[" * 1_000_000, "{a: " * 1_000_000],
    "line 2: duplicate key 'a'": ["a: 1\na: 2\n", "a: 1\n'a': 2\n"],
    "line 3: duplicate key 'b'": ["a:\n  b: 1\n  b: 2\n"],
    "line 1: duplicate key 1": ["a: {1: a, +1: b}\n"],
    "line 1: a key of a must be in decimal notation, or in quotes, got '0x1', which is hexadecimal; write 1": [
        "a: {1: a, 0x1: b}\n"
    ],
    "line 1: a key must be one value, got a list": ["? [a]\n: 1\n", "{[1]: 2}"],
    "line 1: a must be in decimal notation, or in quotes, got '2001-13-45', which is a date": ["a: 2001-13-45\n"],
    "line 1: a must be in decimal notation, or in quotes, got '0b_', which is binary": ["a: 0b_\n"],
    "(805 characters), which is a number to base 60 to some readers": ["a: " + "1:" * 400 + "1.5"],
    "a value must have at most 4096 characters, got 5000": ["a: " + "9" * 5000, "a: " + "b" * 5000, "b" * 5000 + ": 1"],
    "not a readable YAML file: not UTF-8 at byte 3": [b"a: \xff\xfe\n"],
    "not a readable YAML file: it holds a zero byte": [b"a: \0\n", "a: 1\n".encode("utf-16"), bytes(1000)],
    "not a readable YAML file: line ": ["a: [1", "a: b: c", "\tx: 1", "a: '", "a: |x\n  b", 'a: "\\ud800"\n'],
    "not a readable YAML file": ["a: \x07\n", "\ufffe", 'a: "\\Uffffffff"\n'],
    "must hold at most 5000 keys and values": ["a: [\n" + "1," * 5000 + "]", "a:\n" + "- {}\n" * 6000],
    "must hold at most 4194304 bytes, got 4194305": [b"#" * ((4 << 20) + 1)],
}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("sentence", NO_YAML)
def test_yaml_that_is_more_than_plain_values_is_refused_in_a_sentence(tmp_path, monkeypatch, sentence, kind):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(safe_yaml, "MAX_VALUES", 5000)
    for content in NO_YAML[sentence]:
        start = time.process_time()
        assert sentence in refused(tmp_path / "x.yaml", content, *READERS[kind])
        assert time.process_time() - start < 5
    assert not (tmp_path / "owned").exists()


def test_the_loader_without_libyaml_says_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(safe_yaml, "LOADER", yaml.SafeLoader)
    for sentence, contents in NO_YAML.items():
        for content in contents:
            if len(content) < 10_000 and not sentence.endswith("line ") and content != 'a: "\\ud800"\n':
                assert sentence in refused(tmp_path / "x.yaml", content)
    (tmp_path / "y.yaml").write_text(TEXT)
    assert load_profile(tmp_path / "y.yaml").content_hash == load_profile_with_c(tmp_path / "y.yaml", monkeypatch)


def load_profile_with_c(path, monkeypatch):
    monkeypatch.undo()
    return load_profile(path).content_hash


def test_a_byte_order_mark_and_line_ends_of_windows_are_no_harm(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    (tmp_path / "b.yaml").write_text(TEXT)
    assert load_profile(tmp_path / "a.yaml").content_hash == load_profile(tmp_path / "b.yaml").content_hash


@pytest.mark.parametrize("kind", [*READERS, *OTHERS])
def test_only_regular_files_are_read(tmp_path, kind):
    read, error = READERS.get(kind) or (OTHERS[kind], PolicyError if kind == "calibration" else TraceError)
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "nowhere.yaml").symlink_to(tmp_path / "gone")
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    (tmp_path / "secret.yaml").write_text("a: 1")
    for name in ("pipe", "folder", "zero", "nowhere", "loop"):
        with pytest.raises(error, match=f"{name}.yaml: cannot be read: "):
            read(tmp_path / f"{name}.yaml")
    for path in ("a\0b.yaml", "x" * 5000 + ".yaml"):
        with pytest.raises(error):
            read(path)


# Values

HUGE = "1" + "0" * 400
NO_VALUES = {
    "distance_m must be in decimal notation, or in quotes, got '.inf', which is no finite number": [".inf"],
    "distance_m must be a finite number, got '1.0e+999'": ["1.0e+999"],
    "distance_m must be a finite number, got '1e999'": ["1e999"],
    "distance_m must be": [".nan", HUGE, "0x" + "f" * 4000, "2001-12-14", "true", "~", "[]", "{}", "'='", "''"],
    "distance_m must be > 0, got -0.0": ["-0.0"],
    "distance_m must be > 0, got 0": ["0"],
    "distance_m must be a number that is not too small, got '1.0e-400'": ["1.0e-400"],
}


@pytest.mark.parametrize("sentence", NO_VALUES)
def test_numbers_that_are_none_are_refused_in_a_sentence(tmp_path, sentence):
    for text in NO_VALUES[sentence]:
        said = refused(tmp_path / "x.yaml", TEXT.replace("distance_m: 10.0", f"distance_m: {text}", 1))
        assert f"devices[0].{sentence}" in said
        assert len(said) < 400


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(noise_psd_dbm_per_hz=1e300), "noise_psd_dbm_per_hz must be between -250 and -50 dBm/Hz, got 1e+300"),
        (dict(noise_psd_dbm_per_hz=-1e300), "noise_psd_dbm_per_hz must be between -250 and -50 dBm/Hz, got -1e+300"),
        (
            dict(fading=dict(model="none", seed=10**30)),
            "fading.seed must be <= 1e+18, got 1000000000000000000000000000",
        ),
        (dict(fading=dict(model="none", seed=-1)), "fading.seed must be >= 0, got -1"),
        (dict(fading=[]), "fading must be a mapping, got []"),
        (dict(payload_bits=65), "payload_bits must be <= 64, got 65"),
        (dict(payload_bits=10**400), "payload_bits must be"),
        (dict(placement=dict(experts={10**9: "d0"})), "must be < 1e+06, got 1000000000"),
        (dict(placement=dict(experts={-1: "d0"})), "must be >= 0, got -1"),
        (dict(placement=dict(experts={1: "d0", "1": "d1"})), "placement.experts names an expert twice"),
        (
            dict(placement=dict(experts={1: "d" * 3000})),
            "(3002 characters) is unknown; known: base_station, d0, d1, d2",
        ),
        (dict(placement=dict(experts=["d0"])), "placement.experts must be"),
        ({"x" * 3000: 1}, "unknown key 'xxxxxx"),
        ({"\x1b[31m": 1}, r"unknown key '\x1b[31m'"),
        ({5: 1}, "unknown key 5"),
        ({True: 1}, "unknown key True"),
        (dict(name="x"), "unknown key name; a profile is named by its file"),
    ],
)
def test_hostile_values_get_one_sentence(tmp_path, changes, sentence):
    assert sentence in refused(tmp_path / "x.yaml", yaml.safe_dump(GOOD | changes))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("n" * 201, "devices[1].name must have at most 200 characters, got 201"),
        ("\x07", r"devices[1].name must hold only printable characters, got '\x07'"),
        ("a\nb", r"devices[1].name must hold only printable characters, got 'a\nb'"),
        ("\u202egnp", r"devices[1].name must hold only printable characters, got '\u202egnp'"),
        ("", "devices[1].name must hold at least one entry"),
        (5, "devices[1].name must be a valid string, got 5"),
    ],
)
@pytest.mark.parametrize("kind", READERS)
def test_hostile_names_get_one_sentence(tmp_path, name, sentence, kind):
    data = yaml.safe_load(yaml.safe_dump(GOOD if kind == "profile" else LAB))
    data["devices"][1]["name"] = name
    said = refused(tmp_path / "x.yaml", yaml.safe_dump(data), *READERS[kind])
    assert sentence in said or (kind == "lab" and "devices[1].name" in said)


def test_a_negative_zero_is_read_as_zero(tmp_path):
    source = next(source for source in fuzz.profile_sources() if b"message_s" in source)
    for name, zero in (("a", b"0.0"), ("b", b"-0.0")):
        (tmp_path / f"{name}.yaml").write_bytes(source.replace(b"message_s: 0.0002", b"message_s: " + zero))
    a, b = (load_profile(tmp_path / f"{name}.yaml") for name in "ab")
    assert a.content_hash == b.content_hash


def test_the_name_of_a_profile_is_no_path():
    profile = load_profile("paper_8_devices")
    with pytest.raises(ProfileError, match="name must hold no /"):
        changed_profile(profile.model_copy(update=dict(name="../../x")), "payload_bits", 8)


def test_ten_thousand_devices_are_read_in_seconds(tmp_path):
    device = "- {{name: device_number_{0}, distance_m: 10.0, transmit_power_w: 0.2, compute_flops: 1.0e+12}}\n"
    head = yaml.safe_dump({key: value for key, value in GOOD.items() if key != "devices"})
    devices = "".join(device.format(k) for k in range(10_000))
    placed = "placement: {experts: {" + ", ".join(f"{k}: device_number_{k}" for k in range(10_000)) + "}}\n"
    (tmp_path / "x.yaml").write_text(head + placed + "devices:\n" + devices)
    start = time.process_time()
    assert len(load_profile(tmp_path / "x.yaml").devices) == 10_000
    assert time.process_time() - start < 5
    twice = devices + device.format(9_999)
    assert "the name 'device_number_9999' is used twice" in refused(tmp_path / "x.yaml", head + "devices:\n" + twice)
    unknown = placed.replace("9999: device_number_9999", "9999: devise_number_9999")
    said = refused(tmp_path / "x.yaml", head + unknown + "devices:\n" + devices)
    assert "and 9981 more" in said


def test_ten_thousand_devices_of_a_lab_are_read_in_seconds(tmp_path):
    device = "- {{name: d{0}, address: '127.0.0.1:{1}', experts: [{0}, {2}]}}\n"
    text = "devices:\n" + "".join(device.format(k, 1 + k, k + 20_000) for k in range(10_000))
    (tmp_path / "x.yaml").write_text(text)
    start = time.process_time()
    assert len(load_testbed(tmp_path / "x.yaml").devices) == 10_000
    many = "devices: [{name: a, address: '127.0.0.1:1', experts: [" + ", ".join(map(str, range(300_000))) + ", 7]}]"
    assert "expert 7 is listed twice" in refused(tmp_path / "x.yaml", many, load_testbed, TestbedError)
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(address="127.0.0.1:²"), "devices[0].address must be HOST:PORT, got '127.0.0.1:²'"),
        (dict(address="127.0.0.1:" + "9" * 5000), "a value must have at most 4096"),
        (dict(address="127.0.0.1:" + "9" * 280), "devices[0].address must be HOST:PORT, got"),
        (dict(address="a" * 400 + ":1"), "devices[0].address must have at most 300 characters, got 402"),
        (dict(address="\x07:1"), "devices[0].address must hold only printable characters"),
        (dict(experts=[10**12]), "devices[0].experts[0] must be < 1e+06, got 1000000000000"),
        (dict(experts=[True]), "devices[0].experts[0] must be a whole number, got True"),
        (dict(experts=[0.0]), "devices[0].experts[0] must be a whole number, got 0.0"),
    ],
)
def test_hostile_values_of_a_lab_get_one_sentence(tmp_path, changes, sentence):
    data = yaml.safe_load(yaml.safe_dump(LAB))
    data["devices"][0] |= changes
    assert sentence in refused(
        tmp_path / "x.yaml", yaml.safe_dump(data, allow_unicode=True), load_testbed, TestbedError
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(deadline_s=1e300), "deadline_s must be <= 1e+06, got 1e+300"),
        (dict(keys="x" * 4000), "keys: no such folder"),
        (dict(keys="\x07"), "keys must hold only printable characters"),
        (dict(keys=5), "keys must be a valid string, got 5"),
    ],
)
def test_hostile_settings_of_a_lab_get_one_sentence(tmp_path, changes, sentence):
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(LAB | changes))
    with pytest.raises(TestbedError) as caught:
        load_testbed(path)
    assert sentence in str(caught.value)


def test_sentences_stay_short_whatever_they_show():
    assert show(16**5000) == "a number of thousands of digits"
    assert show("x" * 999).endswith("... (1001 characters)")
    assert len(unknown_name("device", "y" * 10**6, (f"d{k}" for k in range(10**5)))) < 500


# Recordings


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_trace(folder / "trace", join(metadata(), [block(0), block(4, seed=1)]))
    write_times(folder / "times", measured_times(batches=2))
    write_recording(folder / "recording", run_recording())
    keys = dict(trace=METADATA_KEY, times=TIMES_KEY, recording=RECORDING_KEY)
    return {name: ((folder / name).read_bytes(), keys[name], OTHERS[name]) for name in keys}


@pytest.mark.parametrize("name", ["trace", "times", "recording"])
def test_a_changed_byte_anywhere_in_a_sealed_file_is_noticed(tmp_path, files, name):
    content, _, read = files[name]
    path = tmp_path / "x"
    for at in np.linspace(0, len(content) - 1, 300).astype(int):
        changed = bytearray(content)
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(TraceError, match=str(path)):
            read(path)


@pytest.mark.parametrize("name", ["trace", "times", "recording"])
def test_an_older_file_is_told_its_version_before_anything_else(tmp_path, files, name):
    content, key, read = files[name]
    header, data = fuzz.header_and_data(content)
    about = json.loads(header["__metadata__"][key])
    older = about["format_version"] - 2  # the version before is read
    header["__metadata__"] = {key: json.dumps(about | dict(format_version=older))}
    said = refused(tmp_path / "x", fuzz.sealed(fuzz.json_bytes(header), data), read, TraceError)
    assert f"format_version must be {about['format_version']}, got {older}; run the" in said


def with_array(content, change):
    header, _ = fuzz.header_and_data(content)
    arrays = {name: np.array(array) for name, array in load(content).items()}
    change(arrays)
    blob = save(arrays, metadata=header["__metadata__"])
    length = int.from_bytes(blob[:8], "little")
    return fuzz.sealed(blob[8 : 8 + length], blob[8 + length :])


def with_about(content, key, **changes):
    header, data = fuzz.header_and_data(content)
    header["__metadata__"][key] = json.dumps(json.loads(header["__metadata__"][key]) | changes)
    return fuzz.sealed(fuzz.json_bytes(header), data)


NO_COUNTS = ["device_load", "device_load_before", "expert_evaluations", "assignments", "tokens", "items", "first_item"]
NO_COUNTS += ["co_selection", "ratio_counts", "pass_index", "batch", "item_passes"]


@pytest.mark.parametrize("array", NO_COUNTS)
def test_counts_below_zero_are_refused(tmp_path, files, array):
    def negative(arrays):
        arrays[array].reshape(-1)[-1] = -7

    said = refused(tmp_path / "x", with_array(files["trace"][0], negative), read_trace, TraceError)
    assert f"array {array} must be >= 0 throughout, got -7" in said


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("array", ["weight_sum", "weight_sum_before"])
def test_weights_that_are_no_weights_are_refused(tmp_path, files, array, value):
    def bad(arrays):
        arrays[array][0, 0, 0] = value

    said = refused(tmp_path / "x", with_array(files["trace"][0], bad), read_trace, TraceError)
    assert f"array {array} must be finite and >= 0 throughout" in said


def test_batches_ascend_and_are_there(tmp_path, files):
    for batch in ([0, 1, 0, 1], [0, 0, 1, 2]):
        content = with_array(files["trace"][0], lambda arrays, b=batch: arrays.update(batch=np.array(b, np.int32)))
        said = refused(tmp_path / "x", content, read_trace, TraceError)
        assert "batch numbers are out of range, or do not ascend" in said


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("trace", dict(profile_hash="0" * 64), "metadata profile_hash must be"),
        ("trace", dict(layers=-1), "metadata layers: Input should be greater than or equal to 0"),
        ("trace", dict(layers=10**30), "metadata layers"),
        ("trace", dict(experts=1 << 30), r"array co_selection would be beyond the 17179869184 bytes"),
        ("trace", dict(experts="8"), "metadata experts: Input should be a valid integer"),
        ("trace", dict(seed=10**400), "metadata seed"),
        ("trace", dict(kept_share=float("nan")), "metadata kept_share"),
        ("trace", dict(model=5), "metadata model: Input should be a valid string"),
        ("times", dict(layers=3.5), "metadata layers"),
        ("times", dict(devices=["a"]), "array "),
        ("times", {"x" * 5000: 1}, "metadata xxx"),
    ],
)
def test_metadata_that_breaks_a_rule_is_refused(tmp_path, files, name, changes, sentence):
    content, key, read = files[name]
    assert sentence in refused(tmp_path / "x", with_about(content, key, **changes), read, TraceError)


def test_a_profile_in_a_trace_may_not_lead_out_of_its_folder(tmp_path, files):
    profile = json.loads(metadata().model_dump_json())["profile"] | dict(name="../../../tmp/x")
    said = refused(tmp_path / "x", with_about(files["trace"][0], METADATA_KEY, profile=profile), read_trace, TraceError)
    assert "metadata profile.name: Value error, must hold no /" in said


HEADERS = [b'{"a":' * 200_000, b"[" * 500_000, b"{}", b"null", b"9" * 5000, b'"\xff"', b'{"__metadata__":[]}', b""]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("header", HEADERS)
def test_headers_that_are_none_are_refused(tmp_path, name, header):
    kind = PolicyError if name == "calibration" else TraceError
    path = tmp_path / "x"
    for content in (len(header).to_bytes(8, "little") + header, b"\xff" * 8 + header, header):
        assert "not a " in refused(path, content, OTHERS[name], kind)


def test_files_beyond_the_limit_are_not_read_into_memory(tmp_path):
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.truncate((16 << 30) + 1)  # takes no space on the disk
    with pytest.raises(TraceError, match="must hold at most 17179869184 bytes, got 17179869185"):
        read_trace(path)
    with pytest.raises(PolicyError, match="must hold at most 1073741824 bytes"):
        read_calibration(str(path))


def test_reading_takes_no_more_memory_than_the_file_is_long(tmp_path):
    (tmp_path / "x").write_bytes(b"12345")
    tracemalloc.start()
    try:
        assert read_regular(tmp_path / "x", 16 << 30, TraceError) == b"12345"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_trace_too_large_to_be_read_again_is_not_written(tmp_path):
    long = metadata(versions={str(k): "x" * 1000 for k in range(17_000)})
    with pytest.raises(TraceError, match="16777216 of them metadata"):
        write_trace(tmp_path / "x", join(long, [block(0)]))
    assert list(tmp_path.iterdir()) == []


# Journals


def block_without(name):
    return {key: array for key, array in block(0).items() if key != name}


@pytest.mark.parametrize(
    ("frame", "sentence"),
    [
        (b"no safetensors", "block 1: its arrays are not readable"),
        (b"", "block 1: its arrays are not readable"),
        (save(block_without("items")), "block 1: array items is missing"),
        (save(block(0) | dict(more=np.zeros(1))), "block 1: array 'more' does not belong there"),
        (save(block(0) | dict(tokens=np.zeros((2, 1), np.int32))), "block 1: array tokens must be int32"),
        (save(block(0) | dict(items=np.array([-4], np.int32))), "block 1: array items must be >= 0 throughout"),
        (save(block(0) | dict(batch=np.array([0, 9], np.int32))), "block 1: batch numbers are out of range"),
        (save({key: array[:0] for key, array in block(0).items()}), "block 1: must hold a batch, got none"),
    ],
)
def test_a_block_whose_digest_fits_and_that_breaks_a_rule_is_refused(tmp_path, frame, sentence):
    journal = Journal(tmp_path / "d.trace.part", metadata())
    about = metadata().model_dump_json().encode()
    journal.path.write_bytes(fuzz.framed([about, save(block(0)), frame]))
    with pytest.raises(TraceError) as caught:
        journal.seal(tmp_path / "x")
    assert sentence in str(caught.value)
    assert str(journal.path) in str(caught.value)
    assert journal.path.exists()
    assert not (tmp_path / "x").exists()
    nothing_to_go_on_from(journal)


def nothing_to_go_on_from(journal):
    """A task that goes on takes nothing from this journal: it runs all items again, or says that it cannot."""
    assert journal.resumable(4) == 0
    with pytest.raises(TraceError, match="knows 0 of the 4 items"):
        journal.resume(4)
    journal.resume(0)
    assert len(journal.read().first_item) == 0


@pytest.mark.parametrize("about", [b"\xff", b"[" * 100_000, b"", b"{}", b"5", b'{"format_version":4}'])
def test_metadata_of_a_journal_is_checked_as_a_sealed_file_s(tmp_path, about):
    journal = Journal(tmp_path / "d.trace.part", metadata())
    journal.path.write_bytes(fuzz.framed([about]))
    with pytest.raises(TraceError, match=str(journal.path)):
        journal.read()
    nothing_to_go_on_from(journal)


def test_items_beyond_the_largest_number_do_not_wrap_around(tmp_path):
    last = block((1 << 31) - 2)  # its end does not fit into 32 bits
    journal = Journal(tmp_path / "d.trace.part", metadata())
    journal.path.write_bytes(fuzz.framed([metadata().model_dump_json().encode(), save(last)]))
    with pytest.raises(TraceError, match="knows 0 of the 4 items"):
        journal.resume(4)


def test_a_journal_that_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "d.trace.part")
    with pytest.raises(TraceError, match="must be a regular file"):
        Journal(tmp_path / "d.trace.part", metadata()).read()


# Calibrations


def calibration(**changes):
    sample = torch.rand(2, 5, 4)
    weights, index = sample.topk(2, dim=-1)
    parts = dict(ratio_median=torch.rand(2), probabilities=sample, top_k_index=index, top_k_weights=weights)
    return {name: part.contiguous() for name, part in (parts | changes).items()}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(ratio_median=torch.tensor([0.5, float("nan")])), "ratio_median must be finite and >= 0"),
        (dict(ratio_median=torch.tensor([0.5, -1.0])), "ratio_median must be finite and >= 0"),
        (dict(ratio_median=torch.tensor([1, 2])), "ratio_median must hold floats of 16 bits or more, got torch.int64"),
        (
            dict(ratio_median=torch.rand(2).to(torch.float8_e4m3fn)),
            "ratio_median must hold floats of 16 bits or more, got torch.float8",
        ),
        (dict(ratio_median=torch.rand(3)), "does not fit its other parts"),
        (dict(ratio_median=torch.rand(2, 2)), "'ratio_median' does not belong there or is not ('layers',)"),
        (dict(top_k_index=torch.rand(2, 5, 2)), "top_k_index must hold int64, got torch.float32"),
        (dict(top_k_index=torch.full((2, 5, 2), 4)), "top_k_index must be < 4, the number of experts"),
        (dict(sensitivity=torch.rand(0)), "does not fit its other parts"),
        (dict(more=torch.rand(2)), "'more' does not belong there"),
    ],
)
def test_calibrations_that_break_a_rule_are_refused(tmp_path, changes, sentence):
    path = tmp_path / "x"
    save_file(calibration(**changes), path, {"wdmoe_calibration": '{"model": "m"}'})
    assert sentence in refused(path, path.read_bytes(), OTHERS["calibration"], PolicyError)


@pytest.mark.parametrize(
    "about", ["[]", "{}", "null", "[" * 100_000, '{"model": 5}', '{"model": "m", "sha255": ""}', "x"]
)
def test_metadata_of_a_calibration_is_checked(tmp_path, about):
    path = tmp_path / "x"
    save_file(calibration(), path, {"wdmoe_calibration": about})
    assert "not a file that `wdmoe calibrate` wrote" in refused(
        path, path.read_bytes(), OTHERS["calibration"], PolicyError
    )


def test_a_value_of_a_calibration_that_changed_is_noticed(tmp_path):
    path = tmp_path / "x"
    Calibration(**calibration(), model="m").write(path)
    content = path.read_bytes()
    read_calibration(str(path))
    read_calibration.cache_clear()
    changed = content[:-1] + bytes([content[-1] ^ 1])
    said = refused(path, changed, OTHERS["calibration"], PolicyError)
    assert "do not have the stated SHA-256" in said


# Whatever comes


@FEW
@given(content=st.binary(max_size=400))
def test_any_bytes_get_a_sentence(tmp_path, content):
    for read, kind in [*READERS.values(), *((reader, WdmoeError) for reader in OTHERS.values())]:
        path = tmp_path / "any.yaml"
        path.write_bytes(content)
        with pytest.raises(kind):
            read(path)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
ANY = st.recursive(
    PLAIN, lambda children: st.lists(children, max_size=3) | st.dictionaries(PLAIN, children, max_size=3), max_leaves=8
)
DEVICE = st.dictionaries(st.sampled_from(["name", "distance_m", "transmit_power_w", "compute_flops", "fixed_s"]), ANY)
CHANGES = st.dictionaries(st.sampled_from([*GOOD, "payload_bits", "placement", "path_loss", "rates"]), ANY, max_size=2)


@FEW
@given(changes=CHANGES, device=DEVICE)
def test_any_value_is_read_as_it_stands_or_gets_a_sentence(tmp_path, changes, device):
    data = GOOD | dict(devices=[*GOOD["devices"][:2], GOOD["devices"][2] | device]) | changes
    content = yaml.safe_dump(data, sort_keys=False).encode()
    (tmp_path / "any.yaml").write_bytes(content)
    found = fuzz.Found()
    found.read("any", lambda: load_profile(tmp_path / "any.yaml"), lambda read: fuzz.broken_rule(content, read))
    assert not found.tracebacks + found.wrongly_accepted


@pytest.mark.parametrize("fuzzing", fuzz.ALL)
def test_mutated_files_get_a_sentence_and_none_is_taken_for_what_it_is_not(fuzzing):
    found = fuzzing(150, seed=1)
    assert found["files_fuzzed"] == 150
    assert (found["tracebacks"], found["wrongly_accepted"]) == (0, 0), found["examples"]
    assert found["refused"] > 75
    assert found["slowest_s"] < 5


@pytest.mark.slow
@pytest.mark.parametrize("fuzzing", fuzz.ALL)
def test_thousands_of_mutated_files_get_a_sentence(fuzzing):
    found = fuzzing(2000, seed=0)
    assert (found["tracebacks"], found["wrongly_accepted"]) == (0, 0), found["examples"]
    assert found["slowest_s"] < 5
    assert found["grown_mib"] < 500


def test_the_fuzzer_would_see_a_wrong_acceptance(tmp_path, monkeypatch):
    """A reader without its checks is caught."""
    monkeypatch.setattr(traces, "_check_arrays", lambda *_: None)
    found = fuzz.fuzz_traces(150, seed=2)
    assert found["wrongly_accepted"] > 0
