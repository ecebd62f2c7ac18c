"""SiftMoE against trying every replacement, and by hand."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.selection import oracles_search
from tests.selection.calibrations import calibration_file
from tests.selection.search_cases import only_real, search_case, search_cases, tokens_of
from wdmoe_opencompass.errors import PolicyError
from wdmoe_opencompass.selection import ChannelState, Routing, build_policy
from wdmoe_opencompass.selection.calibration import Calibration, read_calibration
from wdmoe_opencompass.selection.policies import sift_moe

PARAMETERS = st.fixed_dictionaries(
    dict(
        eta=st.sampled_from([0.05, 0.2, 0.5, 0.9, 3.0]),
        relative=st.booleans(),
        cost=st.sampled_from(["latency", "energy"]),
        may_lose_all=st.booleans(),
    )
)


def answers(routing, channel, parameters):
    """-> expert -> weight of each token, and what the oracles take."""
    path = calibration_file(1, routing.probabilities.shape[1], routing.top_k_index.shape[1])
    selection = build_policy("sift_moe", parameters | dict(calibration=path)).select(routing, channel)
    given = [
        dict(zip(index[keep].tolist(), weights[keep].tolist(), strict=True))
        for index, keep, weights in zip(*selection, strict=True)
    ]
    assert [len(weights) for weights in given] == selection.keep.sum(dim=1).tolist()  # none is held twice
    assert parameters["may_lose_all"] or selection.keep[routing.rank == 0].all()
    transfer, evaluation = channel.communication_s, channel.computation_s
    if parameters["cost"] == "energy":
        transfer, evaluation = channel.token_energy_j, torch.zeros_like(transfer)
    return given, (
        tokens_of(routing),
        channel.device_of_expert.tolist(),
        transfer.tolist(),
        evaluation.tolist(),
        read_calibration(path).output_difference[0].tolist(),
        parameters["eta"],
        parameters["relative"],
        parameters["may_lose_all"],
    )


def assert_same(given, expected):
    assert [set(weights) for weights in given] == [set(weights) for weights in expected]
    for weights, other in zip(given, expected):
        assert weights == pytest.approx(other, rel=1e-5)


@settings(deadline=None, max_examples=60)
@given(case=search_cases(max_tokens=6, max_experts=5, max_k=3), parameters=PARAMETERS)
def test_it_is_the_cheapest_replacement_of_all(case, parameters):
    given, facts = answers(*case, parameters)
    assert_same(given, oracles_search.sift_moe(*facts))


@settings(deadline=None, max_examples=60)
@given(case=search_cases(max_tokens=8, max_experts=8), parameters=PARAMETERS)
def test_beyond_it_changes_one_slot_after_the_other(case, parameters):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sift_moe, "MAX_CHOICES", 0)
        given, facts = answers(*case, parameters)
    assert_same(given, oracles_search.sift_moe_one_by_one(*facts))


def test_many_tokens_are_tried_in_parts(monkeypatch):
    routing, channel = search_case(3, 40, 8, 2, 4, 1, 1.0)
    policy = build_policy("sift_moe", dict(calibration=calibration_file(1, 8, 2), eta=0.4))
    whole = policy.select(routing, channel)
    monkeypatch.setattr(sift_moe, "MAX_TRIED_AT_ONCE", 500)
    assert all(torch.equal(part, other) for part, other in zip(whole, policy.select(routing, channel)))


# By hand: 3 experts on 3 devices of cost 3, 2 and 1; top-2 weights .6 and .4; eta = 1.
#
#   M        1    2    3    skip      token 1: .6 x expert 1, .4 x expert 2
#   1        0    1    2    4           keep both                   harm 0            cost 5
#   2        1    0    1    2           1 -> 2: one payload         .6                cost 2, weight 1 at expert 2
#   3        2    1    0    3           1 -> 3 is 1.2: too much;    2 -> 3 .4: 1, 3   cost 4
#                                       1 -> 2, 2 -> 3              .6 + .4 = 1.0     cost 3
#                                     token 2: .6 x expert 3, .4 x expert 2
#                                       2 -> 3: one payload         .4                cost 1, weight 1 at expert 3
#                                       skip 2: .8                                    cost 1, more harm
def hand_case(tmp_path):
    differences = torch.tensor([[[0.0, 1, 2, 4], [1, 0, 1, 2], [2, 1, 0, 3]]])
    path = tmp_path / "hand.calibration.safetensors"
    Calibration(output_difference=differences).write(path)
    index, weights = torch.tensor([[0, 1], [2, 1]]), torch.tensor([[0.6, 0.4], [0.6, 0.4]])
    probabilities = torch.zeros(2, 3).scatter(1, index, weights)
    routing = Routing(probabilities, index, weights, torch.ones(2, dtype=torch.bool), 0, "prefill")
    return str(path), routing, ChannelState(torch.tensor([2.0, 1.5, 0.5]), torch.tensor([1, 0.5, 0.5]), torch.arange(3))


def test_sift_moe_on_the_case_worked_by_hand(tmp_path):
    path, routing, channel = hand_case(tmp_path)
    index, keep, weights = build_policy("sift_moe", dict(eta=1.0, calibration=path)).select(routing, channel)
    assert keep.tolist() == [[True, False], [True, False]]
    assert index[:, 0].tolist() == [1, 2]
    assert weights[:, 0].tolist() == pytest.approx([1.0, 1.0])


def test_enough_eta_skips_everything_or_all_but_one(tmp_path):
    path, routing, channel = hand_case(tmp_path)
    parameters = dict(eta=1.0, relative=True, calibration=path)
    assert not build_policy("sift_moe", parameters).select(routing, channel).keep.any()
    index, keep, _ = build_policy("sift_moe", parameters | dict(may_lose_all=False)).select(routing, channel)
    assert keep.sum(dim=1).tolist() == [1, 1]
    assert index[keep].tolist() == [2, 2]  # the cheapest replaces the top one


@pytest.mark.parametrize("exact", [True, False])
@settings(deadline=None, max_examples=20)
@given(case=search_cases(max_tokens=20))
def test_padding_changes_nothing(exact, case):
    routing, channel = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sift_moe, "MAX_CHOICES", 1 << 12 if exact else 0)
        path = calibration_file(1, routing.probabilities.shape[1], routing.top_k_index.shape[1])
        policy = build_policy("sift_moe", dict(calibration=path, eta=0.3))
        padded, alone = policy.select(routing, channel), policy.select(only_real(routing), channel)
    assert all(torch.equal(part[routing.is_real_token], other) for part, other in zip(padded, alone))


@pytest.mark.parametrize(("experts", "k"), [(8, 2), (16, 4)])
def test_the_kept_share_falls_with_eta_but_for_small_turns(experts, k):
    """Skipping one and replacing another may cost less than skipping both did."""
    routing, channel = search_case(1, 300, experts, k, 4, 0, 1.0)
    path = calibration_file(1, experts, k)
    policies = [build_policy("sift_moe", dict(eta=eta / 10, relative=True, calibration=path)) for eta in range(11)]
    shares = [policy.select(routing, channel).keep.float().mean().item() for policy in policies]
    assert all(later <= earlier + 0.05 for earlier, later in itertools.pairwise(shares))
    assert shares[0] == 1
    assert shares[-1] == 0


def test_at_its_neutral_parameter_it_is_top_k_and_needs_no_calibration():
    routing, channel = search_case(1, 20, 8, 2, 4, 0, 1.0)
    selection = build_policy("sift_moe", build_policy("sift_moe", dict(eta=0)).neutral).select(routing, channel)
    assert selection.keep.all()
    assert torch.equal(selection.expert_index, routing.top_k_index)


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        (dict(), "selection policy 'sift_moe' needs calibration: a file of `wdmoe calibrate`"),
        (dict(eta=-1.0), "eta must be >= 0, got -1.0"),
        (dict(calibration="no.safetensors"), "calibration no.safetensors: no such file"),
    ],
)
def test_bad_parameters_get_one_sentence(parameters, sentence):
    with pytest.raises(PolicyError) as caught:
        build_policy("sift_moe", parameters)
    assert sentence in str(caught.value)


def test_a_calibration_of_another_model_is_refused():
    routing, channel = search_case(1, 5, 8, 2, 4, 0, 1.0)
    with pytest.raises(PolicyError, match="is of 1 MoE layers with 6 experts; layer 1 of this model has 8"):
        build_policy("sift_moe", dict(calibration=calibration_file(1, 6, 2))).select(routing, channel)
