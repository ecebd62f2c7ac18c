"""The split in torch against the exact allocator."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders.drops import random_profile
from wdmoe_opencompass import ExpertShape, allocate, draw_channel, link_budget
from wdmoe_opencompass.errors import PolicyError
from wdmoe_opencompass.latency import communication_latency_s
from wdmoe_opencompass.routing.channel_state import ChannelStates
from wdmoe_opencompass.selection import ChannelState
from wdmoe_opencompass.selection.bandwidth_split import optimal_split

SHAPE = ExpertShape(256, 512)
TOLERANCE = 1e-3  # the curve is a table of 256 points, read in logarithms


def random_problem(seed, devices, duplex="shared", problems=6, most=60):
    """-> state, budget, total hertz, load and evaluations [problems, devices]; idle devices, and no load at all."""
    generator = np.random.default_rng(seed)
    profile = random_profile(generator, devices, duplex)
    state = ChannelStates(profile, SHAPE, devices)(0, 0, torch.device("cpu"))
    load = generator.integers(0, most, (problems, devices)) * (generator.random((problems, devices)) < 0.8)
    load[0] = 0
    evaluations = load * generator.integers(1, 4, load.shape)
    return state, link_budget(profile, draw_channel(profile), SHAPE), profile.total_bandwidth_hz, load, evaluations


@pytest.mark.parametrize("duplex", ["shared", "frequency_division"])
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), devices=st.integers(1, 8), most=st.sampled_from([2, 60, 5000]))
def test_split_is_the_exact_optimum(duplex, seed, devices, most):
    state, budget, total_hz, load, evaluations = random_problem(seed, devices, duplex, most=most)
    exact = allocate("optimal", "layer", budget, load[:, None], total_hz, evaluations[:, None])
    split = optimal_split(state, torch.tensor(load), torch.tensor(evaluations))
    assert split.waiting_latency_s.numpy() == pytest.approx(exact.waiting_latency_s, rel=TOLERANCE)
    loaded = load > 0
    token_s = communication_latency_s(budget, np.where(loaded, exact.bandwidth_hz[:, 0], total_hz))
    assert (split.communication_s.numpy()[~loaded] == 0).all()
    finish = load * split.communication_s.numpy() + evaluations * budget.computation_s
    waiting = np.broadcast_to(split.waiting_latency_s.numpy()[:, None], finish.shape)
    assert finish[loaded] == pytest.approx(waiting[loaded])  # all loaded devices finish together
    sending = load * token_s
    assert (load * split.communication_s.numpy())[loaded] == pytest.approx(
        sending[loaded], abs=2 * TOLERANCE * waiting.max()
    )


def test_leading_axes_are_independent_problems():
    state, _, _, load, evaluations = random_problem(3, 5, problems=6)
    load, evaluations = torch.tensor(load), torch.tensor(evaluations)
    together = optimal_split(state, load.view(2, 3, 5), evaluations.view(2, 3, 5))
    alone = [optimal_split(state, *problem) for problem in zip(load, evaluations)]
    assert together.waiting_latency_s.flatten().tolist() == pytest.approx(
        [split.waiting_latency_s.item() for split in alone]
    )
    assert torch.allclose(together.communication_s.view(6, 5), torch.stack([split.communication_s for split in alone]))


def test_one_device_gets_the_whole_bandwidth_and_no_load_takes_no_time():
    state, budget, total_hz, _, _ = random_problem(1, 4)
    split = optimal_split(state, torch.tensor([[0, 0, 7, 0], [0, 0, 0, 0]]), torch.tensor([[0, 0, 9, 0], [0, 0, 0, 0]]))
    alone = communication_latency_s(budget, total_hz)[2]
    assert split.communication_s[0].tolist() == pytest.approx([0, 0, alone, 0], rel=TOLERANCE)
    assert split.waiting_latency_s.tolist() == pytest.approx(
        [7 * alone + 9 * budget.computation_s[2], 0], rel=TOLERANCE
    )


def test_a_state_without_a_curve_is_refused():
    state = ChannelState(torch.ones(2), torch.ones(2), torch.arange(2))
    with pytest.raises(PolicyError, match="needs the channel's bandwidth curve"):
        optimal_split(state, torch.ones(2), torch.ones(2))
