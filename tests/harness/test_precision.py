import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM

from tests.conftest import ROOT
from wdmoe_opencompass.errors import ModelError
from wdmoe_opencompass.harness.models import WdmoeHuggingFaceBaseModel
from wdmoe_opencompass.harness.precision import check_precision, expected_bytes, precision_name, tensor_bytes

BITSANDBYTES = dict(quant_method="bitsandbytes", load_in_4bit=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A bfloat16 Mixtral with sizes that suit blocks of 64 values; 90 % of its weights are experts."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=1024,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        num_local_experts=8,
    )
    folder = tmp_path_factory.mktemp("checkpoint")
    MixtralForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(ROOT / "quickstart" / "model").save_pretrained(folder)
    return folder


def int8_model_kwargs():
    from mmengine.config import Config

    config = ROOT / "eval_configs" / "models" / "wdmoe_mixtral_8x7b_instruct_int8.py"
    return Config.fromfile(config, format_python_code=False).models[0].model_kwargs.to_dict()


def load(checkpoint, **kwargs):
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16, device_map="cpu", **kwargs)


def test_an_unquantised_model_passes_and_is_named_by_its_dtype(checkpoint):
    model = load(checkpoint)
    check_precision("m", model)
    assert precision_name(model) == "bfloat16"
    assert expected_bytes(model.config, 2, torch.bfloat16) == sum(2 * p.numel() for p in model.parameters())


def test_four_bit_by_bitsandbytes_is_refused_because_the_experts_stay_in_sixteen(checkpoint):
    pytest.importorskip("bitsandbytes")
    model = load(checkpoint, quantization_config=BITSANDBYTES)
    assert model.model.layers[0].mlp.experts.down_proj.dtype == torch.bfloat16
    with pytest.raises(
        ModelError, match=r"m: 4-bit weights should take .* GB, but .*experts.gate_up_proj in full precision"
    ):
        check_precision("m", model)


def test_the_shipped_eight_bit_config_halves_the_experts_and_passes(checkpoint):
    pytest.importorskip("torchao")
    kwargs = int8_model_kwargs() | dict(device_map="cpu")
    kwargs.pop("torch_dtype")
    full, model = load(checkpoint), load(checkpoint, **{k: v for k, v in kwargs.items() if k != "device_map"})
    check_precision("m", model)
    assert precision_name(model) == "bfloat16, 8-bit weights by torchao"
    names = [name for name, _ in full.named_parameters() if "experts" in name]
    sizes = {name: (tensor_bytes(dict(m.named_parameters())[name])) for m in (full,) for name in names}
    for name, parameter in model.named_parameters():
        if name in sizes:
            assert tensor_bytes(parameter) == pytest.approx(sizes[name] / 2, rel=0.02)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        difference = (model(ids).logits - full(ids).logits).float().norm() / full(ids).logits.float().norm()
    assert difference < 0.05


@pytest.mark.parametrize("policy", ["top_k", "wlr"])
def test_eight_bit_experts_answer_under_every_policy(checkpoint, policy):
    pytest.importorskip("torchao")
    model = WdmoeHuggingFaceBaseModel(
        path=str(checkpoint),
        model_kwargs=int8_model_kwargs() | dict(device_map="cpu"),
        max_seq_len=512,
        wdmoe=dict(profile="paper_8_devices", policy=policy),
    )
    with torch.no_grad():
        assert torch.isfinite(torch.tensor(model.get_ppl(["What is this, then?", "A bolo"]))).all()


def test_a_mismatch_stops_the_model_class_with_the_same_sentence(checkpoint):
    pytest.importorskip("bitsandbytes")
    with pytest.raises(ModelError, match=r"left .*experts.* in full precision"):
        WdmoeHuggingFaceBaseModel(
            path=str(checkpoint),
            model_kwargs=dict(torch_dtype="torch.bfloat16", device_map="cpu", quantization_config=BITSANDBYTES),
            max_seq_len=512,
            wdmoe=dict(profile="paper_8_devices", policy="wlr"),
        )
