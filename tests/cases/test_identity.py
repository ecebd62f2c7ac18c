"""Same or not the same: every argument that changes answers is found and named, and nothing else separates."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import ConfigDict
from opencompass.openicl.icl_inferencer import GenInferencer, PPLInferencer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.builders.paired_runs import BENCHMARKS, run_of
from tests.builders.trace_blocks import metadata
from tests.conftest import ROOT
from tests.tiny import tiny_mixtral
from wdmoe_opencompass.errors import ModelError
from wdmoe_opencompass.harness.identify import asked_facts, inferencer_facts, prompts_digest, scoring_facts
from wdmoe_opencompass.harness.models import WdmoeHuggingFaceBaseModel, WdmoeHuggingFacewithChatTemplate
from wdmoe_opencompass.harness.trace_checks import Expected, why_refused
from wdmoe_opencompass.identity import adapter_digest, compare_facts, describe, key_of, weights_digest
from wdmoe_opencompass.identity.facts import (
    HARMLESS_GENERATION,
    OF_BEAMS,
    OF_LENGTH,
    OF_SAMPLING,
    generation_facts,
    rows_per_prompt,
    sentence,
)
from wdmoe_opencompass.report.compare import batch_records, comparison_table, identity_records, item_records, notes_of
from wdmoe_opencompass.report.differences import difference_notes, difference_records
from wdmoe_opencompass.report.frontier import frontier_records
from wdmoe_opencompass.report.paper import adapter_notes, paper_comparison
from wdmoe_opencompass.report.provenance import answer_notes, origin_notes, provenance
from wdmoe_opencompass.report.records import accuracy_records, latency_cells, latency_records
from wdmoe_opencompass.report.runs import not_compared_notes
from wdmoe_opencompass.report.summary import write_report
from wdmoe_opencompass.report.tables import saving_notes, table_2
from wdmoe_opencompass.trace.format import RoutingTrace, TraceMetadata, empty_arrays, read_trace, write_trace

GEN = dict(infer_cfg=dict(inferencer=dict(type=GenInferencer, max_out_len=8)), eval_cfg=dict(evaluator=dict(type="E")))
PPL = dict(infer_cfg=dict(inferencer=dict(type=PPLInferencer)), eval_cfg=dict(evaluator=dict(type="E")))
VANILLA, WDMOE = (dict(profile="paper_8_devices", policy=policy) for policy in ("top_k", "wlr"))
SHARD = "60KB"
# what OpenCompass takes out of a model's config before it builds the model
NOT_OF_OBJECT = ("type", "abbr", "batch_size", "run_cfg", "max_out_len", "min_out_len", "pred_postprocessor")


# -- files to choose from --------------------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Folder of a tiny checkpoint with the quickstart's tokenizer, and of variants of it, by name."""
    root = tmp_path_factory.mktemp("identity")
    model = tiny_mixtral(
        layers=2,
        vocab_size=1024,
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=2,
        max_position_embeddings=128,
        initializer_range=0.02,
    )
    folders = {name: root / name for name in ("base", "sharded", "copy", "pickled", "retrained", "half")}
    for folder in folders.values():
        AutoTokenizer.from_pretrained(ROOT / "quickstart" / "model").save_pretrained(folder)
    model.save_pretrained(folders["base"])
    model.save_pretrained(folders["sharded"], max_shard_size=SHARD)
    assert len(list(folders["sharded"].glob("*.safetensors"))) > 2
    shutil.copytree(folders["base"], folders["copy"], dirs_exist_ok=True)
    shutil.copytree(folders["base"], folders["pickled"], dirs_exist_ok=True)
    (folders["pickled"] / "model.safetensors").unlink()
    torch.save(load_file(folders["base"] / "model.safetensors"), folders["pickled"] / "pytorch_model.bin")
    shutil.copytree(folders["base"], folders["retrained"], dirs_exist_ok=True)
    change_tensor(folders["retrained"] / "model.safetensors", "gate.weight")
    copy.deepcopy(model).to(torch.float16).save_pretrained(folders["half"])
    for name, file, change in (
        ("other_top_k", "config.json", dict(num_experts_per_tok=3)),
        ("other_rope", "config.json", dict(rope_parameters=dict(rope_theta=5e5, rope_type="default"))),
        (
            "harmless_config",
            "config.json",
            dict(_name_or_path="elsewhere", use_cache=True, output_router_logits=False),
        ),
        ("no_cache", "config.json", dict(use_cache=False)),
        ("longer_answers", "generation_config.json", dict(min_new_tokens=8)),
        ("other_end", "generation_config.json", dict(eos_token_id=[2, 7])),
        ("other_template", "tokenizer_config.json", dict(chat_template="{{ messages[0]['content'] }}!")),
    ):
        folders[name] = root / name
        shutil.copytree(folders["base"], folders[name])
        for template in folders[name].glob("chat_template*") if name == "other_template" else ():
            template.unlink()
        path = folders[name] / file
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    folders["other_words"] = root / "other_words"
    tokenizer = AutoTokenizer.from_pretrained(folders["base"])
    tokenizer.add_tokens(["Question"])
    tokenizer.save_pretrained(folders["other_words"])
    folders |= {name: adapter(model, root / name, **of) for name, of in ADAPTERS.items()}
    shutil.copytree(folders["lora"], root / "lora_moved")
    change_json(root / "lora_moved" / "adapter_config.json", base_model_name_or_path="somewhere else")
    return folders | dict(lora_moved=root / "lora_moved")


ADAPTERS = dict(
    lora=dict(target_modules=["q_proj", "v_proj"]),
    other_lora=dict(target_modules=["q_proj", "v_proj"], seed=5),
    strong_lora=dict(target_modules=["q_proj", "v_proj"], lora_alpha=64),
    expert_lora=dict(
        target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
    ),
    router_lora=dict(target_modules=["q_proj"], target_parameters=["mlp.gate.weight"]),
    head_lora=dict(target_modules=["k_proj"], modules_to_save=["lm_head"]),
)


def adapter(model, folder, seed=1, **changes):
    peft = pytest.importorskip("peft")
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM", **changes)
    peft.get_peft_model(copy.deepcopy(model), config).save_pretrained(folder)
    return folder


def change_tensor(path, ending):
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if name.endswith(ending))
    tensors[name].view(-1)[3] += 0.01
    save_file(tensors, path, metadata={"format": "pt"})


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="session")
def facts(files):
    """-> function from a model's arguments and a dataset's config to what its answers depend on."""
    known = {}

    def of(dataset=GEN, kind=WdmoeHuggingFaceBaseModel, path="base", **arguments):
        named = ("peft_path", "tokenizer_path")
        cfg = dict(
            type=kind,
            abbr="m",
            path=str(files[path]),
            model_kwargs=dict(torch_dtype="torch.float32", device_map="cpu"),
            batch_size=4,
            wdmoe=VANILLA,
        )
        cfg |= {key: str(files[value]) if key in named else value for key, value in arguments.items()}
        cfg["model_kwargs"] = dict(device_map="cpu", torch_dtype="torch.float32") | cfg["model_kwargs"]
        of_object = {key: value for key, value in cfg.items() if key not in NOT_OF_OBJECT}
        key = repr((kind, sorted(of_object.items(), key=lambda item: item[0])))
        if key not in known:
            known[key] = kind(**copy.deepcopy(of_object))
        model = known[key]
        metadata = model._metadata("m", "d", "", inferencer_facts(cfg, dataset), asked_facts(cfg, dataset))
        return metadata.identity

    return of


def asking(dataset, **inferencer):
    infer = dict(dataset["infer_cfg"], inferencer=dict(dataset["infer_cfg"]["inferencer"], **inferencer))
    return dict(dataset, infer_cfg=infer)


