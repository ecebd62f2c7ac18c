"""How far a whole run is: every dataset of every model that its config names; nothing of it is run or locked."""

import ast
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._util.file_names import parts_in_order, parts_of
from ..errors import WdmoeError
from ..trace.format import JOURNAL_SUFFIX
from .dataset_progress import FAILED, FINISHED, INTERRUPTED, METHODS, RUNNING, WAITING, DatasetProgress, DatasetWatch
from .failures import noted_failure
from .files import FAILURE_SUFFIX, read_if_there
from .scores import main_score

QUIET_S = 120.0  # a run whose answers are all there, and of which nothing was evaluated for so long, is taken as done
ACC_EVALUATOR = re.compile(r"(.*\.)?AccEvaluator")


@dataclass(frozen=True)
class Planned:
    """A dataset that the config gives to a model; is_traced, is_matched: see DatasetWatch."""

    model: str
    dataset: str
    is_traced: bool
    is_matched: bool


@dataclass
class RunProgress:
    """One look at a run; has_ended: nothing more will happen, all datasets finished or not."""

    datasets: list[DatasetProgress]
    has_ended: bool

    @property
    def is_finished(self) -> bool:
        """Whether every dataset is."""
        return all(dataset.state == FINISHED for dataset in self.datasets)

    @property
    def is_broken(self) -> bool:
        """Whether a dataset failed or was interrupted."""
        return any(dataset.state in (FAILED, INTERRUPTED) for dataset in self.datasets)

    def counts(self) -> str:
        """How many lines are in which state, in words."""
        states = [dataset.state for dataset in self.datasets]
        return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


class RunWatch:
    """Looks at a run's folder again and again, on any machine that sees it."""

    def __init__(self, run_folder: Path, methods: Sequence[str] = METHODS):
        """WdmoeError where this is not the folder of a run."""
        self.folder = run_folder
        self.methods = methods
        self._watches: dict[tuple[str, str], DatasetWatch] = {}
        self._config = newest_config(run_folder)
        self._planned = planned(self._config)

    def look(self, now_s: float) -> RunProgress:
        """-> a line per dataset in the order of the config, those of its parts below it; now_s: seconds since 1970."""
        newest = newest_config(self.folder)
        if newest != self._config:  # started again
            self._config, self._planned = newest, planned(newest)
        lines: list[DatasetProgress] = []
        for entry in self._planned:
            lines += self._of_dataset(entry, now_s)
        return RunProgress(lines, self._has_ended(lines, now_s))

    def _of_dataset(self, entry: Planned, now_s: float) -> list[DatasetProgress]:
        whole = self._watch(entry, entry.dataset)
        parts = [] if whole.predictions.exists() else self._parts_of(entry)
        if not parts:
            return [whole.look(now_s, self._is_summed_up())]
        looked = [self._watch(entry, name).look(now_s) for name in parts]
        return [self._join(entry, whole, looked), *looked]

    def _join(self, entry: Planned, whole: DatasetWatch, parts: list[DatasetProgress]) -> DatasetProgress:
        """The dataset of some parts: more of them may begin later, so it is finished when all were scored together."""
        result, why_not = read_if_there(whole.results), noted_failure(whole.results)
        score = main_score(result or {})
        states = [part.state for part in parts]
        state = next((state for state in (RUNNING, FAILED, INTERRUPTED, WAITING) if state in states), WAITING)
        reason = f"in parts, {len(parts)} of them begun"
        if set(states) == {FINISHED}:
            if result is not None and "error" in result:
                state, reason = FAILED, str(score.why_not)
            elif result is not None:
                state, reason = FINISHED, "; ".join(filter(None, (reason, score.why_not)))
            elif why_not is not None:
                state, reason = FAILED, f"the evaluation failed: {why_not}"
        joined = DatasetProgress(entry.model, entry.dataset, state, reason)
        joined.metric, joined.accuracy = (score.metric, score.percent) if state == FINISHED else (None, None)
        for name in ("items", "prompts", "prompts_done"):
            values = [getattr(part, name) for part in parts]
            setattr(joined, name, None if None in values else sum(values))
        return joined

    def _watch(self, entry: Planned, name: str) -> DatasetWatch:
        key = (entry.model, name)
        if key not in self._watches:
            is_matched = entry.is_matched and name == entry.dataset  # a part's score is not the dataset's
            self._watches[key] = DatasetWatch(self.folder, entry.model, name, entry.is_traced, is_matched, self.methods)
        return self._watches[key]

    def _parts_of(self, entry: Planned) -> list[str]:
        of_run = [other.dataset for other in self._planned if other.model == entry.model]
        begun = parts_of(self.folder / "progress", entry.model, entry.dataset, of_run)
        left = (".json", JOURNAL_SUFFIX, FAILURE_SUFFIX)
        predicted = parts_of(self.folder / "predictions", entry.model, entry.dataset, of_run, left)
        return parts_in_order({*begun, *predicted})

    def _has_ended(self, lines: Collection[DatasetProgress], now_s: float) -> bool:
        states = {line.state for line in lines}
        if RUNNING in states:
            return False
        if self._is_summed_up():
            return True
        unscored = any(line.state == FINISHED and line.metric is None for line in lines)
        if WAITING in states or unscored:
            in_parts = all(line.reason for line in lines if line.state == WAITING)
            return in_parts and self._is_quiet(now_s)
        return True

    def _is_summed_up(self) -> bool:
        """Whether the last start of the run has written its summary: that comes last, also when tasks failed."""
        stamp = self._config.stem.rpartition("_")[0]
        return (self.folder / "summary" / f"summary_{stamp}.txt").exists()

    def _is_quiet(self, now_s: float) -> bool:
        newest = 0.0
        for part in ("predictions", "results", "logs/eval"):
            for path in (self.folder / part).rglob("*"):
                try:
                    newest = max(newest, path.stat().st_mtime)
                except OSError:
                    continue
        return now_s - newest > QUIET_S


