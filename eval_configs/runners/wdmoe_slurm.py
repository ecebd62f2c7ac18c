"""Inference and evaluation through Slurm's `srun`, by OpenCompass's own runner: at most eight datasets per task.

Partition, quality of service and time limit are the cluster's defaults; set them in a config of your own:
`infer["runner"]["partition"] = "gpu"`, `infer["runner"]["extra_command"] = ["-t 04:00:00"]`.
"""

from opencompass.runners import SlurmRunner

from wdmoe_opencompass.harness.eval_task import WdmoeEvalTask
from wdmoe_opencompass.harness.infer_task import WdmoeInferTask
from wdmoe_opencompass.harness.partitioner import WdmoeNaivePartitioner

infer = dict(
    partitioner=dict(type=WdmoeNaivePartitioner, n=8),
    runner=dict(type=SlurmRunner, max_num_workers=16, retry=2, task=dict(type=WdmoeInferTask)),
)
eval = dict(
    partitioner=dict(type=WdmoeNaivePartitioner, n=8),
    runner=dict(type=SlurmRunner, max_num_workers=16, retry=2, task=dict(type=WdmoeEvalTask)),
)
