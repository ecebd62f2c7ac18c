import json
import re
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config

from tests.builders.small_run import MODELS, TASKS, trace_of
from tests.command_line import process
from tests.conftest import ROOT, SMALL, environment
from wdmoe_opencompass import load_profile
from wdmoe_opencompass._util.checkpoint_files import missing_files
from wdmoe_opencompass.errors import ModelError, WdmoeError
from wdmoe_opencompass.harness.plan.batch_memory import batch_memory, batch_sentence
from wdmoe_opencompass.harness.plan.estimates import HEADER_BYTES
from wdmoe_opencompass.harness.plan.make import make_plan
from wdmoe_opencompass.harness.plan.offline import no_network
from wdmoe_opencompass.harness.plan.weights import measure_weights
from wdmoe_opencompass.trace.format import array_bytes

BENCHMARKS = ROOT.parent / "shared" / "benchmarks"
QUICKSTART = ROOT / "eval_configs" / "eval_quickstart.py"
OURS = "wdmoe_opencompass.harness.models.Wdmoe"
MIXTRAL = "mistralai/Mixtral-8x7B-Instruct-v0.1"
# Counted by hand from the published config: embedding and head, then per layer attention (q and o, k and v), router,
# experts and norms, and the last norm.
ATTENTION, EXPERT = 2 * 4096 * 4096 + 2 * 4096 * 1024, 3 * 4096 * 14336
MIXTRAL_PARAMETERS = 2 * 32000 * 4096 + 32 * (ATTENTION + 8 * 4096 + 8 * EXPERT + 2 * 4096) + 4096
MIXTRAL_ACTIVE = MIXTRAL_PARAMETERS - 32 * 6 * EXPERT


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """What `wdmoe plan eval_configs/eval_quickstart.py --json` answers."""
    home = tmp_path_factory.mktemp("hf")
    done = process("plan", QUICKSTART, "--json", cwd=ROOT, env=environment(home))
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.fixture
def changed(tmp_path, monkeypatch):
    """-> function: the plan of the small config after `change` has been applied to it."""
    monkeypatch.chdir(ROOT)

    def plan(change, config=SMALL):
        cfg = Config.fromfile(config, format_python_code=False)
        change(cfg)
        cfg.dump(tmp_path / "eval_changed.py")
        return make_plan(tmp_path / "eval_changed.py")

    return plan


@pytest.fixture(scope="module")
def mixtral_config(tmp_path_factory):
    """A folder with the config of Mixtral-8x7B and no weights."""
    from transformers import MixtralConfig

    folder = tmp_path_factory.mktemp("mixtral")
    MixtralConfig(dtype="bfloat16").save_pretrained(folder)
    return folder


def gpus(monkeypatch, count, free_bytes=80e9):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (free_bytes, free_bytes))


# -- a run that works ----------------------------------------------------------------------------------------------
def test_the_quickstart_can_work_and_its_items_are_those_of_its_files(quickstart):
    assert quickstart["can_work"]
    data = ROOT / "quickstart" / "data"
    files = ("choice.jsonl", "twoway/dev.jsonl", "yesno.jsonl", "arith/test.jsonl")
    lines = [len((data / name).read_text().splitlines()) for name in files]
    few_shot = 10  # MBPPDataset keeps the first rows as examples
    lines.append(len((data / "program.jsonl").read_text().splitlines()) - few_shot)
    assert [d["items"] for d in quickstart["datasets"]] == lines
    assert [d["labels"] for d in quickstart["datasets"]] == [4, 2, 2, 1, 1]


def test_prompt_tokens_of_sampled_items_are_near_those_of_all(quickstart):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "quickstart" / "model")
    rows = [json.loads(line) for line in (ROOT / "quickstart/data/arith/test.jsonl").read_text().splitlines()]
    exact = sum(len(tokenizer(f"Question: {row['question']}\nAnswer:")["input_ids"]) for row in rows)
    estimates = [run for run in quickstart["runs"] if run["dataset"] == "qs_arith"]
    assert [run["model"] for run in estimates] == MODELS
    for run in estimates:
        assert run["prompt_tokens"] == pytest.approx(exact, rel=0.05)  # 25 of 1,000 items
        assert run["prompt_tokens"] != exact


