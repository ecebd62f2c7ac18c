import re

import numpy as np
import pytest
import torch
from opencompass.models import HuggingFaceBaseModel, HuggingFacewithChatTemplate
from pytest import approx

from tests.builders.odd_models import mixed_mixtral
from tests.builders.stock_models import MODEL, PROMPTS, VANILLA, StockBase, WithTokenizerMethod
from tests.conftest import ROOT
from wdmoe_opencompass import ExpertShape, draw_channel, link_budget
from wdmoe_opencompass.errors import ModelError, PolicyError, ProfileError
from wdmoe_opencompass.harness.models import WdmoeHuggingFaceBaseModel, WdmoeHuggingFacewithChatTemplate
from wdmoe_opencompass.replay import replay
from wdmoe_opencompass.routing.channel_state import ChannelStates
from wdmoe_opencompass.trace.format import read_trace


class StockChat(WithTokenizerMethod, HuggingFacewithChatTemplate):
    pass


def test_vanilla_perplexities_and_answers_are_those_of_opencompass_own_class():
    ours, stock = WdmoeHuggingFaceBaseModel(**MODEL, wdmoe=VANILLA), StockBase(**MODEL)
    with torch.no_grad():
        assert (ours.get_ppl(PROMPTS) == stock.get_ppl(PROMPTS)).all()
        assert ours.generate(PROMPTS, 12) == stock.generate(PROMPTS, 12)
        stopped = ours.generate(PROMPTS, 12, stopping_criteria=["1"])
        assert stopped == stock.generate(PROMPTS, 12, stopping_criteria=["1"])
    assert type(ours.model).__name__ == "MixtralForCausalLM"


def test_vanilla_chat_answers_are_those_of_opencompass_own_class():
    ours, stock = WdmoeHuggingFacewithChatTemplate(**MODEL, wdmoe=VANILLA), StockChat(**MODEL)
    with torch.no_grad():
        assert ours.generate(PROMPTS, 12) == stock.generate(PROMPTS, 12)


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        (dict(), ModelError, "needs wdmoe=dict"),
        (dict(wdmoe=dict(profil="paper_8_devices")), ModelError, "profil"),
        (dict(wdmoe=dict(policy="wlr")), ModelError, "wdmoe.profile: field required"),
        (dict(wdmoe=dict(profile="paper_8_devices", policy="wrl")), PolicyError, "did you mean 'wlr'"),
        (dict(wdmoe=dict(profile="paper_8")), ProfileError, "did you mean 'paper_8_devices'"),
        (dict(wdmoe=dict(VANILLA, policy_parameters=dict(theta=1))), PolicyError, "takes no parameter theta"),
        (dict(wdmoe=VANILLA, batch_padding=True), ModelError, "argument of WdmoeHuggingFaceBaseModel 'batch_padding'"),
    ],
)
def test_bad_model_arguments_are_errors_before_anything_is_loaded(arguments, error, sentence):
    with pytest.raises(error) as caught:
        WdmoeHuggingFaceBaseModel(path="no/such/model", **arguments)
    assert sentence in str(caught.value)


def test_remote_code_is_not_trusted_unless_the_user_says_so(monkeypatch):
    seen = []
    import transformers

    real = transformers.AutoTokenizer.from_pretrained
    monkeypatch.setattr(
        transformers.AutoTokenizer, "from_pretrained", lambda path, **kw: seen.append(kw) or real(path, **kw)
    )
    WdmoeHuggingFaceBaseModel(**MODEL, wdmoe=VANILLA, tokenizer_only=True)
    WdmoeHuggingFaceBaseModel(
        **MODEL, wdmoe=VANILLA, tokenizer_only=True, tokenizer_kwargs=dict(trust_remote_code=True)
    )
    assert [kw["trust_remote_code"] for kw in seen] == [False, True]


@pytest.fixture(scope="module")
def dense_checkpoint(tmp_path_factory):
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("dense")
    config = LlamaConfig(
        vocab_size=1024, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL["path"]).save_pretrained(folder)
    return folder


