"""Inference and evaluation on this machine. Both sections are whole: our tasks must not be replaced."""

from opencompass.runners import LocalRunner

from wdmoe_opencompass.harness.eval_task import WdmoeEvalTask
from wdmoe_opencompass.harness.infer_task import WdmoeInferTask
from wdmoe_opencompass.harness.partitioner import WdmoeNaivePartitioner

infer = dict(
    partitioner=dict(type=WdmoeNaivePartitioner, n=1000),
    runner=dict(type=LocalRunner, max_num_workers=2, task=dict(type=WdmoeInferTask)),
)
eval = dict(
    partitioner=dict(type=WdmoeNaivePartitioner, n=1000),
    runner=dict(type=LocalRunner, max_num_workers=2, task=dict(type=WdmoeEvalTask)),
)
