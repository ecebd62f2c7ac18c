"""An exception inside a config: file, line and cause, in one sentence, whatever the exception is."""

import sys

import pytest

from wdmoe_opencompass.errors import WdmoeError
from wdmoe_opencompass.harness.config_errors import read_config
from wdmoe_opencompass.harness.plan.make import make_plan
from wdmoe_opencompass.harness.verify.verdict import Run

BASE = "from mmengine.config import read_base\nwith read_base():\n    from .base import x\n"
LAZY = "with read_base an import is a name"

# content of the config -> (line at fault, or None where there is none; words of the cause)
RAISING = {
    "x = [": (1, "SyntaxError: '[' was never closed"),
    "models = 1\ndatasets = [\n": (2, "SyntaxError: '[' was never closed"),
    "x = 1\n  y = 2\n": (2, "IndentationError: unexpected indent"),
    "x = 1\nimport nosuch_module_x\ny = nosuch_module_x.z()\n": (3, "nosuch_module_x.z is called"),
    "x = 1\ny = undefined\n": (2, "NameError: name 'undefined' is not defined"),
    "d = {}\n\nz = d['missing']\n": (3, "KeyError: 'missing'"),
    "x = 1 / 0\n": (1, "ZeroDivisionError: division by zero"),
    "x = [1][2]": (1, "IndexError: list index out of range"),
    "raise SystemExit(0)": (1, "it ends the program (SystemExit: 0), in: raise SystemExit(0)"),
    "x = 1\nraise RuntimeError": (2, "RuntimeError, in: raise RuntimeError"),
    "class Odd(BaseException):\n    pass\nraise Odd('odd')": (3, "Odd: odd"),
    "class Odd(Exception):\n    def __str__(self):\n        return 1 / 0\nraise Odd": (4, "Odd, in: raise Odd"),
    "raise ValueError('first\\nsecond')": (1, "ValueError: first second"),
    "raise ValueError('\\ud800')": (1, "ValueError: \\ud800"),
    "def f():\n    return f()\n\nf()": (2, "RecursionError"),
    "x = open('no/such/file').read()": (1, "FileNotFoundError: [Errno 2] No such file or directory: 'no/such/file'"),
    "assert False, 'not so'": (1, "AssertionError: not so"),
    "x = int('12a')": (1, "ValueError: invalid literal for int()"),
    "exec('y = [')": (1, "SyntaxError: '[' was never closed"),
    BASE + "import copy\ny = copy.deepcopy(x)\n": (5, f"copy.deepcopy is called, but {LAZY}"),
    BASE + "from copy import deepcopy\ny = deepcopy(x)\n": (5, f"copy.deepcopy is called, but {LAZY}"),
    BASE + "import numpy as np\ny = [\n    np.arange(3),\n]\n": (6, f"numpy.arange is called, but {LAZY}"),
    BASE + "from os.path import sep\ny = sep + 1\n": (5, "TypeError: can only concatenate str"),
    BASE + "from json import loads\nfor k in loads:\n    pass\n": (5, LAZY),
    BASE.replace("x", "no_such_name"): (3, "no_such_name"),
    BASE.replace(".base", ".no_such_file"): (3, "no_such_file.py not found"),
    BASE.replace(".base", "no_such_package.base"): (3, "no_such_package"),
    BASE + "with open('x') as f:\n    y = 1\n": (4, "FileNotFoundError: [Errno 2] No such file or directory: 'x'"),
    "with open('x') as f:\n    y = 1\n" + BASE: (None, "Only `read_base` context manager can be used"),
    BASE.replace("with", "x = 1\nif x:\n  with").replace("    from", "      from"): (None, ""),
}


def sentence_of(path):
    with pytest.raises(WdmoeError) as caught:
        make_plan(path)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 1000
    sentence.encode()
    return sentence


@pytest.mark.parametrize("content", RAISING, ids=range(len(RAISING)))
def test_an_exception_in_a_config_is_placed_and_named(tmp_path, content):
    path = tmp_path / "eval_mine.py"
    path.write_text(content)
    (tmp_path / "base.py").write_text("x = dict(a=1)\n")
    line, words = RAISING[content]
    sentence = sentence_of(path)
    assert sentence.startswith(f"{path}, line {line}: " if line else str(path)), sentence
    assert words in sentence


