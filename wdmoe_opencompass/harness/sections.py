"""What belongs in the sections of a config, `infer` and `eval` above all: looked at by `wdmoe plan` and at a start.

OpenCompass takes any class under any key, and says so, if at all, after the inference.
"""

import importlib
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from opencompass.models.base import BaseModel
from opencompass.partitioners import NumWorkerPartitioner, SizePartitioner
from opencompass.partitioners.base import BasePartitioner
from opencompass.partitioners.sub_naive import SubjectiveNaivePartitioner
from opencompass.partitioners.sub_num_worker import SubjectiveNumWorkerPartitioner
from opencompass.partitioners.sub_size import SubjectiveSizePartitioner
from opencompass.registry import MODELS, PARTITIONERS, RUNNERS, TASKS
from opencompass.runners.base import BaseRunner
from opencompass.summarizers import DefaultSummarizer
from opencompass.tasks import OpenICLEvalTask, OpenICLInferTask
from opencompass.tasks.base import BaseTask
from opencompass.tasks.openicl_eval_watch import OpenICLEvalWatchTask
from opencompass.tasks.openicl_infer_concurrent import OpenICLInferConcurrentTask
from opencompass.tasks.subjective_eval import SubjectiveEvalTask

from ..errors import WdmoeError, show
from ..run.run_progress import newest_config
from .config_errors import cause
from .eval_task import WdmoeEvalTask
from .infer_task import WdmoeInferTask
from .registered import resolve

INFER, EVAL = "infer", "eval"
RUNNERS_FILE = "eval_configs/runners/wdmoe_local.py"
SUBJECTIVE = (SubjectiveNaivePartitioner, SubjectiveNumWorkerPartitioner, SubjectiveSizePartitioner)
COUNTS = {  # that must be at least 1
    "partitioner": ("n", "tasks", "num_worker", "num_split", "batch_size", "max_task_size"),
    "runner": ("max_num_workers", "max_workers_per_gpu"),
}
MAX_ITEMS, MAX_LABELS = 10**6, 100  # of a dataset: more than any benchmark has (our choice)
KINDS = {  # -> what it is, where it belongs
    OpenICLInferTask: ("an infer task", "infer.runner.task.type"),
    OpenICLInferConcurrentTask: ("an infer task", "infer.runner.task.type"),
    OpenICLEvalTask: ("an eval task", "eval.runner.task.type"),
    SubjectiveEvalTask: ("an eval task", "eval.runner.task.type"),
    BaseTask: ("a task", "infer.runner.task.type or eval.runner.task.type"),
    BasePartitioner: ("a partitioner", "infer.partitioner.type or eval.partitioner.type"),
    BaseRunner: ("a runner", "infer.runner.type or eval.runner.type"),
    DefaultSummarizer: ("a summarizer", "summarizer.type"),
    BaseModel: ("a model class", "models"),
}
ENDS_AT_FIRST = (
    "OpenICLEvalTask ends at the first dataset that it cannot score: as eval.runner.task.type take WdmoeEvalTask, "
    f"as in {RUNNERS_FILE}"
)
NO_TRACE = "infer: its runner's task must be WdmoeInferTask, or no routing trace is written; take infer from "


def check_start(cfg: Any, sections: Sequence[str] = (INFER, EVAL)) -> None:
    """Raise SystemExit, a sentence a line, where a start of this config would fail only after hours."""
    problems = wrong_parts(cfg, sections)
    if problems:
        raise SystemExit("\n".join(f"error: {problem}" for problem in problems))


def check_start_of(work_dir: Path) -> None:
    """`check_start` of the config that OpenCompass dumped for this start, where there is one."""
    try:
        cfg = Config.fromfile(str(newest_config(work_dir)), format_python_code=False)
    except (WdmoeError, OSError):
        return
    check_start(cfg)


def score_one_by_one(cfg: Any) -> bool:
    """Replace OpenCompass's eval task by ours, which gives the same scores; -> whether it was there."""
    task = part_of(cfg, EVAL, "runner", "task")
    if resolve(TASKS, task.get("type")) is not OpenICLEvalTask:
        return False
    task["type"] = f"{WdmoeEvalTask.__module__}.{WdmoeEvalTask.__name__}"
    return True