CHAT = dict(kind=WdmoeHuggingFacewithChatTemplate)
TEMPLATE = dict(
    round=[dict(role="HUMAN", api_role="HUMAN", begin="Q: "), dict(role="BOT", api_role="BOT", generate=True)]
)
SAMPLING = dict(do_sample=True, temperature=0.7)
EXACT = dict(wdmoe=dict(VANILLA, perplexity="exact"))
HALF = dict(model_kwargs=dict(torch_dtype="torch.bfloat16"))
BEAMS = dict(generation_kwargs=dict(num_beams=2))
WITHOUT_LENGTH = dict(dataset=asking(GEN, max_out_len=None))

# what is found, then what is changed in one of two models that are otherwise the same: (fact, both, change, dataset)
CHANGES = [
    ("weights", {}, dict(path="retrained"), GEN),
    ("weights", {}, dict(path="half"), PPL),
    ("config.num_experts_per_tok", {}, dict(path="other_top_k"), GEN),
    ("config.rope_parameters.rope_theta", {}, dict(path="other_rope"), PPL),
    ("config.rms_norm_eps", {}, dict(model_kwargs=dict(rms_norm_eps=1e-2)), GEN),
    ("peft_path", {}, dict(peft_path="lora"), GEN),
    ("peft_path", {}, dict(peft_path="lora"), PPL),
    ("peft_path", dict(peft_path="lora"), dict(peft_path="other_lora"), GEN),
    ("peft_path", dict(peft_path="lora"), dict(peft_path="strong_lora"), GEN),
    ("dtype", {}, HALF, PPL),
    ("attn_implementation", {}, dict(model_kwargs=dict(attn_implementation="eager")), GEN),
    ("experts_implementation", {}, dict(model_kwargs=dict(experts_implementation="eager")), GEN),
    ("tokenizer", {}, dict(tokenizer_path="other_words"), PPL),
    ("truncation_side", {}, dict(tokenizer_kwargs=dict(truncation_side="right")), GEN),
    ("padding_side", {}, dict(tokenizer_kwargs=dict(padding_side="right")), GEN),
    ("pad_token_id", {}, dict(pad_token_id=2), PPL),
    ("max_seq_len", {}, dict(max_seq_len=64), GEN),
    ("max_seq_len", {}, dict(max_seq_len=64), PPL),
    ("stop_words", {}, dict(stop_words=["\n"]), GEN),
    ("stop_words", dict(stop_words=["\n"]), dict(stop_words=["\n", "Q"]), GEN),
    ("generation_kwargs.num_beams", {}, dict(generation_kwargs=dict(num_beams=2)), GEN),
    ("generation_kwargs.repetition_penalty", {}, dict(generation_kwargs=dict(repetition_penalty=1.1)), GEN),
    ("generation_kwargs.do_sample", dict(), dict(generation_kwargs=dict(do_sample=True)), GEN),
    ("generation_kwargs.temperature", dict(generation_kwargs=SAMPLING),
     dict(generation_kwargs=dict(SAMPLING, temperature=0.9)), GEN),
    ("generation_kwargs.num_return_sequences", dict(generation_kwargs=SAMPLING),
     dict(generation_kwargs=dict(SAMPLING, num_return_sequences=2)), GEN),
    ("generation_kwargs.length_penalty", dict(generation_kwargs=dict(num_beams=2)),
     dict(generation_kwargs=dict(num_beams=2, length_penalty=2.0)), GEN),
    ("generation_kwargs.eos_token_id", {}, dict(path="other_end"), GEN),
    ("generation_kwargs.min_new_tokens", {}, dict(generation_kwargs=dict(min_new_tokens=8)), GEN),
    ("generation_kwargs.min_new_tokens", {}, dict(path="longer_answers"), GEN),
    ("generation_kwargs.min_length", {}, dict(generation_kwargs=dict(min_length=60)), GEN),
    ("generation_kwargs.max_new_tokens", WITHOUT_LENGTH, dict(generation_kwargs=dict(max_new_tokens=3)), GEN),
    ("generation_kwargs.use_cache", {}, dict(generation_kwargs=dict(use_cache=False)), GEN),
    ("config.use_cache", {}, dict(path="no_cache"), GEN),
    ("config.use_cache", {}, dict(model_kwargs=dict(use_cache=False)), PPL),
    ("max_out_len", {}, dict(dataset=asking(GEN, max_out_len=9)), GEN),
    ("min_out_len", {}, dict(min_out_len=2), GEN),
    ("min_out_len", {}, dict(dataset=asking(GEN, min_out_len=2)), GEN),
    ("stop_words", {}, dict(dataset=asking(GEN, stopping_criteria=["\n"])), GEN),
    ("inferencer.labels", {}, dict(dataset=asking(PPL, labels=["A", "B"])), PPL),
    ("drop_middle", {}, dict(drop_middle=True), PPL),
    ("mode", CHAT, dict(mode="mid"), GEN),
    ("fastchat_template", dict(CHAT, fastchat_template="vicuna"), dict(fastchat_template="other"), GEN),
    ("chat_template", CHAT, dict(tokenizer_path="other_template"), GEN),
    ("meta_template.round", CHAT, dict(meta_template=TEMPLATE), GEN),
    ("perplexity", {}, EXACT, PPL),
    ("batch_size", {}, dict(batch_size=8), PPL),
    ("batch_size", {}, dict(dataset=asking(PPL, batch_size=8)), PPL),
    ("batch_size", HALF, dict(batch_size=8), GEN),
    ("batch_size", dict(BEAMS, stop_words=["\n"]), dict(batch_size=8), GEN),
    ("batch_size", dict(BEAMS, dataset=asking(GEN, stopping_criteria=["\n"])), dict(batch_size=8), GEN),
    ("batch_size", dict(BEAMS, **CHAT), dict(batch_size=8), GEN),  # its end token is a stop word
    ("batch_size", dict(generation_kwargs=SAMPLING), dict(batch_size=8), GEN),
]  # fmt: skip
# facts that cannot be changed without others that follow from them
FOLLOW = {
    "perplexity": {"batch_size", "pad_token_id", "padding_side"},
    "generation_kwargs.do_sample": {"seed", "batch_size", "generation_kwargs.top_k", "generation_kwargs.temperature"},
    "generation_kwargs.eos_token_id": {"stop_words"},
    "chat_template": {"tokenizer"},
}


@pytest.mark.parametrize(
    ("fact", "both", "change", "dataset"), CHANGES, ids=[f"{n}-{c[0]}" for n, c in enumerate(CHANGES)]
)
def test_every_argument_that_changes_answers_is_found_and_named_alone(facts, fact, both, change, dataset):
    first, second = facts(**dict(dataset=dataset) | both), facts(**dict(dataset=dataset) | both | change)
    found = compare_facts(first, second)
    assert fact in found
    assert set(found) - {fact} <= FOLLOW.get(fact, set()), found
    assert " against " in found[fact]
    assert key_of(first) != key_of(second)


