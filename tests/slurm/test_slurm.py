"""The Slurm config on a real cluster of two nodes: eight tasks, one killed by its limit and started again."""

import json
import os
import signal
import subprocess

import pytest

from tests.conftest import ROOT, command, environment
from tests.debian import UnavailableError
from tests.slurm.cluster import NODES, require_slurm, running_cluster
from tests.slurm.stalling import MARKER
from wdmoe_opencompass.trace.format import read_trace

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

MODELS = ["quickstart-vanilla-hf", "quickstart-wdmoe-hf"]
TASKS = ["qs_choice", "qs_twoway", "qs_yesno", "qs_arith"]
STALLED = f"{MODELS[1]}/qs_arith"


def run(config, work_dir, variables):
    """Run the command in a group of its own; -> (time-stamped folder, output)."""
    work_dir.mkdir()
    env = environment(work_dir / "hf") | {"PYTHONPATH": str(ROOT)} | variables
    log = work_dir / "output.txt"
    with log.open("w") as out:
        line = command(ROOT / "tests" / "slurm" / config, work_dir / "outputs")
        process = subprocess.Popen(line, cwd=ROOT, env=env, stdout=out, stderr=out, start_new_session=True)
    try:
        process.wait(420)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    (folder,) = (work_dir / "outputs").iterdir()
    return folder, log.read_text()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    try:
        require_slurm()
    except UnavailableError as reason:
        pytest.skip(str(reason))
    with running_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture(scope="module")
def slurm_run(cluster, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("slurm") / "run"
    marker = {MARKER: str(work_dir / "stalled")}
    folder, output = run("eval_slurm.py", work_dir, cluster.variables | marker)
    assert (folder / "summary" / "latency.json").exists(), output[-3000:] + cluster.logs()
    return folder


@pytest.fixture(scope="module")
def local_run(slurm_run, tmp_path_factory):
    """After the other, not in parallel: a job has only one minute."""
    folder, output = run("eval_local.py", tmp_path_factory.mktemp("local") / "run", {})
    assert (folder / "summary" / "latency.json").exists(), output[-3000:]
    return folder


def infer_jobs(cluster):
    return [job for job in cluster.ended_jobs() if "Infer" in job["Name"]]


def test_slurm_ended_one_of_eight_tasks_at_its_limit_and_the_runner_started_it_again(cluster, slurm_run):
    every = [f"{model}/{task}" for model in MODELS for task in TASKS]
    ended = {state: [] for state in ("TIMEOUT", "COMPLETED")}
    for job in infer_jobs(cluster):
        ended[job["JobState"]].append(job["Name"].split("[")[1].rstrip("]"))
    assert sorted(ended["COMPLETED"]) == sorted(every)
    assert STALLED in ended["TIMEOUT"]  # and none else, unless this machine is too busy for ten seconds of imports
    log = (slurm_run / "logs" / "infer" / f"{STALLED}.out").read_text()
    before, after = log.split("DUE TO TIME LIMIT", 1)
    assert "0/3 [" in before  # batches to go: it went on where the first answers ended
    assert "0/2 [" in after


def test_both_nodes_had_tasks_and_the_rest_waited_in_the_queue(cluster, slurm_run):
    jobs = infer_jobs(cluster)
    assert {job["NodeList"] for job in jobs} == set(NODES)
    assert sum(job["SubmitTime"] < job["StartTime"] for job in jobs) >= len(jobs) / 2


def test_every_task_is_complete(slurm_run):
    for name in (f"{model}/{task}" for model in MODELS for task in TASKS):
        for path in (f"predictions/{name}.json", f"predictions/{name}.trace.safetensors", f"results/{name}.json"):
            assert (slurm_run / path).exists()
    assert json.loads((slurm_run / "summary" / "missing.json").read_text()) == []
    left_over = ("*.trace.part", "tmp_*.jsonl", "*.failed.txt")
    assert [path for pattern in left_over for path in slurm_run.rglob(pattern)] == []


def test_answers_and_traces_are_those_of_the_local_runner(slurm_run, local_run):
    for name in (f"predictions/{model}/{task}" for model in MODELS for task in TASKS):
        ours, theirs = ((run / f"{name}.json").read_text() for run in (slurm_run, local_run))
        assert json.loads(ours) == json.loads(theirs)
        ours, theirs = (read_trace(run / f"{name}.trace.safetensors") for run in (slurm_run, local_run))
        assert ours.metadata == theirs.metadata
        assert all((ours.arrays[key] == theirs.arrays[key]).all() for key in theirs.arrays)


def test_tables_are_those_of_the_local_runner(slurm_run, local_run):
    tables = {path.name for pattern in ("*.json", "*.csv") for path in (local_run / "summary").glob(pattern)}
    carry_times = ("summary_", "manifest", "speed")  # a time stamp, or measured seconds
    tables -= {name for name in tables if name.startswith(carry_times)}
    assert tables >= {"accuracy.json", "latency.json", "items.json", "table_1_accuracy.json", "table_1_accuracy.csv"}
    assert tables >= {f"table_2_latency_layer_per_batch_all.{ending}" for ending in ("json", "csv")}
    for name in tables:
        assert (slurm_run / "summary" / name).read_bytes() == (local_run / "summary" / name).read_bytes(), name
