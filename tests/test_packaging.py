import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_wheel_holds_profiles_and_works_from_another_folder(tmp_path):
    """Built from a copy without .git, as a source archive is, and imported from an unrelated folder."""
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "dist", ROOT], check=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", wheel], check=True)
    site = Path(next(p for p in sys.path if p.endswith("site-packages")))
    code = "import wdmoe_opencompass as w; print(w.__file__); print(w.load_profile('paper_8_devices').content_hash)"
    # the heavy dependencies come from this environment, our package from the wheel alone
    wheel_site = next((tmp_path / "venv").glob("lib/*/site-packages"))
    done = subprocess.run(
        [python, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{wheel_site}:{site}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(tmp_path) in done.stdout.splitlines()[0]