# what is changed without an effect: (both, change, dataset)
HARMLESS = [
    ({}, dict(path="copy"), GEN),
    ({}, dict(path="sharded"), GEN),
    ({}, dict(path="pickled"), GEN),
    ({}, dict(path="harmless_config"), PPL),
    ({}, dict(abbr="another", run_cfg=dict(num_gpus=4)), GEN),
    ({}, dict(model_kwargs=dict(device_map={"": "cpu"}, low_cpu_mem_usage=True)), GEN),
    ({}, dict(model_kwargs=dict(torch_dtype="auto")), GEN),
    ({}, dict(model_kwargs=dict(torch_dtype=torch.float32)), GEN),
    ({}, dict(model_kwargs=dict(attn_implementation="sdpa")), GEN),
    ({}, dict(max_seq_len=128), PPL),
    ({}, dict(model_kwargs=dict(rms_norm_eps=1e-5)), GEN),
    ({}, dict(tokenizer_path="base"), GEN),
    ({}, dict(tokenizer_path="copy"), PPL),
    ({}, dict(tokenizer_kwargs=dict(padding_side="left")), GEN),
    ({}, dict(pad_token_id=0), GEN),
    ({}, dict(generation_kwargs=dict(do_sample=False)), GEN),
    ({}, dict(generation_kwargs=dict(num_beams=1, num_return_sequences=1)), GEN),
    ({}, dict(generation_kwargs=dict(temperature=0.3, top_p=0.9)), GEN),  # greedy
    ({}, dict(generation_kwargs=dict(length_penalty=3.0)), GEN),  # one beam
    ({}, dict(generation_kwargs=dict(use_cache=True, min_new_tokens=0)), GEN),
    ({}, dict(model_kwargs=dict(use_cache=True)), GEN),
    (dict(min_out_len=2), dict(generation_kwargs=dict(min_new_tokens=8, min_length=60)), GEN),
    (dict(dataset=asking(GEN, min_out_len=2)), dict(path="longer_answers"), GEN),
    ({}, dict(generation_kwargs=dict(max_new_tokens=3, max_length=5)), GEN),  # the dataset's max_out_len holds
    ({}, dict(path="longer_answers"), PPL),
    ({}, dict(generation_kwargs=dict(num_beams=4), stop_words=["\n"]), PPL),
    (dict(stop_words=["a", "b"]), dict(stop_words=["b", "a", "b"]), GEN),
    ({}, dict(dataset=asking(GEN, max_out_len=8, batch_size=16)), GEN),
    ({}, dict(max_out_len=99), GEN),  # the dataset's own holds
    ({}, dict(batch_size=16), GEN),  # in float32
    (BEAMS, dict(batch_size=16), GEN),  # no stop words
    (dict(stop_words=["\n"]), dict(batch_size=16), GEN),  # one row per prompt
    (dict(BEAMS, stop_words=["\n"], **EXACT), dict(batch_size=16), PPL),
    (EXACT, dict(batch_size=16), PPL),
    (dict(EXACT, **HALF), dict(batch_size=16), PPL),
    (EXACT, dict(pad_token_id=2), PPL),
    ({}, dict(wdmoe=WDMOE), GEN),
    ({}, dict(wdmoe=dict(VANILLA, record_routing=True)), PPL),
    ({}, dict(wdmoe=dict(VANILLA, perplexity="exact")), GEN),
    (dict(peft_path="lora"), dict(peft_path="lora_moved"), GEN),
    (CHAT, dict(path="copy"), GEN),
]


@pytest.mark.parametrize(("both", "change", "dataset"), HARMLESS, ids=range(len(HARMLESS)))
def test_what_changes_no_answer_does_not_separate(facts, both, change, dataset):
    first, second = facts(**dict(dataset=dataset) | both), facts(**dict(dataset=dataset) | both | change)
    assert compare_facts(first, second) == {}
    assert key_of(first) == key_of(second)


CODE = """
from transformers import MixtralForCausalLM
from .scale import SCALE

class Custom(MixtralForCausalLM):
    def forward(self, *args, **kwargs):
        found = super().forward(*args, **kwargs)
        found.logits = found.logits * SCALE
        return found
"""


def test_code_in_a_models_folder_is_another_model_than_the_built_in_class(files, facts, tmp_path):
    for name, scale in (("custom", 2), ("moved", 2), ("edited", 3)):
        files[name] = tmp_path / name
        shutil.copytree(files["base"], tmp_path / name)
        change_json(tmp_path / name / "config.json", auto_map=dict(AutoModelForCausalLM="modeling_custom.Custom"))
        (tmp_path / name / "modeling_custom.py").write_text(CODE)
        (tmp_path / name / "scale.py").write_text(f"SCALE = {scale}\n")
    trusting = dict(model_kwargs=dict(trust_remote_code=True))
    built_in, custom = facts(path="custom"), facts(path="custom", **trusting)
    found = compare_facts(built_in, custom)
    assert set(found) == {"model_class", "model_code"}
    assert found["model_class"] == "transformers.MixtralForCausalLM against modeling_custom.Custom"
    assert "/" not in json.dumps([custom["model_class"], custom["model_code"]])
    assert compare_facts(built_in, facts(path="base", **trusting)) == {}  # no code in it
    assert compare_facts(custom, facts(path="custom", wdmoe=WDMOE, **trusting)) == {}
    assert compare_facts(custom, facts(path="moved", **trusting)) == {}
    assert set(compare_facts(custom, facts(path="edited", **trusting))) == {"model_code"}


def test_the_weights_are_those_of_the_file_that_is_read(files, facts, tmp_path):
    files["two"], files["variants"], files["inner"] = (tmp_path / name for name in ("two", "variants", "inner"))
    shutil.copytree(files["retrained"], files["two"])
    shutil.copy(files["pickled"] / "pytorch_model.bin", files["two"])
    shutil.copytree(files["base"], files["variants"])
    (files["variants"] / "model.safetensors").rename(files["variants"] / "model.fp16.safetensors")
    shutil.copytree(files["retrained"], files["inner"])
    shutil.copytree(files["base"], files["inner"] / "sub")
    assert set(compare_facts(facts(), facts(path="two"))) == {"weights"}
    assert compare_facts(facts(), facts(path="two", model_kwargs=dict(use_safetensors=False))) == {}
    assert compare_facts(facts(), facts(path="variants", model_kwargs=dict(variant="fp16"))) == {}
    inner = facts(path="inner", model_kwargs=dict(subfolder="sub"), max_seq_len=128)
    assert compare_facts(facts(), inner) == {}


def test_the_seed_counts_where_answers_are_sampled(facts):
    torch.manual_seed(3)
    first = facts(generation_kwargs=SAMPLING)
    torch.manual_seed(4)
    assert compare_facts(first, facts(generation_kwargs=SAMPLING)) == {"seed": "3 against 4"}


# -- what is harmless in generation, by generating -------------------------------------------------------------------
QUICKSTART = ROOT / "quickstart" / "model"
TEXTS = ["Question: 2 + 5 =\nAnswer:", "Tom has"]
# argument -> a value that is not its default
TRIED = dict(
    transformers_version="1.0",
    _from_model_config=False,
    pad_token_id=7,
    bos_token_id=3,
    output_scores=True,
    output_logits=True,
    output_attentions=True,
    output_hidden_states=True,
    return_dict_in_generate=True,
    max_length=5,
    max_new_tokens=3,
    temperature=0.3,
    top_k=3,
    top_p=0.5,
    min_p=0.3,
    top_h=0.4,
    typical_p=0.4,
    epsilon_cutoff=0.1,
    eta_cutoff=0.1,
    length_penalty=3.0,
    early_stopping=True,
    num_beam_groups=2,
    diversity_penalty=0.5,
)


