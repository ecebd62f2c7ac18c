import pytest
import yaml

from tests.builders.profile_text import GOOD
from wdmoe_opencompass.channel import list_profiles, load_profile
from wdmoe_opencompass.errors import ProfileError


def load(tmp_path, data):
    path = tmp_path / "lab.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return load_profile(path)


def changed(**keys):
    return GOOD | keys


def with_device(**keys):
    return changed(devices=[*GOOD["devices"][:2], GOOD["devices"][2] | keys])


def test_shipped_profiles_hold_at_least_twenty_devices():
    assert "paper_8_devices" in list_profiles()
    assert sum(len(load_profile(name).devices) for name in list_profiles()) >= 20


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (with_device(distance_m=-4.0), "devices[2].distance_m must be > 0, got -4.0"),
        (with_device(distance=4.0), "unknown key devices[2].distance; did you mean devices[2].distance_m?"),
        (with_device(distance_m=float("nan")), "devices[2].distance_m must be"),
        (with_device(distance_m="far"), "devices[2].distance_m must be a number, got 'far'"),
        (with_device(name="d0"), "the name 'd0' is used twice"),
        (changed(devices=[]), "devices must hold at least one entry, got none"),
        (changed(total_bandwith_hz=1.0), "unknown key total_bandwith_hz; did you mean total_bandwidth_hz?"),
        (changed(fading=dict(model="rice")), "fading.model must be one of 'none' or 'rayleigh', got 'rice'"),
        (changed(path_loss="free_spce"), "path-loss model 'free_spce' is unknown; did you mean 'free_space'?"),
        (changed(placement=dict(experts={0: "d9"})), "placement.experts[0]: device 'd9' is unknown"),
        ({k: v for k, v in GOOD.items() if k != "fading"}, "key fading is missing"),
        ("- a\n- b\n", "must be a mapping of keys to values, got list"),
        ("a: [1", "not a readable YAML file"),
    ],
)
def test_bad_profile_names_file_key_rule_and_value(tmp_path, data, sentence):
    with pytest.raises(ProfileError) as caught:
        load(tmp_path, data)
    assert "lab.yaml: " in str(caught.value)
    assert sentence in str(caught.value)


def test_unknown_profile_gets_the_near_name():
    with pytest.raises(ProfileError, match="did you mean 'paper_8_devices'"):
        load_profile("paper_8_device")


def test_default_placement_is_expert_k_on_device_k_modulo_devices(tmp_path):
    assert load(tmp_path, GOOD).device_of_expert(8) == [0, 1, 2, 0, 1, 2, 0, 1]


def test_base_station_is_a_place(tmp_path):
    placed = load(tmp_path, changed(placement=dict(others="base_station", experts={1: "d2", 2: "base_station"})))
    assert placed.device_of_expert(4) == [-1, 2, -1, -1]
    with pytest.raises(ProfileError, match=r"experts\[1\] must be < 1"):
        placed.device_of_expert(1)


def test_hash_follows_the_content_and_not_the_name(tmp_path):
    first = load(tmp_path, GOOD)
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(GOOD))
    assert load_profile(tmp_path / "other.yaml").content_hash == first.content_hash
    assert load(tmp_path, with_device(distance_m=11.0)).content_hash != first.content_hash
