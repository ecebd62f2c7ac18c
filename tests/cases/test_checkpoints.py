"""The weights that are loaded are the checkpoint's: what is missing, unexpected or of another shape is refused."""

import json
import re
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config, ConfigDict
from opencompass.models import HuggingFaceBaseModel, HuggingFaceCausalLM, HuggingFacewithChatTemplate
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import ROOT
from tests.routing.families import tiny_model
from tests.tiny import prompts
from wdmoe_opencompass._util.checkpoint_files import checkpoint_files, missing_files
from wdmoe_opencompass.errors import ModelError
from wdmoe_opencompass.harness.infer_task import WdmoeInferTask, build_model
from wdmoe_opencompass.identity import weights_digest
from wdmoe_opencompass.routing.checkpoint import check_checkpoint, check_loading

QUICKSTART = ROOT / "quickstart" / "model"
ROUTER = "model.layers.1.block_sparse_moe.gate.weight"
FAMILIES = ("mixtral", "qwen2_moe", "olmoe")
PLAN = """
from mmengine.config import read_base
with read_base():
    from wdmoe_opencompass.eval_configs.datasets.quickstart import quickstart_datasets as _all
    from wdmoe_opencompass.eval_configs.models.wdmoe_quickstart import models
    from wdmoe_opencompass.eval_configs.runners.wdmoe_local import eval, infer
    from wdmoe_opencompass.eval_configs.summarizers.wdmoe import summarizer
datasets = [dict(_all[3], reader_cfg=dict(_all[3]["reader_cfg"], test_range="[:6]"))]
for _model in models:
    _model["path"] = {path!r}
"""


