"""Folders that scoring writes to: looked at by `doctor` and `plan`, and found elsewhere when a run starts."""

import os
import sys
from pathlib import Path

import pytest

from wdmoe_opencompass._util import caches
from wdmoe_opencompass.doctor import folders
from wdmoe_opencompass.errors import WdmoeError
from wdmoe_opencompass.harness import evaluation_needs
from wdmoe_opencompass.harness.eval_task import WdmoeEvalTask
from wdmoe_opencompass.harness.partitioner import WdmoeNaivePartitioner
from wdmoe_opencompass.harness.plan.facts import Plan

NOWHERE = "/proc/none"  # root cannot write there either
VARIABLES = [cache.variable for cache in caches.CACHES]
ELSEWHERE = {  # variables of an environment -> the caches that cannot be written in it
    "HOME": (dict(HOME=NOWHERE), VARIABLES),
    "HF_HOME": (dict(HF_HOME=NOWHERE), VARIABLES),
    "XDG_CACHE_HOME": (dict(XDG_CACHE_HOME=NOWHERE), VARIABLES),
    "modules": (dict(HF_MODULES_CACHE=NOWHERE), ["HF_MODULES_CACHE"]),
    "metrics": (dict(HF_METRICS_CACHE=NOWHERE), ["HF_METRICS_CACHE"]),
    "datasets": (dict(HF_DATASETS_CACHE=f"{NOWHERE}/datasets"), ["HF_DATASETS_CACHE"]),
    "evaluate": (dict(HF_EVALUATE_CACHE=NOWHERE), ["HF_EVALUATE_CACHE"]),
    "a file": (dict(HF_HOME=__file__), VARIABLES),
    "all but one": (dict(HOME=NOWHERE, HF_DATASETS_CACHE="here"), VARIABLES[:3]),
    "home of none": (dict(HOME=NOWHERE, HF_HOME="here"), []),
    "a zero-length home": (dict(HOME="/dev/null"), VARIABLES),
}


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    """A home that can be written, and nothing set; what a test changes in the libraries is taken back."""
    for variable in ("HF_HOME", "XDG_CACHE_HOME", "HF_HUB_OFFLINE", "HF_EVALUATE_OFFLINE", *VARIABLES):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for cache in caches.CACHES:
        for module, name, _ in cache.attributes:
            if hasattr(sys.modules.get(module), name):
                monkeypatch.setattr(sys.modules[module], name, getattr(sys.modules[module], name))
    yield
    for variable in VARIABLES:  # set by `use_writable`, not by monkeypatch
        os.environ.pop(variable, None)


@pytest.fixture(params=ELSEWHERE, name="unwritable")
def unwritable_caches(request, monkeypatch):
    settings, variables = ELSEWHERE[request.param]
    for variable, value in settings.items():
        monkeypatch.setenv(variable, value)
    return settings, variables


