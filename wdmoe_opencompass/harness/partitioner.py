"""Tasks that hold several models: a process imports OpenCompass and transformers once, not once per model."""

from typing import Any

from mmengine.config import ConfigDict
from opencompass.partitioners import NaivePartitioner


class SharedProcessPartitioner(NaivePartitioner):
    """NaivePartitioner's tasks, dealt out over `tasks` processes that run their models one after the other.

    Worth it for many small models (the policies of one model, say): each process costs about ten seconds of imports.
    """

    def __init__(self, out_dir: str, tasks: int = 2, n: int = 1000, keep_keys: list[str] | None = None):
        super().__init__(out_dir=out_dir, n=n, keep_keys=keep_keys)
        self.tasks = tasks

    def partition(self, model_dataset_combinations: list[dict], **others: Any) -> list[ConfigDict]:
        """Join every `tasks`-th of the tasks that NaivePartitioner makes; it is told by this argument what to pass."""
        single = super().partition(model_dataset_combinations, **others)
        joined = []
        for first in range(min(self.tasks, len(single))):
            task = single[first]
            for other in single[first + self.tasks :: self.tasks]:
                task["models"] = [*task["models"], *other["models"]]
                task["datasets"] = [*task["datasets"], *other["datasets"]]
            joined.append(task)
        return joined