def change(folder, **tensors):
    """Write a folder's only weight file again, with some tensors replaced; None removes one."""
    changed = load_file(folder / "model.safetensors") | tensors
    kept = {name: tensor for name, tensor in changed.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def without_router(tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken") / "model"
    shutil.copytree(QUICKSTART, folder)
    change(folder, **{ROUTER: None})
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """-> {family: (model, folder of its weights)}"""
    folder = tmp_path_factory.mktemp("families")
    models = {name: tiny_model(name) for name in FAMILIES}
    for name, model in models.items():
        model.save_pretrained(folder / name)
    return {name: (model, folder / name) for name, model in models.items()}


# -- a router is missing -------------------------------------------------------------------------------------------
def test_plan_and_doctor_refuse_a_model_without_one_of_its_routers(without_router, tmp_path, monkeypatch):
    from wdmoe_opencompass.doctor.config import check_config

    monkeypatch.chdir(ROOT)
    config = tmp_path / "eval.py"
    config.write_text(PLAN.format(path=str(without_router)))
    found = check_config(config)  # every problem of the plan, and more
    named = [finding for finding in found if f"MixtralForCausalLM: 1 missing ({ROUTER})" in finding.found]
    assert len(named) == 2  # the vanilla and the WDMoE model
    assert {finding.fix for finding in named} == {"get the weights again, or the config.json that belongs to them"}
    assert [finding for finding in found if finding.status == "problem"] == named


def test_a_run_refuses_it_before_it_loads(without_router, monkeypatch):
    from wdmoe_opencompass.harness.models import WdmoeHuggingFaceBaseModel

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("was loaded"))
    with pytest.raises(ModelError, match=re.escape(f"1 missing ({ROUTER})")):
        WdmoeHuggingFaceBaseModel(path=str(without_router), wdmoe=dict(profile="paper_8_devices"))


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """-> folder of a tiny dense model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("dense")
    sizes = dict(vocab_size=1024, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=64)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(QUICKSTART).save_pretrained(folder)
    return folder


def stock(folder, kind=HuggingFaceBaseModel):
    cpu = dict(torch_dtype="auto", device_map="cpu")
    return ConfigDict(type=kind, abbr="stock", path=str(folder), model_kwargs=cpu, max_out_len=2, batch_size=2)


@pytest.mark.parametrize("kind", [HuggingFaceBaseModel, HuggingFacewithChatTemplate, HuggingFaceCausalLM])
def test_opencompass_own_classes_refuse_it_too(without_router, dense, tmp_path, kind):
    assert build_model(stock(dense, kind)).model.config.hidden_size == 16
    with pytest.raises(ModelError, match=re.escape(f"1 missing ({ROUTER})")):
        build_model(stock(without_router, kind))
    shutil.copytree(dense, tmp_path / "headless")
    change(tmp_path / "headless", **{"lm_head.weight": None})
    with pytest.raises(ModelError, match=r"LlamaForCausalLM: 1 missing \(lm_head\.weight\)"):
        build_model(stock(tmp_path / "headless", kind))


def test_a_task_of_a_stock_model_refuses_it_and_leaves_no_predictions(without_router, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    dataset = Config.fromfile(ROOT / "tests" / "harness" / "eval_small.py", format_python_code=False).datasets[0]
    task = dict(models=[stock(without_router)], datasets=[[dataset]], work_dir=str(tmp_path), cli_args=dict())
    with pytest.raises(ModelError, match=re.escape(f"1 missing ({ROUTER})")):
        WdmoeInferTask(Config(task)).run_or_raise()
    assert not list(tmp_path.glob("predictions/*/*.json"))


def test_calibration_refuses_it(without_router):
    from wdmoe_opencompass.routing.calibrate import load_model

    with pytest.raises(ModelError, match=r"1 missing \(model\.layers\.1\.mlp\.gate\.weight\)"):
        load_model(str(without_router), "float32")


# -- any tensor ----------------------------------------------------------------------------------------------------
CHANGES = {
    "removed": lambda name, tensor: {},
    "renamed": lambda name, tensor: {f"{name}_": tensor},
    "renamed before": lambda name, tensor: {f"other.{name}": tensor},
    "doubled": lambda name, tensor: {name: torch.cat([tensor, tensor])},
    "one more axis": lambda name, tensor: {name: tensor[None].clone()},
    "shortened": lambda name, tensor: {name: tensor[..., 1:].clone()},
}


@given(data=st.data())
@settings(deadline=None, max_examples=25, derandomize=True)
def test_a_checkpoint_with_any_tensor_changed_is_refused_by_its_name(checkpoints, data):
    family = data.draw(st.sampled_from(FAMILIES))
    _, folder = checkpoints[family]
    tensors = load_file(folder / "model.safetensors")
    name = data.draw(st.sampled_from(sorted(tensors)))
    how = data.draw(st.sampled_from(sorted(CHANGES)))
    changed = folder.parent / "changed"
    shutil.copytree(folder, changed, dirs_exist_ok=True)
    new = {other: tensor for other, tensor in tensors.items() if other != name} | CHANGES[how](name, tensors[name])
    save_file(new, changed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError) as caught:
        check_checkpoint(changed, {})
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    with check_loading("changed"), pytest.raises(ModelError):
        AutoModelForCausalLM.from_pretrained(changed)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_expert_of_another_number_is_refused(checkpoints, tmp_path, family):
    """transformers stacks experts in the order of their numbers, whatever those are: 3 would be 4."""
    _, folder = checkpoints[family]
    shutil.copytree(folder, tmp_path / "changed")
    tensors = load_file(folder / "model.safetensors")
    name = next(key for key in tensors if ".experts.3." in key)
    change(tmp_path / "changed", **{name: None, name.replace(".3.", ".11."): tensors[name]})
    with pytest.raises(ModelError, match=re.escape(name)):
        check_checkpoint(tmp_path / "changed", {})


CONFIGS = {
    "fewer layers": (dict(num_hidden_layers=2), "31 unexpected (model.layers.2."),
    "more layers": (dict(num_hidden_layers=4), "missing (model.layers.3."),
    "fewer experts": (dict(num_local_experts=6), "of another shape (model.layers.0."),
    "more experts": (dict(num_local_experts=9), "missing (model.layers.0.block_sparse_moe.experts.8."),
    "another vocabulary": (dict(vocab_size=99), "lm_head.weight [97, 32] instead of [99, 32]"),
    "another family": (dict(model_type="qwen2_moe", architectures=["Qwen2MoeForCausalLM"]), "Qwen2MoeForCausalLM"),
    "tied or not": (dict(tie_word_embeddings=False), None),
}


@pytest.mark.parametrize("what", CONFIGS)
def test_a_config_of_another_model_is_refused(checkpoints, tmp_path, what):
    changes, sentence = CONFIGS[what]
    shutil.copytree(checkpoints["mixtral"][1], tmp_path / "changed")
    config = json.loads((tmp_path / "changed" / "config.json").read_text())
    (tmp_path / "changed" / "config.json").write_text(json.dumps(config | changes))
    if sentence is None:
        assert check_checkpoint(tmp_path / "changed", {}) is None
        return
    with pytest.raises(ModelError, match=re.escape(sentence)):
        check_checkpoint(tmp_path / "changed", {})


def test_what_the_files_lack_or_cannot_say_is_told_apart(checkpoints, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(checkpoints["mixtral"][1], folder)
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ModelError, match="cannot be read as weights"):
        check_checkpoint(folder, {})
    (folder / "model.safetensors").unlink()
    assert check_checkpoint(folder, {}) == "its weight files are not there"
    assert "GGUF" in check_checkpoint(folder, dict(gguf_file="model.gguf"))


# -- sound checkpoints ---------------------------------------------------------------------------------------------
def in_bin(model, folder):
    model.save_pretrained(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return {}


def in_bin_of_two(model, folder):
    """The other file is of another training."""
    in_bin(model, folder)
    tensors = torch.load(folder / "pytorch_model.bin")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / "model.safetensors")
    return dict(use_safetensors=False)


def as_transformers_4_saved(model, folder):
    """Every expert's matrices by themselves, and the rotary frequencies of old; written without transformers."""
    model.save_pretrained(folder)
    tensors = {}
    for name, tensor in model.state_dict().items():
        name = name.replace(".mlp.", ".block_sparse_moe.")
        before = name.rpartition(".")[0]
        for number in range(8):
            if name.endswith("gate_up_proj"):
                w1, w3 = tensor[number].chunk(2)
                tensors |= {f"{before}.{number}.w1.weight": w1.clone(), f"{before}.{number}.w3.weight": w3.clone()}
            elif name.endswith("experts.down_proj"):
                tensors[f"{before}.{number}.w2.weight"] = tensor[number].clone()
        if "experts" not in name:
            tensors[name] = tensor
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return {}


def saved(**how):
    def save(model, folder):
        model.save_pretrained(folder / how.pop("subfolder", ""), **{k: v for k, v in how.items() if k != "subfolder"})
        return {key: how[key] for key in ("variant",) if key in how}

    return save


def in_a_subfolder(model, folder):
    model.save_pretrained(folder / "inner")
    return dict(subfolder="inner")


LAYOUTS = {
    "one file": saved(),
    "shards": saved(max_shard_size="50kB"),
    "variant": saved(variant="fp16"),
    "shards of a variant": saved(variant="fp16", max_shard_size="50kB"),
    "experts merged": saved(save_original_format=False),
    "subfolder": in_a_subfolder,
    "pytorch_model.bin": in_bin,
    "pytorch_model.bin by argument": in_bin_of_two,
    "transformers 4": as_transformers_4_saved,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sound_checkpoint_passes_in_every_layout(checkpoints, tmp_path, layout):
    model, _ = checkpoints["mixtral"]
    model_kwargs = LAYOUTS[layout](model, tmp_path)
    assert check_checkpoint(tmp_path, model_kwargs) is None
    assert missing_files(tmp_path, model_kwargs) == []
    if layout not in ("experts merged", "transformers 4"):  # which are other tensors
        assert weights_digest(tmp_path, model_kwargs=model_kwargs) == weights_digest(checkpoints["mixtral"][1])
    with check_loading("sound"):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, **model_kwargs).eval()
    ids, mask = prompts()
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids, attention_mask=mask).logits, model(ids, attention_mask=mask).logits)


