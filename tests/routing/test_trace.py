import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save

from tests.builders.trace_blocks import block, journal, metadata
from wdmoe_opencompass._util.checksummed_safetensors import write_sealed
from wdmoe_opencompass.errors import TraceError
from wdmoe_opencompass.trace.format import (
    join,
    read_trace,
    write_trace,
)


def begun(tmp_path):
    growing = journal(tmp_path)
    growing.resume(0)
    return growing


def equal(a, b):
    return a.metadata == b.metadata and all(np.array_equal(a.arrays[n], b.arrays[n]) for n in a.arrays)


def test_items_run_before_a_batch_count_every_label():
    """Two labels of six items in batches of four: an item's second run is not its first."""
    trace = join(metadata(), [block(0, 4), block(4, 2), block(0, 4), block(4, 2)])
    assert trace.first_item.tolist() == [0, 4, 0, 4]
    assert trace.items_before.tolist() == [0, 4, 6, 10]
    assert replace(trace, items_before_first=12).items_before.tolist() == [12, 16, 18, 22]
    assert join(metadata(), []).items_before.tolist() == []


def test_a_sealed_trace_reads_back_as_the_joined_batches(tmp_path):
    growing = begun(tmp_path)
    for number in range(3):
        growing.append(block(4 * number, seed=number))
    growing.seal(tmp_path / "d.trace.safetensors")
    read = read_trace(tmp_path / "d.trace.safetensors")
    assert equal(read, join(metadata(), [block(4 * n, seed=n) for n in range(3)]))
    assert read.batch.tolist() == [0, 0, 1, 1, 2, 2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.trace.safetensors"]


@pytest.mark.parametrize("answered", [0, 4, 8])
def test_a_batch_whose_answers_were_lost_is_redone_and_counted_once(tmp_path, answered):
    interrupted = begun(tmp_path)
    for number in range(3):
        interrupted.append(block(4 * number, seed=number))
    again = journal(tmp_path)
    again.resume(answered)
    for number in range(answered // 4, 3):
        again.append(block(4 * number, seed=number))
    assert equal(again.seal(tmp_path / "t"), join(metadata(), [block(4 * n, seed=n) for n in range(3)]))


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_torn_last_block_is_forgotten(tmp_path, cut):
    growing = begun(tmp_path)
    growing.append(block(0))
    growing.append(block(4))
    growing.path.write_bytes(growing.path.read_bytes()[:-cut])
    again = journal(tmp_path)
    again.resume(4)
    assert again.seal(tmp_path / "t").items.tolist() == [4]


def test_answers_without_counts_are_refused(tmp_path):
    growing = begun(tmp_path)
    growing.append(block(0))
    with pytest.raises(TraceError, match="knows 4 of the 8 items"):
        journal(tmp_path).resume(8)


def test_a_journal_of_other_settings_is_not_continued(tmp_path):
    begun(tmp_path).append(block(0))
    with pytest.raises(TraceError, match="knows 0 of the 4 items"):
        journal(tmp_path, policy="top_k").resume(4)


def test_bad_traces_get_one_sentence(tmp_path):
    path = tmp_path / "x.trace.safetensors"
    with pytest.raises(TraceError, match="cannot be read: No such file"):
        read_trace(path)
    path.write_bytes(b"\x10\0\0\0\0\0\0\0not json at all!")
    with pytest.raises(TraceError, match="not a routing trace, or torn"):
        read_trace(path)
    write_trace(path, join(metadata(), [block(0)]))
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    with pytest.raises(TraceError, match="not a routing trace, or torn"):
        read_trace(path)
    text = json.loads(metadata().model_dump_json()) | dict(format_version=99)
    path.write_bytes(save(block(0), metadata={"wdmoe_trace": json.dumps(text)}))
    with pytest.raises(TraceError, match="format_version must be 7, got 99"):
        read_trace(path)
    arrays = block(0)
    arrays["device_load"] = arrays["device_load"][:, :2]
    path.write_bytes(save(arrays, metadata={"wdmoe_trace": metadata().model_dump_json()}))
    with pytest.raises(TraceError, match="or torn: it does not state its SHA-256"):
        read_trace(path)
    write_sealed(path, arrays, {"wdmoe_trace": metadata().model_dump_json()})
    with pytest.raises(TraceError, match="array device_load must be int32"):
        read_trace(path)


@pytest.mark.parametrize(
    ("item_passes", "sentence"),
    [
        ([1, 2, 1], "must have 4 rows, one per item, got 3"),
        ([1, 2, 1, 1, 1], "must have 4 rows, one per item, got 5"),
        ([1, 2, 3, 1], "must be between 0 and the passes of the item's batch throughout"),
        ([1, 2, -1, 1], "must be >= 0 throughout, got -1"),
    ],
)
def test_items_wait_for_passes_that_their_batch_has(tmp_path, item_passes, sentence):
    path = tmp_path / "d.trace.safetensors"
    bad = block(0) | dict(item_passes=np.array(item_passes, np.int32))
    write_trace(path, join(metadata(), [bad]))
    with pytest.raises(TraceError, match=sentence):
        read_trace(path)
    growing = begun(tmp_path)
    growing.append(bad)
    with pytest.raises(TraceError, match=sentence):
        growing.read()


def test_items_that_a_forged_batch_claims_take_no_memory(tmp_path):
    path = tmp_path / "d.trace.safetensors"
    write_trace(path, join(metadata(), [block(0) | dict(items=np.array([2**31 - 1], np.int32))]))
    with pytest.raises(TraceError, match="must have 2147483647 rows, one per item, got 4"):
        read_trace(path)


def test_a_run_whose_policy_has_an_infinite_parameter_is_continued(tmp_path):
    infinite = dict(policy="bottleneck", policy_parameters=dict(factor=float("inf")))
    growing = journal(tmp_path, **infinite)
    growing.resume(0)
    growing.append(block(0))
    again = journal(tmp_path, **infinite)
    again.resume(4)
    again.seal(tmp_path / "d.trace.safetensors")
    assert read_trace(tmp_path / "d.trace.safetensors").metadata == metadata(**infinite)


def test_equal_traces_are_equal_bytes(tmp_path):
    contents = set()
    for number in range(8):
        path = tmp_path / f"{number}.trace.safetensors"
        write_trace(path, join(metadata(), [block(0), block(4)]))
        contents.add(path.read_bytes())
        assert read_trace(path).metadata == metadata()
    assert len(contents) == 1
