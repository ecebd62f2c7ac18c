"""Measured times: what is written is read, torn blocks are forgotten, every batch counts once."""

import json

import numpy as np
import pytest
from safetensors.numpy import save

from tests.testbed.synthetic import (
    layer_times,
    measured_times,
    random_loads,
    times_block,
    times_metadata,
    trace_beside,
)
from wdmoe_opencompass._util.checksummed_safetensors import write_sealed
from wdmoe_opencompass.errors import TraceError
from wdmoe_opencompass.trace.times import (
    METADATA_KEY,
    PARTS,
    TIMES_VERSION,
    LayerTimes,
    TimesJournal,
    TimesRecorder,
    check_belongs,
    join_times,
    read_times,
    write_times,
)


def block(number):
    return times_block(4 * number, random_loads(number))


def journal(tmp_path, **changes):
    return TimesJournal(tmp_path / "d.times.part", times_metadata(**changes))


def begun(tmp_path, batches):
    growing = journal(tmp_path)
    growing.resume(0)
    for number in range(batches):
        growing.append(block(number))
    return growing


def equal(a, b):
    return a.metadata == b.metadata and all(np.array_equal(a.arrays[n], b.arrays[n]) for n in b.arrays)


def test_sealed_times_read_back_as_the_joined_batches(tmp_path):
    begun(tmp_path, 3).seal(tmp_path / "d.times.safetensors")
    read = read_times(tmp_path / "d.times.safetensors")
    assert equal(read, join_times(times_metadata(), [block(n) for n in range(3)]))
    assert read.batch.tolist() == [0, 0, 1, 1, 2, 2]
    assert read.pass_index.tolist() == [0, 1, 0, 1, 0, 1]
    assert not (tmp_path / "d.times.part").exists()


def test_messages_read_back_as_they_were_measured():
    times = join_times(times_metadata(), [block(5)])
    measured = [
        times for of_pass in random_loads(5) for layer, row in enumerate(of_pass) for times in layer_times(layer, row)
    ]
    assert len(times.layer_times()) == len(measured)
    for ours, theirs in zip(times.layer_times(), measured, strict=True):
        assert ours[:3] == theirs[:3]
        assert ours[3:] == pytest.approx(theirs[3:], rel=1e-6)


def test_several_messages_of_a_device_in_a_layer_add_up():
    recorder = TimesRecorder(2, 2)
    recorder.begin_pass(7)
    recorder.add([LayerTimes(1, 0, 3, 1, 2, 3, 4, 10, 12), LayerTimes(1, 0, 4, 1, 1, 1, 1, 5, 14)])
    recorder.add_waiting(0, 0.5)
    found = recorder.finish_batch(0, 1)
    assert found["tokens"][0].tolist() == [[0, 0], [7, 0]]
    assert [found[name][0, 1, 0] for name in PARTS] == [2, 3, 4, 5, 15]
    assert found["waiting_s"].tolist() == [[0.5, 14]]
    with pytest.raises(RuntimeError, match="without any forward pass"):
        recorder.finish_batch(0, 1)


@pytest.mark.parametrize("cut", [1, 40, 300])
def test_a_torn_last_block_is_forgotten_and_the_batch_measured_again_counts_once(tmp_path, cut):
    growing = begun(tmp_path, 3)
    content = growing.path.read_bytes()
    growing.path.write_bytes(content[:-cut])
    assert len(growing.read_or_none().items) == 2
    again = journal(tmp_path)
    again.resume(8)
    again.append(block(2))
    again.seal(tmp_path / "d.times.safetensors")
    assert equal(
        read_times(tmp_path / "d.times.safetensors"), join_times(times_metadata(), [block(n) for n in range(3)])
    )


def test_batches_whose_answers_were_not_kept_are_forgotten(tmp_path):
    begun(tmp_path, 3)
    again = journal(tmp_path)
    again.resume(4)
    again.append(block(1))
    assert again.seal(tmp_path / "d.times.safetensors").first_item.tolist() == [0, 4]


def test_answers_without_times_are_refused(tmp_path):
    begun(tmp_path, 1)
    with pytest.raises(TraceError, match="knows 4 of the 8 items"):
        journal(tmp_path).resume(8)
    with pytest.raises(TraceError, match="knows 0 of the 4 items"):
        journal(tmp_path, policy="bottleneck").resume(4)  # of another run


def test_a_file_that_is_no_journal_is_refused(tmp_path):
    path = tmp_path / "d.times.part"
    path.write_bytes(b"rubbish")
    assert TimesJournal(path).read_or_none() is None
    with pytest.raises(TraceError, match="not a journal of measured times, or torn"):
        TimesJournal(path).seal(tmp_path / "x")


def write_changed(path, change):
    times = measured_times(batches=1)
    arrays = dict(times.arrays)
    metadata = json.loads(times.metadata.model_dump_json())
    change(arrays, metadata)
    write_sealed(path, arrays, {METADATA_KEY: json.dumps(metadata)})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda a, m: a.pop("queue_s"), "array queue_s is missing"),
        (lambda a, m: a.update(tokens=a["tokens"][:1]), r"array tokens must be int32 \[2, \(3, 4\)\]"),
        (lambda a, m: a.update(send_s=a["send_s"].astype("float64")), "array send_s must be float32"),
        (lambda a, m: a.update(total_s=-a["total_s"]), "array total_s must be finite and >= 0"),
        (lambda a, m: a.update(waiting_s=a["waiting_s"] * np.float32("nan")), "array waiting_s must be finite"),
        (lambda a, m: a.update(batch=a["batch"] + 5), "batch numbers are out of range"),
        (lambda a, m: m.update(format_version=9), f"format_version must be {TIMES_VERSION}, got 9"),
        (lambda a, m: m.pop("layers"), "metadata layers: Field required"),
    ],
)
def test_bad_files_get_one_sentence(tmp_path, change, sentence):
    path = tmp_path / "d.times.safetensors"
    write_changed(path, change)
    with pytest.raises(TraceError, match=sentence) as caught:
        read_times(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"rubbish" * 9, save({"a": np.zeros(2)}), None])
def test_other_files_are_not_measured_times(tmp_path, content):
    path = tmp_path / "d.times.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TraceError, match=r"not a file of measured times, or torn|cannot be read"):
        read_times(path)


def test_times_belong_to_the_trace_of_the_same_passes(tmp_path):
    times = measured_times(batches=3)
    write_times(tmp_path / "t", times)
    check_belongs(read_times(tmp_path / "t"), trace_beside(times))
    with pytest.raises(TraceError, match="are not of the passes of its trace: batch differs"):
        check_belongs(times, trace_beside(measured_times(batches=2)))
    with pytest.raises(TraceError, match="are of model tiny, its trace of other"):
        check_belongs(times, trace_beside(measured_times(batches=3, model="other")))