MISSING = [
    ({}, "model.safetensors"),
    (dict(use_safetensors=True), "model.safetensors"),
    (dict(use_safetensors=False), "pytorch_model.bin"),
    (dict(variant="fp16"), "model.fp16.safetensors"),
    (dict(variant="fp16", use_safetensors=False), "pytorch_model.fp16.bin"),
    (dict(subfolder="inner"), "inner/model.safetensors"),
]


@pytest.mark.parametrize(("model_kwargs", "name"), MISSING)
def test_the_file_that_is_missing_is_the_one_that_is_looked_for(tmp_path, model_kwargs, name):
    for _, other in MISSING:
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_bytes(b"")
    assert checkpoint_files(tmp_path, model_kwargs) == [tmp_path / name]
    assert missing_files(tmp_path, model_kwargs) == []
    (tmp_path / name).unlink()
    for other in tmp_path.glob("pytorch_model*"):  # which would be taken
        other.unlink()
    assert missing_files(tmp_path, model_kwargs) == [name]


MAPS = ([1], {}, 5, {"a": 5}, {"a": None}, {"a": "b", "c": ["d"]}, {"a": ""})
INDEXES = ["[]", "{", "5", "[" * 9999, *(json.dumps(dict(weight_map=shards)) for shards in MAPS)]


