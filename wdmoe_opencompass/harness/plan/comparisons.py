"""Which models of a plan can be compared with vanilla, as far as the config tells."""

from typing import Any

from mmengine.config import Config, ConfigDict
from opencompass.models import HuggingFaceBaseModel, HuggingFacewithChatTemplate
from opencompass.registry import MODELS
from opencompass.utils import dataset_abbr_from_cfg, model_abbr_from_cfg

from ...identity import Facts, compare_facts
from ...identity.facts import batch_enters_answers, sentence
from ..identify import asked_facts
from ..registered import is_subclass, resolve
from .facts import Plan


def note_comparisons(cfg: Config, plan: Plan) -> None:
    """Note which models will not be compared with vanilla, because more than the policy differs in the config."""
    routed = [model for model in cfg["models"] if isinstance(model.get("wdmoe"), dict) and model.get("path")]
    vanillas = [model for model in routed if model["wdmoe"].get("policy", "top_k") == "top_k"]
    for model in routed:
        mine = [v for v in vanillas if (v["path"], _profile_of(v)) == (model["path"], _profile_of(model))]
        found: dict[str, list[str]] = {}
        for dataset in cfg["datasets"] if mine else ():
            differences = {model_abbr_from_cfg(v): _differing(v, model, dataset) for v in mine}
            if all(differences.values()):
                nearest = min(differences, key=lambda abbr: len(differences[abbr]))
                what = f"{nearest}: {sentence(differences[nearest])}"
                found.setdefault(what, []).append(dataset_abbr_from_cfg(dataset))
        for what, names in found.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            plan.notes.append(
                f"model {model_abbr_from_cfg(model)}, {names[0]}{more}: more than the policy differs from {what}; "
                "unless both mean the same, no difference from vanilla will be shown (docs/identity.md)"
            )


def _profile_of(model_cfg: ConfigDict) -> Any:
    return model_cfg["wdmoe"].get("profile"), model_cfg["wdmoe"].get("testbed")


def _differing(vanilla: ConfigDict, model: ConfigDict, dataset: ConfigDict) -> dict[str, str]:
    """By the configs alone; the batch size is left out where it changes no answer."""
    first, second = (
        asked_facts(of, dataset) | dict(perplexity=of["wdmoe"].get("perplexity", "stock")) for of in (vanilla, model)
    )
    differences = compare_facts(first, second)
    if not _batch_size_counts(vanilla, first, second):
        differences.pop("batch_size", None)
    if first.get("method") == "ppl":
        no_effect = ("stop_words", "generation_kwargs", "mode")
        return {name: value for name, value in differences.items() if name.partition(".")[0] not in no_effect}
    return {name: value for name, value in differences.items() if name != "perplexity"}


def _batch_size_counts(model: ConfigDict, first: Facts, second: Facts) -> bool:
    """Whether another batch size gives other answers; first: the model's facts, second: those it is compared with."""
    if first.get("method") == "ppl":
        return first["perplexity"] == second["perplexity"] == "stock"
    kind = resolve(MODELS, model.get("type"))
    is_chat = is_subclass(kind, HuggingFacewithChatTemplate) and not is_subclass(kind, HuggingFaceBaseModel)
    has_stop_words = is_chat or bool(first.get("stop_words"))  # OpenCompass takes a chat model's end tokens for some
    return batch_enters_answers(first.get("generation_kwargs", {}), has_stop_words)
