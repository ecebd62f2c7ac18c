"""Every check of the doctor is made to fail once, by the facts it would find."""

import errno
import fcntl
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.conftest import ROOT
from wdmoe_opencompass.doctor import config as its_config
from wdmoe_opencompass.doctor import examine, folders, host, machine, packages
from wdmoe_opencompass.doctor.machine import Gpu, TorchFacts
from wdmoe_opencompass.errors import ModelError, WdmoeError

H100 = Gpu("NVIDIA H100", 79_000_000_000, 85_000_000_000)
HEALTHY = TorchFacts("2.13.0", "13.0", True, True, (H100, H100))
REQUIRES = [
    "numpy<2,>=1.26",
    "pyarrow<22",
    "opencompass>=0.5.4; extra == 'opencompass'",
    "torch>=2.10; extra == 'opencompass'",
    "torchao>=0.15; extra == 'quantised'",
    "build; extra == 'test'",
]
INSTALLED = {
    "numpy": "1.26.4",
    "opencompass": "0.5.4",
    "pyarrow": "21.0.0",
    "torch": "2.13.0+cpu",
    "torchao": "0.18.0",
}


def only(findings):
    assert len(findings) == 1, findings
    return findings[0]


def statuses(findings):
    return [(finding.check, finding.status) for finding in findings]


@pytest.fixture
def installed(monkeypatch):
    """Pretend that these versions are installed; change the dict to change what is there."""
    there = dict(INSTALLED)

    def version(name):
        if name not in there:
            raise importlib.metadata.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: REQUIRES)
    return there


# -- packages ------------------------------------------------------------------------------------------------------
def test_python_outside_the_range_is_a_problem():
    assert only(packages.check_python("3.11.9")).status == "ok"
    finding = only(packages.check_python("3.13.1"))
    assert (finding.status, "3.13.1 is outside" in finding.found) == ("problem", True)


def test_versions_within_their_ranges_are_fine(installed):
    assert only(packages.check_requirements()).found == "all 4 required packages are within their ranges"
    assert statuses(packages.check_optional()) == [("torchao", "ok")]


@pytest.mark.parametrize(
    ("name", "version", "found", "fix"),
    [
        ("numpy", "2.1.0", "OpenCompass 0.5.4 itself needs NumPy below 2", "pip install 'numpy<2,>=1.26'"),
        ("pyarrow", "22.0.0", "pyarrow 22 and later need NumPy 2", "pip install 'pyarrow<22'"),
        ("torch", "2.8.0", "torch 2.8.0 is outside >=2.10", "pip install 'torch>=2.10'"),
        ("torch", "of my own", "torch of my own is outside", "pip install 'torch>=2.10'"),
        ("torch", None, "torch is not installed", "pip install 'torch>=2.10'"),
        ("opencompass", None, "OpenCompass is not installed", "pip install 'wdmoe_opencompass[opencompass]'"),
    ],
)
def test_a_package_outside_its_range_is_a_problem_with_the_command(installed, name, version, found, fix):
    installed.pop(name)
    if version is not None:
        installed[name] = version
    finding = only(packages.check_requirements())
    assert (finding.status, finding.fix) == ("problem", fix)
    assert found in finding.found


