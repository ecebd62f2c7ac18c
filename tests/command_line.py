"""The `wdmoe` command as the tests call it: in this process, or in a separate one."""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

from wdmoe_opencompass.cli import app
from wdmoe_opencompass.cli.options import run


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def in_this_process(capsys, words):
    """-> Done; imports are shared, so it is quick."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run(app, "wdmoe", [str(word) for word in words])
    return Done(ended.value.code, *capsys.readouterr())


def process(*words, **settings):
    """The command in a process of its own."""
    command = [Path(sys.executable).with_name("wdmoe"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, **settings)


def all_commands(group=None, words=("wdmoe",)):
    """-> (words, command) of every command, those of groups too."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from all_commands(command, (*words, name))
        else:
            yield (*words, name), command
