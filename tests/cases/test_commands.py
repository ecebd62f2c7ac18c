"""Every command's answer to a folder or file that is not what it takes; the commands are read from the program."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from tests.builders.random_traces import random_trace
from tests.command_line import all_commands
from tests.conftest import ROOT
from wdmoe_opencompass import __version__
from wdmoe_opencompass.trace.format import write_trace

MODEL = ROOT / "quickstart" / "model"
QUICKSTART = ROOT / "eval_configs" / "eval_quickstart.py"

# What each parameter takes where another one is under test. A new command with parameters that are missing here fails.
GOOD = dict(
    profile="paper_8_devices", name="paper_8_devices", loads="loads.json", traces="d.trace.safetensors", tokens="16",
    run_folder="run", run_a="run", run_b="run", config=QUICKSTART, sources="d.trace.safetensors", text="text.txt",
    recording="none.routing.safetensors", file="none.jsonl", policy="wlr", experts="0", listen="127.0.0.1:0",
    devices="a,b", folder="keys", lab="none.yaml", model=MODEL,
)  # fmt: skip
OUT = dict(out="x", work_dir="x", folder="x")  # parameters that name what is written, in every command
OUT_SUFFIX = {
    "wdmoe calibrate": ".calibration.safetensors",
    "wdmoe place": ".yaml",
    "wdmoe recording import": ".routing.safetensors",
    "wdmoe testbed measure": ".yaml",
}
OUT_FOLDERS = ("wdmoe route", "wdmoe simulate", "wdmoe testbed keys", "wdmoe doctor")
TEXT_PATHS = ("profile", "name", "model")  # parameters that are a name or a path, so their type is text
NAMES = ("wdmoe testbed device name", "wdmoe recording import model")  # no paths
SUFFIX = dict(
    profile=".yaml", name=".yaml", loads=".json", traces=".trace.safetensors", config=".py", lab=".yaml", file=".jsonl",
    recording=".routing.safetensors", sources=".trace.safetensors", text=".txt",
)  # fmt: skip
RECORDING = ".routing.safetensors"
RUN_FOLDERS = ("run_folder", "run_a", "run_b")


def hints(command):
    callback = inspect.unwrap(command.callback)
    return {name: str(kind) for name, kind in get_type_hints(callback).items()}


def path_parameters():
    """-> (command's words, command, parameter, whether it is written) of every parameter that is a path."""
    for words, command in all_commands():
        kinds, name = hints(command), " ".join(words)
        for parameter in command.params:
            is_text = parameter.name in TEXT_PATHS and f"{name} {parameter.name}" not in NAMES
            if "Path" in kinds.get(parameter.name, "") or is_text:
                written = parameter.name in OUT or (name == "wdmoe testbed up" and parameter.name == "lab")
                yield name, command, parameter, written


CASES = list(path_parameters())
READ = [case[:3] for case in CASES if not case[3]]
WRITTEN = [case[:3] for case in CASES if case[3]]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with the files of GOOD."""
    write_trace(tmp_path / "d.trace.safetensors", random_trace())
    (tmp_path / "loads.json").write_text("[[120, 80, 95, 60, 33, 71, 150, 91]]")
    (tmp_path / "text.txt").write_text("some text")
    (tmp_path / "run" / "predictions" / "m").mkdir(parents=True)
    write_trace(tmp_path / "run" / "predictions" / "m" / "d.trace.safetensors", random_trace())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wdmoe_opencompass.doctor.machine.torch_facts", lambda: "not asked")  # fresh processes, slow
    monkeypatch.setattr("wdmoe_opencompass.doctor.host.check_import", list)
    return tmp_path


def line(name, command, parameter, path):
    """The words of a command with this path as one parameter, and good values as all other required ones."""
    options, arguments = [], []
    for other in command.params:
        value = path if other is parameter else None
        is_of_model = parameter.name == "text" and other.name == "sources"  # a text is for a model
        if value is None and is_of_model:
            value = MODEL
        elif value is None and (other.required or f"{name} {other.name}" == "wdmoe calibrate text"):
            suffix = OUT_SUFFIX.get(name, "")
            assert other.name in GOOD or other.name in OUT, f"{name}: give {other.name} a good value in this test"
            value = GOOD[other.name] if other.name not in OUT or name in OUT_FOLDERS else f"out{suffix}"
        if value is not None:
            is_option = other.opts[0].startswith("-")
            (options if is_option else arguments).extend([other.opts[0], value] if is_option else [value])
    if name == "wdmoe testbed up":
        arguments = ["--", "no-such-command"]
    return [*name.split()[1:], *map(str, options), *map(str, arguments)]


# -- what is read --------------------------------------------------------------------------------------------------
def missing(path):
    return path


def below_a_file(path):
    path.with_name("a_file").write_text("x")
    return path.with_name("a_file") / path.name


def empty_folder(path):
    path.mkdir()
    return path


def folder_of_others(path):
    (path / "photos").mkdir(parents=True)
    (path / "notes.txt").write_text("x")
    return path


def empty_file(path):
    path.write_bytes(b"")
    return path


def broken_link(path):
    path.symlink_to(path.with_name("gone"))
    return path


def loop_of_links(path):
    path.symlink_to(path)
    return path


def zero_byte(path):
    return f"{path}\0{path.suffix}"


def pipe(path):
    os.mkfifo(path)
    return path


def not_utf8(path):
    return os.fsdecode(os.fsencode(path.parent) + b"/caf\xe9" + os.fsencode(path.suffix))


def long_name(path):
    return path.with_name("a" * 300 + path.suffix)


def unreadable(path):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    path.mkdir(mode=0)
    return path


def parent_of_runs(path):
    for name in ("20260101_000000", "20260102_000000"):
        (path / name / "predictions").mkdir(parents=True)
    return path


KINDS = (
    missing, below_a_file, empty_folder, folder_of_others, empty_file, broken_link, loop_of_links, zero_byte, pipe,
    not_utf8, long_name, unreadable, parent_of_runs,
)  # fmt: skip


def check_one_sentence(done, path):
    assert done.returncode not in (0, None), done
    assert len(done.stderr.splitlines()) == 1, done
    assert done.stderr.startswith("error: "), done
    assert "Traceback" not in done.stdout + done.stderr
    named = repr(str(path))[1:-1] if not str(path).isprintable() else str(path)
    assert re.split(r"[^ -~]", named)[0][:100] in done.stderr, (named, done)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("case", READ, ids=lambda case: f"{case[0]} {case[2].name}")
def test_a_path_that_is_none_gets_one_true_sentence(folder, wdmoe, case, kind):
    name, _, parameter = case
    suffix = ".yaml" if name == "wdmoe profile validate" else SUFFIX.get(parameter.name, "")
    suffix = RECORDING if name == "wdmoe recording show" else suffix
    path = kind(folder / f"bad{suffix}")
    done = wdmoe(*line(*case, path))
    check_one_sentence(done, path)
    assert done.stdout == ""
    if kind is missing:
        assert any(words in done.stderr for words in ("no such", "No such", "does not exist", "no model folder")), done


def test_every_command_is_swept():
    """A command without a path of its own is listed here by hand, so that none is forgotten."""
    swept = {case[0] for case in CASES}
    assert {" ".join(words) for words, _ in all_commands()} - swept == {"wdmoe profile list"}


RUNS = [case for case in READ if case[2].name in RUN_FOLDERS]


@pytest.mark.parametrize("case", RUNS, ids=lambda case: f"{case[0]} {case[2].name}")
def test_the_folder_of_a_run_is_found_nearby(folder, wdmoe, case):
    """The folder above runs, and what is within one: the sentence says which folder is meant."""
    parent_of_runs(folder / "outputs")
    (folder / "run" / "summary").mkdir()
    (folder / "run" / "summary" / "report.html").write_text("x")
    sentences = {
        "outputs": f"(2 runs in it); give {Path('outputs', '20260102_000000')}",
        "run/summary": f"give the run's folder, {folder / 'run'}",
        "run/summary/report.html": f"a file, not a folder; give the run's folder, {folder / 'run'}",
        "run/sumary": f"does not exist; give the run's folder, {folder / 'run'}",
        "no_such": "no_such: does not exist; give a run's time-stamped folder",
        "keys": "keys: does not exist",
    }
    for given, sentence in sentences.items():
        done = wdmoe(*line(*case, given))
        assert (done.returncode, done.stdout) == (2, ""), done
        assert sentence in done.stderr


# -- what is written -----------------------------------------------------------------------------------------------
def into_nothing(path):
    """Root may write everywhere but there."""
    return Path("/proc/none") / path.name


def onto_a_folder(path):
    path.mkdir()
    return path


def onto_a_file(path):
    path.write_text("x")
    return path


def behind_a_broken_link(path):
    path.with_name("link").symlink_to(path.with_name("gone"))
    return path.with_name("link") / path.name


FILES_NOT_WRITTEN = (below_a_file, zero_byte, long_name, into_nothing, onto_a_folder, behind_a_broken_link)
FOLDERS_NOT_WRITTEN = (below_a_file, zero_byte, long_name, into_nothing, onto_a_file, behind_a_broken_link)
CANNOT = [
    (case, kind)
    for case in WRITTEN
    for kind in (FOLDERS_NOT_WRITTEN if case[0] in OUT_FOLDERS else FILES_NOT_WRITTEN)
    if case[0] != "wdmoe doctor"
]


@pytest.mark.parametrize(
    ("case", "kind"), CANNOT, ids=[f"{case[0]} {case[2].name} {kind.__name__}" for case, kind in CANNOT]
)
def test_a_path_that_cannot_be_written_gets_one_true_sentence(folder, wdmoe, monkeypatch, case, kind):
    """And it gets it at once, not after the work."""
    monkeypatch.setattr("wdmoe_opencompass.simulation.run.simulate", None)
    monkeypatch.setattr("wdmoe_opencompass.placement.compare_placements", None)
    path = kind(folder / f"x{OUT_SUFFIX.get(case[0], '.yaml')}")
    before = sorted(folder.rglob("*"))
    done = wdmoe(*line(*case, path))
    check_one_sentence(done, path)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("kind", FOLDERS_NOT_WRITTEN, ids=lambda kind: kind.__name__)
def test_doctor_finds_a_work_folder_that_cannot_be_written(folder, kind):
    from wdmoe_opencompass.doctor.folders import check_work_dir

    path = Path(kind(folder / "x"))
    (finding,) = check_work_dir(path)
    assert (finding.check, finding.status) == ("work folder", "problem")
    assert str(path)[:100] in finding.found or repr(str(path))[1:100] in finding.found


# -- the version ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("command", [[], ["-m", "wdmoe_opencompass.cli"]], ids=["wdmoe", "python -m"])
def test_the_version_is_printed_without_heavy_imports(command):
    program = [sys.executable, *command] if command else [Path(sys.executable).with_name("wdmoe")]
    done = subprocess.run(
        [*program, "--version"], capture_output=True, text=True, env=os.environ | dict(PYTHONPROFILEIMPORTTIME="1")
    )
    assert (done.returncode, done.stdout) == (0, f"wdmoe {__version__}\n")
    imported = {text.rpartition("|")[2].strip() for text in done.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {"torch", "numpy", "transformers", "opencompass", "pandas"}


def test_the_version_needs_no_command(wdmoe):
    assert wdmoe("--version") == (0, f"wdmoe {__version__}\n", "")
    assert wdmoe("--version", "report") == (0, f"wdmoe {__version__}\n", "")
    assert wdmoe("--verson").returncode == 2