def small_config():
    from mmengine.config import Config

    return Config.fromfile(ROOT / "tests" / "harness" / "eval_small.py", format_python_code=False)


def run_task(work_dir, model, datasets):
    from mmengine.config import Config

    from wdmoe_opencompass.harness.infer_task import WdmoeInferTask

    task = dict(models=[model], datasets=[datasets], work_dir=str(work_dir), cli_args=dict())
    WdmoeInferTask(Config(task)).run_or_raise()


def test_a_dense_stock_model_runs_in_our_task_and_leaves_predictions_without_a_trace(tmp_path, dense_checkpoint):
    small = small_config()
    model = dict(
        type=HuggingFaceBaseModel,
        abbr="dense-hf",
        path=str(dense_checkpoint),
        model_kwargs=dict(torch_dtype="torch.float32", device_map="cpu"),
        max_out_len=4,
        batch_size=4,
        run_cfg=dict(num_gpus=0),
    )
    chosen = [d for d in small.datasets if d.abbr in ("qs_choice_small", "qs_arith_small")]
    run_task(tmp_path / "run", model, chosen)
    written = {path.name for path in (tmp_path / "run" / "predictions" / "dense-hf").iterdir()}
    assert written == {"qs_choice_small.json", "qs_arith_small.json"}


def test_a_model_without_a_router_fails_with_one_sentence_and_writes_no_predictions(tmp_path, dense_checkpoint):
    small = small_config()
    model = small.models[1] | dict(path=str(dense_checkpoint))
    with pytest.raises(ModelError, match="LlamaForCausalLM has no MoE layer that can be patched"):
        run_task(tmp_path / "run", model, small.datasets[:1])
    written = {path.name: path.read_text() for path in (tmp_path / "run" / "predictions").rglob("*.*")}
    assert list(written) == ["qs_choice_small.failed.txt"]
    assert written["qs_choice_small.failed.txt"].startswith("LlamaForCausalLM has no MoE layer")


class SeenChannel:
    """What the selection of every layer and pass saw of the channel, by the test's own count of batches."""

    def __init__(self, monkeypatch):
        self.batch = 0
        self.communication_s = {}
        asked = ChannelStates.__call__

        def see(states, pass_index, layer, device):
            state = asked(states, pass_index, layer, device)
            seen = tuple(state.communication_s.tolist())
            assert self.communication_s.setdefault((self.batch, pass_index, layer), seen) == seen
            return state

        monkeypatch.setattr(ChannelStates, "__call__", see)

    def layer_latency_s(self, trace, batches):
        """-> [passes, layers] Eq. (11) under the channel that each pass's selection saw; batches: the trace's own."""
        budget = link_budget(trace.metadata.profile, draw_channel(trace.metadata.profile), ExpertShape(128, 256))
        return np.array([
            [
                (load * np.array(self.communication_s[batches[batch], number, layer])
                 + evaluations * budget.computation_s).max()
                for layer, (load, evaluations) in enumerate(zip(loads, evaluated))
            ]
            for batch, number, loads, evaluated in zip(
                trace.batch, trace.pass_index, trace.device_load, trace.expert_evaluations
            )
        ])  # fmt: skip


@pytest.fixture(params=["pass", "layer"])
def changing(request, tmp_path):
    """A profile file with changed fading and divided bands: both directions differ too."""
    text = (ROOT / "channel_profiles" / "paper_8_devices.yaml").read_text()
    path = tmp_path / "changing.yaml"
    changed = re.sub("coherence: run", f"coherence: {request.param}", text)
    path.write_text("duplex: frequency_division\n" + re.sub(r"(?m)^duplex:.*\n", "", changed))
    return WdmoeHuggingFaceBaseModel(**MODEL, wdmoe=dict(profile=str(path), policy="wlr"))


