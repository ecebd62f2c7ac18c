import json

import numpy as np
import pytest

from tests.builders.trace_blocks import block, metadata
from tests.examples import seeds
from wdmoe_opencompass.trace import speed as module
from wdmoe_opencompass.trace.format import join
from wdmoe_opencompass.trace.speed import BatchSpeed, append_speed, keep_speed, measured_batches

TRACE = join(metadata(), [block(0), block(4), block(8, items=2)])


def speed(end, items=4, **changes):
    return BatchSpeed(**dict(end=end, items=items, prefill_s=0.5, decode_s=1.5, batch_s=2.5, device="GPU X") | changes)


@pytest.fixture
def path(tmp_path):
    """Of three batches."""
    path = tmp_path / "d.speed.jsonl"
    for end, items in ((4, 4), (8, 4), (10, 2)):
        append_speed(path, speed(end, items))
    return path


def test_batches_are_found_by_where_they_end(path):
    assert measured_batches(path, TRACE) == {0: speed(4), 1: speed(8), 2: speed(10, 2)}
    assert measured_batches(path.with_name("none"), TRACE) == {}


@pytest.mark.parametrize(("answered", "left"), [(0, []), (4, [4]), (8, [4, 8]), (9, [4, 8]), (10, [4, 8, 10])])
def test_a_run_that_goes_on_forgets_batches_that_are_redone(path, answered, left):
    keep_speed(path, answered)
    assert [batch.end for batch in measured_batches(path, TRACE).values()] == left
    assert path.exists() == bool(left)
    for end, items in ((4, 4), (8, 4), (10, 2))[len(left) :]:
        append_speed(path, speed(end, items))
    assert len(path.read_text().splitlines()) == len(measured_batches(path, TRACE)) == 3


@pytest.mark.parametrize("cut", [1, 20, 80])
def test_a_torn_last_line_takes_only_its_own_batch(path, cut):
    path.write_bytes(path.read_bytes()[:-cut])
    found = measured_batches(path, TRACE)
    assert list(found) == ([0, 1, 2] if cut == 1 else [0, 1])  # the line's end alone may lack
    keep_speed(path, 8)
    append_speed(path, speed(10, 2))
    assert list(measured_batches(path, TRACE)) == [0, 1, 2]


def test_lines_of_other_batches_and_second_ones_are_left_out(path):
    append_speed(path, speed(8, batch_s=99.0))
    append_speed(path, speed(6, 2))
    append_speed(path, speed(10, 4))
    assert measured_batches(path, TRACE) == {0: speed(4), 1: speed(8), 2: speed(10, 2)}


@pytest.mark.parametrize(
    "changes",
    [
        dict(prefill_s=-1.0),
        dict(decode_s=float("inf")),
        dict(batch_s=float("nan")),
        dict(batch_s="1"),
        dict(end=0),
        dict(end=1.5),
        dict(items=-1),
        dict(device="x" * 5000),
        dict(device=5),
        dict(more=1),
    ],
)
def test_lines_that_break_a_rule_count_for_nothing(tmp_path, changes):
    path = tmp_path / "d.speed.jsonl"
    path.write_text(json.dumps(speed(4).model_dump() | changes) + "\n")
    assert measured_batches(path, TRACE) == {}


@pytest.mark.parametrize("content", [b"\xff" * 50, b"[" * 100_000, b"null\n5\n{}\n", b"", b"\n" * 50])
def test_what_is_no_such_file_measured_nothing(tmp_path, content):
    path = tmp_path / "d.speed.jsonl"
    path.write_bytes(content)
    assert measured_batches(path, TRACE) == {}
    keep_speed(path, 8)
    assert not path.exists()


def test_random_damage_never_adds_a_batch(path):
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in seeds(300):
        broken = bytearray(whole)
        for position in rng.integers(0, len(broken), 3):
            broken[position] = rng.integers(256)
        path.write_bytes(broken)
        found = measured_batches(path, TRACE)
        assert set(found) <= {0, 1, 2}
        assert all(TRACE.items[number] == batch.items for number, batch in found.items())


def test_a_folder_or_too_large_a_file_measured_nothing(tmp_path, path, monkeypatch):
    (tmp_path / "folder").mkdir()
    assert measured_batches(tmp_path / "folder", TRACE) == {}
    monkeypatch.setattr(module, "MAX_SPEED_BYTES", 10)
    assert measured_batches(path, TRACE) == {}
