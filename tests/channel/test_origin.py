"""Where the values of a profile come from, and that no edited value keeps an origin."""

import json
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.builders.trace_blocks import metadata
from tests.channel.profiles import st_contents, st_origins, st_profiles
from tests.conftest import ROOT
from wdmoe_opencompass import list_profiles, load_profile
from wdmoe_opencompass.channel.origin import ORIGINS, OWN, keys_by_origin, origin_sentence
from wdmoe_opencompass.channel.profile import ChannelProfile, changed_profile
from wdmoe_opencompass.cli import app
from wdmoe_opencompass.errors import ProfileError
from wdmoe_opencompass.placement.compare import placed_profile
from wdmoe_opencompass.trace.format import TraceMetadata

PAPER = load_profile("paper_8_devices")
TEXT = (ROOT / "channel_profiles" / "paper_8_devices.yaml").read_text()
# What section V of the paper states; no other value of a shipped profile may be called the paper's.
STATED_BY_THE_PAPER = {
    "carrier_frequency_hz": 3.5e9,
    "total_bandwidth_hz": 100e6,
    "payload_bits": 16,
    "path_loss": "free_space",
    "duplex": "shared",
    "base_station.transmit_power_w": 10.0,
    "devices[*].transmit_power_w": 0.2,
    "fading.model": "rayleigh",
    "placement.others": "modulo",
}
NUMBERS = ["carrier_frequency_hz", "total_bandwidth_hz", "noise_psd_dbm_per_hz", "payload_bits"]
NUMBERS += [f"devices[{k}].{key}" for k in range(8) for key in ("distance_m", "transmit_power_w", "compute_flops")]


