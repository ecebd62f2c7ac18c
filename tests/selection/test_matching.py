"""Matched kept shares on the quickstart's calibration."""

import pytest
import torch

from wdmoe_opencompass import ExpertShape, load_profile
from wdmoe_opencompass.errors import PolicyError
from wdmoe_opencompass.harness.settings import parse_settings
from wdmoe_opencompass.routing.channel_state import ChannelStates
from wdmoe_opencompass.selection import POLICIES
from wdmoe_opencompass.selection.calibration import read_calibration
from wdmoe_opencompass.selection.kept_share import kept_share, match_kept_share, sampled_passes

CALIBRATION = "quickstart/quickstart.calibration.safetensors"
MATCHED = sorted(name for name, kind in POLICIES.items() if kind.tuned is not None and name != "lexi")
SEARCHED_LONG = ("dual_price", "jesa")  # seconds for each share that is tried


def states():
    return ChannelStates(load_profile("paper_8_devices"), ExpertShape(128, 256), 8)


def test_the_sample_is_what_the_shipped_model_routes():
    from transformers import AutoModelForCausalLM

    from wdmoe_opencompass.routing.attachment import find_moe_layers

    calibration = read_calibration(CALIBRATION)
    layers = find_moe_layers(AutoModelForCausalLM.from_pretrained("quickstart/model", dtype=torch.float32))
    calibration.check_fits(len(layers), layers[0].num_experts, layers[0].top_k)
    passes = sampled_passes(calibration, 0)
    assert sum(len(routing.top_k_index) for routing in passes) == calibration.probabilities.shape[1]
    for routing in passes:
        assert routing.shares.sum(1).tolist() == pytest.approx([1.0] * len(routing.shares), abs=1e-5)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SEARCHED_LONG else name for name in MATCHED]
)
def test_a_reachable_share_is_kept_within_a_hundredth(name):
    calibration = read_calibration(CALIBRATION)
    wanted = 0.85 if name == "caee" else 0.7  # CAEE drops only where that helps the last device
    settings = parse_settings(dict(profile="paper_8_devices", policy=name, calibration=CALIBRATION, kept_share=wanted))
    policy = settings.build_policy(states())
    share = kept_share(policy, calibration, states())
    assert share == pytest.approx(wanted, abs=0.01)


def test_a_share_out_of_reach_is_refused_with_the_reachable_ones():
    calibration = read_calibration(CALIBRATION)
    for extra_pass, most in ((False, "0.94"), (True, "0.84")):
        reachable = rf"kept_share must be between 0\.500 and {most}\d on this calibration, got 0\.99"
        with pytest.raises(PolicyError, match=reachable):
            match_kept_share(POLICIES["wlr"], dict(extra_pass=extra_pass), 0.99, calibration, states())


def test_a_share_between_a_policy_s_steps_is_refused_with_the_nearest():
    calibration = read_calibration(CALIBRATION)
    with pytest.raises(PolicyError, match=r"got 0\.8; the nearest that its steps allow is 0\.750"):
        match_kept_share(POLICIES["lexi"], dict(calibration=CALIBRATION), 0.8, calibration, states())


@pytest.mark.parametrize(
    ("wdmoe", "sentence"),
    [
        (dict(policy="wlr", kept_share=0.7), "wdmoe.kept_share needs wdmoe.calibration"),
        (dict(policy="top_k", kept_share=0.7, calibration=CALIBRATION), "no parameter to match wdmoe.kept_share by"),
        (dict(policy="wlr", kept_share=0.7, calibration="no.safetensors"), "calibration no.safetensors: no such file"),
    ],
)
def test_bad_settings_get_one_sentence(wdmoe, sentence):
    with pytest.raises(PolicyError, match=sentence):
        parse_settings(dict(profile="paper_8_devices") | wdmoe)
