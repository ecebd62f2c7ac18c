"""A whole run of vanilla without and WDMoE with an adapter: nothing is put down to the policy."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.command_line import process
from tests.conftest import ROOT, environment, opencompass

CONFIG = """
from mmengine.config import read_base

with read_base():
    from wdmoe_opencompass.eval_configs.datasets.quickstart import quickstart_datasets
    from wdmoe_opencompass.eval_configs.models.wdmoe_quickstart import models
    from wdmoe_opencompass.eval_configs.runners.wdmoe_local import eval, infer
    from wdmoe_opencompass.eval_configs.summarizers.wdmoe import summarizer

datasets = [quickstart_datasets[0], quickstart_datasets[3]]
for dataset in datasets:
    dataset["abbr"] += "_adapted"
    dataset["reader_cfg"]["test_range"] = "[:8]"
for model in models:
    model["batch_size"] = 4
models[1]["peft_path"] = {adapter!r}
"""


@pytest.fixture(scope="module")
def adapted_run(tmp_path_factory):
    """(config file, time-stamped folder of its run)."""
    peft = pytest.importorskip("peft")
    root = tmp_path_factory.mktemp("adapted")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(ROOT / "quickstart" / "model", dtype=torch.float32)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    peft.get_peft_model(model, config).save_pretrained(root / "adapter")
    (root / "config.py").write_text(CONFIG.format(adapter=str(root / "adapter")))
    folder, output = opencompass(root / "config.py", root / "outputs")
    assert (folder / "summary" / "latency.json").exists(), output[-5000:]
    return root / "config.py", folder


@pytest.mark.slow
def test_nothing_is_put_down_to_the_policy(adapted_run):
    _, folder = adapted_run
    summary = folder / "summary"
    assert json.loads((summary / "missing.json").read_text()) == []
    assert json.loads((summary / "accuracy_differences.json").read_text()) == []
    latency = json.loads((summary / "latency.json").read_text())
    assert all(record["saving"] is None for record in latency if record["model"] == "quickstart-wdmoe-hf")
    for name in ("table_1_accuracy", "table_2_latency_layer_per_batch_all"):
        said = (summary / f"{name}.md").read_text()
        assert "quickstart-vanilla-hf and quickstart-wdmoe-hf differ in more than the policy: peft_path none" in said
        assert "peft_path=sha256:" in said


@pytest.mark.slow
def test_plan_accepts_it_and_verify_finds_it_whole(adapted_run):
    config, folder = adapted_run
    for words in (("plan", config), ("verify", folder)):
        done = process(*words, cwd=ROOT, env=environment(folder.parent.parent / "hf"))
        assert done.returncode == 0, done.stdout + done.stderr
