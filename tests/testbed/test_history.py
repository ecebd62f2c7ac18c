import numpy as np
import pytest
import torch

from tests.tiny import channel_states, prompts, tiny_mixtral
from wdmoe_opencompass.channel.profile import load_profile
from wdmoe_opencompass.errors import WdmoeError
from wdmoe_opencompass.latency import ExpertShape
from wdmoe_opencompass.routing.attachment import Attachment
from wdmoe_opencompass.routing.channel_state import ChannelStates
from wdmoe_opencompass.selection import Routing, build_policy
from wdmoe_opencompass.testbed.history import MeasuredHistory
from wdmoe_opencompass.trace.times import LayerTimes


def message(layer, device, tokens, total_s):
    return LayerTimes(layer, device, tokens, 0.0, 0.0, 0.0, 0.0, total_s, total_s)


def history_of(*messages, **parameters):
    history = MeasuredHistory(layers=2, devices=3, **parameters)
    history.add(message(*fields) for fields in messages)
    return history


def test_the_mean_is_of_the_messages_ratios():
    messages = [(0, 0, 10, 5.0), (0, 0, 1, 2.5)]  # .5 and 2.5 s per token
    assert history_of(*messages).mean_token_s(0)[0] == pytest.approx(1.5)
    assert history_of(*messages, average="totals").mean_token_s(0)[0] == pytest.approx(7.5 / 11)
    history = history_of(*messages)
    assert history.seconds[0].tolist() == [7.5, 0, 0]
    assert history.tokens[0].tolist() == [11, 0, 0]


def test_a_window_forgets_what_is_older():
    messages = [(0, 1, 1, 100.0), (0, 1, 1, 2.0), (0, 1, 1, 4.0)]
    assert history_of(*messages, window=2).mean_token_s(0)[1] == pytest.approx(3.0)
    assert history_of(*messages, window=1).mean_token_s(0)[1] == pytest.approx(4.0)
    assert history_of(*messages, window=9).mean_token_s(0)[1] == pytest.approx(106 / 3)


def test_what_is_not_measured_yet_is_taken_from_other_layers_then_from_other_devices():
    assert history_of().mean_token_s(0).tolist() == [0, 0, 0]
    history = history_of((0, 0, 2, 4.0), (1, 1, 1, 6.0))
    assert history.mean_token_s(0).tolist() == [2, 6, 4]
    assert history.mean_token_s(1).tolist() == [2, 6, 4]
    history.add([message(1, 0, 1, 10.0)])
    assert history.mean_token_s(1).tolist() == [10, 6, 8]


def test_messages_cut_short_or_without_a_token_are_left_out():
    history = history_of((0, 0, 0, 4.0), (0, 0, 3, float("nan")), (0, 0, 3, float("inf")), (0, 0, 3, -1.0))
    assert history.tokens.sum() == 0
    with pytest.raises(IndexError):
        history.add([message(2, 0, 1, 1.0)])
    with pytest.raises(IndexError):
        history.add([message(0, -1, 1, 1.0)])


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        (dict(window=0), "window must be a whole number >= 1, or None for all, got 0"),
        (dict(window=1.5), "got 1.5"),
        (dict(average="mean"), "history average 'mean' is unknown"),
    ],
)
def test_bad_parameters_get_one_sentence(parameters, sentence):
    with pytest.raises(WdmoeError, match=sentence):
        MeasuredHistory(1, 1, **parameters)


def test_channel_states_carry_the_history_as_it_is_at_the_moment():
    history = MeasuredHistory(layers=2, devices=8)
    states = ChannelStates(load_profile("paper_8_devices"), ExpertShape(32, 48), 8, history)
    cpu = torch.device("cpu")
    assert states(0, 0, cpu).mean_token_s.tolist() == [0] * 8
    history.add([message(0, 0, 1, 3.0), message(1, 0, 1, 5.0)])
    assert states(0, 0, cpu).mean_token_s.tolist() == [3] * 8
    assert states(0, 1, cpu).mean_token_s.tolist() == [5] * 8
    assert ChannelStates(load_profile("paper_8_devices"), ExpertShape(32, 48), 8)(0, 0, cpu).mean_token_s is None


def test_the_bottleneck_policy_relieves_the_device_that_was_measured_slow():
    history = MeasuredHistory(layers=1, devices=8)
    states = ChannelStates(load_profile("paper_8_devices"), ExpertShape(32, 48), 8, history)
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.softmax(torch.randn(200, 8, generator=generator), dim=1)
    weights, index = probabilities.topk(2, dim=1)
    routing = Routing(probabilities, index, weights, torch.ones(200, dtype=torch.bool), 0, "prefill")
    policy = build_policy("bottleneck")
    assert policy.select(routing, states(0, 0, torch.device("cpu"))).keep.all()  # nothing measured yet
    history.add([message(0, k, 10, 10.0 if k == 5 else 1.0) for k in range(8)])
    keep = policy.select(routing, states(0, 0, torch.device("cpu"))).keep
    gone = np.bincount(routing.top_k_index[~keep].numpy(), minlength=8)
    assert gone[5] > 5
    assert gone.sum() == gone[5]


def test_a_model_runs_with_the_history_of_its_own_layers():
    """The history grows between layers of one pass, and the slow device gets fewer tokens in the next."""
    model = tiny_mixtral()
    history = MeasuredHistory(layers=3, devices=8)
    states = channel_states(model)
    states.history = history
    seconds = np.where(np.arange(8) == 2, 1.0, 0.1)  # per token

    class Measured(type(build_policy("bottleneck"))):
        def select(self, routing, channel):
            selection = super().select(routing, channel)
            real = selection.keep & routing.is_real_token[:, None]
            loads = np.bincount(routing.top_k_index[real].numpy(), minlength=8)
            history.add(message(routing.layer, k, int(loads[k]), loads[k] * seconds[k]) for k in range(8))
            return selection

    ids, mask = prompts(rows=8)
    with Attachment(model, Measured(), states) as attachment, torch.no_grad():
        for _ in range(2):
            model(input_ids=ids, attention_mask=mask)
        block = attachment.recorder.finish_batch(0, 8)
    gone = (block["device_load_before"] - block["device_load"])[:, :, 2]
    assert gone[0, 0] == 0  # nothing was measured before the first layer
    assert gone[1].sum() > 0
    assert history.mean_token_s(2) == pytest.approx(seconds)
