"""Whether the house is in order: `python tools/house.py`, part of `make check`; exits 1 and says where it is not.

The last line is JSON: root_modules, upward_imports, test_imports_test, readme_lines, longest_function, old_words,
dead_links, package_lines, test_lines.
"""

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = "wdmoe_opencompass"
# From the ground up: a room imports from those before it alone.
FLOORS = (
    "errors", "_util", "channel", "latency", "energy", "allocation", "trace", "replay", "selection", "identity",
    "placement", "routing", "simulation", "testbed", "run", "report", "harness", "doctor", "cli",
)  # fmt: skip
MAX_README_LINES, MAX_FUNCTION_LINES = 130, 65
ROOT_MODULES = {"__init__", "errors", "latency", "energy", "replay"}
OLD_NAMES = re.compile(
    r"\b(MOST|LONGEST|LEAST|FEWEST)_[A-Z]\w*|\bis_load\b|\bLab(Client|Error|Fit|Device)\b|\bfor one in\b"
    r"|\b(OtherVersion|NotReadableNow|DatasetIsRunning|TaskFailed|OnSaw|[Kk]nobs?|[Ss]tretched|[Aa]new|[Bb]eside)\b"
    r"|\b[Ss]o many\b|\bstands?\b|\bdef (fitted|drawn|placed|looked|compared)\b"
)


def python_files(folder: str) -> Iterator[Path]:
    """Every Python file of a folder that people wrote."""
    return (path for path in sorted((ROOT / folder).rglob("*.py")) if not path.name.endswith("_pb2.py"))


def find_imports(path: Path) -> Iterator[tuple[int, str]]:
    """-> (line, absolute module) of every import in a file; `from package import name` gives package.name."""
    folder = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = folder[: len(folder) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{name.name}") for name in node.names)


def upward_imports() -> list[str]:
    """Imports from a room that is on a higher floor than the importing one."""
    found = []
    for path in python_files(PACKAGE):
        room = path.relative_to(ROOT / PACKAGE).with_suffix("").parts[0]
        for line, module in find_imports(path):
            target = module.split(".")[1] if module.startswith(f"{PACKAGE}.") else room
            if {room, target} <= set(FLOORS) and FLOORS.index(target) > FLOORS.index(room):
                found.append(f"{path.relative_to(ROOT)}:{line} imports {module}, a floor above")
    return found


def test_imports_test() -> list[str]:
    """Imports of one test module by another file."""
    files = [*python_files("tests"), *python_files("benchmarks")]
    lines = ((path, line, module) for path in files for line, module in find_imports(path))
    return [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path, line, module in lines
        if module.startswith("tests.") and any(part.startswith("test_") for part in module.split(".")[:-1])
    ]


def old_words() -> list[str]:
    """Names that were replaced, in code and docs."""
    files = [*python_files(PACKAGE), *python_files("tests"), *python_files("benchmarks"), *(ROOT / "docs").glob("*.md")]
    return [
        f"{path.relative_to(ROOT)}:{number} says {match[0]}"
        for path in [*files, *(ROOT / PACKAGE).rglob("*.js"), ROOT / "README.md"]
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for match in OLD_NAMES.finditer(line)
    ]


def dead_links() -> list[str]:
    """Relative links of the pages that are not in the site (`make site` checks those of docs/)."""
    return [
        f"{path.name} links to {target}, which is not there"
        for path in sorted(ROOT.glob("*.md"))
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text())
        if not (ROOT / target).exists()
    ]


def function_lengths() -> dict[str, int]:
    """-> lines of every function, docstring included, by where it is."""
    return {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path in python_files(PACKAGE)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }


def lines_of(folder: str) -> int:
    """Lines of Python and JavaScript, generated files left out."""
    scripts = (path for path in (ROOT / folder).rglob("*.js") if "node_modules" not in path.parts)
    return sum(len(path.read_text().splitlines()) for path in [*python_files(folder), *scripts])


def main() -> int:
    """Print what is out of order, then the figures."""
    modules = {path.stem for path in (ROOT / PACKAGE).glob("*.py")}
    upward, tests, words, links = upward_imports(), test_imports_test(), old_words(), dead_links()
    wrong = [f"{PACKAGE}/{name}.py does not belong at the package's root" for name in sorted(modules - ROOT_MODULES)]
    wrong += [*upward, *tests, *words, *links]
    readme_lines, lengths = len((ROOT / "README.md").read_text().splitlines()), function_lengths()
    wrong += [f"{where} has {lines} lines" for where, lines in lengths.items() if lines > MAX_FUNCTION_LINES]
    wrong += [f"README.md has {readme_lines} lines"] if readme_lines > MAX_README_LINES else []
    print(*wrong, sep="\n", end="\n" if wrong else "")
    figures = dict(
        root_modules=len(modules),
        upward_imports=len(upward),
        test_imports_test=len(tests),
        readme_lines=readme_lines,
        longest_function=max(lengths.values()),
        old_words=len(words),
        dead_links=len(links),
        package_lines=lines_of(PACKAGE),
        test_lines=lines_of("tests"),
    )
    print(json.dumps(figures))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