def generated(tmp_path, stored=None, batch_size=2, stop_words=(), **generation_kwargs):
    """-> answers of the quickstart's model, and tokens that each forward pass computed, padding included.

    stored: what its generation_config.json says on top
    """
    shutil.copytree(QUICKSTART, tmp_path, dirs_exist_ok=True)
    change_json(tmp_path / "generation_config.json", **stored or {})
    cfg = dict(path=str(tmp_path), model_kwargs=dict(torch_dtype="torch.float32", device_map="cpu"))
    model = WdmoeHuggingFaceBaseModel(**cfg, wdmoe=VANILLA, generation_kwargs=generation_kwargs)
    passes = []
    model.model.model.register_forward_pre_hook(
        lambda _, args, kwargs: passes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    answers = []
    for begin in range(0, len(TEXTS), batch_size):
        batch = TEXTS[begin : begin + batch_size]
        answers += model.generate(batch, 12, stopping_criteria=list(stop_words))
    return answers, passes


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return generated(tmp_path_factory.mktemp("usual"))


def test_every_harmless_argument_of_generation_is_tried():
    replaced = OF_LENGTH["max_out_len"]
    assert set(TRIED) == {*HARMLESS_GENERATION, *OF_SAMPLING, *OF_BEAMS, *replaced}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRIED)
@pytest.mark.parametrize("is_stored", [False, True], ids=["argument", "stored"])
def test_a_harmless_argument_changes_neither_answers_nor_passes(tmp_path, usual, name, is_stored):
    told = {name: TRIED[name]}
    assert (generated(tmp_path, stored=told) if is_stored else generated(tmp_path, **told)) == usual


@pytest.mark.parametrize("is_stored", [False, True], ids=["argument", "stored"])
def test_the_least_length_changes_answers_and_the_cache_what_passes_compute(tmp_path, usual, is_stored):
    def found(**told):
        return generated(tmp_path, stored=told) if is_stored else generated(tmp_path, **told)

    assert len(usual[1]) > 1
    assert found(min_new_tokens=12)[0] != usual[0]
    assert found(min_new_tokens=0) == usual
    answers, passes = found(min_new_tokens=None, use_cache=False)
    assert answers == usual[0]
    assert len(passes) == len(usual[1])
    assert passes[1] > usual[1][1] == len(TEXTS)


def test_the_batch_changes_answers_of_beams_with_stop_words(tmp_path):
    beams = dict(num_beams=4)
    alone, together = (generated(tmp_path, batch_size=n, **beams)[0] for n in (1, len(TEXTS)))
    assert alone == together
    alone, together = (generated(tmp_path, batch_size=n, stop_words=["1", "2"], **beams)[0] for n in (1, len(TEXTS)))
    assert alone != together


# -- weights by content ----------------------------------------------------------------------------------------------
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=6),
    st.integers(1, 3),
    st.integers(0, 2**31),
    st.sampled_from([10**9, 0]),
)
@settings(max_examples=30, deadline=None)
def test_tensors_in_any_number_of_files_are_the_same_and_one_changed_value_is_not(sizes, shards, seed, whole_bytes):
    import tempfile
    from pathlib import Path

    rng = np.random.default_rng(seed)
    tensors = {f"t{n}": torch.from_numpy(rng.random((size, 3), dtype=np.float32)) for n, size in enumerate(sizes)}
    with tempfile.TemporaryDirectory() as work:
        folders = [Path(work) / name for name in ("single", "many", "changed")]
        for folder in folders:
            folder.mkdir()
        save_file(tensors, folders[0] / "model.safetensors")
        of = {name: f"part-{rng.integers(shards)}.safetensors" for name in tensors}
        for shard in set(of.values()):
            save_file({name: tensors[name] for name in of if of[name] == shard}, folders[1] / shard)
        (folders[1] / "model.safetensors.index.json").write_text(json.dumps(dict(weight_map=of)))
        name = f"t{rng.integers(len(sizes))}"
        tensors[name].view(-1)[int(rng.integers(tensors[name].numel()))] += 1
        save_file(tensors, folders[2] / "model.safetensors")
        single, many, changed = (weights_digest(folder, whole_bytes) for folder in folders)
    assert single == many != changed
    assert single.startswith("sha256:" if whole_bytes else "sha256-sampled:")


def test_renamed_retyped_and_reshaped_tensors_are_not_the_same(tmp_path):
    zeros = torch.zeros(4, 6)
    of_a = [zeros, zeros.reshape(6, 4), zeros.reshape(24), zeros.half(), torch.zeros(4, 6, dtype=torch.int32)]
    variants = [*(dict(a=tensor) for tensor in of_a), dict(b=zeros), dict(a=zeros, b=zeros.clone())]
    found = set()
    for number, tensors in enumerate(variants):
        (tmp_path / str(number)).mkdir()
        save_file(tensors, tmp_path / str(number) / "model.safetensors")
        found.add(weights_digest(tmp_path / str(number)))
    assert len(found) == len(variants)


def test_samples_of_large_tensors_see_a_change_throughout_and_at_both_ends(tmp_path):
    torch.manual_seed(0)
    large = torch.randn(1_000_000)  # 4 MB
    digests = []
    for change in (None, slice(0, 1), slice(-1, None), slice(None)):
        tensor = large.clone()
        if change is not None:
            tensor[change] *= 1.001
        save_file({"w": tensor}, tmp_path / "model.safetensors")
        digests.append(weights_digest(tmp_path, max_whole_bytes=0))
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100, b"\x08\0\0\0\0\0\0\0[1,2,3] ", None])
def test_torn_weights_are_one_sentence(tmp_path, content):
    save_file({"w": torch.zeros(100)}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-9] if content is None else content)
    with pytest.raises(ModelError, match=r"model\.safetensors: "):
        weights_digest(tmp_path)


def test_an_adapter_counts_by_its_tensors_and_by_how_they_are_applied(files):
    digests = {name: adapter_digest(files[name]) for name in ("lora", "other_lora", "strong_lora", "lora_moved")}
    assert digests["lora"] == digests["lora_moved"]
    assert len(set(digests.values())) == 3


def test_an_adapter_that_also_changes_the_base_weights_on_loading_is_another(files, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, init_lora_weights="pissa", task_type="CAUSAL_LM", target_modules=["q_proj"])
    base = AutoModelForCausalLM.from_pretrained(files["base"], dtype=torch.float32)
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "pissa")
    shutil.copytree(tmp_path / "pissa", tmp_path / "lora")
    change_json(tmp_path / "lora" / "adapter_config.json", init_lora_weights=True)
    with torch.no_grad():
        logits = [
            loaded(files, VANILLA, peft_path=str(tmp_path / name)).model(input_ids=torch.arange(3, 43)[None]).logits
            for name in ("pissa", "lora")
        ]
    assert not torch.allclose(*logits, atol=1e-4)
    assert adapter_digest(tmp_path / "pissa") != adapter_digest(tmp_path / "lora")


def test_how_an_adapter_began_counts_where_peft_repeats_it_on_the_base_weights(tmp_path):
    def digest(**changes):
        (tmp_path / "adapter_config.json").write_text(json.dumps(dict(peft_type="LORA", r=4) | changes))
        return adapter_digest(tmp_path)

    save_file({"w": torch.zeros(3)}, tmp_path / "adapter_model.safetensors")
    for start in (True, False, "gaussian", None):
        for unread in (dict(loftq_config=dict(loftq_bits=4)), dict(corda_config=dict(x=1)), dict(eva_config=dict(x=1))):
            assert digest(init_lora_weights=start, **unread) == digest()
    starts = ("pissa", "pissa_niter_4", "olora", "corda", "loftq")
    assert len({digest(), *(digest(init_lora_weights=start) for start in starts)}) == len(starts) + 1
    bits = [digest(init_lora_weights="loftq", loftq_config=dict(loftq_bits=n)) for n in (4, 8)]
    assert bits[0] != bits[1]


SETS = ("target_modules", "exclude_modules", "modules_to_save", "feedforward_modules", "layers_to_transform")


