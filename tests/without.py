"""The `wdmoe` command as it is where some packages are not installed."""

import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions
from io import StringIO

from tests.conftest import ROOT


class Without:
    """Finds modules and distributions as Python does, but for some."""

    def __init__(self, missing):
        self.missing = missing
        of_modules = packages_distributions()  # reads every package's list of files
        self.distributions = {name for module in missing for name in of_modules.get(module, ())}

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in self.missing else PathFinder.find_spec(name, path, target)

    def find_distributions(self, *context):
        return (found for found in PathFinder.find_distributions(*context) if found.name not in self.distributions)


def without(missing, modules, commands):
    """Import modules, then run commands, in one fresh process without these packages.

    -> by module what is missing of it, of those that cannot be imported; [exit code, stdout, stderr] of each command.
    """
    asked = json.dumps([sorted(missing), list(modules), [list(map(str, words)) for words in commands]])
    command = [sys.executable, "-m", "tests.without"]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # OpenCompass prints a lot on import


def main():
    missing, modules, commands = json.load(sys.stdin)
    finder = Without(missing)
    sys.meta_path[:] = [finder if known is PathFinder else known for known in sys.meta_path]
    not_imported = {}
    for module in modules:
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            not_imported[module] = error.name
    print(json.dumps([not_imported, [_run(words) for words in commands]]))


def _run(words):
    from wdmoe_opencompass.cli import app
    from wdmoe_opencompass.cli.options import run

    out, err = StringIO(), StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            run(app, "wdmoe", words)
    except SystemExit as ended:
        return [ended.code, out.getvalue(), err.getvalue()]


if __name__ == "__main__":
    main()
