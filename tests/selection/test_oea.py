"""OEA against plain loops, and by hand."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.selection import oracles_search
from tests.selection.search_cases import only_real, search_case, search_cases, sets_of, tokens_of
from wdmoe_opencompass.errors import PolicyError
from wdmoe_opencompass.selection import ChannelState, Routing, build_policy


@settings(deadline=None, max_examples=100)
@given(case=search_cases(max_tokens=12, max_experts=12), k0=st.sampled_from([None, 1, 2, 3]))
def test_tokens_are_filled_from_the_union_of_bases(case, k0):
    routing, channel = case
    routing = replace(routing, phase="decode")
    selection = build_policy("oea", dict(k0=k0)).select(routing, channel)
    k = routing.top_k_index.shape[1]
    base = {1: 1, 2: 1, 3: 1, 4: 2}[k] if k0 is None else min(k0, k)
    assert sets_of(selection) == oracles_search.oea(tokens_of(routing), routing.is_real_token.tolist(), base)
    if selection.weights is not None:
        expected = routing.weights_of(selection.expert_index)
        assert torch.allclose(selection.weights[selection.keep], expected[selection.keep], rtol=1e-5)


# By hand: top-3 of 5 experts, k0 = 1. Bases: token 1 {1}, token 2 {4}, token 3 {2}; token 4 is padding, base {5}.
# U = {1, 2, 4}.
#
#   token   scores               fill, at most two of U        experts
#   1       .50 .20 .15 .10 .05  2 (.20), 4 (.10)              1, 2 and 4 for 3
#   2       .05 .10 .30 .35 .20  2 (.10), 1 (.05)              4, 2, 1
#   3       .30 .40 .20 .06 .04  1 (.30), 4 (.06)              2, 1, 4
#   4       .10 .10 .15 .25 .40  4 (.25), one of 1 and 2       padding reads U but adds nothing to it
def test_oea_on_the_case_worked_by_hand():
    probabilities = torch.tensor(
        [
            [0.50, 0.20, 0.15, 0.10, 0.05],
            [0.05, 0.10, 0.30, 0.35, 0.20],
            [0.30, 0.40, 0.20, 0.06, 0.04],
            [0.10, 0.10, 0.15, 0.25, 0.40],
        ]
    )
    weights, index = probabilities.topk(3, dim=1)
    routing = Routing(probabilities, index, weights, torch.tensor([True, True, True, False]), 0, "decode")
    channel = ChannelState(torch.ones(5), torch.ones(5), torch.arange(5))
    selection = build_policy("oea", dict(k0=1)).select(routing, channel)
    assert sets_of(selection)[:3] == [{0, 1, 3}, {0, 1, 3}, {0, 1, 3}]
    assert selection.expert_index[0].tolist() == [0, 1, 3]
    assert selection.weights[0].tolist() == pytest.approx([0.50, 0.20, 0.10])


def test_one_sequence_alone_keeps_its_base():
    routing, channel = search_case(2, 1, 16, 8, 4, 0, 1.0)
    routing = replace(routing, phase="decode", is_real_token=torch.ones(1, dtype=torch.bool))
    keep = build_policy("oea").select(routing, channel).keep
    assert torch.equal(keep, routing.rank < 3)


def test_it_saves_distinct_experts_but_no_token_transfers():
    """The result that its docstring states: as many pairs are sent, to fewer experts."""
    routing, channel = search_case(4, 16, 64, 8, 64, 0, 1.0)
    routing = replace(routing, phase="decode", is_real_token=torch.ones(16, dtype=torch.bool))
    selection = build_policy("oea").select(routing, channel)
    assert selection.keep.all()
    assert len(selection.expert_index.unique()) < 0.75 * len(routing.top_k_index.unique())


@settings(deadline=None, max_examples=30)
@given(case=search_cases(max_tokens=12))
def test_padding_changes_nothing(case):
    routing, channel = case
    policy = build_policy("oea", dict(k0=1, phase="all"))
    padded, alone = policy.select(routing, channel), policy.select(only_real(routing), channel)
    assert [experts for experts, real in zip(sets_of(padded), routing.is_real_token) if real] == sets_of(alone)


@pytest.mark.parametrize("parameters", [dict(), dict(k0=1000, phase="all")])
def test_prefill_and_the_neutral_parameter_are_top_k(parameters):
    routing, channel = search_case(1, 20, 8, 3, 4, 0, 1.0)
    selection = build_policy("oea", parameters).select(routing, channel)
    assert selection.keep.all()
    assert torch.equal(selection.expert_index, routing.top_k_index)


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        (dict(k0=0), "selection policy 'oea': k0 must be a whole number >= 1, got 0"),
        (dict(phase="prefill"), "phase must be decode or all, got 'prefill'"),
    ],
)
def test_bad_parameters_get_one_sentence(parameters, sentence):
    with pytest.raises(PolicyError) as caught:
        build_policy("oea", parameters)
    assert sentence in str(caught.value)