def test_missing_metadata_of_the_plugin_is_a_problem(installed, monkeypatch):
    def unknown(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", unknown)
    monkeypatch.setattr(importlib.metadata, "metadata", unknown)
    finding = only(packages.check_requirements())
    assert (finding.status, "is not installed here" in finding.found) == ("problem", True)
    assert packages.check_optional() == packages.check_python() == []


@pytest.mark.parametrize(("version", "found"), [(None, "is not installed"), ("0.14", "0.14 is outside >=0.15")])
def test_an_optional_package_is_a_warning(installed, version, found):
    installed.pop("torchao")
    if version is not None:
        installed["torchao"] = version
    finding = only(packages.check_optional())
    assert (finding.check, finding.status, finding.fix) == ("torchao", "warning", "pip install 'torchao>=0.15'")
    assert found in finding.found


# -- the machine ---------------------------------------------------------------------------------------------------
def test_torch_of_this_environment_tells_its_facts():
    facts = machine.torch_facts()
    assert isinstance(facts, TorchFacts)
    assert facts.grouped_mm
    assert facts.version.startswith("2.")


def test_a_torch_that_crashes_is_a_problem(monkeypatch):
    monkeypatch.setattr(machine, "TORCH_PROBE", "raise ImportError('libcudart.so.13: cannot open')")
    finding = only(machine.check_torch(machine.torch_facts(), nvidia_gpu=False))
    assert (finding.status, "libcudart.so.13" in finding.found) == ("problem", True)
    monkeypatch.setattr(machine, "TORCH_PROBE", "import os; os.abort()")
    assert "ended with -6" in only(machine.check_torch(machine.torch_facts(), nvidia_gpu=False)).found
    monkeypatch.setattr(machine, "TORCH_PROBE", "import time; time.sleep(60)")
    monkeypatch.setattr(machine, "PROBE_S", 0.5)
    assert "did not import within" in only(machine.check_torch(machine.torch_facts(), nvidia_gpu=False)).found


@pytest.mark.parametrize(
    ("changed", "nvidia_gpu", "expected", "found"),
    [
        ({}, True, [("torch", "ok")], "built for CUDA 13.0"),
        (dict(cuda=None, cuda_works=False), False, [("torch", "ok")], "CPU build"),
        (dict(cuda=None, cuda_works=False), True, [("torch", "problem")], "is a CPU build, and this machine has"),
        (dict(cuda_works=False), True, [("torch", "problem")], "cannot use this machine's GPU"),
        (dict(grouped_mm=False), True, [("torch", "ok"), ("grouped_mm", "warning")], "built for"),
    ],
)
def test_the_build_of_torch_against_the_machine(changed, nvidia_gpu, expected, found):
    findings = machine.check_torch(TorchFacts(**vars(HEALTHY) | changed), nvidia_gpu)
    assert statuses(findings) == expected
    assert found in findings[0].found


@pytest.mark.parametrize(
    ("gpus", "status", "found"),
    [
        ((H100, H100), "ok", "bfloat16 (93.4 GB) fits, int8 (46.7 GB) fits"),
        ((H100,), "ok", "bfloat16 (93.4 GB) does not fit, int8 (46.7 GB) fits"),
        ((Gpu("RTX 4090", 24_000_000_000, 25_000_000_000),), "warning", "int8 (46.7 GB) does not fit"),
        ((), "warning", "no GPU that torch can use"),
    ],
)
def test_whether_mixtral_fits(gpus, status, found):
    finding = only(machine.check_gpus(TorchFacts(**vars(HEALTHY) | dict(gpus=gpus))))
    assert (finding.status, found in finding.found) == (status, True)


def test_the_size_of_mixtral_is_that_of_its_architecture():
    layer = 4096 * (4096 + 2 * 1024 + 4096) + 8 * 3 * 4096 * 14336 + 8 * 4096 + 2 * 4096
    assert 32 * layer + 2 * 32000 * 4096 + 4096 == machine.MIXTRAL_PARAMETERS


def test_little_memory_is_a_warning():
    assert only(machine.check_memory(1_500_000_000)).status == "warning"
    assert only(machine.check_memory(machine.available_memory_bytes())).check == "memory"


# -- folders -------------------------------------------------------------------------------------------------------
def test_a_folder_that_can_be_written_is_fine(tmp_path):
    findings = folders.check_work_dir(tmp_path / "outputs" / "later")
    assert statuses(findings) == [("work folder", "ok"), ("disk", "ok"), ("locks", "ok")]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_problem(monkeypatch):
    finding = only(folders.check_work_dir(Path("/proc/outputs")))
    assert (finding.status, "/proc/outputs: cannot be written: /proc: " in finding.found) == ("problem", True)


@pytest.mark.parametrize("refused", [True, False])
def test_locks_that_do_not_hold_are_a_warning(tmp_path, monkeypatch, refused):
    def flock(file, how):
        if refused:
            raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    *_, locks = folders.check_work_dir(tmp_path)
    expected = "knows no locks: No locks available" if refused else "two can hold the same lock"
    assert (locks.check, locks.status, expected in locks.found) == ("locks", "warning", True)


@pytest.mark.parametrize(("free", "status"), [(10**6, "problem"), (10**9, "warning"), (10**11, "ok")])
def test_room_on_the_disk(free, status):
    assert only(folders.check_room(Path("/tmp"), free)).status == status


@pytest.fixture
def no_data(tmp_path, monkeypatch):
    """A folder and a home without any data."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("COMPASS_DATA_CACHE", raising=False)
    monkeypatch.delenv("DATASET_SOURCE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_missing_benchmarks_are_named_with_their_places(no_data, monkeypatch):
    finding = only(folders.check_data())
    assert (finding.status, finding.found.count("data/")) == ("warning", 8)
    for path in folders.BENCHMARKS.values():
        (no_data / path).mkdir(parents=True)
    assert only(folders.check_data()).status == "ok"
    (no_data / "data" / "gsm8k").rmdir()
    assert only(folders.check_data()).found == f"not in {no_data}: GSM8K (data/gsm8k)"
    (no_data / "home" / ".cache" / "opencompass" / "data" / "gsm8k").mkdir(parents=True)
    assert only(folders.check_data()).status == "ok"
    monkeypatch.setenv("COMPASS_DATA_CACHE", str(no_data / "nowhere"))
    assert "no such folder" in only(folders.check_data()).found
    monkeypatch.setenv("COMPASS_DATA_CACHE", str(no_data))
    assert only(folders.check_data()).status == "ok"
    monkeypatch.setenv("DATASET_SOURCE", "ModelScope")
    assert "DATASET_SOURCE=ModelScope" in only(folders.check_data()).found


def test_the_places_are_those_of_opencompass():
    from opencompass.utils.datasets_info import DATASETS_MAPPING

    known = {os.path.normpath(dataset["local"]) for dataset in DATASETS_MAPPING.values()}
    assert set(folders.BENCHMARKS.values()) <= known


def test_the_hugging_face_cache(tmp_path):
    assert only(folders.check_huggingface(tmp_path / "hub", offline=False)).status == "ok"
    assert only(folders.check_huggingface(tmp_path, offline=True)).status == "ok"
    assert only(folders.check_huggingface(tmp_path / "hub", offline=True)).status == "warning"


def test_a_cache_that_cannot_be_written_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, how: False)
    assert only(folders.check_huggingface(tmp_path / "hub", offline=False)).status == "problem"


def test_the_cache_is_where_hugging_face_looks(tmp_path):
    script = "from wdmoe_opencompass.doctor.folders import huggingface_settings; print(*huggingface_settings())"
    environment = os.environ | dict(HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == [str(tmp_path / "hub"), "True"]


# -- OpenCompass's command -----------------------------------------------------------------------------------------
def test_the_command_of_this_environment_is_fine(monkeypatch):
    here = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{here}:/usr/bin")
    assert only(host.check_command()).status == "ok"


def test_a_command_of_another_environment_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no command opencompass on PATH" in only(host.check_command()).found
    script = tmp_path / "opencompass"
    script.write_text("#!/somewhere/else/bin/python\n")
    script.chmod(0o755)
    finding = only(host.check_command())
    assert (finding.status, "belongs to another Python" in finding.found) == ("problem", True)
    script.write_text(f"#!{sys.executable}\n")
    assert only(host.check_command()).status == "ok"


def test_a_fresh_process_that_cannot_import_is_a_problem(monkeypatch):
    monkeypatch.setattr(host, "IMPORTS", "import wdmoe_opencompass.no_such_module")
    finding = only(host.check_import())
    assert (finding.status, "No module named" in finding.found) == ("problem", True)
    with monkeypatch.context() as impatient:
        impatient.setattr(host, "IMPORTS", "import time; time.sleep(60)")
        impatient.setattr(host, "IMPORT_S", 0.5)
        assert "did not import within" in only(host.check_import()).found
    monkeypatch.setattr(host, "IMPORTS", "pass")
    assert only(host.check_import()).status == "ok"


# -- a config ------------------------------------------------------------------------------------------------------
def test_a_torn_shard_is_a_problem(tmp_path):
    path = tmp_path / "model-00001-of-00001.safetensors"
    save_file(dict(a=np.zeros(100)), path)
    assert only(its_config.check_weights(tmp_path, "org/model")).status == "ok"
    whole = path.read_bytes()
    for torn in (whole[:-1], whole + b"x", whole[:20], b"", b"version https://git-lfs.github.com/spec/v1\n" * 3):
        path.write_bytes(torn)
        finding = only(its_config.check_weights(tmp_path, "org/model"))
        assert (finding.check, finding.status) == ("weights", "problem")
        assert finding.fix == "hf download org/model --force-download"
    header = b"[1]"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert "its header cannot be read" in only(its_config.check_weights(tmp_path, str(tmp_path))).found


def test_a_garbage_index_is_one_sentence(tmp_path):
    from wdmoe_opencompass._util.checkpoint_files import missing_files

    for garbage in ("[]", "{", '{"weight_map": [1]}'):
        (tmp_path / "model.safetensors.index.json").write_text(garbage)
        with pytest.raises(ModelError, match=r"index\.json: not an index of weights"):
            missing_files(tmp_path)


def test_problems_of_the_plan_become_findings(monkeypatch):
    from wdmoe_opencompass.harness.plan import make as plans

    plan = plans.Plan("eval.py")
    plan.problems = ["model m: weights missing: x; get them with: hf download m", "models: the abbr m occurs twice"]
    monkeypatch.setattr(plans, "make_plan", lambda config: plan)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    first, second = its_config.check_config(Path("eval.py"))
    assert (first.status, first.found) == ("problem", "model m: weights missing: x")
    assert first.fix == "unset HF_HUB_OFFLINE, then get them with: hf download m"
    assert second.fix == "change eval.py; wdmoe plan shows all of it"
    plan.problems = []
    assert only(its_config.check_config(Path("eval.py"))).status == "ok"


def test_a_broken_opencompass_still_gets_an_answer(monkeypatch, tmp_path):
    def broken(config):
        raise ImportError("numpy.core.multiarray failed to import")

    monkeypatch.setattr(its_config, "check_config", broken)
    monkeypatch.setattr(host, "IMPORTS", "import no_such_module")
    monkeypatch.setattr(machine, "torch_facts", lambda: HEALTHY)
    findings = examine(ROOT / "eval_configs" / "eval_quickstart.py", tmp_path)
    problems = {finding.check for finding in findings if finding.status == "problem"}
    assert {"import", "config"} <= problems
    with pytest.raises(WdmoeError, match="no such config file"):
        examine(tmp_path / "eval.py", tmp_path)


@pytest.mark.slow
def test_the_command_exits_1_if_there_is_a_problem(tmp_path):
    arguments = ["doctor", "--json", "-w", "/proc/outputs"]
    wdmoe = Path(sys.executable).with_name("wdmoe")
    variables = os.environ | {"PATH": f"{wdmoe.parent}{os.pathsep}{os.environ['PATH']}"}  # as an activated environment
    done = subprocess.run([wdmoe, *arguments], capture_output=True, text=True, cwd=tmp_path, env=variables)
    answer = json.loads(done.stdout)
    assert done.returncode == 1, done.stderr
    assert answer["problems"] == 1, answer
    assert {"check", "status", "found", "fix"} == set(answer["findings"][0])
    assert all((finding["status"] == "ok") == (finding["fix"] is None) for finding in answer["findings"])