@pytest.mark.parametrize("key", SETS)
def test_the_order_of_what_peft_takes_as_a_set_does_not_count(tmp_path, key):
    save_file({"w": torch.zeros(3)}, tmp_path / "adapter_model.safetensors")
    digests = []
    for value in (["b", "a", "c"], ["c", "b", "a", "a"], ["a", "b"], "a|b", None):
        (tmp_path / "adapter_config.json").write_text(json.dumps(dict(peft_type="LORA", r=4) | {key: value}))
        digests.append(adapter_digest(tmp_path))
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


# -- datasets by content ---------------------------------------------------------------------------------------------
GENERATED = {str(n): dict(origin_prompt=f"Q{n}", prediction="x", gold=str(n)) for n in range(4)}
RANKED = {
    str(n): {
        "label: A": {"testing input": f"{n} A", "prompt": f"{n} A", "PPL": 1.0, "BPB": 2.0},
        "in-context examples": "",
        "prediction": "A",
    }
    for n in range(4)
}


def changed(answers, *path, value):
    answers = copy.deepcopy(answers)
    inner = answers
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return answers


def test_two_datasets_are_the_same_that_ask_the_same_whatever_was_answered():
    for asked, own in ((GENERATED, ("1", "prediction")), (RANKED, ("1", "label: A", "PPL"))):
        assert prompts_digest([asked]) == prompts_digest([changed(asked, *own, value="other")])
    halves = [{"0": GENERATED["0"], "1": GENERATED["1"]}, {"0": GENERATED["2"], "1": GENERATED["3"]}]
    assert prompts_digest(halves) == prompts_digest([GENERATED])


@pytest.mark.parametrize(
    "other",
    [
        changed(GENERATED, "1", "origin_prompt", value="another question"),
        changed(GENERATED, "3", "gold", value="another answer"),
        {key: GENERATED[key] for key in "012"},
        changed(GENERATED, "4", value=GENERATED["3"]),
        changed(GENERATED, "0", "origin_prompt", value=[dict(role="HUMAN", prompt="Q0")]),
        dict(GENERATED, **{"0": GENERATED["1"], "1": GENERATED["0"]}),
    ],
)
def test_other_questions_answers_or_items_are_another_dataset(other):
    assert prompts_digest([GENERATED]) != prompts_digest([other])


def test_other_candidates_or_examples_are_another_dataset():
    for path, value in ((("1", "label: A", "prompt"), "few-shot 1 A"), (("1", "in-context examples"), "few-shot")):
        assert prompts_digest([RANKED]) != prompts_digest([changed(RANKED, *path, value=value)])


def test_how_answers_are_scored_is_part_of_it_by_class_and_not_by_import_path():
    paths = ("opencompass.openicl.icl_evaluator.AccEvaluator",
             "opencompass.openicl.icl_evaluator.icl_hf_evaluator.AccEvaluator")  # fmt: skip
    first, second = (scoring_facts({}, dict(eval_cfg=dict(evaluator=dict(type=path)))) for path in paths)
    assert first == second
    other = scoring_facts({}, dict(eval_cfg=dict(evaluator=dict(type=paths[0]), pred_role="BOT")))
    assert list(compare_facts(first, other)) == ["evaluator.pred_role"]
    post = scoring_facts(
        dict(pred_postprocessor=dict(type="strip")), dict(eval_cfg=dict(evaluator=dict(type=paths[0])))
    )
    assert list(compare_facts(first, post)) == ["pred_postprocessor.type"]


# -- the comparing itself --------------------------------------------------------------------------------------------
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", min_size=1, max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)
FACTS = st.dictionaries(st.text("xyz", min_size=1, max_size=2), JSON, max_size=4)


@given(FACTS, FACTS)
@settings(max_examples=100, deadline=None)
def test_what_differs_is_found_both_ways_and_nothing_differs_from_itself(first, second):
    assert compare_facts(first, first) == {}
    assert set(compare_facts(first, second)) == set(compare_facts(second, first))
    if json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True):
        assert compare_facts(first, second) == {}


@given(FACTS, st.text("xyz", min_size=3, max_size=3), st.integers())
def test_one_more_fact_is_named(facts_, name, value):
    assert compare_facts(facts_, facts_ | {name: value}) == {name: f"none against {value}"}


@given(FACTS)
@settings(max_examples=100, deadline=None)
def test_what_anybody_wrote_is_one_printable_line(facts_):
    hostile = facts_ | {
        "a\nb": "c\u2028d",
        "x\ud800": ["\n"],
        "long": "y" * 999,
        "nan": float("nan"),
        "no": {1: 2, "a": 3},
    }
    for text in (describe(hostile), sentence(compare_facts(facts_, hostile)), sentence(compare_facts(hostile, facts_))):
        assert text.isprintable()
        text.encode()


def test_true_is_not_one():
    assert list(compare_facts(dict(a=True), dict(a=1))) == ["a"]
    assert compare_facts(dict(a=1.0), dict(a=1)) == {}


def test_what_has_no_effect_on_generation_is_left_out():
    defaults = dict(do_sample=False, num_beams=1, temperature=1.0, top_k=50, length_penalty=1.0)
    assert generation_facts(defaults, dict(temperature=0.2, top_k=5), dict(length_penalty=2.0)) == {}
    assert generation_facts(defaults, dict(do_sample=True, temperature=0.2), dict(temperature=0.4)) == dict(
        do_sample=True, temperature=0.4
    )


def test_what_replaces_a_length_leaves_it_without_effect():
    lengths = dict(max_length=90, max_new_tokens=4, min_length=60, min_new_tokens=8)
    assert generation_facts({}, lengths, asked=dict(max_out_len=8, min_out_len=0)) == {}
    assert generation_facts({}, lengths, asked=dict(max_out_len=8)) == dict(min_new_tokens=8)
    assert generation_facts({}, lengths) == dict(max_new_tokens=4, min_new_tokens=8)
    assert generation_facts({}, dict(min_new_tokens=0, min_length=60)) == {}
    assert generation_facts({}, dict(min_length=60)) == dict(min_length=60)


@pytest.mark.parametrize(
    ("generation", "rows"),
    [
        ({}, 1),
        (dict(num_beams=4), 4),
        (dict(num_return_sequences=2), 2),
        (dict(num_beams=4, num_return_sequences=2), 4),
    ],
)
def test_rows_per_prompt_are_the_beams_or_the_answers(generation, rows):
    assert rows_per_prompt(generation) == rows


# -- tables ----------------------------------------------------------------------------------------------------------
IDENTITY = dict(weights="sha256:" + "a" * 64, dtype="float32", max_seq_len=512, method="gen", max_out_len=8)
DATASETS = ("m_1", "m_2", "piqa")
SEPARATING = [
    ("weights", "sha256:" + "b" * 64),
    ("peft_path", "sha256:" + "c" * 64),
    ("dtype", "bfloat16"),
    ("tokenizer", "sha256:" + "d" * 64),
    ("max_seq_len", 256),
    ("generation_kwargs", dict(num_beams=4)),
    ("stop_words", ["\n"]),
    ("max_out_len", 16),
    ("batch_size", 4),
    ("prompts", "sha256:" + "e" * 64),
    ("evaluator", dict(type="other")),
    ("attn_implementation", "eager"),
]


def pair(change=None, datasets=DATASETS, weights="w"):
    """A vanilla and a WDMoE run that are the same but for `change` on some datasets."""
    runs = [run_of("vanilla", "top_k", (weights, "p")), run_of("wdmoe", "wlr", (weights, "p"), lost=0.2)]
    for run in runs:
        run.identities = {name: dict(IDENTITY) for name in DATASETS}
    for name in datasets if change else ():
        runs[1].identities[name] |= dict([change])
    return runs


