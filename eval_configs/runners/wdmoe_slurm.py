"""Inference and evaluation through Slurm's `srun`, by OpenCompass's own runner: at most eight datasets per task.

Partition and quality of service are the cluster's defaults; set them in a config of your own:
`infer["runner"]["partition"] = "gpu"`.
"""

from opencompass.runners import SlurmRunner
from opencompass.tasks import OpenICLEvalTask

from wdmoe_opencompass.harness.infer_task import WdmoeInferTask
from wdmoe_opencompass.harness.partitioner import WdmoeNaivePartitioner

infer = dict(
    partitioner=dict(type=WdmoeNaivePartitioner, n=8),
    runner=dict(type=SlurmRunner, max_num_workers=16, retry=2, task=dict(type=WdmoeInferTask)),
)
eval = dict(
    partitioner=dict(type=WdmoeNaivePartitioner, n=8),
    runner=dict(type=SlurmRunner, max_num_workers=16, retry=2, task=dict(type=OpenICLEvalTask)),
)
