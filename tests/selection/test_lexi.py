"""LExI against trying every number of experts of every layer, and by hand."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.selection import oracles_search
from tests.selection.calibrations import calibration_file
from tests.selection.search_cases import search_case
from wdmoe_opencompass.errors import PolicyError
from wdmoe_opencompass.selection import build_policy
from wdmoe_opencompass.selection.calibration import Calibration, read_calibration


@settings(deadline=None, max_examples=80)
@given(layers=st.integers(1, 5), k=st.integers(2, 4), seed=st.integers(0, 50), budget=st.floats(1, 5, allow_nan=False))
def test_no_other_numbers_of_experts_lose_less(layers, k, seed, budget):
    path = calibration_file(layers, 6, k, seed)
    counts = build_policy("lexi", dict(budget=budget, calibration=path)).experts_of_layer
    losses = [[*row, 0.0] for row in read_calibration(path).fewer_experts_difference.double().tolist()]
    most = int(min(budget, k) * layers + 1e-9)
    assert len(counts) == layers
    assert all(1 <= count <= k for count in counts)
    assert sum(counts) <= most
    lost = sum(row[count - 1] for row, count in zip(losses, counts))
    assert lost == pytest.approx(oracles_search.lexi(losses, most))
    if k == 2:  # sorting is exact
        largest = sorted(range(layers), key=lambda layer: -losses[layer][0])[: most - layers]
        assert [layer for layer, count in enumerate(counts) if count == 2] == sorted(largest)


# By hand: 4 layers of top-3, budget 1.75: 7 experts, 3 beyond one per layer.
#
#   layer   loss with 1, 2, 3     gain of the 2nd, of the 3rd
#   1       5  4  0               1  4      both: 5 for two
#   2       3  1  0               2  1
#   3       6  2  0               4  2
#   4       1  0  0               1  0
#
#   the steepest single steps first would take layer 3 (4), layer 3 (2), layer 2 (2): 8; best is 1, 1, 3: 5 + 4 = 9.
def test_lexi_on_the_case_worked_by_hand(tmp_path):
    path = tmp_path / "hand.calibration.safetensors"
    losses = torch.tensor([[5.0, 4], [3, 1], [6, 2], [1, 0]])
    Calibration(fewer_experts_difference=losses).write(path)
    policy = build_policy("lexi", dict(budget=1.75, calibration=str(path)))
    assert policy.experts_of_layer == [3, 1, 2, 1]
    routing, channel = search_case(1, 20, 8, 3, 4, 0, 1.0)
    for layer, count in enumerate(policy.experts_of_layer):
        keep = policy.select(replace(routing, layer=layer), channel).keep
        assert (keep.sum(dim=1) == count).all()
        assert torch.equal(keep, routing.rank < count)


def test_the_kept_share_is_the_budget():
    routing, channel = search_case(1, 50, 8, 4, 4, 0, 1.0)
    path = calibration_file(8, 8, 4)
    for budget in (1.0, 1.5, 2.25, 3.0, 4.0, 9.0):
        policy = build_policy("lexi", dict(budget=budget, calibration=path))
        kept = [policy.select(replace(routing, layer=layer), channel).keep.float().mean().item() for layer in range(8)]
        assert sum(kept) / 8 == pytest.approx(min(budget, 4) / 4)


def test_at_its_neutral_parameter_it_is_top_k_and_needs_no_calibration():
    routing, channel = search_case(1, 20, 8, 3, 4, 0, 1.0)
    policy = build_policy("lexi", dict(budget=float("inf")))
    assert build_policy("lexi", policy.neutral).select(routing, channel).keep.all()


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        (dict(), "selection policy 'lexi' needs calibration: a file of `wdmoe calibrate`"),
        (dict(budget=0.5), "selection policy 'lexi': budget must be >= 1, got 0.5"),
    ],
)
def test_bad_parameters_get_one_sentence(parameters, sentence):
    with pytest.raises(PolicyError) as caught:
        build_policy("lexi", parameters)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(("layer", "k"), [(2, 2), (0, 3)])
def test_a_calibration_of_another_model_is_refused(layer, k):
    routing, channel = search_case(1, 5, 8, k, 4, 0, 1.0)
    policy = build_policy("lexi", dict(calibration=calibration_file(2, 8, 2)))
    with pytest.raises(PolicyError, match=f"2 MoE layers with 2 experts per token; layer {layer + 1} of this model"):
        policy.select(replace(routing, layer=layer), channel)