def written(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
    return path


def saved(profile):
    """A profile file's text, as every command of ours writes it."""
    content = profile.model_dump(mode="json", exclude={"name"}, exclude_none=True)
    return yaml.safe_dump(content, sort_keys=False)


def plain_origins(profile):
    """value_origins by plain rules: the last word of ORIGINS with a statement equal to the value."""
    origin, found = profile.origin or {}, {}
    for path, word in profile.value_origins().items():
        part = json.loads(profile.model_dump_json())
        for step in re.findall(r"\w+", path):
            part = part[int(step)] if isinstance(part, list) else part[step]
        match = re.fullmatch(r"devices\[(\d+)\](\.\w+)", path)
        words = []
        for name, statements in origin.items():
            given = json.loads(json.dumps(statements))
            if path in given:
                stated = given[path]
            else:
                stated = given.get("devices[*]" + match[2]) if match else None
                if isinstance(stated, list):
                    stated = dict(enumerate(stated)).get(int(match[1]))
            words += [name] if stated == part else []
        found[path] = max(words, key=list(ORIGINS).index, default=OWN)
        assert word in (*ORIGINS, OWN)
    return found


def test_every_value_of_a_shipped_profile_has_an_origin_and_the_papers_are_the_papers():
    for name in list_profiles():
        profile = load_profile(name)
        origins = profile.value_origins()
        assert OWN not in origins.values(), name
        if name != "testbed_4_devices":
            assert profile.origin["paper"].items() <= STATED_BY_THE_PAPER.items()
    by_origin = keys_by_origin(PAPER.value_origins())
    assert by_origin["fitted"] == ["devices[*].distance_m"]
    assert "devices[*].compute_flops" in by_origin["assumption"]  # chosen by its order


@given(profile=st_profiles())
def test_origins_are_those_of_plain_rules_and_no_part_of_the_content(profile):
    assert profile.value_origins() == plain_origins(profile)
    bare = profile.model_copy(update=dict(origin=None))
    assert bare.content_hash == profile.content_hash
    assert set(bare.value_origins().values()) == {OWN}


@given(profile=st_profiles())
def test_origins_go_through_yaml_and_a_traces_metadata(profile):
    read = ChannelProfile.model_validate({"name": profile.name, **yaml.safe_load(saved(profile))})
    assert read.value_origins() == profile.value_origins()
    about = metadata(profile=profile, profile_hash=profile.content_hash)
    read = TraceMetadata.model_validate_json(about.model_dump_json()).profile
    assert read.value_origins() == profile.value_origins()
    assert read.content_hash == about.profile_hash


@given(content=st_contents(), data=st.data())
def test_keys_by_origin_name_every_value_once(content, data):
    origin = data.draw(st_origins(content))
    profile = ChannelProfile.model_validate({"name": "random", **content, "origin": origin})
    origins = profile.value_origins()
    spelled = {}
    for word, keys in keys_by_origin(origins).items():
        for key in keys:
            match = re.fullmatch(r"devices\[(.+)\]\.(\w+)", key)
            if match is None:
                spelled[key] = word
            elif match[1] == "*":
                spelled |= {f"devices[{n}].{match[2]}": word for n in range(len(profile.devices))}
            elif " of " in match[1]:
                of = [path for path, stated in origins.items() if path.endswith(f"].{match[2]}") and stated == word]
                assert match[1] == f"{len(of)} of {len(profile.devices)}"
                spelled |= dict.fromkeys(of, word)
            else:
                for part in match[1].split(","):
                    first, _, last = part.partition("-")
                    numbers = range(int(first), int(last or first) + 1)
                    spelled |= {f"devices[{n}].{match[2]}": word for n in numbers}
    assert spelled == origins


@given(key=st.sampled_from(NUMBERS), factor=st.floats(1.01, 1.4))
def test_a_changed_key_alone_becomes_the_users_own(key, factor):
    before = PAPER.value_origins()
    held = profile_number(PAPER, key)
    changed = changed_profile(PAPER, key, held + 1 if key == "payload_bits" else held * factor)
    assert changed.value_origins() == before | {key: OWN}
    back = changed_profile(changed, key, profile_number(PAPER, key))
    assert back == PAPER


def profile_number(profile, key):
    match = re.fullmatch(r"devices\[(\d+)\]\.(\w+)", key)
    return getattr(profile.devices[int(match[1])], match[2]) if match else getattr(profile, key)


@pytest.mark.parametrize(
    ("old", "new", "own"),
    [
        ("total_bandwidth_hz: 100.0e+6\nnoise", "total_bandwidth_hz: 50.0e+6\nnoise", {"total_bandwidth_hz"}),
        ("total_bandwidth_hz: 100.0e+6", "total_bandwidth_hz: 50.0e+6", {"total_bandwidth_hz"}),  # everywhere
        ("payload_bits: 16", "payload_bits: 8", {"payload_bits"}),
        ("  model: rayleigh", "  model: none", {"fading.model"}),
        ("transmit_power_w: 0.2", "transmit_power_w: 0.4", {f"devices[{n}].transmit_power_w" for n in range(8)}),
    ],
)
def test_a_copy_of_a_shipped_profile_cannot_call_an_edited_value_the_papers(tmp_path, old, new, own):
    assert old in TEXT
    profile = load_profile(written(tmp_path, TEXT.replace(old, new)))
    before, after = PAPER.value_origins(), profile.value_origins()
    assert {path for path, word in after.items() if word == OWN} == own
    assert all(after[path] == before[path] for path in after.keys() - own)


def test_fitted_values_searched_and_replaced_are_own(tmp_path):
    distance = f"{PAPER.devices[2].distance_m}"
    text = TEXT.replace(distance, "77.25")
    assert text.count("77.25") >= 2  # the value and its statement
    origins = load_profile(written(tmp_path, text)).value_origins()
    assert origins["devices[2].distance_m"] == OWN
    assert "fitted" not in {origins[f"devices[{n}].distance_m"] for n in range(8)}


def test_an_unchanged_copy_keeps_every_origin(tmp_path):
    for name in list_profiles():
        profile = load_profile(name)
        for text in ((ROOT / "channel_profiles" / f"{name}.yaml").read_text(), saved(profile)):
            copy = load_profile(written(tmp_path, text))
            assert copy.value_origins() == profile.value_origins()
            assert copy.content_hash == profile.content_hash


def test_a_profile_without_statements_is_its_users_own(tmp_path):
    content = yaml.safe_load(TEXT)
    del content["origin"]
    assert load_profile(written(tmp_path, content)).origin_sentence == "own: every value"


def test_nobody_else_can_state_what_the_paper_says(tmp_path):
    content = yaml.safe_load(TEXT) | dict(noise_psd_dbm_per_hz=-170.0)
    content["origin"] = dict(
        paper=dict(noise_psd_dbm_per_hz=-170.0), fitted={"fading.seed": 0}, assumption={"path_loss": "free_space"}
    )
    origins = load_profile(written(tmp_path, content)).value_origins()
    assert {path for path, word in origins.items() if word != OWN} == {"path_loss"}


@pytest.mark.parametrize(
    ("origin", "sentence"),
    [
        (dict(papr={}), "origin: origin 'papr' is unknown; did you mean 'paper'?"),
        (dict(own=dict(payload_bits=16)), "origin: origin 'own' is unknown; known: assumption, computed, fitted"),
        (dict(paper=dict(total_bandwith_hz=1.0)), "'total_bandwith_hz' is unknown; did you mean 'total_bandwidth_hz'?"),
        (dict(paper=dict(total_bandwidth_hz=-1)), "origin.paper.total_bandwidth_hz must be > 0, got -1"),
        (dict(paper=dict(total_bandwidth_hz=True)), "origin.paper.total_bandwidth_hz must be a number, got True"),
        (dict(paper={"devices[8].distance_m": 1.0}), "devices[8].distance_m: the profile has devices[0] to devices[7]"),
        (dict(paper={"devices[*].distance": 1.0}), "'devices[*].distance' is unknown; did you mean"),
        (dict(paper={"devices[*].name": "x"}), "origin.paper: key of a channel profile 'devices[*].name' is unknown"),
        (dict(fitted={"devices[*].distance_m": [1, "a"]}), "origin.fitted.devices[*].distance_m must be a number"),
        (dict(fitted={"fading.model": "rice"}), "origin.fitted.fading.model must be one of 'none' or 'rayleigh'"),
        (dict(paper=5), "origin.paper must be a valid dictionary, got 5"),
        ([1], "origin must be a valid dictionary, got [1]"),
        ({5: {}}, "origin[5].[key] must be a valid string, got 5"),
    ],
)
def test_a_wrong_origin_is_one_sentence(tmp_path, origin, sentence):
    with pytest.raises(ProfileError) as caught:
        load_profile(written(tmp_path, yaml.safe_load(TEXT) | dict(origin=origin)))
    assert "mine.yaml: " in str(caught.value)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_placement_that_was_computed_is_not_the_papers():
    placed = placed_profile(PAPER, [n // 2 for n in range(8)])
    origins = placed.value_origins()
    assert (origins["placement.experts"], origins["placement.others"]) == ("computed", "computed")
    assert origins["total_bandwidth_hz"] == "paper"
    again = placed.model_copy(update=dict(placement=placed.placement.model_copy(update=dict(experts={0: "device_3"}))))
    assert again.value_origins()["placement.experts"] == OWN


def test_values_that_are_not_read_have_no_origin():
    still = changed_fading(PAPER, "none")
    assert not {"fading.coherence", "fading.seed"} & still.value_origins().keys()


def changed_fading(profile, model):
    return profile.model_copy(update=dict(fading=profile.fading.model_copy(update=dict(model=model))))


def test_profile_show_lists_every_value_with_its_origin(tmp_path):
    path = written(tmp_path, TEXT.replace("distance_m: 80.0", "distance_m: 85.5"))
    profile = load_profile(path)
    answer = CliRunner().invoke(app, ["profile", "show", str(path), "--json"])
    listed = {row["key"]: row["origin"] for row in json.loads(answer.stdout)["values"]}
    assert listed == profile.value_origins()
    text = CliRunner().invoke(app, ["profile", "show", str(path)]).stdout
    for line in (r"total_bandwidth_hz +100000000 +from the paper", r"fading.seed +0 +assumption"):
        assert re.search(line, text)


def test_a_sentence_says_which_keys_are_whose():
    changed = changed_profile(changed_profile(PAPER, "devices[2].distance_m", 1.5), "payload_bits", 8)
    sentence = origin_sentence(changed.value_origins())
    assert sentence.startswith("from the paper: carrier_frequency_hz, total_bandwidth_hz, path_loss, duplex, ")
    assert "; fitted to the paper's Table II: devices[0-1,3-7].distance_m; assumption: " in sentence
    assert sentence.endswith("; own: payload_bits, devices[2].distance_m")
