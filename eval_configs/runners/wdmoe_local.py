"""Inference and evaluation on this machine. The whole `infer` section stands here: our task must not be replaced."""

from opencompass.runners import LocalRunner
from opencompass.tasks import OpenICLEvalTask

from wdmoe_opencompass.harness.infer_task import WdmoeInferTask
from wdmoe_opencompass.harness.partitioner import WdmoeNaivePartitioner

infer = dict(
    partitioner=dict(type=WdmoeNaivePartitioner, n=1000),
    runner=dict(type=LocalRunner, max_num_workers=2, task=dict(type=WdmoeInferTask)),
)
eval = dict(
    partitioner=dict(type=WdmoeNaivePartitioner, n=1000),
    runner=dict(type=LocalRunner, max_num_workers=2, task=dict(type=OpenICLEvalTask)),
)