def ends_at_first(cfg: Any) -> bool:
    """Whether datasets share an eval task that ends at the first failure, and none of our partitioners changes that."""
    from .partitioner import CheckedPartitioner

    task = resolve(TASKS, _type(part_of(cfg, EVAL, "runner", "task")))
    partitioners = [resolve(PARTITIONERS, _type(part_of(cfg, section, "partitioner"))) for section in (INFER, EVAL)]
    is_checked = any(kind is not None and issubclass(kind, CheckedPartitioner) for kind in partitioners)
    is_alone = part_of(cfg, EVAL, "partitioner").get("n", 1) == 1
    return task is OpenICLEvalTask and not is_checked and not is_alone


def wrong_parts(cfg: Any, sections: Sequence[str] = (INFER, EVAL)) -> list[str]:
    """-> a sentence for each part that cannot work there: its key, its value, what would be right."""
    problems: list[str] = []
    for section in sections:
        if cfg.get(section) is not None:
            problems += list(_wrong_in_section(cfg, section)) or _wrong_arguments_in(cfg, section)
    if INFER in sections:
        for number, model in enumerate(cfg.get("models") or []):
            problems += _wrong_kind(f"models[{number}].type", resolve(MODELS, _type(model)), BaseModel)
    summarizer = resolve(TASKS, _type(cfg.get("summarizer")))
    return problems + list(_wrong_kind("summarizer.type", summarizer, DefaultSummarizer))


def _wrong_in_section(cfg: Any, section: str) -> Iterator[str]:
    found: dict[str, type] = {}
    for path, registry, kind in (
        ("partitioner", PARTITIONERS, BasePartitioner),
        ("runner", RUNNERS, BaseRunner),
        ("runner.task", TASKS, BaseTask),
    ):
        key, named = f"{section}.{path}.type", _type(part_of(cfg, section, *path.split(".")))
        way_out = f"take {section} from {RUNNERS_FILE}"
        if named is None:
            yield f"{key} is not there; {way_out}"
            continue
        part = resolve(registry, named)
        if part is None:
            yield f"{key} is {show(named)}, which cannot be imported as a class{import_cause(named)}; {way_out}"
        elif not issubclass(part, kind):
            yield f"{key} is {part.__name__}, which is {_describe(part)}; {way_out}"
        else:
            found[path] = part
    task, partitioner = found.get("runner.task"), found.get("partitioner")
    if task is not None:
        yield from _wrong_infer_task(cfg, task) if section == INFER else _wrong_eval_task(task)
    if section == INFER and partitioner is not None and issubclass(partitioner, SUBJECTIVE):
        yield f"infer.partitioner.type is {partitioner.__name__}, which belongs in eval; {way_out}"
    if section == EVAL and partitioner is not None:
        yield from _wrong_eval_partitioner(cfg, partitioner, task)


def _wrong_arguments_in(cfg: Any, section: str) -> list[str]:
    """Sentences about the arguments of a section's partitioner and runner, given that their types are right."""
    problems: list[str] = []
    for path, registry in (("partitioner", PARTITIONERS), ("runner", RUNNERS)):
        arguments = part_of(cfg, section, path)
        kind = resolve(registry, arguments.get("type"))
        problems += _wrong_arguments(f"{section}.{path}", arguments, kind, COUNTS[path])
    return problems


def _wrong_arguments(key: str, arguments: Any, part: type | None, counts: Sequence[str]) -> Iterator[str]:
    """A sentence for each argument that the class, which OpenCompass builds only when it is needed, would refuse."""
    known = None if part is None else _arguments_of(part)
    if part is not None and known is not None:
        takes = ", ".join(sorted(known - {"out_dir"}))
        unknown = [name for name in arguments if name not in {"type", "_scope_"} | known]
        yield from (f"{key}.{name} is no argument of {part.__name__}; it takes {takes}" for name in unknown)
    for name in counts:
        yield from wrong_count(f"{key}.{name}", arguments.get(name), 1)


def wrong_count(key: str, value: Any, least: int) -> Iterator[str]:
    """A sentence where a value is there and no whole number of at least `least`."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        yield f"{key} must be a whole number of at least {least}, got {show(value)}"


def _arguments_of(part: type) -> set[str] | None:
    """The names that building a class takes, its bases' too where it hands others on; None where any name is taken."""
    names: set[str] = set()
    for base in part.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = [*inspect.signature(vars(base)["__init__"]).parameters.values()][1:]
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names |= {parameter.name for parameter in parameters if parameter.kind in kinds}
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            return names
    return None


def _wrong_infer_task(cfg: Any, task: type) -> Iterator[str]:
    if issubclass(task, OpenICLEvalTask | SubjectiveEvalTask):
        yield f"infer.runner.task.type is {task.__name__}, which is {_describe(task)}; take WdmoeInferTask, as in " + (
            RUNNERS_FILE
        )
    elif not issubclass(task, WdmoeInferTask) and any("wdmoe" in model for model in cfg.get("models") or []):
        yield NO_TRACE + RUNNERS_FILE


