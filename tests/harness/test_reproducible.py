"""The same tables on one worker or several, in any order of datasets, split or whole."""

import json

import pytest
from mmengine.config import Config

from tests.conftest import opencompass
from tests.harness.kills import CONFIG, different_tables
from wdmoe_opencompass.trace.format import join, read_trace

PARTITIONERS = "wdmoe_opencompass.harness.partitioner."


def changed_config(folder, change):
    """The config of runs that are killed, dumped with types by name, and changed."""
    Config.fromfile(str(CONFIG), format_python_code=False).dump(folder / "dumped.py")
    config = Config.fromfile(str(folder / "dumped.py"), format_python_code=False)
    change(config)
    config.dump(folder / "changed.py")
    return folder / "changed.py"


def one_worker_other_order(config):
    config.datasets = config.datasets[::-1]
    config.infer.runner.max_num_workers = 1
    config.infer.partitioner = dict(type=PARTITIONERS + "WdmoeNaivePartitioner", n=1)


def split_at_batches(config):
    config.infer.partitioner = dict(
        type=PARTITIONERS + "WdmoeNumWorkerPartitioner",
        num_worker=3,
        min_task_size=4,
        batch_size=4,
        force_rebuild=True,
        dataset_size_path="",
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder, output = opencompass(CONFIG, tmp_path_factory.mktemp("whole") / "outputs")
    assert (folder / "summary" / "latency.json").exists(), output[-3000:]
    return folder


@pytest.mark.slow
def test_one_worker_and_another_order_give_the_same_numbers(whole, tmp_path):
    folder, output = opencompass(changed_config(tmp_path, one_worker_other_order), tmp_path / "outputs")
    for name in ("accuracy", "latency", "items", "batches"):
        ours, theirs = (json.loads((run / "summary" / f"{name}.json").read_text()) for run in (folder, whole))
        assert sorted(map(json.dumps, ours)) == sorted(map(json.dumps, theirs)), output[-2000:]


@pytest.mark.slow
def test_split_at_batches_gives_the_traces_and_tables_of_the_whole(whole, tmp_path):
    folder, output = opencompass(changed_config(tmp_path, split_at_batches), tmp_path / "outputs")
    for model in sorted((whole / "predictions").iterdir()):
        for expected in sorted(model.glob("*.trace.safetensors")):
            dataset = expected.name.removesuffix(".trace.safetensors")
            parts = sorted((folder / "predictions" / model.name).glob(f"{dataset}_*.trace.safetensors"))
            assert len(parts) == 3, output[-3000:]
            traces = [read_trace(path) for path in parts]
            if "yesno" in dataset:  # ranked: each part goes through its items once per possible answer
                continue
            joined = join(traces[0].metadata, [trace.arrays for trace in traces])
            for name in ("device_load", "assignments", "weight_sum", "tokens"):
                assert (joined.arrays[name] == read_trace(expected).arrays[name]).all()
    accuracies = [json.loads((run / "summary" / "accuracy.json").read_text()) for run in (folder, whole)]
    assert accuracies[0] == accuracies[1]
    latencies = [json.loads((run / "summary" / "latency.json").read_text()) for run in (folder, whole)]
    for ours, theirs in zip(*latencies, strict=True):
        numbers = [key for key, value in theirs.items() if isinstance(value, float)]
        for key in numbers:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-10)  # passes in another order: sums round otherwise
        assert ours | {key: theirs[key] for key in numbers} == theirs
    names = sorted(path.name for path in (whole / "summary").glob("table_*.csv"))
    assert len(names) > 10
    for name in names:
        assert table_without_files(folder, name) == table_without_files(whole, name)


def table_without_files(folder, name):
    """A table's rows and notes, but for the lines that name how many files of traces there are, and their digest."""
    lines = (folder / "summary" / name).read_text().splitlines()
    return [line for line in lines if "traces of format" not in line]


@pytest.mark.slow
def test_two_equal_runs_write_equal_tables(whole, tmp_path):
    folder, _ = opencompass(CONFIG, tmp_path / "outputs")
    assert different_tables(folder, whole) == []
