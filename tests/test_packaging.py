import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment
from wdmoe_opencompass.report.html.page import PARTS

OPENCOMPASS = "from opencompass.cli.main import main; main()"


@pytest.fixture(scope="module")
def wheel_environment(tmp_path_factory):
    """-> (python, environment variables): our package from a built wheel, the heavy dependencies from this one."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", folder / "dist", ROOT], check=True)
    (wheel,) = (folder / "dist").glob("*.whl")
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