def test_runs_that_are_the_same_are_compared_wherever_their_weights_lie():
    runs = pair()
    runs[1].base = ("a copy elsewhere", runs[1].base[1])
    assert {record["benchmark"] for record in difference_records(runs, BENCHMARKS)} > set(BENCHMARKS)
    assert all(record["saving"] is not None for record in latency_records(runs))
    assert len(frontier_records(runs, BENCHMARKS, latency_cells(runs))) == 2


@pytest.mark.parametrize("change", SEPARATING, ids=[name for name, _ in SEPARATING])
def test_no_table_puts_down_to_the_policy_what_another_argument_may_have_done(change):
    runs = pair(change)
    assert difference_records(runs, BENCHMARKS) == []
    name = change[0] if not isinstance(change[1], dict) else f"{change[0]}.{next(iter(change[1]))}"
    said = "\n".join(not_compared_notes(runs, BENCHMARKS))
    assert f"vanilla and wdmoe differ in more than the policy: {name} {shown(change[0])} against" in said
    if name in ("peft_path", "max_out_len"):  # the replays of the others would be the same
        no_latency_is_compared(runs, name)


def no_latency_is_compared(runs, name):
    cells = latency_cells(runs)
    records = [record for record, _ in cells]
    of_wdmoe = [record for record in records if record["model"] == "wdmoe"]
    assert all(record["saving"] is None and name in record["no_interval"] for record in of_wdmoe)
    assert all(record["saving"] is not None for record in records if record["model"] == "vanilla")
    assert f"differ in more than the policy: {name} " in "\n".join(saving_notes(records))
    table = table_2(records, BENCHMARKS, "layer", "batch", "all")
    assert not table[table["model"] == "wdmoe"][BENCHMARKS].map(lambda cell: "%" in cell).any().any()
    assert [record["model"] for record in frontier_records(runs, BENCHMARKS, cells)] == ["vanilla"]


def shown(name):
    value = IDENTITY.get(name, "none")
    return value[:19] if str(value).startswith("sha256:") else value


def test_the_tables_say_why_they_compare_nothing(tmp_path):
    write_report(pair(("peft_path", "sha256:" + "c" * 64)), BENCHMARKS, tmp_path)
    for name in ("table_1_accuracy", "table_2_latency_layer_per_batch_all"):
        for form in ("md", "csv", "tex", "json"):
            said = (tmp_path / f"{name}.{form}").read_text().replace("\\_", "_")
            assert (
                "vanilla and wdmoe differ in more than the policy: peft_path none against sha256:cccccccccccc" in said
            )
    assert not (tmp_path / "differences.md").exists()


def test_only_the_benchmarks_that_a_difference_touches_lose_their_comparison():
    runs = pair(("stop_words", ["\n"]), ["piqa"])
    assert {record["benchmark"] for record in difference_records(runs, BENCHMARKS)} == {"mmlu"}
    notes = "\n".join(difference_notes(runs, BENCHMARKS))
    assert (
        'not compared on piqa: vanilla and wdmoe differ in more than the policy: stop_words none against ["\\n"]'
        in notes
    )
    runs = pair(("stop_words", ["\n"]), ["m_2"])  # one subject of a group
    assert {record["benchmark"] for record in difference_records(runs, BENCHMARKS)} == {"piqa"}


def test_a_model_is_compared_with_the_vanilla_that_has_its_adapter():
    runs = pair(("peft_path", "sha256:" + "c" * 64))
    alike = run_of("vanilla, adapted", "top_k")
    alike.identities = copy.deepcopy(runs[1].identities)
    records = difference_records([runs[0], alike, runs[1]], BENCHMARKS)
    assert {(record["model"], record["vanilla"]) for record in records} == {("wdmoe", "vanilla, adapted")}


def test_runs_that_do_not_know_their_facts_are_compared_by_their_configs():
    runs = pair()
    for run in runs:
        run.identities = {}
        run.asked = {name: dict(peft_path="an/adapter") if run.abbr == "wdmoe" else {} for name in DATASETS}
    assert difference_records(runs, BENCHMARKS) == []
    runs[0].asked = copy.deepcopy(runs[1].asked)
    assert difference_records(runs, BENCHMARKS)
    runs[0].identities = {name: dict(IDENTITY) for name in DATASETS}  # one of the two was recorded by a later version
    assert difference_records(runs, BENCHMARKS)
    runs[1].base = ("other weights", "p")
    assert difference_records(runs, BENCHMARKS) == []


def test_every_fact_is_named_under_the_tables_and_in_their_provenance():
    runs = pair(("peft_path", "sha256:" + "c" * 64))
    runs[1].identities["piqa"]["max_out_len"] = 99
    note = answer_notes(runs[1])[0]
    for text in (f"peft_path=sha256:{'c' * 12}", "dtype=float32", "max_seq_len=512", "on piqa: max_out_len=99"):
        assert text in note
    assert note in origin_notes(runs)
    facts_ = provenance(runs)["models"][1]
    assert facts_["answers_depend_on"]["peft_path"] == "sha256:" + "c" * 64
    assert facts_["answers_depend_on_by_dataset"]["piqa"] == dict(max_out_len=99)


def test_sampled_answers_are_said_to_be():
    runs = pair(("generation_kwargs", dict(do_sample=True)), ["piqa"])
    assert "answers on piqa were sampled" in " ".join(answer_notes(runs[1]))


def test_the_papers_model_with_an_adapter_is_not_the_papers_model():
    weights = "somewhere/Mixtral-8x7B-Instruct-v0.1"
    plain, adapted = pair(weights=weights), pair(("peft_path", "sha256:" + "c" * 64), weights=weights)
    assert not paper_comparison(plain, latency_records(plain)).empty
    assert not adapter_notes(plain)
    rows = paper_comparison(adapted, latency_records(adapted))
    assert not rows["row"].str.contains("wdmoe").any()
    assert adapter_notes(adapted) == [
        "wdmoe: not compared with the paper: an adapter (peft_path) makes it another model"
    ]


# -- two runs --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def records_of():
    """-> function from runs of `pair` to what `wdmoe compare` reads of them; latencies are computed once."""
    cells = latency_cells(pair())

    def of(runs):
        return dict(
            accuracy=accuracy_records(runs),
            latency=[record for record, _ in cells],
            origin=[],
            items=item_records(runs),
            batches=batch_records(cells),
            identity=identity_records(runs),
            groups=runs[0].groups,
        )

    return of


def test_two_runs_of_the_same_are_compared_without_a_remark(records_of):
    a, b = records_of(pair()), records_of(pair())
    assert not any("differs, A against B" in line for line in notes_of(a, b))
    assert (comparison_table(a, b).query("quantity == 'accuracy (%)'")["B - A"] != "-").all()


@pytest.mark.parametrize("change", SEPARATING, ids=[name for name, _ in SEPARATING])
def test_compare_says_what_differs_between_two_runs(records_of, change):
    a, b = records_of(pair()), records_of(pair(change))
    said = "\n".join(notes_of(a, b))
    assert f"wdmoe on m_1, m_2, piqa differs, A against B: {change[0]}" in said
    assert "vanilla on" not in said
    if change[0] not in ("prompts", "evaluator", "dtype"):
        return  # the intervals of the others would be the same
    table = comparison_table(a, b).query("quantity == 'accuracy (%)'")
    is_shown = table.set_index("model")["B - A"] != "-"
    assert is_shown["vanilla"].all()
    assert is_shown["wdmoe"].any() == (change[0] not in ("prompts", "evaluator"))