def test_labels_and_passes_meet_draws_of_their_own_and_replay_has_the_same(changing, tmp_path, monkeypatch):
    seen = SeenChannel(monkeypatch)
    model, predictions = changing, tmp_path / "d.json"
    model.open_trace(predictions, "m", "d", items_total=3, answered=0)
    with torch.no_grad():
        for label in (" A", " B"):
            for items in (PROMPTS[:2], PROMPTS[2:]):
                model.get_ppl([item + label for item in items])
                seen.batch += 1
    model.close_trace(seal=True)
    trace = read_trace(predictions.with_name("d.trace.safetensors"))
    assert trace.first_item.tolist() == [0, 2, 0, 2]
    assert trace.items_before.tolist() == [0, 2, 3, 5]
    assert len({seen.communication_s[batch, 0, 0] for batch in range(4)}) == 4
    by_layer = len({seen.communication_s[0, 0, layer] for layer in range(trace.metadata.layers)})
    assert by_layer == (trace.metadata.layers if model.profile.fading.coherence == "layer" else 1)
    latency_s = replay(trace, model.profile, "uniform", "pass").layer_latency_s
    assert latency_s == approx(seen.layer_latency_s(trace, range(4)), rel=1e-5)


def test_a_killed_run_goes_on_under_the_draws_it_would_have_met(changing, tmp_path, monkeypatch):
    seen = SeenChannel(monkeypatch)
    model, predictions = changing, tmp_path / "d.json"

    def go_on(answered, times):
        first = model.open_trace(predictions, "m", "d", items_total=4, answered=answered)
        assert first == answered
        with torch.no_grad():
            for _ in range(times):
                model.generate(PROMPTS[:1] * 2, 3)
                seen.batch += 1

    go_on(0, 2)
    model.close_trace(seal=True)
    whole = read_trace(predictions.with_name("d.trace.safetensors"))
    go_on(0, 2)
    model.close_trace(seal=False)  # killed: the last block was torn, or the last batch's answers were not kept
    go_on(2, 1)
    model.close_trace(seal=True)
    resumed = read_trace(predictions.with_name("d.trace.safetensors"))
    latency_s = replay(resumed, model.profile, "uniform", "pass").layer_latency_s
    assert latency_s == approx(seen.layer_latency_s(resumed, [2, 4]), rel=1e-5)
    assert (latency_s == replay(whole, model.profile, "uniform", "pass").layer_latency_s).all()
    assert (whole.pass_index > 0).any()
    assert len({seen.communication_s[0, number, 0] for number in range(3)}) == 3


def test_a_run_that_goes_on_without_recording_leaves_no_journal_of_it(tmp_path):
    predictions = tmp_path / "d.json"
    for record_routing in (True, False):
        model = WdmoeHuggingFaceBaseModel(**MODEL, wdmoe=dict(VANILLA, record_routing=record_routing))
        first = model.open_trace(predictions, "m", "d", items_total=2, answered=int(not record_routing))
        assert first == int(not record_routing)
        model.generate(PROMPTS[:1], 3)
        model.close_trace(seal=not record_routing)  # at first it is killed after a batch
        assert (tmp_path / "d.routing.part").exists() == record_routing
    assert read_trace(tmp_path / "d.trace.safetensors").items.tolist() == [1, 1]
    assert not list(tmp_path.glob("*.part"))


def test_layers_may_differ_in_experts(monkeypatch):
    mixed = mixed_mixtral()
    first, second = mixed.model.layers
    first.mlp, second.mlp = second.mlp, first.mlp  # the one with more experts comes last
    monkeypatch.setattr(HuggingFaceBaseModel, "_load_model", lambda self, **kwargs: setattr(self, "model", mixed))
    model = WdmoeHuggingFaceBaseModel(**MODEL, wdmoe=dict(VANILLA, policy="wlr"))
    with torch.no_grad():
        model.model(input_ids=torch.arange(3, 40)[None])
    metadata = model._metadata("mixed", "some", "")
    assert (metadata.experts, metadata.top_k) == (8, 3)
    block = model.attachment.recorder.finish_batch(0, 1)
    assert block["co_selection"].shape[-1] == metadata.sizes()["pairs"]