def newest_config(run_folder: Path) -> Path:
    """-> the config that OpenCompass dumped last; WdmoeError where this is not the folder of a run."""
    configs = sorted((run_folder / "configs").glob("*.py"))
    if not configs:
        raise WdmoeError(f"{run_folder}: no configs/*.py in it; give the time-stamped folder of a run")
    return configs[-1]


def planned(config: Path) -> list[Planned]:
    """-> what a dumped config gives its models to run, in its order; the config is read, not executed.

    Raises WdmoeError where it is not the config of a run.
    """
    try:
        values = _assignments(ast.parse(config.read_text()))
        combinations: list[dict[str, Any]] = values.get("model_dataset_combinations") or [values]
        return [
            Planned(_model_abbr(model), _dataset_abbr(dataset), "wdmoe" in model, _is_matched(dataset))
            for combination in combinations
            for model in combination["models"]
            for dataset in combination["datasets"]
        ]
    except (
        OSError,
        SyntaxError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
        MemoryError,
    ) as error:
        raise WdmoeError(f"{config}: not the config of a run: {type(error).__name__}: {error}") from None


def _assignments(module: ast.Module) -> dict[str, Any]:
    return {
        target.id: _value(statement.value)
        for statement in module.body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name) and target.id in ("models", "datasets", "model_dataset_combinations")
    }


def _value(node: ast.expr) -> Any:
    """Plain data as OpenCompass dumps it, `dict(...)` included; None for anything else."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values, strict=True) if key}
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(element) for element in node.elts]
    return node.value if isinstance(node, ast.Constant) else None


def _model_abbr(cfg: Any) -> str:
    if isinstance(cfg, list):
        return "_".join(map(_model_abbr, cfg))
    if "abbr" in cfg:
        return str(cfg["abbr"])
    return f"{cfg['type']}_{'_'.join(Path(cfg['path']).resolve().parts[-2:])}".replace("/", "_")


def _dataset_abbr(cfg: Any) -> str:
    if "abbr" in cfg:
        return str(cfg["abbr"])
    return "_".join([cfg["path"], *([cfg["name"]] if "name" in cfg else [])]).replace("/", "_")


def _is_matched(cfg: Any) -> bool:
    """Whether the dataset is scored by AccEvaluator, and nothing is done to predictions or gold before."""
    evaluation = cfg.get("eval_cfg") or {}
    evaluator = evaluation.get("evaluator") or {}
    return (
        list(evaluation) == ["evaluator"]
        and list(evaluator) == ["type"]
        and bool(ACC_EVALUATOR.fullmatch(str(evaluator["type"])))
    )