def test_datasets_of_one_name_that_ask_otherwise_are_not_compared_nor_is_their_group(records_of):
    a, b = records_of(pair()), records_of(pair(("prompts", "sha256:" + "e" * 64), ["m_1"]))
    table = (
        comparison_table(a, b).query("model == 'wdmoe' and quantity == 'accuracy (%)'").set_index("benchmark")["B - A"]
    )
    assert (table["mmlu"], table["m_1"]) == ("-", "-")
    assert table["piqa"] != "-"
    assert "no difference is shown on m_1, mmlu: the runs did not ask or score the same" in "\n".join(notes_of(a, b))


def test_an_older_summary_is_said_not_to_know_what_its_answers_depend_on(records_of):
    a, b = records_of(pair()), records_of(pair())
    del b["identity"]
    assert any(line.startswith("B: what its answers depend on") for line in notes_of(a, b))


# -- traces and configs of a run -------------------------------------------------------------------------------------
def traced(**changes):
    made = metadata(**changes)
    return RoutingTrace(made, empty_arrays(made))


def test_a_trace_keeps_what_its_answers_depend_on(tmp_path):
    write_trace(tmp_path / "x", traced(identity=IDENTITY, arguments=dict(peft_path="a")))
    read = read_trace(tmp_path / "x").metadata
    assert (read.identity, read.arguments) == (IDENTITY, dict(peft_path="a"))


def test_a_trace_of_the_version_before_is_read_and_knows_nothing_of_it(tmp_path):
    older = traced(format_version=6)
    text = {k: v for k, v in json.loads(older.metadata.model_dump_json()).items() if k not in ("identity", "arguments")}
    write_trace(tmp_path / "x", RoutingTrace(TraceMetadata.model_validate(text), older.arrays))
    read = read_trace(tmp_path / "x").metadata
    assert (read.format_version, read.identity, read.arguments) == (6, {}, {})


CFG = dict(abbr="m", path="w", wdmoe=VANILLA, batch_size=4, type="a.b.WdmoeHuggingFaceBaseModel")
EDITED = [
    ("generation_kwargs.num_beams", dict(generation_kwargs=dict(num_beams=4)), GEN),
    ("stop_words", dict(stop_words=["\n"]), GEN),
    ("max_seq_len", dict(max_seq_len=99), GEN),
    ("peft_path", dict(peft_path="an/adapter"), GEN),
    ("min_out_len", dict(min_out_len=4), GEN),
    ("model_kwargs.attn_implementation", dict(model_kwargs=dict(attn_implementation="eager")), GEN),
    ("model_kwargs.use_safetensors", dict(model_kwargs=dict(use_safetensors=False)), GEN),
    ("model_kwargs.trust_remote_code", dict(model_kwargs=dict(trust_remote_code=True)), GEN),
    ("max_out_len", {}, asking(GEN, max_out_len=77)),
    ("type", dict(type="a.b.WdmoeHuggingFacewithChatTemplate"), GEN),
    ("tokenizer_path", dict(tokenizer_path="elsewhere"), GEN),
    ("meta_template.round", dict(meta_template=dict(round=[1])), GEN),
]


@pytest.mark.parametrize(("name", "model", "dataset"), EDITED, ids=[name for name, *_ in EDITED])
def test_a_trace_recorded_before_the_config_was_edited_is_no_trace_of_it(tmp_path, name, model, dataset):
    after = asked_facts(CFG | model, dict(dataset, abbr="d"))
    trace = of_config(asked_facts(CFG, dict(GEN, abbr="d")))
    expected = Expected.of(CFG | model, [trace.metadata], [dict(dataset, abbr="d")])
    assert expected.asked["d"] == after
    why = why_refused({("m", "d"): trace}, {"m": expected})["m", "d"]
    assert f"recorded with other arguments than the config's: {name} " in why


@pytest.mark.parametrize("change", [{}, dict(batch_size=9), dict(run_cfg=dict(num_gpus=2)), dict(stop_words=[]),
                                    dict(model_kwargs=dict(device_map="auto")), dict(tokenizer_path="w"),
                                    dict(model_kwargs=dict(trust_remote_code=False)),
                                    dict(model_kwargs=dict(use_safetensors=True))])  # fmt: skip
def test_a_trace_stays_one_of_a_config_that_was_edited_without_effect(tmp_path, change):
    trace = of_config(asked_facts(CFG, dict(GEN, abbr="d")))
    expected = Expected.of(CFG | change, [trace.metadata], [dict(GEN, abbr="d")])
    assert why_refused({("m", "d"): trace}, {"m": expected}) == {}


def of_config(arguments, **identity):
    return traced(
        model="m",
        weights="w",
        policy="top_k",
        policy_parameters={},
        identity=dict(IDENTITY, **identity),
        arguments=arguments,
    )


def test_weights_that_were_replaced_between_two_starts_do_not_share_a_row(tmp_path):
    arguments = asked_facts(CFG, dict(GEN, abbr="d"))
    traces = {("m", f"d{n}"): of_config({}, weights="sha256:" + letter * 64) for n, letter in enumerate("aab")}
    for (_, name), trace in list(traces.items()):
        renamed = trace.metadata.model_copy(update=dict(dataset=name))
        traces["m", name] = RoutingTrace(renamed, trace.arrays)
    expected = Expected.of(CFG, [], [dict(GEN, abbr=f"d{n}") for n in range(3)])
    assert arguments == expected.asked["d0"]
    refused = why_refused(traces, {"m": expected})
    assert list(refused) == [("m", "d2")]
    assert "weights sha256:bbb" in refused["m", "d2"]


# -- adapters --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapted_model_computes_what_peft_computes_and_leaves_a_whole_trace(files, tmp_path, name):
    peft = pytest.importorskip("peft")
    base = AutoModelForCausalLM.from_pretrained(files["base"], dtype=torch.float32)
    reference = peft.PeftModel.from_pretrained(base, str(files[name])).eval()
    ours, wdmoe = (loaded(files, policy, peft_path=str(files[name])) for policy in (VANILLA, WDMOE))
    texts = ["Question: who?\nAnswer:", "A bolo", "What is this, then?"]
    ids = torch.arange(3, 43)[None]
    with torch.no_grad():
        assert torch.allclose(reference(input_ids=ids).logits, ours.model(input_ids=ids).logits, atol=1e-6)
        ours.attachment.recorder.reset()
        tokens = [ours.tokenizer([text], return_tensors="pt") for text in texts]
        wanted = [
            reference.generate(**prompt, max_new_tokens=6, do_sample=False, pad_token_id=0)[0] for prompt in tokens
        ]
        skipped = [len(prompt["input_ids"][0]) for prompt in tokens]
        wanted = [ours.tokenizer.decode(row[n:], skip_special_tokens=True) for row, n in zip(wanted, skipped)]
        for model in (ours, wdmoe):
            model.open_trace(tmp_path / "d.json", "m", "d", items_total=3, answered=0)
            answers = model.generate(texts, 6)
            model.get_ppl(texts)
            model.close_trace(seal=True)
            trace = read_trace(tmp_path / "d.trace.safetensors")
            assert trace.phase.tolist()[0] == trace.phase.tolist()[-1] == 0
            real = sum(skipped)
            assert trace.tokens[0] == trace.tokens[-1] == real
            assert trace.assignments_before[0].tolist() == [2 * real] * 2
            assert trace.metadata.identity["peft_path"] == adapter_digest(files[name])
            if model is ours:
                assert answers == wanted
                assert (trace.assignments == trace.assignments_before).all()
        assert trace.assignments.sum() < trace.assignments_before.sum()


