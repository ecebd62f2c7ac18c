"""How a task of ours is started: OpenCompass's own tasks name their file, which would start the stock task."""

import os
import sys


def module_command(module: str, cfg_path: str, template: str) -> str:
    """-> the shell command that runs a module on a dumped task config, in one process."""
    sys.path.append(os.getcwd())
    return template.format(task_cmd=f"{sys.executable} -m {module} {cfg_path}")
