import configparser
import json
import os
import subprocess
import sys
import venv
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.command_line import all_commands
from tests.conftest import ROOT, environment
from tests.without import without
from tools.house import FLOORS, PACKAGE, find_imports, python_files
from wdmoe_opencompass.cli.options import BROUGHT_BY_EXTRA, EXTRA_OF_COMMAND
from wdmoe_opencompass.errors import pip_install
from wdmoe_opencompass.report.html.page import PARTS

OPENCOMPASS = "from opencompass.cli.main import main; main()"
LOADS = "[[3, 1, 0, 2, 5, 1, 1, 4]]"
CONFIG = "eval_configs/eval_quickstart.py"
# Rooms that `pip install wdmoe_opencompass` alone does not serve, and the extra that does.
EXTRAS = ("torch", "opencompass", "testbed", "adapters", "quantised")
EXTRA_OF_ROOM = {
    "selection": "torch",
    "simulation": "torch",
    "routing": "opencompass",
    "testbed": "testbed",
    "harness": "opencompass",
}
# Packages of extras that functions of other rooms import for those rooms.
WITHIN_FUNCTIONS = {
    ("cli", "torch"),
    ("cli", "transformers"),
    ("identity", "torch"),
    ("doctor", "huggingface_hub"),
    ("harness", "peft"),
}


