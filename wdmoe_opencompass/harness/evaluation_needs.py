"""What scoring needs of a machine, checked before a run: folders to write to, and the code of metrics."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import evaluate
import opencompass.openicl.icl_evaluator.icl_hf_evaluator as hf_evaluator

from .._util.caches import CACHES_FOLDER, sentence, unwritable, way_out, writable_for_now
from ..errors import brief
from .eval_task import WdmoeEvalTask
from .partitioner import CheckedPartitioner
from .plan.facts import Plan
from .registered import is_subclass

OFFLINE = ("HF_HUB_OFFLINE", "HF_EVALUATE_OFFLINE")
METRICS = Path(hf_evaluator.__file__).parent / "hf_metrics"  # that OpenCompass brings along


def check_caches(kinds: Iterable[Any], plan: Plan) -> None:
    """Note the caches that cannot be written; a problem if none of our classes would find others for them.

    kinds: the classes of the partitioners and of the eval task, None where the config names none
    """
    found = unwritable()
    if not found:
        return
    if any(is_subclass(kind, (CheckedPartitioner, WdmoeEvalTask)) for kind in kinds):
        plan.notes.append(
            f"{sentence(found)}; the run keeps it in {CACHES_FOLDER}/ of its own folder; to keep it for all runs "
            f"{way_out(found)}"
        )
    else:
        plan.problems.append(
            f"evaluation: {sentence(found)}, so no answer could be scored; {way_out(found)}, or take infer and eval "
            "from eval_configs/runners/wdmoe_local.py"
        )


def check_metric(evaluator: Any, benchmark: str, plan: Plan) -> None:
    """A problem, or a note, where the metric of an evaluator of Hugging Face's `evaluate` cannot be loaded here."""
    if not isinstance(evaluator, hf_evaluator.HuggingfaceEvaluator):
        return
    name = evaluator.metric
    shipped = METRICS / f"{name}.py"
    try:
        with tempfile.TemporaryDirectory(prefix="wdmoe_plan_") as folder, writable_for_now(Path(folder)):
            evaluate.load(str(shipped) if shipped.exists() else name)
    except ImportError as error:
        plan.problems.append(f"{benchmark}: its evaluator lacks a package: {' '.join(str(error).split())[:300]}")
    except Exception as error:  # whatever a metric's own code raises, and the many names of a missing network
        why = brief(error)
        if shipped.exists():
            plan.problems.append(f"{benchmark}: its metric {name} cannot be loaded: {why}")
        elif any(os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE") for variable in OFFLINE):
            plan.problems.append(
                f"{benchmark}: its metric {name} is not on this machine, and without a network ({OFFLINE[0]}) no "
                f"answer could be scored; get it with: python -c \"import evaluate; evaluate.load('{name}')\""
            )
        else:
            plan.notes.append(f"{benchmark}: its metric {name} is not on this machine, evaluation downloads it")
