"""Where a run keeps the files that OpenCompass makes of a model's config and a dataset's."""

from pathlib import Path
from typing import Any

from opencompass.utils import dataset_abbr_from_cfg, model_abbr_from_cfg

from .._util.file_names import dataset_file

PREDICTIONS, RESULTS = "predictions", "results"


def output_file(work_dir: str | Path, folder: str, model_cfg: Any, dataset_cfg: Any) -> Path:
    """-> a dataset's file below `predictions` or `results`; WdmoeError where the names lead out of that folder."""
    names = model_abbr_from_cfg(model_cfg), dataset_abbr_from_cfg(dataset_cfg)
    return dataset_file(Path(work_dir) / folder, *names, ".json")