@pytest.fixture(scope="module")
def small_runs(small_run):
    """-> {(model, task): estimate} of the config of `small_run`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        plan = make_plan(SMALL)
    assert plan.problems == []
    return {(run.model, run.dataset.removesuffix("_small")): run for run in plan.runs}


def test_perplexity_passes_batches_and_tokens_are_those_a_run_traces(small_run, small_runs):
    for model in MODELS:
        for task in ("qs_choice", "qs_twoway", "qs_yesno"):
            trace, estimate = trace_of(small_run, model, task), small_runs[model, task]
            assert (estimate.passes, estimate.batches) == (len(trace.tokens), len(trace.items))
            assert estimate.tokens == estimate.prompt_tokens == trace.tokens.sum()  # 12 items: all are sampled
            assert not estimate.at_most


def test_generation_is_bounded_and_its_prompt_tokens_are_exact(small_run, small_runs):
    for model in MODELS:
        for task, most in (("qs_arith", 16), ("qs_program", 64)):
            trace, estimate = trace_of(small_run, model, task), small_runs[model, task]
            assert estimate.at_most
            assert (estimate.batches, estimate.passes) == (len(trace.items), most * len(trace.items))
            assert estimate.prompt_tokens == trace.tokens[trace.is_phase("prefill")].sum()
            assert len(trace.tokens) <= estimate.passes
            assert trace.tokens.sum() <= estimate.tokens


def test_traces_too_large_to_be_sealed_are_named_beforehand(changed, monkeypatch):
    monkeypatch.setattr("wdmoe_opencompass.harness.plan.estimates.MAX_BYTES", 10_000)
    plan = changed(lambda cfg: None)
    assert "bytes, and a file must hold at most 10000: split the dataset" in plan.problems[0]
    assert any("its trace takes at most" in note for note in plan.notes)


def test_trace_bytes_are_the_files_size(small_run, small_runs):
    header = HEADER_BYTES + len(json.dumps(load_profile("paper_8_devices").model_dump_json()))
    for (model, task), estimate in small_runs.items():
        trace = trace_of(small_run, model, task)
        size = (small_run / "predictions" / model / f"{task}_small.trace.safetensors").stat().st_size
        arrays = array_bytes(trace.metadata.sizes(), len(trace.tokens), len(trace.items), len(trace.item_passes))
        assert arrays == sum(array.nbytes for array in trace.arrays.values())
        assert header + arrays == pytest.approx(size, rel=0.03)
        if task in TASKS[:3]:
            assert estimate.trace_bytes == header + arrays


def test_the_bound_on_a_recordings_size_holds_and_is_near_where_the_tokens_are_known(small_run, small_runs):
    for (model, task), estimate in small_runs.items():
        size = (small_run / "predictions" / model / f"{task}_small.routing.safetensors").stat().st_size
        assert size <= 1.01 * estimate.recording_bytes
        if task in TASKS[:3]:
            assert size == pytest.approx(estimate.recording_bytes, rel=0.03)


def test_a_recording_is_announced_only_where_one_is_asked_for(changed):
    def columns(**settings):
        return changed(lambda cfg: [model["wdmoe"].update(settings) for model in cfg.models]).run_rows()[-1]

    assert columns(record_routing=True)["recording MB, at most"] > 0
    assert "recording MB, at most" not in columns(record_routing=False)


def test_a_full_length_generation_takes_exactly_the_passes_of_the_bound(changed):
    """max_new_tokens = n is one prefill and n - 1 decode passes: counted on the model itself."""
    from wdmoe_opencompass.harness.models import WdmoeHuggingFaceBaseModel

    model = WdmoeHuggingFaceBaseModel(
        path=str(ROOT / "quickstart" / "model"),
        model_kwargs=dict(torch_dtype="torch.float32", device_map="cpu"),
        generation_kwargs=dict(min_new_tokens=9),
        wdmoe=dict(profile="paper_8_devices"),
    )
    passes = []
    model.model.register_forward_pre_hook(lambda *_: passes.append(1))
    model.generate(["Question: what?\nAnswer:"], 9)

    def nine_tokens(cfg):
        cfg.datasets = [dataset for dataset in cfg.datasets if dataset.abbr == "qs_arith_small"]
        cfg.datasets[0].infer_cfg.inferencer.max_out_len = 9

    assert changed(nine_tokens).runs[0].passes == 3 * len(passes)


def test_chat_prompts_are_counted_with_the_chat_template(changed):
    from wdmoe_opencompass.harness.models import WdmoeHuggingFacewithChatTemplate

    def chat(cfg):
        cfg.models = cfg.models[:1]
        cfg.models[0].type = f"{OURS}HuggingFacewithChatTemplate"
        cfg.datasets = [dataset for dataset in cfg.datasets if dataset.abbr == "qs_arith_small"]

    (run,) = changed(chat).runs
    model = WdmoeHuggingFacewithChatTemplate(
        path=str(ROOT / "quickstart" / "model"),
        model_kwargs=dict(torch_dtype="torch.float32", device_map="cpu"),
        wdmoe=dict(profile="paper_8_devices"),
    )
    forwarded = []
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: forwarded.append(int(kwargs["attention_mask"].sum())), with_kwargs=True
    )
    rows = (ROOT / "quickstart/data/arith/test.jsonl").read_text().splitlines()[:12]
    model.generate([f"Question: {json.loads(row)['question']}\nAnswer:" for row in rows], 1)
    assert [run.prompt_tokens] == forwarded


# -- weights -------------------------------------------------------------------------------------------------------
def test_mixtral_parameters_are_those_counted_by_hand(mixtral_config):
    facts = measure_weights(mixtral_config, dict(torch_dtype="torch.bfloat16"))
    assert (facts.parameters, facts.active_parameters) == (MIXTRAL_PARAMETERS, MIXTRAL_ACTIVE)
    assert (facts.bytes, facts.dtype) == (2 * MIXTRAL_PARAMETERS, "bfloat16")
    assert (facts.layers, facts.experts, facts.top_k) == (32, 8, 2)


def test_fp8_takes_a_byte_per_weight_of_attention_and_experts(mixtral_config):
    fp8 = dict(torch_dtype="torch.bfloat16", quantization_config=dict(quant_method="fp8"))
    halved = 32 * (ATTENTION + 8 * EXPERT)
    scales = 4 * halved // 128**2  # one float32 per block
    expected = 2 * MIXTRAL_PARAMETERS - halved + scales
    assert measure_weights(mixtral_config, fp8).bytes == pytest.approx(expected, rel=2e-3)  # the router is linear too


def test_bitsandbytes_leaves_the_experts_in_16_bit(mixtral_config):
    pytest.importorskip("bitsandbytes")
    four_bit = dict(torch_dtype="torch.bfloat16", quantization_config=dict(load_in_4bit=True))
    bytes_ = measure_weights(mixtral_config, four_bit).bytes
    assert bytes_ == pytest.approx(2 * MIXTRAL_PARAMETERS - 1.5 * 32 * ATTENTION, rel=1e-3)
    assert bytes_ > 90e9


def test_a_token_of_mixtral_takes_what_is_counted_by_hand(mixtral_config):
    token = measure_weights(mixtral_config, dict(torch_dtype="torch.bfloat16")).token
    assert token.cache == 32 * 2 * 8 * 128 * 2  # layers, keys and values, key heads, head size, bytes
    assert token.experts == 2 * (4096 + 3 * 14336 + 4096) * 2  # experts, what goes in, between and out, bytes
    assert token.logits == 32000 * (2 + 4 + 4)


def test_a_batch_is_weights_and_cache_over_the_gpus_and_activations_on_one(mixtral_config):
    facts = measure_weights(mixtral_config, dict(torch_dtype="torch.bfloat16"))
    gsm8k = batch_memory("gsm8k", facts.token, "gen", 64, 1, 1585, 512)
    cache, experts = 64 * (1585 + 512) * 131072, 64 * 1585 * 204800
    assert gsm8k.bytes_per_gpu(facts.bytes, 2) == (facts.bytes + cache) // 2 + experts
    fits = batch_sentence(gsm8k, facts.bytes, 2, int(2 * 84e9))
    assert fits.startswith("batch size 64 (longest on gsm8k, 1585 + 512 tokens): fits, with 76.3 of 84 GB on each of 2")
    assert fits.endswith("; Table II corresponds to about 64 sequences per forward pass")
    on_one = batch_sentence(gsm8k, facts.bytes, 1, int(141e9))
    assert ": fits, with 132 of 141 GB on the GPU" in on_one
    too_large = batch_memory("history", facts.token, "ppl", 64, 1, 3000, 0)
    need = (facts.bytes + 64 * 3000 * 131072) / 2 + 64 * 3000 * 320000
    told = batch_sentence(too_large, facts.bytes, 2, int(2 * 84e9))
    assert f": needs {need / 1e9:.3g} GB on each of 2 GPUs" in told
    (largest,) = re.findall(r"free: 84 GB; about (\d+) would fit", told)
    for batch_size, is_enough in ((int(largest), True), (int(largest) + 1, False)):
        other = batch_memory("history", facts.token, "ppl", batch_size, 1, 3000, 0)
        assert (other.bytes_per_gpu(facts.bytes, 2) <= 84e9) == is_enough
    assert "would fit" not in batch_sentence(too_large, facts.bytes, 1, int(80e9))  # not even the weights do
    assert "needs 121 GB on each of 2 GPUs" in batch_sentence(too_large, facts.bytes, 2, None)


def test_the_key_value_cache_is_that_of_a_real_forward_pass():
    from transformers import AutoModelForCausalLM

    folder = ROOT / "quickstart" / "model"
    token = measure_weights(folder, dict(torch_dtype="torch.float32")).token
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        answer = model(torch.zeros((3, 7), dtype=torch.long), use_cache=True)
    kept = sum(part.nbytes for layer in answer.past_key_values.layers for part in (layer.keys, layer.values))
    assert kept == 3 * 7 * token.cache
    assert token.logits == answer.logits.shape[2] * (4 + 4 + 4)


def test_the_plan_says_what_the_largest_batch_needs(quickstart, changed, mixtral_config, monkeypatch):
    (note,) = [note for note in quickstart["notes"] if "batch size" in note]
    assert note.startswith("model quickstart-vanilla-hf and 1 more: batch size 25 (longest on qs_")
    assert "GB in the host's memory" in note
    gpus(monkeypatch, 2, free_bytes=84e9)

    def mixtral(cfg):
        cfg.models = cfg.models[:1]
        cfg.models[0].path = str(mixtral_config)
        cfg.models[0].model_kwargs = dict(torch_dtype="torch.bfloat16")
        cfg.models[0].run_cfg.num_gpus = 2
        cfg.models[0].batch_size = 5000
        cfg.datasets[0].infer_cfg.inferencer.batch_size = 64

    (note,) = [note for note in changed(mixtral).notes if "batch size" in note]
    assert re.search(r"batch size 5000 \(longest on .*\): needs [\d.e+]+ GB on each of 2 GPUs", note)
    assert "free: 84 GB; about" in note
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    (note,) = [note for note in changed(mixtral).notes if "batch size" in note]
    assert "GB on each of 2 GPUs" in note
    assert "free" not in note


@pytest.mark.parametrize("dtype", ["torch.float32", "torch.bfloat16"])
def test_bytes_are_those_of_the_loaded_model(dtype):
    from wdmoe_opencompass.harness.models import WdmoeHuggingFaceBaseModel

    folder, model_kwargs = ROOT / "quickstart" / "model", dict(torch_dtype=dtype, device_map="cpu")
    wdmoe = dict(profile="paper_8_devices")
    loaded = WdmoeHuggingFaceBaseModel(path=str(folder), model_kwargs=dict(model_kwargs), wdmoe=wdmoe)
    facts = measure_weights(folder, model_kwargs)
    assert facts.bytes == sum(parameter.nbytes for parameter in loaded.model.parameters())
    assert facts.layers == len(loaded.attachment.layers)
    assert (facts.experts, facts.top_k) == (8, 2)


@pytest.mark.parametrize(
    ("family", "config", "expected"),
    [
        ("Qwen3Moe", dict(num_experts=6, num_experts_per_tok=3, moe_intermediate_size=8), (2, 6, 3)),
        ("Olmoe", dict(num_experts=6, num_experts_per_tok=3), (2, 6, 3)),
        ("DeepseekV3", dict(n_routed_experts=8, num_experts_per_tok=3, first_k_dense_replace=1, n_group=2), (1, 8, 3)),
        ("Llama", dict(), (0, 0, 0)),
    ],
)
def test_moe_layers_of_other_families_are_found(family, config, expected, tmp_path):
    import transformers

    small = dict(hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, vocab_size=64)
    getattr(transformers, f"{family}Config")(**small, num_key_value_heads=2, **config).save_pretrained(tmp_path)
    facts = measure_weights(tmp_path, {})
    assert (facts.layers, facts.experts, facts.top_k) == expected
    assert (facts.active_parameters < facts.parameters) == (facts.layers > 0)


def test_a_missing_shard_is_named(tmp_path):
    index = dict(weight_map={"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"")
    assert missing_files(tmp_path) == ["model-00002-of-00002.safetensors"]
    assert missing_files(ROOT / "quickstart" / "model") == []


def test_a_quantization_that_does_not_exist_is_one_sentence(mixtral_config):
    with pytest.raises(ModelError, match="its quantization_config cannot be applied"):
        measure_weights(mixtral_config, dict(quantization_config=dict(quant_method="fp3")))


# -- runs that could not work --------------------------------------------------------------------------------------
def test_a_missing_dataset_is_named_with_its_place_and_exits_1(tmp_path, monkeypatch, wdmoe):
    monkeypatch.chdir(ROOT)
    cfg = Config.fromfile(QUICKSTART, format_python_code=False)
    cfg.datasets[0].path = str(tmp_path / "data" / "choice.jsonl")
    cfg.dump(tmp_path / "eval_missing.py")
    done = wdmoe("plan", tmp_path / "eval_missing.py")
    assert (done.returncode, done.stderr) == (1, "")
    *_, problem, verdict = done.stdout.splitlines()
    assert problem.startswith(f"problem: dataset qs_choice: file missing: {tmp_path / 'data' / 'choice.jsonl'};")
    assert verdict == "this run cannot work"
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [str(tmp_path / "data" / "choice.jsonl"), "1", "0", "0", "ppl"] in rows
    assert ["quickstart/data/twoway", "1", "1", "253", "ppl"] in rows


def test_every_loader_names_the_file_it_misses(changed, tmp_path):
    missing = {
        "qs_choice_small": "choice.jsonl",
        "qs_twoway_small": "twoway/train.jsonl",
        "qs_yesno_small": "yesno.jsonl",
        "qs_arith_small": "arith/train.jsonl",
        "qs_program_small": "program.jsonl",
    }

    def move_all(cfg):
        for dataset in cfg.datasets:
            for key in ("path", "data_files"):
                if dataset.get(key, "json") != "json":
                    dataset[key] = dataset[key].replace("quickstart/data", str(tmp_path / "moved"))

    plan = changed(move_all)
    for dataset in plan.datasets:
        assert dataset.missing is not None, plan.problems
        assert Path(dataset.missing).is_relative_to(tmp_path / "moved")
        assert str(tmp_path / "moved" / missing[dataset.abbr]).startswith(dataset.missing)
    assert len(plan.problems) == 5


def test_nothing_is_downloaded_into_the_data_folder(tmp_path, monkeypatch, changed):
    monkeypatch.setenv("COMPASS_DATA_CACHE", str(tmp_path / "cache"))

    def stock_gsm8k(cfg):
        cfg.datasets = cfg.datasets[3:4]
        cfg.datasets[0].path = "opencompass/gsm8k"

    plan = changed(stock_gsm8k)
    assert plan.datasets[0].missing == str(tmp_path / "cache" / "data" / "gsm8k")
    assert not (tmp_path / "cache").exists()


def test_no_connection_is_opened_until_the_plan_is_done():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        with no_network():
            for call in (lambda: socket.create_connection(address), lambda: socket.socket().connect(address)):
                with pytest.raises(OSError, match="opens no connection"):
                    call()
        socket.create_connection(address).close()


def test_absent_weights_are_one_sentence_with_the_command_that_gets_them(changed, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def mixtral(cfg):
        cfg.models = cfg.models[1:]
        cfg.models[0].path = MIXTRAL

    plan = changed(mixtral)
    (problem,) = plan.problems
    assert problem.endswith(f"its memory is unknown; get them with: hf download {MIXTRAL}")
    assert str(tmp_path / "hub") in problem
    assert plan.models[0].token_count == "4 characters per token"
    assert [run.passes for run in plan.runs[:3]] == [12, 6, 6]
    assert all(run.trace_bytes is None for run in plan.runs)


@pytest.mark.parametrize(
    ("present", "asked", "sentence"),
    [
        (0, 2, "run_cfg asks for 2 GPUs and this machine has 0: LocalRunner cannot start its task"),
        (1, 1, "its weights alone need 93.4 GB (bfloat16), free on 1 GPU: 80.0 GB"),
        (2, 2, None),
    ],
)
def test_weights_are_compared_with_the_gpus_present(changed, mixtral_config, monkeypatch, present, asked, sentence):
    gpus(monkeypatch, present)

    def mixtral(cfg):
        cfg.models = cfg.models[:1]
        cfg.models[0].path = str(mixtral_config)
        cfg.models[0].model_kwargs = dict(torch_dtype="torch.bfloat16")
        cfg.models[0].run_cfg.num_gpus = asked

    plan = changed(mixtral)
    problems = [problem.removeprefix("model quickstart-vanilla-hf: ") for problem in plan.problems]
    missing = f"weights missing: {mixtral_config / 'model.safetensors'}"
    tokenizer = next(problem for problem in problems if "tokenizer" in problem)
    assert problems == [missing, *([sentence] if sentence else []), tokenizer]


def test_on_a_cluster_memory_is_not_checked(changed, monkeypatch):
    gpus(monkeypatch, 0)

    def slurm(cfg):
        cfg.infer.runner.type = "opencompass.runners.SlurmRunner"
        for model in cfg.models:
            model.run_cfg.num_gpus = 8

    plan = changed(slurm)
    assert plan.problems == []
    assert {model.memory for model in plan.models} == {"the cluster's, not checked here"}


def first_model(**new):
    def change(cfg):
        cfg.models[0].update(new)

    return change


def change_profile(cfg):
    cfg.models[0].wdmoe.profile = "paper_8"


def stock_task(cfg):
    cfg.infer.runner.task.type = "opencompass.tasks.OpenICLInferTask"


def stock_summarizer(cfg):
    cfg.summarizer.type = "opencompass.summarizers.DefaultSummarizer"


def same_abbr(cfg):
    cfg.models[0].abbr = cfg.models[1].abbr


def no_inferencer(cfg):
    del cfg.datasets[3]["infer_cfg"]


def other_inferencer(cfg):
    cfg.datasets[3].infer_cfg.inferencer.type = "opencompass.openicl.icl_inferencer.CLPInferencer"


def test_an_inferencer_of_another_kind_is_said_to_be_left_out(changed):
    plan = changed(other_inferencer)
    assert any("passes of a" in note and "CLPInferencer are not estimated" in note for note in plan.notes)
    assert {run.dataset for run in plan.runs} == {f"{task}_small" for task in TASKS if task != "qs_arith"}


def human_eval(cfg):
    cfg.datasets[4].eval_cfg.evaluator.type = "opencompass.datasets.HumanEvalEvaluator"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (change_profile, "did you mean 'paper_8_devices'"),
        (first_model(wdmoe=dict(profile="paper_8_devices", policy="wrl")), "did you mean 'wlr'"),
        (first_model(batch_padding=True), "'batch_padding' is unknown"),
        (first_model(path=None), "needs path"),
        (first_model(type="wdmoe_opencompass.harness.models.Wdmo"), "Wdmo cannot be imported"),
        (first_model(type="opencompass.models.HuggingFaceBaseModel"), "ignores wdmoe=dict(...)"),
        (first_model(type=f"{OURS}HuggingFacewithChatTemplate"), "gives no perplexity"),
        (
            first_model(
                type=f"{OURS}HuggingFacewithChatTemplate", wdmoe=dict(profile="paper_8_devices", perplexity="exact")
            ),
            "wdmoe.perplexity must be 'stock'",
        ),
        (first_model(batch_size=None), "perplexity needs batch_size"),
        (stock_task, "task must be WdmoeInferTask"),
        (stock_summarizer, "must be dict(type=WdmoeSummarizer)"),
        (no_inferencer, "dataset qs_arith_small: cannot be loaded"),
        (same_abbr, "the abbr quickstart-wdmoe-hf occurs twice"),
        (human_eval, "quickstart/data/program.jsonl: its evaluator lacks a package"),
    ],
)
def test_what_could_not_work_is_a_problem(changed, monkeypatch, change, sentence):
    monkeypatch.setitem(sys.modules, "human_eval", None)
    problems = changed(change).problems
    assert any(sentence in problem for problem in problems), problems
    assert all("\n" not in problem for problem in problems)


def test_a_profile_that_has_no_place_for_an_expert_is_a_problem(changed, tmp_path):
    text = (ROOT / "channel_profiles" / "paper_8_devices.yaml").read_text()
    profile = tmp_path / "placed.yaml"
    profile.write_text(text + "\nplacement: [0, 1, 2, 3]\n")

    def place_experts(cfg):
        cfg.models[0].wdmoe.profile = str(profile)

    assert len(changed(place_experts).problems) > 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "no such config file"),
        ("models = [", "cannot be read as an OpenCompass config"),
        ("from mmengine.config import read_base\nwith read_base():\n    from .nowhere import models", "nowhere"),
        ("models = []\ndatasets = [dict(type='ARCDataset')]", "must have a list `models` that is not empty"),
        (
            "models = dict(type='A')\ndatasets = [dict(type='ARCDataset')]",
            "must have a list `models` that is not empty",
        ),
        ("models = [dict(type='HuggingFaceBaseModel')]\ndatasets = 3", "must have a list `datasets` that is not empty"),
    ],
)
def test_a_broken_config_is_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "eval_broken.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(WdmoeError) as caught:
        make_plan(path)
    assert str(caught.value).startswith((f"{path}: ", f"{path}, line "))
    assert sentence in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_command_answers_a_broken_config_with_exit_code_2(wdmoe):
    done = wdmoe("plan", "no_such_config.py")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: no_such_config.py: no such config file\n"


# -- real benchmarks -----------------------------------------------------------------------------------------------
@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the slices of the real benchmarks are not on this machine")
def test_stock_configs_are_counted_and_missing_subjects_share_one_sentence(monkeypatch, changed, tmp_path):
    monkeypatch.setenv("COMPASS_DATA_CACHE", str(BENCHMARKS))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "arrow"))
    stock = (
        "mmlu.mmlu_ppl_ac766d",
        "piqa.piqa_ppl_1cf9f0",
        "ARC_e.ARC_e_ppl_a450bd",
        "ARC_c.ARC_c_ppl_a450bd",
        "humaneval.humaneval_gen_8e312c",
        "gsm8k.gsm8k_gen_1d7fe4",
        "SuperGLUE_BoolQ.SuperGLUE_BoolQ_ppl_314b96",
        "mbpp.mbpp_gen_830460",
    )

    def benchmarks(cfg):
        cfg.datasets = []
        for name in stock:
            module = f"opencompass/configs/datasets/{name.replace('.', '/')}.py"
            path = next(Path(site) / module for site in sys.path if (Path(site) / module).is_file())
            loaded = Config.fromfile(path, format_python_code=False)
            cfg.datasets += next(value for key, value in loaded.items() if key.endswith("_datasets"))

    plan = changed(benchmarks)
    rows = {row["benchmark"]: (row["datasets"], row["found"], row["items"]) for row in plan.dataset_rows()}
    assert rows == {
        "opencompass/mmlu": (57, 4, 100),
        "opencompass/piqa": (1, 1, 40),
        "opencompass/ai2_arc-easy-dev": (1, 1, 39),
        "opencompass/ai2_arc-dev": (1, 1, 39),
        "opencompass/humaneval": (1, 1, 40),
        "opencompass/gsm8k": (1, 1, 40),
        "opencompass/boolq": (1, 1, 40),
        "opencompass/mbpp": (1, 1, 40),
    }
    (problem,) = [problem for problem in plan.problems if "file missing" in problem]
    assert str(BENCHMARKS / "data/mmlu/dev/college_biology_dev.csv") in problem
    assert "(and 52 more of the 57 datasets of opencompass/mmlu)" in problem
    passes = {run.dataset: run.passes for run in plan.runs if run.model == MODELS[0]}
    assert passes["lukaemon_mmlu_anatomy"] == 4 * int(np.ceil(25 / 4))
    assert passes["gsm8k"] == 512 * 10  # its own max_out_len beats the model's 64


def test_stock_models_need_a_task_that_supplies_what_transformers_removed(changed):
    def stock(cfg, task):
        for model in cfg.models:
            model.pop("wdmoe")
            model.type = "opencompass.models.HuggingFaceBaseModel"
        if task is not None:
            cfg.infer.runner.task.type = task

    def about(plan):
        return [sentence for sentence in plan.problems if "batch_encode_plus" in sentence]

    assert about(changed(lambda cfg: stock(cfg, None))) == []
    assert len(about(changed(lambda cfg: stock(cfg, "opencompass.tasks.OpenICLInferTask")))) == 1
