"""Inference and evaluation on this machine. The whole `infer` section stands here: our task must not be replaced."""

from opencompass.partitioners import NaivePartitioner
from opencompass.runners import LocalRunner
from opencompass.tasks import OpenICLEvalTask

from wdmoe_opencompass.harness.infer_task import WdmoeInferTask

infer = dict(
    partitioner=dict(type=NaivePartitioner, n=1000),
    runner=dict(type=LocalRunner, max_num_workers=2, task=dict(type=WdmoeInferTask)),
)
eval = dict(
    partitioner=dict(type=NaivePartitioner, n=1000),
    runner=dict(type=LocalRunner, max_num_workers=2, task=dict(type=OpenICLEvalTask)),
)
