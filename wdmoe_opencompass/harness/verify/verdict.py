"""A finished run, and what was found of it."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config
from opencompass.utils import dataset_abbr_from_cfg, model_abbr_from_cfg

from ...errors import WdmoeError
from ...run.run_progress import newest_config
from ...trace.format import RoutingTrace
from ..config_errors import read_config
from ..trace_checks import ModelFiles, TraceKey

NOTHING = "no such file"


@dataclass(frozen=True)
class Mismatch:
    """One file that is not what it should be.

    found: what is there; expected: what was recomputed, or what the rest of the run asks for
    """

    file: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.file}: there: {self.found}; recomputed or needed: {self.expected}"


@dataclass
class Verdict:
    """The answer: how many files were compared, what does not match, and further notes."""

    compared: int = 0
    mismatches: list[Mismatch] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Run:
    """A finished run's folder, its newest config, and its traces by model and name."""

    folder: Path
    config_file: Path
    config: Any
    traces: dict[TraceKey, RoutingTrace] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """WdmoeError where this is not the folder of a finished run with our summarizer."""
        for part in ("predictions", "results", "summary/latency.json"):
            if not (folder / part).exists():
                raise WdmoeError(f"{folder}: no {part} in it; give the time-stamped folder of a finished run")
        path = newest_config(folder)
        config = read_config(path, lambda: Config.fromfile(path, format_python_code=False))
        for key in ("models", "datasets"):
            if not config.get(key):
                raise WdmoeError(f"{path}: not a config of a run: it has no `{key}`")
        return cls(folder, path, config)

    def files_of(self, model_cfg: Any) -> ModelFiles:
        """The files of one of its models."""
        datasets = [dataset_abbr_from_cfg(cfg) for cfg in self.config["datasets"]]
        return ModelFiles(self.folder / "predictions", model_abbr_from_cfg(model_cfg), datasets)

    def name(self, path: Path) -> str:
        """A file of the run as a mismatch calls it."""
        return path.relative_to(self.folder).as_posix()

    @property
    def folder_names(self) -> list[str]:
        """How the run's folder may be written in its tables."""
        written = str(self.config.get("work_dir") or "")
        names = {written, os.path.abspath(written), str(self.folder), str(self.folder.resolve())}
        return [name for name in names if len(name) > 1]
