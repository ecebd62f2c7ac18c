"""Text that some reader takes for another number: read as what it says in decimal notation, or refused."""

import math
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.builders.lab_text import GOOD as LAB
from tests.builders.profile_text import GOOD
from tests.channel.profiles import st_profiles
from wdmoe_opencompass._util.number_text import number_of
from wdmoe_opencompass._util.safe_yaml import parse_mapping, yaml_text
from wdmoe_opencompass.channel.profile import load_profile
from wdmoe_opencompass.cli import app
from wdmoe_opencompass.errors import ModelError, PolicyError, ProfileError, TestbedError, WdmoeError
from wdmoe_opencompass.testbed.lab_file import Testbed, load_testbed, write_testbed

TEXT = yaml.safe_dump(GOOD)
DISTANCE = "distance_m: 10.0"
LINE = 1 + TEXT[: TEXT.index(DISTANCE)].count("\n")


def read(tmp_path, value, old=DISTANCE, key="distance_m"):
    path = tmp_path / "lab.yaml"
    path.write_text(TEXT.replace(old, f"{key}: {value}", 1))
    return load_profile(path)


def refused(tmp_path, value, old=DISTANCE, key="distance_m"):
    with pytest.raises(ProfileError) as caught:
        read(tmp_path, value, old, key)
    return str(caught.value)


ACCEPTED = {"40": 40, "+40": 40, "40.": 40, "40.0": 40, ".5": 0.5, "+.5": 0.5, "4e1": 40, "4E1": 40, "4.0e+1": 40}
ACCEPTED |= {"400e-1": 40, "4e01": 40, "3.5e3": 3500, "3.5E+3": 3500, "0.04e3": 40, "0.1": 0.1, "1e-1": 0.1}


@pytest.mark.parametrize("text", ACCEPTED)
def test_decimal_notation_is_read_as_what_it_says(tmp_path, text):
    assert read(tmp_path, text).devices[0].distance_m == ACCEPTED[text]


def test_a_carrier_may_be_written_without_a_sign_in_its_exponent(tmp_path):
    assert read(tmp_path, "3.5e9", "carrier_frequency_hz: 3500000000.0", "carrier_frequency_hz") == read(tmp_path, 10)


REFUSED = {  # written -> what to write
    **{"0040": "write 40 (32 if it is octal)", "016": "write 16 (14 if it is octal)", "08": "write 8", "-007": "-7"},
    **{"00.5": "write 0.5", "01e3": "write 1e3", "0o40": "write 32", "0x28": "write 40", "0b101": "write 5"},
    **{"0X28": "write 40", "1_000": "write 1000", "0_1": "write 1", "1__0.5": "write 10.5", "1:40:00": "write 6000"},
    **{"1:30.5": "write 90.5", "190:20:30": "write 685230", ".inf": "finite", "-.inf": "finite", ".NaN": "finite"},
    **{"inf": "finite", "nan": "finite", "Infinity": "finite", "1e400": "too large", "1e-400": "too small"},
    **{
        "\uff11\uff10\uff10": "write 100, with the digits 0 to 9",
        "٤٠": "write 40, with the digits",
        "१०": "write 10, with",
    },
    **{
        "0.04 km": "40",
        "40m": "alone, in m: 40",
        "100 MHz": "write the number alone, in m",
        "'40'": "40 without quotes",
    },
    **{"0_40": "has underscores and begins with a zero, octal to some readers; write 40 (32 if it is octal)"},
    **{"-0_8": "has underscores and begins with a zero, octal to some readers; write -8", "0_0.5": "write 0.5"},
    **{'"1_0"': "write 10", "40,5": "write a point", "1,000": "nothing between", "1 000": "nothing between"},
    **{"yes": "got yes, which YAML reads as true", "off": "got off, which YAML reads as false", "true": "got True"},
    **{
        "2024-01-01": "date",
        "~": "a number",
        "": "a number",
        "null": "a number",
        "4x10^1": "in decimal notation, in m",
    },
    **{
        "[40]": "a number",
        "1e": "a number",
        "e5": "a number",
        "--4": "a number",
        "4.0.0": "a number",
        "0x_": "decimal",
    },
}


@pytest.mark.parametrize("text", REFUSED)
def test_other_notations_are_refused_with_file_line_key_value_and_what_to_write(tmp_path, text):
    sentence = refused(tmp_path, text)
    assert sentence.startswith(f"{tmp_path / 'lab.yaml'}: line {LINE}: devices[0].distance_m must be ")
    assert REFUSED[text] in sentence
    if text.strip("'\"[]~") and text not in ("null", "true"):
        assert text.strip("'\"[]") in sentence