def _wrong_eval_task(task: type) -> Iterator[str]:
    way_out = f"take WdmoeEvalTask, as in {RUNNERS_FILE}"
    if issubclass(task, OpenICLInferTask | OpenICLInferConcurrentTask):
        yield (
            f"eval.runner.task.type is {task.__name__}, which is {_describe(task)}: nothing would be scored; {way_out}"
        )
    elif issubclass(task, OpenICLEvalWatchTask):
        yield (
            f"eval.runner.task.type is {task.__name__}, which waits for notes that only OpenICLInferConcurrentTask "
            f"leaves: nothing would be scored; {way_out}"
        )


def _wrong_eval_partitioner(cfg: Any, partitioner: type, task: type | None) -> Iterator[str]:
    from .partitioner import WdmoeNumWorkerPartitioner, WdmoeSizePartitioner  # which look here too
    from .summarizer import WdmoeSummarizer

    name = partitioner.__name__
    is_subjective = issubclass(partitioner, SUBJECTIVE)
    if task is not None and is_subjective != issubclass(task, SubjectiveEvalTask):
        alone, other = (name, task.__name__) if is_subjective else (task.__name__, name)
        yield (
            f"eval.partitioner.type is {name} and eval.runner.task.type is {task.__name__}: {alone} is for subjective "
            f"evaluation and {other} is not; take eval from {RUNNERS_FILE}"
        )
    elif is_subjective:
        summarizer = resolve(TASKS, _type(cfg.get("summarizer")))
        if summarizer is not None and issubclass(summarizer, WdmoeSummarizer):
            yield (
                f"eval.partitioner.type is {name}, and summarizer.type WdmoeSummarizer shows no subjective judgements: "
                f"take eval from {RUNNERS_FILE}, or a subjective summarizer"
            )
    elif issubclass(partitioner, NumWorkerPartitioner | SizePartitioner):
        is_ours = issubclass(partitioner, WdmoeNumWorkerPartitioner | WdmoeSizePartitioner)
        if not is_ours and _can_split(partitioner, part_of(cfg, EVAL, "partitioner")):
            yield (
                f"eval.partitioner.type is {name}, which splits datasets, and the scores of parts are in no table: "
                f"take Wdmoe{name}, which keeps them whole in eval, or WdmoeNaivePartitioner, as in {RUNNERS_FILE}"
            )


def _can_split(partitioner: type, parameters: Any) -> bool:
    """Whether OpenCompass's partitioner, with these parameters, splits a dataset of MAX_ITEMS."""

    def number(key: str, default: int) -> float:
        value = parameters.get(key)
        return value if isinstance(value, int | float) and value else default

    if issubclass(partitioner, NumWorkerPartitioner):
        parts = number("num_split", 0) or number("num_worker", 8)
        return parts > 1 and number("min_task_size", 16) < MAX_ITEMS
    cost_of_item = 10 * max(number("gen_task_coef", 20), MAX_LABELS)  # 10: of datasets that it takes for slow ones
    return number("max_task_size", 40_000) < MAX_ITEMS * cost_of_item


def _wrong_kind(key: str, part: type | None, right: type) -> Iterator[str]:
    """A sentence where a class is of a kind that belongs elsewhere; what is of no kind here is none of our business."""
    if part is not None and not issubclass(part, right) and any(issubclass(part, kind) for kind in KINDS):
        yield f"{key} is {part.__name__}, which is {_describe(part)}; take {KINDS[right][0]} there"


def _describe(part: type) -> str:
    what, home = next((KINDS[kind] for kind in KINDS if issubclass(part, kind)), ("none of its kind", None))
    return what if home is None else f"{what} and belongs in {home}"


def import_cause(named: Any) -> str:
    """-> ": " and why the module of a `type=` cannot be imported; nothing where it can, or where none is named."""
    module = str(named).rpartition(".")[0]
    try:
        if module:
            importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a module may raise anything when it is imported
        return f": {cause(error)}"
    return ""


def part_of(cfg: Any, *keys: str) -> Any:
    """The dict under these keys; an empty one where there is none."""
    for key in keys:
        cfg = cfg.get(key)
        if not isinstance(cfg, dict):
            return {}
    return cfg


def _type(part: Any) -> Any:
    return part.get("type") if isinstance(part, dict) else None
