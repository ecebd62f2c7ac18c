"""What a config will do, before anything is loaded: `wdmoe plan`. No weights are read and no connection is opened."""

from pathlib import Path

from opencompass.registry import PARTITIONERS, TASKS

from ..evaluation_needs import check_caches
from ..registered import resolve
from ..sections import EVAL, INFER, part_of
from .comparisons import note_comparisons
from .config import check_sections, read_plan_config
from .datasets import SAMPLED_ITEMS, check_datasets, report_failures
from .estimates import check_trace_sizes, estimate_runs, note_batches
from .facts import Plan
from .models import check_models, check_tensors
from .offline import no_network


def make_plan(config: Path | str) -> Plan:
    """Look at everything a run of `config` needs; WdmoeError where the config itself cannot be read."""
    with no_network():
        cfg = read_plan_config(Path(config))
        plan = Plan(str(config))
        check_sections(cfg, plan)
        models, datasets = check_models(cfg, plan), check_datasets(cfg, plan)
        check_tensors(models.values(), plan)
        report_failures(plan)
        kinds = [resolve(PARTITIONERS, part_of(cfg, section, "partitioner").get("type")) for section in (INFER, EVAL)]
        check_caches([*kinds, resolve(TASKS, part_of(cfg, EVAL, "runner", "task").get("type"))], plan)
        note_comparisons(cfg, plan)
        estimate_runs(cfg, models, datasets, plan)
        check_trace_sizes(plan)
        note_batches(plan)
    plan.problems, plan.notes = list(dict.fromkeys(plan.problems)), list(dict.fromkeys(plan.notes))
    if plan.runs:
        counts = " and ".join(dict.fromkeys(model.token_count for model in plan.models if model.token_count))
        plan.notes.append(
            f"tokens are estimates, from at most {SAMPLED_ITEMS} items of each dataset, by {counts}; generation is "
            "counted to its last allowed token, so its passes, tokens and traces are upper bounds"
        )
    return plan
