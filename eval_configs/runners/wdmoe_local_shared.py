"""As `wdmoe_local`, for many small models: two processes that run theirs one after the other."""

from opencompass.runners import LocalRunner

from wdmoe_opencompass.harness.eval_task import WdmoeEvalTask
from wdmoe_opencompass.harness.infer_task import WdmoeInferTask
from wdmoe_opencompass.harness.partitioner import SharedProcessPartitioner

infer = dict(
    partitioner=dict(type=SharedProcessPartitioner, tasks=2),
    runner=dict(type=LocalRunner, max_num_workers=2, task=dict(type=WdmoeInferTask)),
)
eval = dict(
    partitioner=dict(type=SharedProcessPartitioner, tasks=2),
    runner=dict(type=LocalRunner, max_num_workers=2, task=dict(type=WdmoeEvalTask)),
)