@pytest.mark.parametrize("text", INDEXES)
@pytest.mark.parametrize("read", [missing_files, weights_digest, lambda folder: check_checkpoint(folder, {})])
def test_an_index_that_names_no_files_is_one_sentence(tmp_path, text, read):
    shutil.copy(QUICKSTART / "config.json", tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json: not an index of weights: must be"):
        read(tmp_path)


def test_a_missing_tensor_in_one_of_several_shards_is_named(checkpoints, tmp_path):
    checkpoints["mixtral"][0].save_pretrained(tmp_path, max_shard_size="50kB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    shard = tmp_path / index[ROUTER]
    kept = {name: tensor for name, tensor in load_file(shard).items() if name != ROUTER}
    save_file(kept, shard, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=re.escape(f"1 missing ({ROUTER})")):
        check_checkpoint(tmp_path, {})


def test_a_tied_head_need_not_be_there_but_another_one_must(tmp_path):
    tied, untied = tiny_model("mixtral", tie_word_embeddings=True), tiny_model("mixtral")
    tied.model.save_pretrained(tmp_path / "tied")
    untied.model.save_pretrained(tmp_path / "untied")
    assert check_checkpoint(tmp_path / "tied", {}) is None
    with pytest.raises(ModelError, match=r"1 missing \(lm_head.weight\)"):
        check_checkpoint(tmp_path / "untied", {})


def test_a_quantised_checkpoint_passes_and_without_its_router_does_not(checkpoints, tmp_path):
    quantization = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    asked = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    plain = checkpoints["mixtral"][1]
    assert check_checkpoint(plain, dict(quantization_config=asked)) is None  # quantised when it has been read
    model = AutoModelForCausalLM.from_pretrained(plain, quantization_config=asked, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    assert "quantised" in check_checkpoint(tmp_path, {})
    with check_loading("quantised"):
        AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    change(tmp_path, **{ROUTER: None})
    with pytest.raises(ModelError, match=re.escape(f"1 missing ({ROUTER})")):
        check_checkpoint(tmp_path, {})


def test_the_language_model_of_a_checkpoint_with_images_passes(tmp_path):
    from transformers import Llama4Config, Llama4ForConditionalGeneration

    vision = dict.fromkeys(("hidden_size", "intermediate_size", "vision_output_dim", "projector_input_dim"), 32)
    vision |= dict(num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14, projector_output_dim=32)
    text = tiny_model("llama4_text").config.to_dict()
    Llama4ForConditionalGeneration(Llama4Config(text_config=text, vision_config=vision)).save_pretrained(tmp_path)
    assert check_checkpoint(tmp_path, {}) is None
    with check_loading("images"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    router = next(name for name in tensors if name.endswith("router.weight"))
    change(tmp_path, **{router: None})
    with pytest.raises(ModelError, match="missing"):
        check_checkpoint(tmp_path, {})