@pytest.mark.parametrize(
    ("key", "old", "written", "right"),
    [
        ("carrier_frequency_hz", "3500000000.0", "3.5GHz", "3500000000"),
        ("total_bandwidth_hz", "100000000.0", "100 MHz", "100000000"),
        ("transmit_power_w", "10.0", "40 dBm", "10"),
        ("compute_flops", "1000000000000.0", "1 TFLOP/s", "1e+12"),
        ("compute_flops", "1000000000000.0", "312 TFLOPS", "3.12e+14"),
        ("noise_psd_dbm_per_hz", "-174.0", "-174 dBm/Hz", "-174"),
        ("transmit_power_w", "10.0", "10000 mW", "10"),
    ],
)
def test_a_unit_is_taken_off_and_its_prefix_multiplied_out_in_the_hint(tmp_path, key, old, written, right):
    assert refused(tmp_path, written, f"{key}: {old}", key).endswith(f"alone, in {hint_unit(key)}: {right}")


@pytest.mark.parametrize("digits", [400, 4000])
def test_a_whole_number_that_no_float_can_hold_is_called_too_large(tmp_path, digits):
    assert refused(tmp_path, "9" * digits).endswith(", which is too large for a number")
    assert read(tmp_path, "9" * 3).devices[0].distance_m == 999
    with pytest.raises(ValueError, match="too large for a number"):
        number_of("-" + "9" * digits)


def hint_unit(key):
    ends = {"_per_hz": "dBm/Hz", "_hz": "Hz", "_flops": "FLOP/s", "_w": "W"}
    return next(unit for end, unit in ends.items() if key.endswith(end))


@pytest.mark.parametrize(
    "name", ["no", "Yes", "off", "016", "1_0", "1e5", "12:30:45", "2024-01-01", "5", "true", "~", ".5"]
)
def test_a_name_that_is_another_value_to_some_reader_needs_quotes(tmp_path, name):
    sentence = refused(tmp_path, name, "name: d0", "name")
    assert "devices[0].name must be" in sentence
    assert name == "~" or name in sentence.replace("True", "true")
    assert name == "~" or "in quotes" in sentence
    assert read(tmp_path, f"'{name}'", "name: d0", "name").devices[0].name == name


@pytest.mark.parametrize(
    "key", ["yes", "01", "0x1", "1.0", "1e0", "'+-1'", "true", "1_0", "'1_0'", "' 1'", "'\uff11'", "~"]
)
def test_an_expert_is_named_by_a_whole_number_in_decimal_notation(tmp_path, key):
    path = tmp_path / "lab.yaml"
    path.write_text(f"{TEXT}placement: {{experts: {{{key}: d1}}}}\n")
    with pytest.raises(ProfileError, match=r"placement.experts|a key of placement.experts"):
        load_profile(path)
    path.write_text(f"{TEXT}placement: {{experts: {{1: d1, '2': d2}}}}\n")
    assert load_profile(path).placement.experts == {1: "d1", 2: "d2"}


def test_labs_are_read_by_the_same_rules(tmp_path):
    path = tmp_path / "lab.yaml"
    for text in ("010", "1_0", "1:30", "'10'", "10 s", ".inf", "yes"):
        path.write_text(yaml.safe_dump(LAB) + f"deadline_s: {text}\n")
        with pytest.raises(TestbedError, match=rf"{path}: line \d+: deadline_s must be "):
            load_testbed(path)
    for text, is_sent in (("yes", True), ("off", False), ("true", True)):  # YAML 1.1's words where they are meant
        path.write_text(yaml.safe_dump(LAB) + f"deadline_s: 1e1\nsend_padding: {text}\n")
        assert (load_testbed(path).deadline_s, load_testbed(path).send_padding) == (10.0, is_sent)


PLAIN = st.text("0123456789abcdefox_+-.:eE ijnfINFATyYsOoN,~", min_size=1, max_size=9)


