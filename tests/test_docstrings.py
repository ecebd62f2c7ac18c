"""Docstrings of public functions of arrays: every parameter is described, arrays with their shape.

The source is read and not imported, so that the check needs neither torch nor OpenCompass.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "wdmoe_opencompass"
CHECKED = ("channel", "allocation", "latency.py", "energy.py", "replay.py", "selection", "placement")
ARRAY = re.compile(r"\b(Array|ArrayLike|NDArray|ndarray|Tensor|DeviceIndex)\b")
ENTRY = r"(?:^|[;.(] ?)\s*(?:\w+, )*{}(?:, \w+)*:\s"  # `name: ...`, or `name, other: ...`


class Function(NamedTuple):
    """A function, and how a failure names it."""

    name: str
    node: ast.FunctionDef


def functions_of(name: str, body: list[ast.stmt]) -> Iterator[Function]:
    """-> the public functions of a module or class body that take or return an array."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from functions_of(f"{name}:{node.name}", node.body)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            annotations = [*(parameter.annotation for parameter in parameters_of(node)), node.returns]
            if any(map(is_array, annotations)):
                yield Function(f"{name}:{node.name}", node)


def parameters_of(node: ast.FunctionDef) -> list[ast.arg]:
    given = node.args
    return [arg for arg in (*given.posonlyargs, *given.args, *given.kwonlyargs) if arg.arg not in ("self", "cls")]


def is_array(annotation: ast.expr | None) -> bool:
    text = "" if annotation is None else ast.unparse(annotation)
    return not text.startswith("Callable") and ARRAY.search(text) is not None


def missing_in(node: ast.FunctionDef) -> list[str]:
    """-> what a function's docstring lacks."""
    text = ast.get_docstring(node) or ""
    missing = []
    for parameter in parameters_of(node):
        entry = re.search(ENTRY.format(parameter.arg), text, re.MULTILINE)
        if entry is None and f"`{parameter.arg}`" not in text:
            missing.append(parameter.arg)
        elif is_array(parameter.annotation):
            described = text[entry.end() :] if entry else text.split(f"`{parameter.arg}`", 1)[1]
            if "[" not in re.split(r"[;\n]", described)[0]:
                missing.append(f"[shape] of {parameter.arg}")
    if is_array(node.returns):
        is_property = any(ast.unparse(decorator).endswith("property") for decorator in node.decorator_list)
        result = text if is_property else text.partition("Returns:")[2]
        if "[" not in result:
            missing.append("[shape]" if is_property else "Returns: [shape]")
    return missing


def checked_functions() -> list[Function]:
    folders = [PACKAGE / name for name in CHECKED]
    files = sorted(file for path in folders for file in ([path] if path.is_file() else path.rglob("*.py")))
    return [
        function
        for file in files
        for function in functions_of(str(file.relative_to(PACKAGE)), ast.parse(file.read_text(encoding="utf-8")).body)
    ]


@pytest.mark.parametrize("function", checked_functions(), ids=lambda function: function.name)
def test_every_parameter_and_result_is_described(function: Function) -> None:
    assert not missing_in(function.node)


COMPLETE = '''
def rate(bandwidth_hz: Array, gain: Array, unit: float) -> Array:
    """Rate of a link.

    bandwidth_hz, gain: [..., devices] Hz, and a linear power gain.
    unit: bit/s.
    Returns: [..., devices] in units of `unit`.
    """
'''


@pytest.mark.parametrize(
    ("old", "new", "missing"),
    [
        ("", "", []),
        ("    unit: bit/s.\n", "", []),  # a name in backticks is enough
        ("bandwidth_hz, gain: [", "bandwidth_hz: [", ["gain"]),
        ("[..., devices] Hz", "Hz", ["[shape] of bandwidth_hz", "[shape] of gain"]),
        ("Returns: [..., devices]", "In bit/s,", ["Returns: [shape]"]),
    ],
)
def test_the_check_finds_what_is_missing(old: str, new: str, missing: list[str]) -> None:
    (function,) = functions_of("example", ast.parse(COMPLETE.replace(old, new)).body)
    assert missing_in(function.node) == missing
