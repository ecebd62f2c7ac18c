"""How a task of ours is started: OpenCompass's own tasks name their file, which would start the stock task."""

import os
import random
import sys
from typing import Any


def module_command(task: Any, module: str, cfg_path: str, template: str) -> str:
    """-> the shell command that runs a module on a dumped task config, as a process per GPU where there are several."""
    sys.path.append(os.getcwd())
    python = sys.executable
    if task.num_gpus > 1 and task.num_procs > 1:
        port = random.randint(12000, 32000)
        launcher = f"-m torch.distributed.run --master_port={port} --nproc_per_node {task.num_procs} "
        return template.format(task_cmd=f"{python} {launcher}-m {module} {cfg_path}")
    return template.format(task_cmd=f"{python} -m {module} {cfg_path}")