def kinds(peft):
    of = dict(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return [
        peft.IA3Config(feedforward_modules=[], init_ia3_weights=False, **of),
        peft.AdaLoraConfig(init_r=4, total_step=10, init_lora_weights=False, **of),
        peft.LoHaConfig(r=4, init_weights=False, **of),
        peft.LoKrConfig(r=4, init_weights=False, **of),
        peft.OFTConfig(r=0, oft_block_size=8, init_weights=False, **of),
        peft.LoraConfig(r=4, use_dora=True, init_lora_weights=False, **of),
    ]


@pytest.mark.parametrize("number", range(6))
def test_adapters_of_every_supported_kind_compute_what_peft_computes(files, tmp_path, number):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(files["base"], dtype=torch.float32)
    adapted = peft.get_peft_model(base, kinds(peft)[number]).eval()
    adapted.save_pretrained(tmp_path)
    ids = torch.arange(3, 43)[None]
    with torch.no_grad():
        ours, plain = (
            loaded(files, VANILLA, peft_path=path).model(input_ids=ids).logits for path in (str(tmp_path), None)
        )
        assert torch.allclose(adapted(input_ids=ids).logits, ours, atol=1e-6)
    assert not torch.allclose(ours, plain, atol=1e-4)


def loaded(files, policy, **arguments):
    cfg = dict(path=str(files["base"]), model_kwargs=dict(torch_dtype="torch.float32", device_map="cpu"))
    return WdmoeHuggingFaceBaseModel(**cfg, wdmoe=policy, **arguments)


def without_a_tensor(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, folder / "adapter_model.safetensors")


def of_other_layers(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    moved = {name.replace("layers.1", "layers.7"): tensor for name, tensor in tensors.items()}
    save_file(moved, folder / "adapter_model.safetensors")


def of_other_sizes(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    name = sorted(tensors)[0]
    tensors[name] = tensors[name][:, :5].contiguous()
    save_file(tensors, folder / "adapter_model.safetensors")


def telling(**changes):
    return lambda folder: change_json(folder / "adapter_config.json", **changes)


BROKEN = [
    (without_a_tensor, "it has no tensor for what it adapts: "),
    (of_other_layers, "it has tensors that fit no layer of the model: "),
    (of_other_sizes, "it does not fit the model: "),
    (telling(target_modules=["nosuch"]), "it does not fit the model: "),
    (telling(alora_invocation_tokens=[1]), "an adapter of kind activated LoRA changes more than the weights"),
    (telling(peft_type="NOSUCH"), "adapter_config.json: cannot be read: "),
    (lambda folder: (folder / "adapter_config.json").write_text("{"), "adapter_config.json: "),
    (lambda folder: (folder / "adapter_config.json").unlink(), "no adapter_config.json in "),
    (
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
        "no adapter_model.safetensors or adapter_model.bin",
    ),
    (
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"{"),
        "adapter_model.safetensors: no safetensors",
    ),
]


@pytest.mark.parametrize(("change", "sentence"), BROKEN, ids=range(len(BROKEN)))
def test_an_adapter_that_cannot_be_applied_is_one_sentence(files, tmp_path, change, sentence):
    shutil.copytree(files["lora"], tmp_path / "lora")
    change(tmp_path / "lora")
    with pytest.raises(ModelError) as caught:
        loaded(files, VANILLA, peft_path=str(tmp_path / "lora"))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_adapter_of_virtual_tokens_is_refused(files, tmp_path):
    peft = pytest.importorskip("peft")
    model = AutoModelForCausalLM.from_pretrained(files["base"], dtype=torch.float32)
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    peft.get_peft_model(model, config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"of kind PREFIX_TUNING changes more than the weights .* supported: LORA"):
        loaded(files, VANILLA, peft_path=str(tmp_path))


def test_without_peft_one_sentence_says_what_to_install(files, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(
        ModelError,
        match=r"peft_path needs the package peft, which is not installed: pip install 'wdmoe_opencompass\[adapters\]'",
    ):
        loaded(files, VANILLA, peft_path=str(files["lora"]), tokenizer_only=True)


def test_an_adapter_in_the_place_of_weights_is_refused(files):
    with pytest.raises(ModelError, match=r"holds an adapter .*: give its base model in path"):
        WdmoeHuggingFaceBaseModel(path=str(files["lora"]), wdmoe=VANILLA)


# -- before a run ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(peft_path="lora"), "peft_path none against "),
        (dict(generation_kwargs=dict(num_beams=4)), "generation_kwargs.num_beams none against 4"),
        (dict(generation_kwargs=dict(min_new_tokens=8)), "generation_kwargs.min_new_tokens none against 8"),
        (dict(generation_kwargs=dict(use_cache=False)), "generation_kwargs.use_cache none against false"),
        (dict(max_seq_len=64), "max_seq_len none against 64"),
        (dict(batch_size=3), None),  # generation
        (dict(abbr="another", run_cfg=dict(num_gpus=0)), None),
    ],
)
def test_plan_says_beforehand_what_will_not_be_compared(files, change, said):
    from mmengine.config import Config

    from wdmoe_opencompass.harness.plan.comparisons import note_comparisons
    from wdmoe_opencompass.harness.plan.facts import Plan

    change = {key: str(files[value]) if key == "peft_path" else value for key, value in change.items()}
    models = [dict(CFG, abbr="vanilla"), dict(CFG, abbr="wdmoe", wdmoe=WDMOE) | change]
    plan = Plan("config")
    note_comparisons(Config(dict(models=models, datasets=[dict(GEN, abbr="d"), dict(GEN, abbr="e")])), plan)
    if said is None:
        assert plan.notes == []
    else:
        (note,) = plan.notes
        assert note.startswith("model wdmoe, d and 1 more: more than the policy differs from vanilla: " + said)


@pytest.mark.parametrize(
    ("both", "dataset", "is_said"),
    [
        (dict(BEAMS, stop_words=["\n"]), GEN, True),
        (dict(generation_kwargs=dict(num_beams=3, num_return_sequences=2)), asking(GEN, stopping_criteria=["Q"]), True),
        (dict(BEAMS, type=WdmoeHuggingFacewithChatTemplate), GEN, True),
        (dict(generation_kwargs=SAMPLING), GEN, True),
        (BEAMS, GEN, False),
        (dict(stop_words=["\n"]), GEN, False),
    ],
)
def test_plan_names_the_batch_size_where_answers_depend_on_it(both, dataset, is_said):
    from wdmoe_opencompass.harness.plan.comparisons import _differing

    models = [ConfigDict(CFG | both | change) for change in ({}, dict(batch_size=3, wdmoe=WDMOE))]
    found = _differing(*models, ConfigDict(dataset, abbr="d"))
    assert list(found) == (["batch_size"] if is_said else [])


def test_opencompass_own_table_changes_no_argument(monkeypatch, tmp_path):
    """Its hash of a prompt moves fix_id_list from the retriever to the inferencer, as in the stock MMLU config."""
    from opencompass.summarizers import DefaultSummarizer
    from opencompass.utils import get_prompt_hash

    from wdmoe_opencompass.harness.summarizer import WdmoeSummarizer

    retriever, inferencer = dict(type="FixKRetriever", fix_id_list=[0, 1]), dict(type="PPLInferencer")
    dataset = ConfigDict(abbr="d", infer_cfg=dict(retriever=retriever, inferencer=inferencer))
    summarizer = WdmoeSummarizer.__new__(WdmoeSummarizer)
    summarizer.dataset_cfgs, summarizer.work_dir = [dataset], str(tmp_path)
    monkeypatch.setattr(DefaultSummarizer, "summarize", lambda self, *_: get_prompt_hash(self.dataset_cfgs))
    before = asked_facts({}, summarizer.dataset_cfgs[0])
    summarizer._write_opencompass_table(None, "now")
    assert summarizer.dataset_cfgs == [dataset]
    assert asked_facts({}, summarizer.dataset_cfgs[0]) == before
    assert retriever["fix_id_list"] == [0, 1]
