"""The commands of `summary/reproduce.md`, of a run's folder that was copied elsewhere."""

import os
import re
import shlex
import shutil
from glob import glob

import pytest

from tests.command_line import all_commands
from tests.conftest import ROOT
from wdmoe_opencompass.harness.verify.compare import STARTED_IN
from wdmoe_opencompass.report.publication import _commands, relative_paths

COMMANDS = {" ".join(words): command for words, command in all_commands()}
IN_DATA = re.compile(r'\(cd "\$\(printenv DATA \|\| printf %s (.*)\)" && (.*)\)')


@pytest.fixture
def copy(faulty_run, tmp_path):
    return shutil.copytree(faulty_run[0], tmp_path / "elsewhere" / "run")


def lines_of(folder):
    text = (folder / "summary" / "reproduce.md").read_text()
    lines = [line.strip().split("   #")[0] for line in text.splitlines() if line.startswith("    ")]
    found = [IN_DATA.fullmatch(line.strip()) for line in lines]
    return text, [match.groups() if match else (None, line.strip()) for match, line in zip(found, lines, strict=True)]


def test_every_command_can_be_parsed_and_names_what_is_there(copy):
    _, lines = lines_of(copy)
    assert len(lines) >= 7
    for _, line in lines:
        words = shlex.split(line.replace("$OLDPWD", str(copy)), comments=True)
        if "xargs" in words:  # which puts the traces that it found at the end
            words = [*words[words.index("-0") + 1 :], *map(str, (copy / "predictions").rglob("*.trace.safetensors"))]
        if words[0] == "wdmoe":
            path, command = next((p, c) for p, c in COMMANDS.items() if words[: len(p.split())] == p.split())
            command.make_context(path, words[len(path.split()) :]).close()
        for word in words[1:]:
            if "/" in word and "NEW_RUN" not in word:
                assert (copy / word).exists() or glob(str(copy / word)), word


def test_what_lies_outside_the_folder_is_said_to_be_needed(copy):
    """Models and data are found from where the run was started; every such path is listed."""
    text, lines = lines_of(copy)
    (config,) = (copy / "configs").glob("*.py")
    started = {folder for folder, line in lines if "opencompass " in line or "wdmoe verify" in line}
    assert started == {str(ROOT)}
    listed = re.findall(r"^- `(.*)`$", text, re.MULTILINE)
    assert "quickstart/model" in listed
    assert all((ROOT / path).exists() and not (copy / path).exists() for path in listed)
    named = re.findall(r"'(quickstart/[^']*)'", config.read_text())
    assert set(named) - {"quickstart/data/nowhere"} == set(listed)  # which no run could read
    assert "export DATA=FOLDER" in text


def test_a_config_without_relative_paths_needs_no_folder(copy, monkeypatch):
    monkeypatch.chdir(copy)
    (config,) = (copy / "configs").glob("*.py")
    assert relative_paths(config) == []
    assert f"    opencompass configs/{config.name} -w NEW_RUN" in _commands(copy, [])
    assert "DATA" not in _commands(copy, [])


def test_the_folder_that_the_run_wrote_is_not_needed(tmp_path, monkeypatch):
    """Or a run that was started with a relative `-w` would differ from its recomputation, which is somewhere else."""
    (tmp_path / "outputs" / "run").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    config = tmp_path / "c.py"
    config.write_text("datasets = [dict(path='./data')]\nwork_dir = 'outputs/run'\n")
    monkeypatch.chdir(tmp_path)
    assert relative_paths(config) == ["./data"]


@pytest.mark.parametrize("name", ["a b", 'a"b', "a$HOME", "a`b", "a\\b", "a}b", "ä'b"])
def test_the_folder_may_have_any_name(tmp_path, monkeypatch, name):
    """The shell goes where the run was started, whatever the folder is called; `verify` does not compare the name."""
    import subprocess

    folder = tmp_path / name
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "x.jsonl").write_text("")
    (tmp_path / "run" / "configs").mkdir(parents=True)
    (tmp_path / "run" / "configs" / "c.py").write_text("datasets = [dict(path='data/x.jsonl', other='json', z='..')]")
    monkeypatch.chdir(folder)
    text = _commands(tmp_path / "run", [])
    line = next(line for line in text.splitlines() if "opencompass" in line and "cd " in line)
    done = subprocess.run(
        ["bash", "-c", f'opencompass() {{ printf "%s\\n" "$PWD" "$@"; }}; {line}'],
        cwd=tmp_path / "run", capture_output=True, text=True, env={k: v for k, v in os.environ.items() if k != "DATA"},
    )  # fmt: skip
    run = tmp_path / "run"
    assert done.stdout.splitlines() == [str(folder), f"{run}/configs/c.py", "-w", f"{run}/NEW_RUN"], done
    assert STARTED_IN.sub("X", line).startswith('    (cd "$(Xopencompass "$OLDPWD')
    assert "- `data/x.jsonl`\n" in text
    assert "`json`" not in text
