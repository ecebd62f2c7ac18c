"""What holds for every command of `wdmoe`: examples, JSON, errors, exit codes, completion, terminal and pipe."""

import fcntl
import io
import json
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import termios
from inspect import signature
from pathlib import Path

import pytest
import typer

from tests.builders.random_traces import random_trace
from tests.builders.trace_blocks import block, metadata
from tests.command_line import all_commands, process
from tests.conftest import ROOT
from tests.waiting import until
from wdmoe_opencompass import ExpertShape, list_profiles
from wdmoe_opencompass.cli import app, console, options, table_layout
from wdmoe_opencompass.trace.format import join, write_trace

COMMANDS = {" ".join(words): command for words, command in all_commands()}
EXAMPLES = [
    (name, line.strip())
    for name, command in [("wdmoe", typer.main.get_command(app)), *COMMANDS.items()]
    for line in command.epilog.splitlines()
    if line.startswith("  ")
]
RUNNABLE = ("wdmoe allocate", "wdmoe replay d.", "wdmoe place d.", "wdmoe calibrate v", "wdmoe profile")
RUNNABLE += ("wdmoe testbed keys",)
LOADS = [[120, 80, 95, 60, 33, 71, 150, 91]]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files that examples name, in the current folder."""
    write_trace(tmp_path / "d.trace.safetensors", random_trace())
    write_trace(tmp_path / "vanilla.trace.safetensors", join(metadata(), [block(0), block(4, seed=1)]))
    (tmp_path / "loads.json").write_text(json.dumps(LOADS))
    for name in ("my_lab.yaml", "p.yaml"):
        shutil.copy(ROOT / "channel_profiles" / "paper_8_devices.yaml", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- help ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "line"), EXAMPLES, ids=[line for _, line in EXAMPLES])
def test_every_example_can_be_parsed(name, line):
    words = shlex.split(line.partition(" > ")[0])
    assert len(line) <= 76, "would be wrapped in the help"
    if words[0] == "opencompass":
        return
    path, command = next((p, c) for p, c in COMMANDS.items() if words[: len(p.split())] == p.split())
    command.make_context(path, words[len(path.split()) :]).close()


@pytest.mark.parametrize("line", [line for _, line in EXAMPLES if line.startswith(RUNNABLE)])
def test_examples_that_need_no_run_work(folder, wdmoe, line):
    done = wdmoe(*shlex.split(line)[1:])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_json_and_a_line_in_the_docs(name):
    command = COMMANDS[name]
    assert any(name == where for where, _ in EXAMPLES)
    assert "--json" in {option for parameter in command.params for option in parameter.opts}
    assert command.help
    assert f"`{name}`" in (ROOT / "docs" / "command_line.md").read_text()


def test_help_tells_the_exit_codes():
    done = process("--help")
    assert " ".join(options.EXIT_CODES.split()) in " ".join(done.stdout.split())


def test_names_in_the_help_are_those_of_the_registries():
    from wdmoe_opencompass.allocation import ALLOCATORS, PRIMARY_SCOPE, SCOPE_LABELS
    from wdmoe_opencompass.cli.allocate import allocate_command
    from wdmoe_opencompass.cli.replay import replay_command
    from wdmoe_opencompass.placement import OBJECTIVES
    from wdmoe_opencompass.report.formats import FORMATS
    from wdmoe_opencompass.report.records import SCOPES

    assert tuple(ALLOCATORS) == options.ALLOCATOR_NAMES
    assert options.SCOPE_NAMES == SCOPES == tuple(SCOPE_LABELS)
    for command in (allocate_command, replay_command):
        assert signature(command).parameters["scope"].default == PRIMARY_SCOPE == SCOPES[0]
    assert set(options.OBJECTIVE_NAMES) == set(OBJECTIVES)
    assert tuple(options.Format) == FORMATS
    assert ExpertShape(options.MIXTRAL_HIDDEN_SIZE, options.MIXTRAL_FFN_SIZE) == ExpertShape()


def test_help_and_completion_import_nothing_heavy():
    script = (
        "import sys, wdmoe_opencompass.cli\n"
        "heavy = {'numpy', 'scipy', 'pandas', 'torch', 'transformers', 'opencompass', 'pydantic', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# -- JSON ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("options", "form"), [("--format csv", "csv"), ("--format json --json", "json")])
def test_a_page_and_another_format_exclude_each_other(folder, wdmoe, options, form):
    done = wdmoe("report", str(folder), "--html", *options.split())
    sentence = f"error: --html writes a page, so it excludes --format {form}; --json says where it is\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", sentence)


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        ("profile list", {"profiles"}),
        ("profile show paper_8_devices", {"devices"}),
        ("profile validate my_lab.yaml", {"file", "name", "devices", "hash", "valid"}),
        ("allocate my_lab.yaml --loads loads.json", {"bandwidth_hz", "relative_gap"}),
        ("replay d.trace.safetensors --profile my_lab.yaml", {"summary", "passes"}),
        ("place d.trace.safetensors --time-limit 0 --out p.yaml", {"placement", "written"}),
        ("calibrate vanilla.trace.safetensors --out c.calibration.safetensors", {"written", "parts"}),
        ("testbed keys keys --devices a,b", {"written", "secret"}),
    ],
)
def test_json_is_one_document(folder, wdmoe, words, keys):
    done = wdmoe(*words.split(), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert keys <= set(json.loads(done.stdout))


def test_json_and_another_format_exclude_each_other(wdmoe):
    done = wdmoe("report", "RUN", "--format", "csv", "--json")
    assert done == (2, "", "error: --json and --format csv exclude each other\n")


# -- mistyped words ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("reprt", "wdmoe: command 'reprt' is unknown; did you mean 'report'?"),
        ("testbed upp", "wdmoe testbed: command 'upp' is unknown; did you mean 'up'?"),
        ("replay x --profle y", "no such option --profle; did you mean --profile? (see wdmoe replay --help)"),
        ("report x --format jsn", "'jsn' is not one of 'md', 'csv', 'tex', 'json'; did you mean 'json'?"),
        ("profile show paper_8_device", "did you mean 'paper_8_devices'?"),
        ("allocate paper_8_devices --loads loads.json --method optiml", "did you mean 'optimal'?"),
        ("allocate paper_8_devices --loads loads.json --scope pas", "did you mean 'pass'?"),
        ("place d.trace.safetensors --objective latncy", "did you mean 'latency'?"),
        ("replay", "missing argument"),
        ("replay d.trace.safetensors --profile my_lab.yaml --draws many", "'--draws'"),
        ("replay d.trace.safetensors --profile", "--profile"),
        ("profile list more", "unexpected extra argument"),
        ("--no-such", "no such option --no-such"),
    ],
)
def test_a_mistyped_word_gets_one_sentence(folder, wdmoe, words, sentence):
    for more in ([], ["--json"]):
        done = wdmoe(*words.split(), *more)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1
        if not more:
            assert sentence in done.stderr


# -- bad files -----------------------------------------------------------------------------------------------------
def missing(path):
    return path


def a_folder(path):
    path.mkdir()
    return path


def holding(content):
    def make(path):
        path.write_bytes(content)
        return path

    return make


BAD_FILES = dict(
    missing=missing,
    folder=a_folder,
    empty=holding(b""),
    bytes=holding(bytes(range(256)) * 4),
    text=holding(b"garbage \xff\xfe\n"),
    array=holding(b"[1]"),
    object=holding(b"{}"),
    long_name=lambda path: path.with_name("a" * 300 + path.suffix),
    below_a_file=lambda path: path.parent / "loads.json" / path.name,
)
BAD = "BAD"  # replaced by the bad file's path
MODEL = ROOT / "quickstart" / "model"
TAKING_FILES = [
    ("profile show BAD.yaml", ()),
    ("profile validate BAD.yaml", ()),
    ("allocate paper_8_devices --loads BAD.json", ()),
    ("allocate BAD.yaml --loads loads.json", ()),
    ("replay BAD.trace.safetensors --profile my_lab.yaml", ()),
    ("replay d.trace.safetensors --profile BAD.yaml", ()),
    ("place BAD.trace.safetensors", ()),
    ("place d.trace.safetensors --time-limit 0 --profile BAD.yaml", ()),
    ("calibrate BAD.trace.safetensors --out c.calibration.safetensors", ()),
    ("calibrate BAD --text loads.json --out c.calibration.safetensors", ()),
    (f"calibrate {MODEL} --text BAD.txt --out c.calibration.safetensors", ()),
    ("figures BAD", ()),
    ("report BAD", ()),
    ("compare BAD BAD", ()),
    ("frontier BAD", ()),
    ("predict BAD", ()),
    ("verify BAD", ()),
    ("plan BAD.py", ()),
    ("testbed device --model BAD --experts 0 --listen 127.0.0.1:0", ()),
    (f"testbed measure BAD.yaml --model {MODEL} --out m.yaml", ()),
    ("testbed keys BAD --devices a,b", ("missing", "folder")),  # these two are what it makes and what it takes
    ("testbed up --model x --lab BAD.yaml -- no-such-command", ("missing", "long_name", "below_a_file")),
]


def bad_words(words, kind, folder):
    """The words with a path of the bad file instead of BAD."""
    parts = words.split()
    suffix = next(part for part in parts if part.startswith(BAD)).removeprefix(BAD)
    path = BAD_FILES[kind](folder / f"bad{suffix}")
    return [str(path) if part.startswith(BAD) else part for part in parts]


@pytest.mark.parametrize(("words", "fine"), TAKING_FILES, ids=[words.split(" --")[0] for words, _ in TAKING_FILES])
def test_no_bad_file_is_a_traceback(folder, tmp_path_factory, wdmoe, words, fine):
    for kind in BAD_FILES.keys() - set(fine):
        here = tmp_path_factory.mktemp("bad")
        (here / "loads.json").write_text("[[1]]")
        done = wdmoe(*bad_words(words, kind, here))
        assert (done.returncode, done.stdout) == (2, ""), (kind, done)
        assert done.stderr.startswith("error: "), (kind, done)
        assert len(done.stderr.splitlines()) == 1, (kind, done)


SUMMARY = ("accuracy", "latency", "origin", "groups", "items", "batches", "missing", "frontier_records", "datasets")
SUMMARY += ("table_1_accuracy", "table_2_latency_layer_per_batch_all", "frontier")


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"[1]", b"[{}]", b'"x"', b"null", b'{"a": 1}', b"\xff"])
def test_a_summary_of_garbage_is_no_traceback(tmp_path, wdmoe, content):
    (tmp_path / "summary").mkdir()
    for name in SUMMARY:
        (tmp_path / "summary" / f"{name}.json").write_bytes(content)
    for words in ("report RUN", "report RUN --json", "compare RUN RUN", "frontier RUN --json", "figures RUN"):
        done = wdmoe(*words.replace("RUN", str(tmp_path)).split())
        assert done.returncode in (1, 2), (words, done)
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "content",
    [
        "raise SystemExit(0)", "1 / 0", "x = [", "models = 1",
        "models = [1]\ndatasets = [2]", "models = [{}]\ndatasets = [{}]",
        "models = [dict(type=3)]\ndatasets = [dict(abbr=5)]", "models = [dict(abbr=[1])]\ndatasets = [dict(abbr='d')]",
    ],
)  # fmt: skip
def test_a_garbage_config_is_no_traceback(tmp_path, wdmoe, content):
    (tmp_path / "eval.py").write_text(content)
    done = wdmoe("plan", tmp_path / "eval.py")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "eval.py" in done.stderr


def test_an_unreadable_file_is_one_sentence(folder, wdmoe, monkeypatch):
    def refused(path, *others, **more):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("wdmoe_opencompass.cli.place.write_whole", refused)
    done = wdmoe("place", "d.trace.safetensors", "--time-limit", 0, "--out", "p.yaml")
    assert done == (2, "", "error: p.yaml: cannot be written: Permission denied\n")


def test_a_reader_that_has_had_enough_is_no_error():
    command = f"set -o pipefail; {Path(sys.executable).with_name('wdmoe')} profile list --json | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("{", "")
    assert done.returncode in (0, 1)


def test_an_interruption_ends_with_130(wdmoe, monkeypatch):
    from wdmoe_opencompass.channel import profile

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(profile, "list_profiles", interrupted)
    assert wdmoe("profile", "list") == (130, "", "")


# -- completion ----------------------------------------------------------------------------------------------------
def completed(words):
    """-> what bash would offer for the last word."""
    parts = words.split(" ")
    environment = os.environ | dict(_WDMOE_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(len(parts) - 1))
    return process(env=environment).stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("wdmoe re", ["report", "replay", "recording"]),
        ("wdmoe profile show ", list_profiles()),
        ("wdmoe replay x --profile near", ["near_far_8_devices"]),
        ("wdmoe replay x --allocation ", ["uniform", "slsqp", "optimal"]),
        ("wdmoe allocate p --scope ", ["layer", "pass"]),
        ("wdmoe report x --format ", ["md", "csv", "tex", "json"]),
        ("wdmoe place x --objective l", ["latency"]),
        ("wdmoe testbed device --dtype b", ["bfloat16"]),
        ("wdmoe replay x --prof", ["--profile"]),
    ],
)
def test_completion_offers_names_and_values(words, offered):
    assert completed(words) == offered


# -- terminal and pipe ---------------------------------------------------------------------------------------------
def on_terminal(words, columns=200, **more):
    """-> what the command writes to a terminal, standard output and error together."""
    main, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS")}
    command = [Path(sys.executable).with_name("wdmoe"), *map(str, words)]
    with subprocess.Popen(
        command, stdin=there, stdout=there, stderr=there, env=environment | dict(TERM="xterm-256color") | more
    ):
        os.close(there)
        written = b""
        try:
            while part := os.read(main, 65536):
                written += part
        except OSError:  # the last process has closed it
            pass
    os.close(main)
    return written.decode()


def test_a_terminal_gets_a_drawn_table_and_a_pipe_aligned_text():
    drawn = on_terminal(["profile", "list"])
    assert "─" in drawn
    assert "paper_8_devices" in drawn
    plain = process("profile", "list", env=os.environ | dict(FORCE_COLOR="1")).stdout
    assert plain.splitlines()[0].split() == ["name", "devices", "total_bandwidth_hz"]
    assert len({len(line) for line in plain.splitlines()}) == 1
    assert "\x1b" not in plain
    assert "\x1b" not in on_terminal(["profile", "list", "--json"])


def test_no_color_is_respected():
    colour = re.compile(r"\x1b\[(\d+;)*[34]\d")  # foreground, background; bold and dim may stay
    help_pages = [on_terminal(["--help"], **more) for more in ({}, dict(NO_COLOR="1"))]
    assert [bool(colour.search(page)) for page in help_pages] == [True, False]
    assert not colour.search(on_terminal(["profile", "list"], NO_COLOR="1"))


def test_aligned_text_has_numbers_at_the_right():
    assert console.align([["name", "n"], ["a", "1.5"], ["long", "20"]], [False, True]).splitlines() == [
        "name    n",
        "a     1.5",
        "long   20",
    ]


def test_tables_of_nothing_and_of_brackets(capsys):
    console.print_table([])
    console.print_csv([])
    console.print_table([dict(a="[red]x[/]", b=True, c=None, d=1.23456789)])
    assert capsys.readouterr().out.splitlines() == [
        "nothing to show",
        "",
        "a          b     c           d",
        "[red]x[/]  True  None  1.23457",
    ]


def test_markdown_is_drawn_on_a_terminal_only(capsys):
    console.print_markdown("| a |\n|---|\n| 1 |")
    assert capsys.readouterr().out == "| a |\n|---|\n| 1 |\n"


WIDTHS = (80, 100, 160)
CELL = re.compile(r"(?<!\S)\S+( \S+)*")  # columns are two spaces apart


@pytest.mark.parametrize("columns", WIDTHS)
def test_a_terminal_of_any_width_gets_whole_numbers_beside_their_device(columns):
    shown = re.sub(r"\x1b\[[\d;]*m", "", on_terminal(["profile", "show", "paper_8_devices"], columns)).splitlines()
    assert max(map(len, shown)) <= columns
    devices = json.loads(process("profile", "show", "paper_8_devices", "--json").stdout)["devices"]
    for device in devices:
        lines = [line.split() for line in shown if line.startswith(device["name"] + " ")]
        cells = [cell for _, *rest in lines for cell in rest]
        assert cells == [console._cell(value) for key, value in device.items() if key != "name"]


@pytest.mark.parametrize("columns", WIDTHS)
def test_markdown_on_a_terminal_keeps_names_and_numbers_whole(columns, monkeypatch):
    names = [
        "quickstart-vanilla-hf",
        "quickstart-wdmoe-hf",
        "quickstart-wdmoe-8bit-hf",
        "Mixtral-8x7B-Instruct-v0.1-hf",
    ]
    benchmarks = ["qs_choice", "qs_twoway", "qs_yesno", "qs_arith", "qs_program"]
    rows = [
        [name, f"row_{k}", *(f"{10 * k + j}.{j}{k}5 (+16.{k} % [15.{j}, 17.{k}])" for j in range(5))]
        for k, name in enumerate(names)
    ]
    lines = [["model", "row", *benchmarks], ["---"] * 7, *rows]
    document = "what it shows\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n\n- a note\n"
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", str(columns))
    console.print_markdown(document)
    shown = re.sub(r"\x1b\[[\d;]*m", "", sys.stdout.getvalue())
    assert "what it shows" in shown
    assert "a note" in shown
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= columns
    cells = {cell[0] for line in shown.splitlines() for cell in CELL.finditer(line)}
    parts = " ".join(cells).split()
    for name, row, *values in rows:
        assert row in cells
        assert any(set(table_layout.fold(name, cut)) <= cells for cut in range(1, len(name) + 1))
        for value in values:
            assert value.split()[0] in parts
            assert any(cell.endswith(value[value.index("[") :]) for cell in cells)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_shown_on_a_terminal_after_a_while(monkeypatch):
    monkeypatch.setattr(console, "QUIET_S", 0.05)
    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with console.Progress("counting", 2) as progress:
            progress.advance(1)
            monkeypatch.setattr(sys, "stderr", io.StringIO())  # as commands do while OpenCompass prints a lot
            if shown:
                until(lambda: progress.bar is not None)
            progress.advance(0.5)
        assert ("counting" in stream.getvalue()) == shown
        assert ("75%" in stream.getvalue()) == shown


def test_quick_work_shows_no_progress(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with console.Progress("counting"):
        pass
    assert sys.stderr.getvalue() == ""