@pytest.mark.parametrize(
    ("base", "line", "words"),
    [
        ("x = dict(a=1\n", 1, "SyntaxError: '(' was never closed"),
        ("y = 1\nx = dict()['a']\n", 2, "KeyError: 'a'"),
        ("import copy\nx = copy.copy({})\n", 2, "is called, but"),
        ("\n\nraise SystemExit\n", 3, "it ends the program"),
        (b"x = 1\ny = '\xff'\n", 2, "not UTF-8 text"),
        (b"x = 1\n\0\n", 2, "null bytes"),
        (BASE.replace(".base", ".eval_mine"), None, "configs import each other in a circle"),
    ],
)
def test_the_file_named_is_the_one_at_fault(tmp_path, base, line, words):
    """A base config that is imported, not the config that was given; both are named."""
    path, imported = tmp_path / "eval_mine.py", tmp_path / "base.py"
    path.write_text(BASE)
    imported.write_bytes(base if isinstance(base, bytes) else base.encode())
    sentence = sentence_of(path)
    assert sentence.startswith(f"{path}: {imported}, line {line}: " if line else f"{path}"), sentence
    assert words in sentence


@pytest.mark.parametrize("content", [b"x = '\xff\xfe'", b"x = 1\n# caf\xe9\n", "x = 'ü'".encode("utf-16")])
def test_a_config_that_is_not_utf8(tmp_path, content):
    path = tmp_path / "eval_mine.py"
    path.write_bytes(content)
    sentence = sentence_of(path)
    assert f"{path}, line {1 + content[:8].count(10)}: not UTF-8 text; save it as UTF-8" in sentence


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("x = 1", "must have a list `models` that is not empty"),
        ("models = []\ndatasets = []", "must have a list `models` that is not empty"),
        ("models = [dict(abbr='m', type='x')]", "must have a list `datasets` that is not empty"),
        ("models = [dict(abbr='m', type=lambda: 1)]\ndatasets = []", "cannot be read again"),
        ("models = [dict(abbr='m\\ud800')]\ndatasets = []", "models[0].abbr holds '\\ud800', a lone surrogate"),
        ("models = []\ndatasets = [dict(infer_cfg={'\\udfff': 1})]", "a key of datasets[0].infer_cfg holds '\\udfff'"),
        ("models = []\ndatasets = []\nnote = ['a', ('b', 'c\\ud83d')]", "note[1][1] holds '\\ud83d'"),
    ],
)
def test_a_config_that_no_run_can_use(tmp_path, content, words):
    path = tmp_path / "eval_mine.py"
    path.write_text(content)
    sentence = sentence_of(path)
    assert sentence.startswith(str(path))
    assert words in sentence
    assert "/tmp/wdmoe_plan" not in sentence


def test_no_folder_for_temporary_files(tmp_path, monkeypatch):
    path = tmp_path / "eval_mine.py"
    path.write_text("models = [1]\ndatasets = [1]")

    def full(*others, **more):
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("wdmoe_opencompass.harness.config_errors.tempfile.TemporaryDirectory", full)
    assert "no folder for temporary files can be written" in sentence_of(path)
    assert "TMPDIR" in sentence_of(path)


@pytest.mark.parametrize("content", [c for c in RAISING if "read_base" not in c and "SystemExit" not in c])
def test_verify_names_the_line_too(tmp_path, content):
    """A run's config that somebody changed."""
    for part in ("predictions", "results", "summary", "configs"):
        (tmp_path / part).mkdir()
    (tmp_path / "summary" / "latency.json").write_text("[]")
    path = tmp_path / "configs" / "20260101_000000.py"
    path.write_text(content)
    with pytest.raises(WdmoeError) as caught:
        Run.open(tmp_path)
    line, words = RAISING[content]
    assert str(caught.value).startswith(f"{path}, line {line}: ")
    assert words in str(caught.value)


def test_an_interruption_stays_one(tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_config(tmp_path / "eval_mine.py", interrupted)
    assert sys.getrecursionlimit() >= 1000