# -- which packages each room needs ------------------------------------------------------------------------------------
def required():
    """-> by extra, "" for none, the distributions that setup.cfg asks for."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    texts = {"": config["options"]["install_requires"], **config["options.extras_require"]}
    return {
        extra: {canonicalize_name(Requirement(line).name) for line in text.splitlines() if line}
        for extra, text in texts.items()
    }


REQUIRED = required()
OF_MODULE = {module: set(map(canonicalize_name, names)) for module, names in packages_distributions().items()}


def modules_of(distributions):
    return {module for module, names in OF_MODULE.items() if not names.isdisjoint(distributions)}


IN_EXTRAS = modules_of(set().union(*(REQUIRED[extra] for extra in EXTRAS)) - REQUIRED[""])


def test_setup_lists_what_each_room_imports():
    unlisted, within_functions = set(), set()
    for path in python_files(PACKAGE):
        room = path.relative_to(ROOT / PACKAGE).with_suffix("").parts[0]
        listed = REQUIRED[""] | REQUIRED.get(EXTRA_OF_ROOM.get(room), set())
        for line, module in find_imports(path):
            top = module.partition(".")[0]
            if top in sys.stdlib_module_names or top == PACKAGE:
                continue
            if (room, top) in WITHIN_FUNCTIONS:
                within_functions.add((room, top))
            elif OF_MODULE[top].isdisjoint(listed):
                unlisted.add(f"{path.relative_to(ROOT)}:{line} imports {top}")
    assert sorted(unlisted) == []
    assert within_functions == WITHIN_FUNCTIONS
    for room, top in WITHIN_FUNCTIONS:
        assert not OF_MODULE[top].isdisjoint(REQUIRED["test"]), room


def test_every_extra_that_a_command_names_is_there():
    top_commands = {words[1] for words, _ in all_commands()}
    assert set(EXTRA_OF_COMMAND) < top_commands
    assert set(EXTRA_OF_COMMAND.values()) == set(BROUGHT_BY_EXTRA) < set(REQUIRED)


# -- what runs without them --------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def routed(tmp_path_factory):
    """-> folder with a recording, and in `run` what `wdmoe route` makes of it where torch alone is installed."""
    folder = tmp_path_factory.mktemp("routed")
    softmax = np.random.default_rng(0).dirichlet(np.ones(8), (192, 2)).astype(np.float32)
    expert_index = np.argsort(-softmax)[..., :2]
    np.savez(
        folder / "r.npz",
        expert_index=expert_index,
        weights=np.take_along_axis(softmax, expert_index, axis=-1),
        probabilities=softmax,
        sequence=np.repeat(np.arange(32), 6),
        position=np.tile(np.arange(6), 32),
        prompt_length=np.full(32, 5),
        hidden_size=np.array(64),
        ffn_size=np.array(128),
    )
    recording = folder / "r.routing.safetensors"
    commands = [
        ("recording", "import", folder / "r.npz", "--out", recording),
        ("route", recording, "--policy", "wlr", "--out", folder / "run"),
        ("simulate", "--benchmarks", "ARC-C", "--batch-size", 1),
    ]
    _, answers = without(IN_EXTRAS - modules_of({"torch"}), [], commands)
    assert [code for code, *_ in answers] == [0, 0, 0], answers
    return folder


def test_the_base_layer_needs_no_extra_and_the_rest_says_which(routed, tmp_path):
    run = routed / "run"
    trace, vanilla = (run / "predictions" / f"r-{policy}" / "r.trace.safetensors" for policy in ("wlr", "top_k"))
    (tmp_path / "loads.json").write_text(LOADS)
    served = {
        ("--help",): 0,
        ("profile", "list"): 0,
        ("allocate", "paper_8_devices", "--loads", tmp_path / "loads.json"): 0,
        ("recording", "show", routed / "r.routing.safetensors"): 0,
        ("replay", trace): 0,
        ("place", vanilla, "--devices", 4): 0,
        ("report", run, "--html"): 0,
        ("compare", run, run): 0,
        ("frontier", run): 0,
        ("predict", run): 2,  # no testbed ran it
        ("watch", run, "--once"): 2,  # no run of OpenCompass's
    }
    refused = {
        "plan": (CONFIG,),
        "verify": (run,),
        "calibrate": ("x.trace.safetensors", "--out", tmp_path / "x.calibration.safetensors"),
        "route": (routed / "r.routing.safetensors", "--policy", "wlr"),
        "simulate": (),
        "testbed device": ("--model", "quickstart/model", "--experts", 0, "--listen", "127.0.0.1:0"),
        "testbed keys": (tmp_path / "keys", "--devices", "a"),
        "testbed up": ("--model", "quickstart/model"),
        "testbed measure": ("lab.yaml", "--model", "quickstart/model", "--out", tmp_path / "measured.yaml"),
    }
    assert {name.split()[0] for name in refused} == set(EXTRA_OF_COMMAND)
    rooms = set(FLOORS) - set(EXTRA_OF_ROOM)
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in python_files(PACKAGE))
    modules = [name for name in names if name.split(".")[1] in rooms and not name.endswith("__main__")]
    commands = [*served, *((*name.split(), *words) for name, words in refused.items())]
    not_imported, answers = without(IN_EXTRAS, modules, commands)
    assert not_imported == {}
    assert [code for code, *_ in answers[: len(served)]] == list(served.values()), answers
    for name, (code, shown, said) in zip(refused, answers[len(served) :], strict=True):
        extra = EXTRA_OF_COMMAND[name.split()[0]]
        needs = f"error: wdmoe {name} needs {BROUGHT_BY_EXTRA[extra]}; install with: {pip_install(extra)} (missing: "
        assert (code, shown, said[: len(needs)], said.count("\n")) == (2, "", needs, 1)


@pytest.mark.slow
def test_an_evaluation_needs_one_extra():
    modules = [f"{PACKAGE}.harness.{name}" for name in ("infer_task", "eval_task", "partitioner", "summarizer")]
    of_opencompass = modules_of(REQUIRED["opencompass"] | {"protobuf"})  # protobuf: of its own
    not_imported, (plan,) = without(IN_EXTRAS - of_opencompass, modules, [("plan", CONFIG)])
    assert not_imported == {}
    assert plan[0] == 0, plan


# -- the wheel ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel_environment(wheel, tmp_path_factory):
    """-> (python, environment variables): our package from a built wheel, the heavy dependencies from this one."""
    folder = tmp_path_factory.mktemp("wheel")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", wheel], check=True)
    (wheel_site,) = (folder / "venv").glob("lib/*/site-packages")
    site = next(path for path in sys.path if path.endswith("site-packages"))
    return python, environment(folder / "hf") | {"PYTHONPATH": f"{wheel_site}:{site}"}


@pytest.mark.slow
def test_wheel_runs_opencompass_from_another_folder(wheel_environment, tmp_path):
    python, variables = wheel_environment
    code = "import wdmoe_opencompass as w; print(w.__file__); w.load_profile('paper_8_devices')"
    done = subprocess.run([python, "-c", code], cwd=tmp_path, env=variables, capture_output=True, text=True, check=True)
    package = Path(done.stdout.strip()).parent
    assert ROOT not in package.parents
    assert not (package / "eval_configs").is_symlink()
    for name, parts in PARTS.items():
        assert {path.stem for path in (package / "report" / "html" / name).iterdir()} == set(parts)

    (tmp_path / "eval_configs").symlink_to(package / "eval_configs")
    (tmp_path / "quickstart").symlink_to(ROOT / "quickstart")
    configs = tmp_path / "tests" / "harness"
    configs.mkdir(parents=True)
    for name in ("eval_small.py", "eval_one_task.py"):
        (configs / name).write_text((ROOT / "tests" / "harness" / name).read_text())
    done = subprocess.run(
        [python, "-c", OPENCOMPASS, configs / "eval_one_task.py", "-w", tmp_path / "outputs"],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
    )
    (summary,) = (tmp_path / "outputs").glob("*/summary")
    assert json.loads((summary / "missing.json").read_text()) == [], done.stdout[-3000:]
    assert json.loads((summary / "latency.json").read_text())
    assert (summary / "report.html").exists(), done.stdout[-3000:]  # its template and scripts are in the wheel


@pytest.mark.slow
def test_wheel_without_extras_is_the_base_layer(wheel, routed, tmp_path):
    uv, here = Path(sys.executable).with_name("uv"), tmp_path / "venv" / "bin"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, here.parent], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", here / "python", "-c", ROOT / "constraints.txt"]
    subprocess.run([*install, wheel], check=True)
    (tmp_path / "loads.json").write_text(LOADS)
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(program, *words):
        command = [here / program, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=variables)

    assert "No module named 'torch'" in run("python", "-c", "import torch").stderr
    for words in (
        ("profile", "list"),
        ("allocate", "paper_8_devices", "--loads", "loads.json"),
        ("replay", routed / "run" / "predictions" / "r-wlr" / "r.trace.safetensors"),
        ("report", routed / "run"),
        ("figures", routed / "run"),
    ):
        done = run("wdmoe", *words)
        assert done.returncode == 0, done.stderr
    done = run("wdmoe", "doctor")
    assert f"problem, packages: {pip_install('opencompass')}\n" in done.stdout, done.stderr
    done = run("wdmoe", "plan", ROOT / CONFIG)
    assert done.returncode == 2
    assert done.stderr.startswith("error: wdmoe plan needs OpenCompass and torch; install with: pip install ")
