"""What a config needs: everything that `wdmoe plan` checks, and whether its weights are whole."""

import os
from pathlib import Path

from .finding import Finding, ok, problem


def check_config(config: Path) -> list[Finding]:
    """Every problem of the config's plan as a finding; WdmoeError where the config itself cannot be read."""
    from ..harness.plan.make import make_plan

    plan = make_plan(config)
    findings = [_from_sentence(str(config), sentence) for sentence in plan.problems]
    findings = findings or [ok("config", f"{config}: its models and datasets are here and fit together")]
    folders = {model.folder: model.path for model in plan.models if model.folder is not None}
    return findings + [finding for folder, path in folders.items() for finding in check_weights(Path(folder), path)]


def _from_sentence(config: str, sentence: str) -> Finding:
    """A plan's sentence ends in the way out, after its last semicolon, where it knows one."""
    found, _, fix = sentence.rpartition("; ")
    if not found:
        return problem("config", sentence, f"change {config}; wdmoe plan shows all of it")
    if fix.startswith("get them with: ") and os.environ.get("HF_HUB_OFFLINE"):
        fix = f"unset HF_HUB_OFFLINE, then {fix}"
    return problem("config", found, fix)


def check_weights(folder: Path, path: str) -> list[Finding]:
    """Whether every safetensors file of a model is as long as its header says; path: how the config names the model."""
    from ..harness.plan.weights import torn_files, weight_files

    fix = f"copy {folder} again" if Path(path).is_dir() else f"hf download {path} --force-download"
    torn = torn_files(folder)
    if torn:
        return [problem("weights", f"{folder / name}: {why}", fix) for name, why in torn.items()]
    whole = weight_files(folder)
    return [ok("weights", f"{folder}: {len(whole)} safetensors files, whole")] if whole else []