@pytest.mark.slow
@pytest.mark.parametrize("settings", [dict(HF_HOME="~/x", HF_DATASETS_CACHE="/tmp/z"), dict(XDG_CACHE_HOME="/tmp/y")])
def test_the_folders_are_those_of_the_libraries(settings):
    """Read of the environment as datasets and evaluate read it: a fresh process is asked."""
    import subprocess

    script = (
        "import datasets.config, evaluate.config; from wdmoe_opencompass._util import caches\n"
        "for cache in caches.CACHES:\n"
        "    for module, name, below in cache.attributes[:1]:\n"
        "        print(str(getattr(__import__('sys').modules[module], name)) == str(cache.folder))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | settings)
    assert done.stdout.split() == ["True"] * len(caches.CACHES), done


def test_what_cannot_be_written_is_found_and_moved(unwritable, tmp_path):
    _, variables = unwritable
    assert [cache.variable for cache in caches.unwritable()] == variables
    said = caches.use_writable(tmp_path / "run")
    assert [sentence.split()[0] for sentence in said] == variables
    for cache in caches.CACHES:
        if cache.variable in variables:
            folder = tmp_path / "run" / "caches" / cache.below
            assert folder.is_dir()
            assert os.environ[cache.variable] == str(folder)  # for the processes that this one starts
            for module, name, below in cache.attributes:  # and for what it has imported
                if hasattr(sys.modules.get(module), name):
                    assert Path(getattr(sys.modules[module], name)) == folder / below
    assert caches.unwritable() == {}
    assert caches.use_writable(tmp_path / "run") == []  # said once


def test_a_metric_is_scored_without_a_home(unwritable, tmp_path, monkeypatch):
    """OpenCompass's own evaluator, which loads its metric's code and keeps what it scores in these folders."""
    from opencompass.openicl.icl_evaluator import AccEvaluator

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    caches.use_writable(tmp_path / "run")
    assert AccEvaluator().score(["A", "B", "C"], ["A", "B", "B"])["accuracy"] == pytest.approx(200 / 3)


def test_prepared_metrics_are_taken_along(tmp_path, monkeypatch):
    there = tmp_path / "shared" / "modules"
    (there / "evaluate_modules").mkdir(parents=True)
    (there / "evaluate_modules" / "metric.py").write_text("x = 1")
    monkeypatch.setenv("HF_MODULES_CACHE", str(there))
    monkeypatch.setattr(caches.Cache, "why_not", lambda self: "read-only" if self.folder == there else None)
    caches.use_writable(tmp_path / "run")
    assert (tmp_path / "run" / "caches" / "modules" / "evaluate_modules" / "metric.py").read_text() == "x = 1"


def test_where_nothing_can_be_written_the_run_is_refused_at_its_start(monkeypatch):
    monkeypatch.setenv("HOME", NOWHERE)
    with pytest.raises(WdmoeError, match=r"nor could /proc/none/run/caches/\w+ be made: .*; set HF_HOME to a folder"):
        caches.use_writable(Path(NOWHERE) / "run")
    with pytest.raises(SystemExit, match=r"error: .*set HF_HOME"):
        WdmoeNaivePartitioner(out_dir="x").partition([], work_dir=f"{NOWHERE}/run", out_dir="x")


def test_the_first_process_of_a_run_moves_them_for_all(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HOME", NOWHERE)
    assert WdmoeNaivePartitioner(out_dir="x").partition([], work_dir=str(tmp_path / "run"), out_dir="x") == []
    assert os.environ["HF_METRICS_CACHE"] == str(tmp_path / "run" / "caches" / "metrics")
    assert "HF_METRICS_CACHE (answers being scored): /proc/none" in caplog.text
    assert f"{tmp_path}/run/caches/metrics is used instead" in caplog.text


def test_what_is_tried_for_a_plan_is_taken_back(tmp_path, monkeypatch):
    import evaluate.config

    monkeypatch.setenv("HOME", NOWHERE)
    before = dict(os.environ), evaluate.config.HF_METRICS_CACHE
    with caches.writable_for_now(tmp_path / "try"):
        assert tmp_path / "try" / "caches" / "metrics" == evaluate.config.HF_METRICS_CACHE
    assert (dict(os.environ), evaluate.config.HF_METRICS_CACHE) == before


# -- doctor and plan -----------------------------------------------------------------------------------------------
def test_doctor_says_which_folder_and_which_variable(unwritable):
    settings, variables = unwritable
    (finding,) = folders.check_caches()
    if not variables:
        assert (finding.status, finding.fix) == ("ok", None)
        return
    assert finding.status == "warning"
    for variable in variables:
        assert variable in finding.found
    assert next(iter(settings.values())) in finding.found
    own = [variable for variable in variables if variable in settings]
    assert finding.fix == f"set {', '.join(own) or 'HF_HOME'} to a folder that can be written"


@pytest.mark.parametrize(
    ("kinds", "is_problem"),
    [([WdmoeNaivePartitioner, None, None], False), ([None, None, WdmoeEvalTask], False), ([None, object, None], True)],
)
def test_a_plan_says_it_too(monkeypatch, kinds, is_problem):
    monkeypatch.setenv("HOME", NOWHERE)
    plan = Plan("eval.py")
    evaluation_needs.check_caches(kinds, plan)
    (sentence,) = plan.problems if is_problem else plan.notes
    assert "HF_METRICS_CACHE (/proc/none/.cache/huggingface/metrics" in sentence
    assert "set HF_HOME to a folder that can be written" in sentence
    assert len([*plan.problems, *plan.notes]) == 1
    monkeypatch.setenv("HOME", "/tmp")
    evaluation_needs.check_caches(kinds, plan)
    assert len([*plan.problems, *plan.notes]) == 1


@pytest.mark.parametrize(
    ("metric", "offline", "kind"),
    [
        ("accuracy", "1", None),  # OpenCompass brings it along
        ("matthews_correlation", "1", "problems"),
        ("matthews_correlation", "0", "notes"),
        ("no_such_metric_at_all", "1", "problems"),
    ],
)
def test_a_metric_that_is_not_here_is_said_before_a_run(monkeypatch, metric, offline, kind):
    from opencompass.openicl.icl_evaluator.icl_hf_evaluator import HuggingfaceEvaluator

    from wdmoe_opencompass.harness.plan.offline import no_network

    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    plan = Plan("eval.py")
    with no_network():
        evaluation_needs.check_metric(HuggingfaceEvaluator(metric), "bench", plan)
        evaluation_needs.check_metric(object(), "another", plan)
    said = dict(problems=plan.problems, notes=plan.notes)
    assert [name for name, sentences in said.items() if sentences] == ([kind] if kind else [])
    if kind:
        assert said[kind][0].startswith(f"bench: its metric {metric} is not on this machine")


def test_a_metric_that_lacks_a_package_is_said_before_a_run(monkeypatch):
    from opencompass.openicl.icl_evaluator.icl_hf_evaluator import HuggingfaceEvaluator

    def lacking(path):
        raise ImportError("To be able to use it, you need to install the following dependencies['rouge_score']")

    monkeypatch.setattr(evaluation_needs.evaluate, "load", lacking)
    plan = Plan("eval.py")
    evaluation_needs.check_metric(HuggingfaceEvaluator("rouge"), "bench", plan)
    assert plan.problems == ["bench: its evaluator lacks a package: " + str(plan.problems[0].partition("package: ")[2])]
    assert "rouge_score" in plan.problems[0]


def test_doctor_looks_at_the_current_folder_and_temporary_files(tmp_path, monkeypatch):
    assert [finding.status for finding in (*folders.check_current_folder(), *folders.check_temporary())] == ["ok", "ok"]
    (tmp_path / "tmp").write_text("a file where OpenCompass makes a folder")
    (finding,) = folders.check_current_folder()
    assert finding.status == "problem"
    assert "tmp: cannot be written: a file, not a folder" in finding.found

    def full():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(folders.tempfile, "gettempdir", full)
    (finding,) = folders.check_temporary()
    assert (finding.status, finding.fix) == ("problem", "set TMPDIR to a folder that can")


def test_a_user_without_a_home(monkeypatch):
    """A container's number of a user that no one has named: Python finds no home, OpenCompass goes on."""

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert folders.check_data()