@settings(max_examples=1500, deadline=None)
@given(PLAIN)
def test_what_is_read_as_a_number_is_the_same_number_to_everyone(text):
    """Against PyYAML (YAML 1.1), and against YAML 1.2's and Python's own way to read what is taken for a number."""
    try:
        found = parse_mapping("x.yaml", f"key: {text}\n".encode(), ProfileError)["key"]
        given = yaml.safe_load(f"key: {text}\n")["key"]
    except (WdmoeError, yaml.YAMLError, ValueError):
        return
    if isinstance(found, bool | None | str):
        assert (given, type(given)) == (found, type(found))
        return
    assert re.fullmatch(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?", text.strip())
    assert found == float(text)
    assert isinstance(given, str) or given == found  # YAML 1.1 takes 1e5 for a text


@settings(max_examples=300, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_is_read_back_to_its_last_bit_however_it_is_written(number):
    for text in (repr(number), f"{number:.17e}", f"{number:.17E}", yaml_text(dict(x=number)).partition(":")[2].strip()):
        if math.isfinite(float(text)):
            assert math.copysign(1, number_of(text)) * float(number_of(text)) == abs(number) or number == 0
            assert float(number_of(text)) == number


@settings(max_examples=60, deadline=None)
@given(st_profiles())
def test_what_we_write_is_read_back_bit_by_bit(tmp_path_factory, profile):
    path = tmp_path_factory.mktemp("written") / "random.yaml"
    path.write_text(yaml_text(profile.model_dump(mode="json", exclude={"name", "origin"}, exclude_none=True)))
    again = load_profile(path)
    assert again.model_dump(exclude={"origin"}) == profile.model_dump(exclude={"origin"})
    assert again.content_hash == profile.content_hash


NAMES = ["1e5", "no", "3.5e9", "016", "1_0", "0x1", "1e-7", "~", "true", "12", ".5", "off", "5.", "2024-01-01", "=x"]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(NAMES) | st.text(min_size=1, max_size=8).filter(str.isprintable))
def test_every_text_is_written_so_that_it_is_read_as_that_text(text):
    data = dict(value=text, texts=[text], more={"key": text})
    assert parse_mapping("x.yaml", yaml_text(data).encode(), ProfileError) == data


def test_a_lab_with_names_that_look_like_numbers_is_read_back(tmp_path):
    devices = [dict(name=name, address="127.0.0.1:5000", experts=[n]) for n, name in enumerate(["1e5", "no", "016"])]
    testbed = Testbed.model_validate(dict(devices=devices))
    write_testbed(tmp_path / "lab.yaml", testbed)
    assert load_testbed(tmp_path / "lab.yaml") == testbed


OPTIONS = [
    ("profile", "show", "paper_8_devices", "--hidden-size"),
    ("simulate", "--seed"),
    ("simulate", "--batch-size"),
    ("testbed", "device", "m", "--experts", "0", "--listen", "x:1", "--rate"),
]


@pytest.mark.parametrize("arguments", OPTIONS, ids=" ".join)
@pytest.mark.parametrize("text", ["1_000", "\uff11\uff10\uff10", "0040", "0x10", "nan", "inf", "1e400", "100 MHz"])
def test_options_take_decimal_notation_alone(arguments, text):
    done = CliRunner().invoke(app, [*arguments, text])
    assert done.exit_code == 2
    assert arguments[-1] in done.output + done.stderr


@pytest.mark.parametrize(
    "sweep", ["1_0e6:2e7:3", "nan:2e7:3", "1e7:inf:3", "1e7:\uff12e7:3", "0010e6:2e7:3", "1e7:2e7:0x3"]
)
def test_a_sweep_takes_decimal_notation_alone(sweep):
    from wdmoe_opencompass.cli.replay import _sweep_points

    paper = load_profile("paper_8_devices")
    with pytest.raises(WdmoeError, match="--sweep must"):
        _sweep_points(paper, f"total_bandwidth_hz={sweep}")
    assert [value for value, _ in _sweep_points(paper, "total_bandwidth_hz=1e7:3.0E+7:3")] == [1e7, 2e7, 3e7]


def test_numbers_of_a_config_are_finite_numbers():
    from wdmoe_opencompass.harness.settings import parse_settings

    for share in (math.nan, math.inf, "0.5", True):
        with pytest.raises(ModelError, match=r"wdmoe\.kept_share"):
            parse_settings(dict(profile="paper_8_devices", policy="wlr", kept_share=share))
    for policy, parameter in (("wlr", "theta"), ("top_p", "p"), ("bottleneck", "quantile")):
        for value in (math.nan, math.inf, "0.5"):
            with pytest.raises(PolicyError):
                parse_settings(dict(profile="paper_8_devices", policy=policy, policy_parameters={parameter: value}))
