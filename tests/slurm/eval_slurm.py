"""The models and items of eval_local.py as eight inference tasks of a cluster, each job limited to one minute."""

from mmengine.config import read_base

with read_base():
    from ...eval_configs.runners.wdmoe_slurm import eval, infer
    from .eval_local import datasets, models, summarizer

infer["partitioner"]["n"] = 1
infer["runner"]["extra_command"] = ["-t 1"]
eval["runner"]["extra_command"] = ["-t 1"]
