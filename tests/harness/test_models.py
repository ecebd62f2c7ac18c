import pytest
import torch
from opencompass.models import HuggingFaceBaseModel, HuggingFacewithChatTemplate

from tests.conftest import ROOT
from tests.routing.test_odd_models import mixed_mixtral
from wdmoe_opencompass.errors import ModelError, PolicyError, ProfileError
from wdmoe_opencompass.harness.models import WdmoeHuggingFaceBaseModel, WdmoeHuggingFacewithChatTemplate

MODEL = dict(
    path=str(ROOT / "quickstart" / "model"),
    model_kwargs=dict(torch_dtype="torch.float32", device_map="cpu"),
    max_seq_len=512,
)
VANILLA = dict(profile="paper_8_devices", policy="top_k")
PROMPTS = ["Question: Ada has 7 pens, loses 3. How many pens are there now?\nAnswer:", "A bolo", "What is this, then?"]


class WithTokenizerMethod:
    """What transformers 5 took from tokenizers and OpenCompass 0.5.4 still calls; nothing else is changed."""

    def _load_tokenizer(self, *args, **kwargs):
        super()._load_tokenizer(*args, **kwargs)
        self.tokenizer.batch_encode_plus = self.tokenizer.__call__


class StockBase(WithTokenizerMethod, HuggingFaceBaseModel):
    pass


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
    WdmoeInferTask(Config(task)).run()


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
